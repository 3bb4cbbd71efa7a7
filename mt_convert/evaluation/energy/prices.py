"""What a sum, a product and a moved bit cost: tables of prices, the model of memory, and the
`EnergySpec` that a recipe chooses them by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from ...errors import Fault, SpecError, many
from .bits import FLOAT_BITS
from .report import EnergyRow, EnergyTable

FP32 = EnergyTable(4.6, 0.9, "fp32, 45 nm")
FP16 = EnergyTable(1.5, 0.4, "fp16, 45 nm")
INT32 = EnergyTable(3.2, 0.1, "int32, 45 nm")
INT8 = EnergyTable(0.23, 0.03, "int8, 45 nm")
PRICES: Mapping[str, EnergyTable] = {"fp32": FP32, "fp16": FP16, "int32": INT32, "int8": INT8}
"""A multiply-accumulate is a product and a sum. Source: Horowitz, ISSCC 2014, 45 nm, 0.9 V; the
comparison with quantized networks of equal information: arXiv 2409.08290 v4."""

PriceName = Literal["fp32", "fp16", "int32", "int8"]
LARGEST, WIDEST = 1e6, 64  # picojoules; bits of a potential


class Weights(StrEnum):
    """How often a spiking network reads its weights."""

    NOT_COUNTED = "not_counted"
    ONCE = "once_per_step"  # a layer's spikes are gathered, its weights pass by once
    PER_EVENT = "per_event"  # event-driven: nothing is shared between events

    @property
    def words(self) -> str:
        """The same for a reader."""
        return {
            Weights.NOT_COUNTED: "not counted",
            Weights.ONCE: "once per layer and step",
            Weights.PER_EVENT: "for each event",
        }[self]


@dataclass(frozen=True)
class MemoryModel:
    """What moving a bit costs, and which bits move.

    Weights: read as `Weights` says by what spikes feed; once per image (and once per step where
    the input changes) by all else, the quantized and the float network included: their tiles are
    used again. State: a potential of ``state_bits`` is read and written per neuron and step.
    Events: each packet carries its neuron's address and its size, written once and read once.
    Activations of the quantized network, in their bits, and of the float one, in 32: written once
    and read once.

    Units: ``bit_pj`` picojoules per bit; 20 pJ for 64 bits of a 32 kB SRAM (Horowitz, 45 nm).

    Example:
        >>> MemoryModel().bit_pj, MemoryModel().weights.words
        (0.3125, 'once per layer and step')
    """

    weights: Weights = Weights.ONCE
    bit_pj: float = 20 / 64
    state_bits: int = 16


@dataclass(frozen=True)
class EnergySpec:
    """At which prices, and with which model of memory, a converted network is accounted for.

    ``prices`` names a table of `PRICES`, None the one for the narrowest arithmetic that holds all
    weights and activations; ``mac_pj`` and ``ac_pj`` stand in place of its numbers. The float
    network is always at those of ``float_prices``. What moves bits is said at `MemoryModel`.

    Units: ``mac_pj``, ``ac_pj`` picojoules for a multiply-accumulate and for an addition,
        comparison or shift; ``bit_pj`` for moving a bit; ``state_bits`` bits of a potential.

    Raises:
        SpecError: a value outside what is allowed; all of them at once.

    Example:
        >>> EnergySpec("int32", mac_pj=2.0).table([])
        EnergyTable(mac_pj=2.0, ac_pj=0.1, name='int32, 45 nm, but 2 pJ a multiply-accumulate')
    """

    prices: PriceName | None = None
    mac_pj: float | None = None
    ac_pj: float | None = None
    float_prices: PriceName = "fp32"
    weights: Weights = Weights.ONCE
    bit_pj: float = 20 / 64
    state_bits: int = 16

    def __post_init__(self) -> None:
        names = ", ".join(PRICES)
        faults = [
            Fault(name, repr(value), f"allowed: {names}")
            for name, value in (("prices", self.prices), ("float_prices", self.float_prices))
            if value not in PRICES and not (value is None and name == "prices")
        ]
        if self.weights not in [*Weights]:
            hint = f"allowed: {', '.join(Weights)}"
            faults.append(Fault("weights", repr(self.weights), hint))
        for name in ("mac_pj", "ac_pj", "bit_pj"):
            value = getattr(self, name)
            optional = value is None and name != "bit_pj"
            if not optional and not (_is_number(value) and 0 <= value <= LARGEST):
                faults.append(Fault(name, repr(value), f"allowed: 0 to {LARGEST:.0f}"))
        bits = self.state_bits
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= WIDEST:
            faults.append(Fault("state_bits", repr(bits), f"allowed: whole numbers, 1 to {WIDEST}"))
        if faults:
            raise SpecError(f"{many(faults, 'value', 'values')} of energy not allowed", faults)

    @property
    def memory(self) -> MemoryModel:
        """Which bits move, and what that costs."""
        return MemoryModel(Weights(self.weights), self.bit_pj, self.state_bits)

    @property
    def float_table(self) -> EnergyTable:
        """The prices of the float network."""
        return PRICES[self.float_prices]

    def table(self, rows: Sequence[EnergyRow]) -> EnergyTable:
        """The prices of the quantized and the spiking network of these rows."""
        plain = equal_prices(rows) if self.prices is None else PRICES[self.prices]
        mac = plain.mac_pj if self.mac_pj is None else self.mac_pj
        ac = plain.ac_pj if self.ac_pj is None else self.ac_pj
        if (mac, ac) == (plain.mac_pj, plain.ac_pj):
            return plain
        if self.mac_pj is not None and self.ac_pj is not None:
            return EnergyTable(mac, ac, f"{mac:g} and {ac:g} pJ, own prices")
        part = f"{mac:g} pJ a multiply-accumulate"
        if self.mac_pj is None:
            part = f"{ac:g} pJ an addition"
        return EnergyTable(mac, ac, f"{plain.name}, but {part}")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "weights": str(self.weights)}


def _is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


FLOAT_STATE = EnergySpec(state_bits=FLOAT_BITS)
"""What a network from scratch is accounted for with: its potentials are floats."""


def equal_prices(rows: Sequence[EnergyRow]) -> EnergyTable:
    """The prices of the narrowest arithmetic that holds all weights and activations.

    Example:
        >>> from ...graph.signals import Signal
        >>> row = EnergyRow("fc", "Linear", Signal.SPIKES, 1, 10.0, 0, 0, 0, 40, (4, 4))
        >>> equal_prices([row]).name
        'int8, 45 nm'
    """
    bits = max((max(row.bits) for row in rows), default=FLOAT_BITS)
    return FP32 if bits >= FLOAT_BITS else INT8 if bits <= 8 else INT32
