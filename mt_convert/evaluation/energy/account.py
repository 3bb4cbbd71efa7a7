"""Does a spiking network pay? Beside the quantized network of the same bits, then beside fp32; one
from scratch, which has no quantized network, beside the float network of the same architecture.

Compute, neurons and memory apart, from the rows of an `EnergyReport`; several tables of prices and
models of memory, so that it is said whether the ranking hangs on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...report.records import figures
from .bits import FLOAT_BITS
from .prices import PRICES, EnergySpec, MemoryModel, Weights
from .report import EnergyReport, EnergyRow, EnergyTable


@dataclass(frozen=True)
class Reference:
    """The network that a spiking one is compared with first.

    ``name`` in tables, ``words`` in sentences; ``bits`` of all its numbers, None those of each
    layer; ``tables`` the prices that a sweep tries; ``reason`` why it is this one.
    """

    name: str
    words: str
    bits: int | None
    tables: tuple[str, ...]
    reason: str = ""


QUANTIZED = Reference(
    "quantized network, the same bits",
    "the quantized network of the same bits",
    None,
    tuple(PRICES),
)
FLOAT = Reference(
    "float network, the same architecture",
    "the float network of the same architecture",
    FLOAT_BITS,
    ("fp32", "fp16"),
    "There is no quantized network of the same bits to compare it with: it was trained with float "
    "weights, and what its neurons emit are no levels of a quantizer.",
)


@dataclass(frozen=True)
class Cost:
    """What one image costs a network. Units: picojoules.

    Example:
        >>> Cost("QANN", 3.0, 1.0, 2.0).total
        6.0
    """

    name: str
    compute: float
    neurons: float
    memory: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.neurons + self.memory


def spiking_cost(
    name: str, rows: Sequence[EnergyRow], prices: EnergyTable, memory: MemoryModel
) -> Cost:
    """The spiking network: additions where spikes feed; comparisons, shifts and leaks of its
    neurons.

    Example:
        >>> from ...graph.signals import Signal
        >>> row = EnergyRow("fc", "Linear", Signal.SPIKES, 1, 10.0, 0, 0, 0, 40, (4, 4))
        >>> prices, memory = PRICES["int8"], MemoryModel(Weights.NOT_COUNTED)
        >>> spiking_cost("SNN", [row], prices, memory).compute
        0.3
    """
    synops = sum(row.synops for row in rows)
    compute = synops * prices.ac_pj + sum(row.macs for row in rows) * prices.mac_pj
    neurons = sum(row.comparisons + row.shifts for row in rows) * prices.ac_pj
    neurons += sum(row.leaks for row in rows) * prices.mac_pj
    bits = 0.0
    if memory.weights is not Weights.NOT_COUNTED:
        bits = sum(_spiking_bits(row, memory) for row in rows)
    return Cost(name, round(compute, 6), round(neurons, 6), round(bits * memory.bit_pj, 6))


def _spiking_bits(row: EnergyRow, memory: MemoryModel) -> float:
    """The bits that one layer moves."""
    if row.neurons:
        address = max(1, (row.neurons - 1).bit_length())
        size = max(1, math.ceil(row.events / row.packets).bit_length()) if row.packets else 1
        state = 2.0 * row.neurons * row.time_steps * memory.state_bits
        return state + 2 * row.packets * (address + size)
    weight = row.bits[0]
    if row.macs or not row.ann_macs:  # analog: as often as it is computed
        return row.parameters * weight * max(1, row.macs // max(1, row.ann_macs))
    if memory.weights is Weights.PER_EVENT:
        return row.synops * weight
    return float(row.parameters * weight * row.time_steps)


def dense_cost(
    name: str, rows: Sequence[EnergyRow], prices: EnergyTable, memory: MemoryModel, bits: int | None
) -> Cost:
    """The network before conversion: ``bits`` of all its numbers, or those of each layer (None).

    Its activation function costs a multiply-accumulate per neuron where it rounds, else an
    addition.

    Example:
        >>> from ...graph.signals import Signal
        >>> row = EnergyRow("fc", "Linear", Signal.SPIKES, 1, 10.0, 0, 0, 0, 40, (4, 4))
        >>> prices, memory = PRICES["fp32"], MemoryModel(Weights.NOT_COUNTED)
        >>> dense_cost("ANN", [row], prices, memory, 32).compute
        184.0
    """
    compute = sum(row.ann_macs for row in rows) * prices.mac_pj
    activations = sum(row.neurons for row in rows)
    neurons = activations * (prices.mac_pj if bits is None else prices.ac_pj)
    moved = 0
    if memory.weights is not Weights.NOT_COUNTED:
        moved += sum(row.parameters * (bits or row.bits[0]) for row in rows)
        moved += sum(2 * row.neurons * (bits or row.level_bits) for row in rows)
    return Cost(name, round(compute, 6), round(neurons, 6), round(moved * memory.bit_pj, 6))


def account(
    reports: Mapping[str, tuple[EnergyReport, int]],
    spec: EnergySpec | None = None,
    reference: Reference = QUANTIZED,
) -> dict[str, Any]:
    """The account of a spiking network, as plain data: what it costs in the first of the ways to
    run it, and in the others, beside the network it is compared with first, and the float one.

    ``reports``: for each way to run it, by its name, an energy report and the steps it is for.
    ``spec``: at which prices, with which model of memory. ``reference``: `FLOAT` for a network
    from scratch.
    """
    spec = spec or EnergySpec()
    memory, float_prices = spec.memory, spec.float_table
    rows = {name: _rows_at(report, T) for name, (report, T) in reports.items()}
    (first, own), *_ = rows.items()
    prices = spec.table(own)
    beside = dense_cost(reference.name, own, prices, memory, reference.bits)
    ann = dense_cost(f"float network, {spec.float_prices}", own, float_prices, memory, FLOAT_BITS)
    spiking = [
        spiking_cost(f"spiking network, {name}", shown, prices, memory)
        for name, shown in rows.items()
    ]
    sweep = price_sweep(own, memory, prices, reference)
    alone = reference.bits is None or prices != float_prices
    shown = [(beside, "reference"), *((item, "spiking") for item in spiking)]
    shown += [(ann, "float")] if alone else []
    words = _Words(first, spiking[0], beside, ann if alone else None, prices, spec, reference)
    return {
        "way": first,
        "price": asdict(prices),
        "prices": [asdict(item) for item in PRICES.values()],
        "spec": spec.to_json(),
        "memory": {**asdict(memory), "weights": memory.weights.words},
        "reference": asdict(reference),
        "networks": [{**_network_json(item, spiking[0]), "role": role} for item, role in shown],
        "layers": [_layer_json(row) for row in own],
        "over_time": {
            name: [_at(report, steps, prices, memory) for steps in _steps(report)]
            for name, (report, _) in reports.items()
        },
        "pays": spiking[0].total < beside.total,
        "sentence": words.sentence(sweep),
        "short": words.short(),
        "break_even": break_even(own, beside, prices, memory, reference),
        "sweep": sweep,
        "stable": len({item["ratio"] < 1 for item in sweep}) == 1,
        "sweep_sentence": _sweep_sentence(sweep, reference),
        "model": _model_in_words(prices, float_prices, memory, reference),
        "not_counted": [
            f"{item.name} ({item.operator}): {item.reason}"
            for item in reports[first][0].not_counted
            if item.operator != "memory"
        ],
    }


def costs_over_time(
    report: EnergyReport, spec: EnergySpec | None = None, reference: Reference = QUANTIZED
) -> dict[str, Any]:
    """What one network costs after each of its numbers of steps, beside the quantized network of
    the same bits, where the ``reference`` is that, and the float one, as plain data.

    Units: picojoules per image.
    """
    spec = spec or EnergySpec()
    lines: list[dict[str, Any]] = []
    prices = spec.table(report.rows)
    for T in _steps(report):
        rows = _rows_at(report, T)
        spiking = spiking_cost("", rows, prices, spec.memory)
        beside = dense_cost("", rows, prices, spec.memory, reference.bits).total
        ann = dense_cost("", rows, spec.float_table, spec.memory, FLOAT_BITS).total
        parts = {key: getattr(spiking, key) for key in ("compute", "neurons", "memory", "total")}
        quantized = beside if reference.bits is None else None
        floats = ann if reference.bits is None else beside
        lines.append({"T": T, **parts, "quantized": quantized, "float": floats})
    model = _model_in_words(prices, spec.float_table, spec.memory, reference)
    return {
        "spec": spec.to_json(),
        "price": asdict(prices),
        "rows": lines,
        "sentence": _pays_until(lines, reference),
        "model": f"{model} {reference.reason}".rstrip(),
    }


def costs_page(accounts: Sequence[Mapping[str, Any]]) -> str:
    """Accounts of `costs_over_time` with their titles as a Markdown page; empty without any.

    Example:
        >>> costs_page([])
        ''
    """
    if not accounts:
        return ""
    head = ("T", "compute", "neurons", "memory", "all", "of the quantized", "of the float network")
    lines = ["## Does it pay?", "", f"nJ per image. {accounts[0]['model']}", ""]
    for item in accounts:
        lines += [f"### {item['title']}", "", item["sentence"], ""]
        if item["model"] != accounts[0]["model"]:
            lines += [item["model"], ""]
        lines += [f"| {' | '.join(head)} |", "|" + " ---: |" * len(head)]
        lines += [f"| {' | '.join(cost_cells(row))} |" for row in item["rows"]]
        lines.append("")
    return "\n".join(lines)


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `costs_over_time` as text: steps, nJ of each part, times what the others cost.

    Example:
        >>> parts = dict.fromkeys(("compute", "neurons", "memory"), 1000.0) | {"total": 3000.0}
        >>> cost_cells({"T": 2, **parts, "quantized": 2000.0, "float": 0})[-2:]
        ['1.50 times', '–']
    """
    parts = [figures(row[key] / 1000) for key in ("compute", "neurons", "memory", "total")]
    shares = [
        f"{row['total'] / row[key]:.2f} times" if row[key] else "–"
        for key in ("quantized", "float")
    ]
    return [str(row["T"]), *parts, *shares]


def _pays_until(lines: Sequence[Mapping[str, Any]], reference: Reference) -> str:
    """After which steps it is cheaper than the network beside it."""
    key = "quantized" if reference.bits is None else "float"
    times = {item["T"]: item["total"] / item[key] for item in lines if item[key]}
    ends = ", ".join(f"{times[T]:.2f} times at T = {T}" for T in dict.fromkeys((*times,)))
    pays = [T for T, share in times.items() if share < 1]
    if not pays:
        word = "It does not pay"
    elif len(pays) == len(times):
        word = "It pays"
    else:
        word = f"It pays at T = {', '.join(map(str, pays))} alone"
    return f"{word}: {ends} what {reference.words} costs."


def _rows_at(report: EnergyReport, T: int) -> list[EnergyRow]:
    """The rows of one number of steps."""
    return [row for row in report.rows if row.time_steps == T]


def _steps(report: EnergyReport) -> list[int]:
    """All numbers of steps of a report."""
    return sorted({row.time_steps for row in report.rows})


def _at(
    report: EnergyReport, steps: int, prices: EnergyTable, memory: MemoryModel
) -> dict[str, Any]:
    """What the spiking network costs after so many steps."""
    cost = spiking_cost("", _rows_at(report, steps), prices, memory)
    return {"T": steps, "total": cost.total}


def _network_json(cost: Cost, spiking: Cost) -> dict[str, Any]:
    """One network as plain data, and how much of it the spiking one costs."""
    share = spiking.total / cost.total if cost.total and cost is not spiking else None
    return {**asdict(cost), "total": cost.total, "spiking_share": share}


COUNTS = ("synops", "macs", "ann_macs", "comparisons", "shifts", "leaks", "events", "packets")


def _layer_json(row: EnergyRow) -> dict[str, Any]:
    """What one layer does per image, as plain data."""
    counts = {name: getattr(row, name) for name in COUNTS}
    return {"name": row.name, "operator": row.operator, "fed_by": str(row.fed_by), **counts}


def break_even(
    rows: Sequence[EnergyRow],
    beside: Cost,
    prices: EnergyTable,
    memory: MemoryModel,
    reference: Reference = QUANTIZED,
) -> dict[str, Any]:
    """The firing rate at which the spiking network costs what the one ``beside`` it does.

    What grows with spikes (additions, packets, weights per event) is scaled; all else stays.
    Units: rates are events per neuron and image. ``rate`` None: no rate would do.
    """
    silent = [replace(row, synops=0.0, events=0.0, packets=0.0) for row in rows]
    fixed = spiking_cost("", silent, prices, memory).total
    grows = spiking_cost("", rows, prices, memory).total - fixed
    neurons = sum(row.neurons for row in rows)
    here = sum(row.events for row in rows) / max(1, neurons)
    left = beside.total - fixed
    other = _short_name(reference)
    rate = left / grows * here if grows > 0 and left > 0 else None
    if not here:
        said = "No neuron fired."
    elif rate is None:
        said = (
            f"No firing rate would pay here: what does not depend on spikes (analog layers, "
            f"comparisons, potentials) alone costs {figures(fixed / 1000)} nJ, {other} "
            f"{figures(beside.total / 1000)} nJ."
        )
    else:
        said = (
            f"It costs what {other} does at {rate:.3g} events per neuron and image; "
            f"it stands at {here:.3g}, {here / rate:.2f} times that."
        )
    return {"rate": rate, "here": here, "fixed_pj": fixed, "sentence": said}


def price_sweep(
    rows: Sequence[EnergyRow],
    memory: MemoryModel,
    own: EnergyTable | None = None,
    reference: Reference = QUANTIZED,
) -> list[dict[str, Any]]:
    """Spiking network and ``reference`` (under the key ``quantized``) at all prices that fit it,
    ``own`` ones too, with each way to read weights."""
    sweep = []
    tables = [PRICES[name] for name in reference.tables]
    for table in dict.fromkeys((*([] if own is None else [own]), *tables)):
        for weights in Weights:
            model = replace(memory, weights=weights)
            spiking = spiking_cost("", rows, table, model).total
            beside = dense_cost("", rows, table, model, reference.bits).total
            sweep.append(
                {
                    "prices": table.name,
                    "mac_pj": table.mac_pj,
                    "ac_pj": table.ac_pj,
                    "weights": weights.words,
                    "spiking": spiking,
                    "quantized": beside,
                    "ratio": spiking / beside if beside else 0.0,
                }
            )
    return sweep


# --------------------------------------------------------------------------------- in words


def _short_name(reference: Reference) -> str:
    """The network beside it, in few words.

    Example:
        >>> _short_name(QUANTIZED)
        'the quantized network'
    """
    return reference.words.partition(" of ")[0]


@dataclass(frozen=True)
class _Words:
    """What is said of the costs: of the spiking network, the one beside it, and the float one where
    that is another."""

    way: str
    spiking: Cost
    beside: Cost
    ann: Cost | None
    prices: EnergyTable
    spec: EnergySpec
    reference: Reference

    def sentence(self, sweep: Sequence[Mapping[str, Any]]) -> str:
        """Whether it pays, and whether that hangs on prices."""
        share = self._share(self.beside)
        cheaper = sum(item["ratio"] < 1 for item in sweep)
        stable = cheaper in (0, len(sweep))
        counts = self.spec.memory.weights is not Weights.NOT_COUNTED
        counted = "memory counted" if counts else "memory not counted"
        floats = ""
        if self.ann is not None:
            share_of = f"{self._share(self.ann):.2f}"
            floats = f", and {share_of} times what the float network costs in {self._floats}"
        said = (
            f"{'It pays' if share < 1 else 'It does not pay'}: with {self.way} the spiking network "
            f"costs {share:.2f} times what {self.reference.words} costs ({self.prices.name}, "
            f"{counted}){floats}."
        )
        if not stable:
            said += f" It is cheaper at {cheaper} of {len(sweep)} prices and models of memory."
        return said

    def short(self) -> str:
        """The same in a line."""
        way = self.way.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        share = self._share(self.beside)
        times = f"{share:.2f} times {_short_name(self.reference)}"
        if self.ann is not None:
            times += f", {self._share(self.ann):.2f} times {self._floats}"
        return f"{'yes' if share < 1 else 'no'}: {times} ({way})"

    @property
    def _floats(self) -> str:
        return self.spec.float_prices

    def _share(self, cost: Cost) -> float:
        """How much of it the spiking network costs."""
        return self.spiking.total / cost.total if cost.total else 0.0


def _sweep_sentence(sweep: Sequence[Mapping[str, Any]], reference: Reference) -> str:
    """Whether the ranking hangs on the prices."""
    cheaper = sum(item["ratio"] < 1 for item in sweep)
    low, high = min(sweep, key=_ratio), max(sweep, key=_ratio)
    ends = (
        f"from {low['ratio']:.2f} ({low['prices']}, weights {low['weights']}) to "
        f"{high['ratio']:.2f} ({high['prices']}, weights {high['weights']}) times "
        f"{_short_name(reference).removesuffix(' network')} one"
    )
    if cheaper in (0, len(sweep)):
        word = "cheaper" if cheaper else "dearer"
        return f"No: the spiking network is {word} in all {len(sweep)} combinations, {ends}."
    return f"Yes: the spiking network is cheaper in {cheaper} of {len(sweep)} combinations, {ends}."


def _ratio(item: Mapping[str, Any]) -> float:
    """What a combination is sorted by."""
    return float(item["ratio"])


def _model_in_words(
    prices: EnergyTable, floats: EnergyTable, memory: MemoryModel, reference: Reference = QUANTIZED
) -> str:
    """What was counted, at which prices."""
    state = f"{memory.state_bits} {'bit' if memory.state_bits == 1 else 'bits'}"
    if memory.weights is Weights.NOT_COUNTED:
        moved = "Memory is not counted."
    else:
        moved = (
            f"Memory, {memory.bit_pj:.4g} pJ a bit: the spiking network reads weights "
            f"{memory.weights.words}, reads and writes a potential of {state} per neuron and "
            "step, writes and reads each packet's address and size; the others read each weight "
            "once per image, write and read each activation once."
        )
    each = (
        f"{prices.name}: {prices.mac_pj} pJ a multiply-accumulate, {prices.ac_pj} pJ an addition, "
    )
    each += "comparison or shift"
    if reference.bits is None or prices != floats:
        each += f"; the float network at {floats.mac_pj} and {floats.ac_pj} pJ"
    dense = "the float network pays an addition for each activation"
    if reference.bits is None:
        dense = (
            "the quantized network pays a multiply-accumulate for each rounding, the float one an "
            "addition for each activation"
        )
    return (
        f"{each} (tables by Horowitz 2014). Neurons: a comparison with each threshold in each "
        f"step, a multiply-accumulate for each leak; {dense}. {moved}"
    )
