"""What `energy` found, as values, and how people read it.

An `EnergyRow` per layer and number of steps, an `EnergyTotal` per number of steps, both
per image; prices are an `EnergyTable`, the networks to compare with a `Baseline`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ...graph.signals import Signal
from ...report.records import Records, figures
from ...system.plain_data import as_type

ENERGY_SCHEMA = "mt_convert.energy/1"


@dataclass(frozen=True)
class EnergyTable:
    """What one multiply-accumulate and one addition cost; comparisons and shifts cost an addition.

    Units: picojoules.

    Example:
        >>> FP32_45NM.mac_pj, FP32_45NM.ac_pj
        (4.6, 0.9)
    """

    mac_pj: float
    ac_pj: float
    name: str


FP32_45NM = EnergyTable(4.6, 0.9, "45 nm, fp32")
"""Source: H-MT (AAAI 2026), section 5.2."""
INT32_45NM = EnergyTable(3.2, 0.1, "45 nm, int32")


@dataclass(frozen=True)
class EnergyRow:
    """One layer after T steps: a weighted layer, a product, or a layer of neurons.

    ``fed_by`` is what its input is made of. ``macs`` are those that are left, ``ann_macs`` those of
    the network before conversion. ``bits`` are those of weights and input in the quantized network,
    or of the wider and the other side of a product; 32 for floats.

    Units: all numbers per image; ``events`` are the thresholds that the layer crosses (set bits of
        a binary ladder, the size of a digit), ``packets`` the steps in which a neuron of it emits
        anything, ``shifts`` those of membranes whose neurons speak in digits; ``parameters`` are a
        layer's weights and biases, ``neurons`` those of a layer of neurons and ``level_bits`` what
        the level of each takes in the quantized network; ``leaks`` the multiply-accumulates by
        which potentials decay (0 in rows of before they were counted).

    Example:
        >>> EnergyRow("fc", "Linear", Signal.SPIKES, 2, 300, 0, 0, 0, 200, (4, 8)).bit_operations
        1200
    """

    name: str
    operator: str
    fed_by: Signal
    time_steps: int
    synops: float
    macs: int
    comparisons: int
    events: float
    ann_macs: int
    bits: tuple[int, int]
    packets: float = 0
    shifts: int = 0
    parameters: int = 0
    neurons: int = 0
    level_bits: int = 0
    leaks: int = 0

    @property
    def bit_operations(self) -> float:
        """An addition costs the bits of the weight, a multiply-accumulate those of the weight times
        those of the input; comparisons are left out."""
        return self.synops * self.bits[0] + self.macs * math.prod(self.bits)


@dataclass(frozen=True)
class Baseline:
    """What one image costs the networks that the spiking one came from.

    Units: picojoules, and bits added.
    """

    ann_pj: float
    qann_pj: float
    qann_bit_operations: int


def baseline(rows: Sequence[EnergyRow]) -> Baseline:
    """The fp32 ANN, and the integer QANN of equal bits, from the rows of one number of steps.

    The ANN pays an fp32 multiply-accumulate for each of its own, first layer included. The QANN
    pays for the same number the price of 32-bit integers, whatever its bits; narrower ones cost
    less, so there is a second measure without prices: a product of a weight of b_w bits and an
    input of b_a bits is b_a additions of b_w bits. Both without the cost of rounding activations.

    Example:
        >>> row = EnergyRow("fc", "Linear", Signal.SPIKES, 1, 300, 0, 0, 0, 200, (4, 8))
        >>> baseline([row])
        Baseline(ann_pj=920.0, qann_pj=640.0, qann_bit_operations=6400)
    """
    macs = sum(row.ann_macs for row in rows)
    return Baseline(
        ann_pj=round(macs * FP32_45NM.mac_pj, 6),
        qann_pj=round(macs * INT32_45NM.mac_pj, 6),
        qann_bit_operations=sum(row.ann_macs * math.prod(row.bits) for row in rows),
    )


@dataclass(frozen=True)
class EnergyTotal:
    """The whole network after T steps.

    ``picojoules`` are those of additions and multiply-accumulates, as the literature reports them;
    ``comparison_picojoules``, of comparisons, shifts and leaks, come on top.

    Units: all numbers per image.
    """

    time_steps: int
    synops: float
    macs: int
    comparisons: int
    events: float
    picojoules: float
    comparison_picojoules: float
    bit_operations: float
    baseline: Baseline
    packets: float = 0
    shifts: int = 0
    leaks: int = 0

    @property
    def ratios(self) -> dict[str, float]:
        """Shares of what the ANN and the QANN cost, without comparisons and with; 0 where they
        cost nothing."""
        compared = self.picojoules + self.comparison_picojoules
        pairs = {
            "ann": (self.picojoules, self.baseline.ann_pj),
            "qann": (self.picojoules, self.baseline.qann_pj),
            "ann_with_comparisons": (compared, self.baseline.ann_pj),
            "qann_with_comparisons": (compared, self.baseline.qann_pj),
            "qann_bit_operations": (self.bit_operations, self.baseline.qann_bit_operations),
        }
        return {name: cost / base if base else 0.0 for name, (cost, base) in pairs.items()}


@dataclass(frozen=True)
class NotCounted:
    """Something that costs energy and is in no column, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, repr=False)
class EnergyReport(Records):
    """What `energy` counted: each layer and the whole, for each number of steps.

    ``images`` were averaged over; ``prices`` are those of the spiking network.
    """

    images: int
    prices: EnergyTable
    rows: tuple[EnergyRow, ...]
    totals: tuple[EnergyTotal, ...]
    not_counted: tuple[NotCounted, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer and number of steps."""
        return [
            {
                **dataclasses.asdict(row),
                **{"fed_by": str(row.fed_by), "bits": "x".join(map(str, row.bits))},
            }
            for row in self.rows
        ]

    def __repr__(self) -> str:
        said = [
            f"T={item.time_steps}: {figures(item.picojoules / 1000)} nJ, "
            f"{item.ratios['qann']:.3g} of the quantized network"
            for item in self.totals[:4]
        ]
        return f"EnergyReport({self.images} images, {self.prices.name}; {'; '.join(said)})"

    def to_json(self) -> dict[str, Any]:
        """Plain data under a schema."""
        totals = [{**dataclasses.asdict(item), "ratios": item.ratios} for item in self.totals]
        rows = [{**dataclasses.asdict(row), "fed_by": str(row.fed_by)} for row in self.rows]
        return {
            "schema": ENERGY_SCHEMA,
            **dataclasses.asdict(self),
            "rows": [{**row, "bits": list(row["bits"])} for row in rows],
            "totals": totals,
            "not_counted": [dataclasses.asdict(item) for item in self.not_counted],
        }

    @classmethod
    def from_json(cls, stored: Any) -> EnergyReport:
        """What `to_json` wrote; what is counted from its rows is counted again.

        Raises:
            CheckpointError: another schema, or a part is missing.
        """
        if not isinstance(stored, dict) or stored.get("schema") != ENERGY_SCHEMA:
            raise CheckpointError(f"no energy of this version: its schema must be {ENERGY_SCHEMA}")
        report: EnergyReport = as_type(cls, stored)
        return report

    def markdown(self) -> str:
        """A page: the totals, the layers at the largest number of steps, and what is left out."""
        shown = [row for row in self.rows if row.time_steps == self.totals[-1].time_steps]
        missing = [f"- {item.name} ({item.operator}): {item.reason}" for item in self.not_counted]
        return "\n".join(
            [
                f"Per image, mean of {self.images}; {self.prices.name}: {self.prices.mac_pj} pJ a "
                f"multiply-accumulate, {self.prices.ac_pj} pJ an addition, comparison or shift.",
                "",
                *_table(TOTAL_COLUMNS, map(total_cells, self.totals)),
                "",
                LEGEND + ".",
                "",
                f"Layers at T = {self.totals[-1].time_steps}:",
                "",
                *_table(ROW_COLUMNS, map(_row_cells, shown)),
                "",
                "Not counted:",
                "",
                *missing,
                "",
            ]
        )


TOTAL_COLUMNS = (
    *("T", "SynOps", "MACs", "comparisons", "shifts", "thresholds crossed", "packets", "nJ"),
    *("of ANN", "of QANN"),
    *("nJ with comparisons", "of ANN", "of QANN", "bit operations of QANN"),
)
"""The columns people read; `LEGEND` says what they are shares of."""

LEGEND = (
    "of ANN: of all its multiply-accumulates in fp32 (4.6 pJ each); of QANN: of the same number in "
    "32-bit integers (3.2 pJ each), whatever its bits; bit operations: an addition counts the bits "
    "of the weight, a multiply-accumulate those of weight times input, in both networks"
)

ROW_COLUMNS = (
    *("layer", "kind", "fed by", "SynOps", "MACs", "of ANN's", "comparisons", "shifts"),
    *("thresholds crossed", "packets"),
)


def total_cells(total: EnergyTotal) -> list[str]:
    """A total as text, one entry for each of `TOTAL_COLUMNS`."""
    ratios = total.ratios
    counts = [total.synops, total.macs, total.comparisons, total.shifts]
    counts += [total.events, total.packets]
    compared = total.picojoules + total.comparison_picojoules
    return [
        str(total.time_steps),
        *map(_count, counts),
        f"{total.picojoules / 1000:,.3f}",
        f"{ratios['ann']:.4f}",
        f"{ratios['qann']:.4f}",
        f"{compared / 1000:,.3f}",
        f"{ratios['ann_with_comparisons']:.4f}",
        f"{ratios['qann_with_comparisons']:.4f}",
        f"{ratios['qann_bit_operations']:.4f}",
    ]


def _row_cells(row: EnergyRow) -> list[str]:
    """A layer as text, one entry for each of `ROW_COLUMNS`."""
    counts = [row.synops, row.macs, row.ann_macs, row.comparisons, row.shifts]
    counts += [row.events, row.packets]
    return [row.name, row.operator, str(row.fed_by), *map(_count, counts)]


def _count(number: float) -> str:
    """A number of things per image: whole ones without a decimal."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]
