"""The rows of an energy report, from what was counted: layers, totals, and what has no number."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.operations import Operation
from ...graph.rules import NON_LINEAR, OperatorKind
from ...graph.signals import Signal
from ...neurons.ladder import Radix
from ...neurons.layer import MTNeuron
from ...neurons.spec import IF
from ...spiking.presentation import Encoder
from .bits import FLOAT_BITS, level_bits
from .fanout import Fanout, Paths
from .report import EnergyRow, EnergyTable, EnergyTotal, NotCounted, baseline
from .synops import StepCounts


def layer_rows(paths: Paths, counts: StepCounts, T: int, images: int) -> list[EnergyRow]:
    """A row for each weighted layer, product and layer of neurons, in order of execution."""
    rows = []
    for node, row in paths.operations.items():
        layer = row.layer
        if node in paths.fanouts:
            synops = float(counts.synops[node][:T].sum()) / images
            parameters = 0 if layer is None else sum(p.numel() for p in layer.parameters())
            rows.append(_weighted_cost(paths.fanouts[node], T, synops, parameters))
        elif node in counts.events and isinstance(layer, MTNeuron):
            neurons, directions = paths.shows[node].numel(), 2 if layer.spec.signed else 1
            rows.append(
                EnergyRow(
                    name=row.name,
                    operator=row.operator,
                    fed_by=row.fed_by,
                    time_steps=T,
                    synops=0,
                    macs=0,
                    comparisons=_comparisons(layer, directions) * neurons * T,
                    events=float(counts.events[node][:T].sum()) / images,
                    ann_macs=0,
                    bits=(0, 0),
                    packets=float(counts.packets[node][:T].sum()) / images,
                    shifts=_shifts(layer, T) * neurons,
                    leaks=_leaks(layer, T) * neurons,
                    neurons=neurons,
                    level_bits=level_bits(layer) or FLOAT_BITS,
                )
            )
    return rows


def _comparisons(layer: MTNeuron, directions: int) -> int:
    """Thresholds that one neuron looks at in a step, in both directions where it is signed. Of a
    function all of its own at most; a level below a dip is reached from two sides."""
    count = layer.spec.ladder.n * directions
    if layer.table is None:
        return count
    dips = bool((layer.table.weights < 0).any())
    return min(layer.table.thresholds.shape[1], count * (1 + dips))


def _shifts(layer: MTNeuron, T: int) -> int:
    """How often a membrane of digits is multiplied by its base: in each step in which it listens,
    and in each in which it speaks. For a power of two that is a shift."""
    return 2 * T if isinstance(layer.spec.ladder, Radix) else 0


def _leaks(layer: MTNeuron, T: int) -> int:
    """The multiply-accumulates by which a potential decays: one in each step; none of IF."""
    charge = layer.spec.charge
    return 0 if isinstance(charge, IF) or charge.tau == 1 else T


def _weighted_cost(fanout: Fanout, T: int, synops: float, parameters: int) -> EnergyRow:
    """A weighted layer or product: additions where its events are known, else
    multiply-accumulates."""
    row, times = fanout.row, T if fanout.changes else 1
    macs = row.macs * times if fanout.additions is None else 0
    return EnergyRow(
        name=row.name,
        operator=row.operator,
        fed_by=row.fed_by,
        time_steps=T,
        synops=synops,
        macs=macs,
        comparisons=0,
        events=0,
        ann_macs=row.macs,
        bits=fanout.bits,
        parameters=parameters,
    )


def total(rows: Sequence[EnergyRow], T: int, table: EnergyTable) -> EnergyTotal:
    """All layers together."""
    synops, events = sum(row.synops for row in rows), sum(row.events for row in rows)
    macs, comparisons = sum(row.macs for row in rows), sum(row.comparisons for row in rows)
    shifts, leaks = sum(row.shifts for row in rows), sum(row.leaks for row in rows)
    return EnergyTotal(
        time_steps=T,
        synops=synops,
        macs=macs,
        comparisons=comparisons,
        events=events,
        picojoules=synops * table.ac_pj + macs * table.mac_pj,
        comparison_picojoules=(comparisons + shifts) * table.ac_pj + leaks * table.mac_pj,
        bit_operations=sum(row.bit_operations for row in rows),
        baseline=baseline(rows),
        packets=sum(row.packets for row in rows),
        shifts=shifts,
        leaks=leaks,
    )


# ------------------------------------------------------------------------------ what is left out


_EVERYWHERE = (
    NotCounted("all neurons", "MTNeuron", "charging and resetting potentials"),
    NotCounted("all layers", "bias", "one addition per output, once or in every step"),
    NotCounted("all values", "memory", "reading and writing weights, spikes and potentials"),
)


def list_uncounted(paths: Paths) -> list[NotCounted]:
    """Everything in the graph that works and has no number, then what every network has."""
    rows = []
    for row in paths.operations.values():
        if row.node.op in ("call_module", "call_function") and not row.constant:
            reason = _reason(paths, row)
            if reason:
                rows.append(NotCounted(row.name, row.operator, reason))
    return [*rows, *_EVERYWHERE]


def _reason(paths: Paths, row: Operation) -> str:
    """Why a node has no number of its own; empty if it has one, or costs nothing."""
    rule, spiking = row.rule, row.signal is Signal.SPIKES
    assert rule is not None
    if isinstance(row.layer, Encoder):
        return "quantizes the image, once"
    if row.node in paths.fanouts:
        fanout = paths.fanouts[row.node]
        lost = fanout.row.spike_fed and fanout.additions is None
        return _LOST if lost else ""
    if row.node in paths.lost:
        return "events cannot be followed through it"
    if rule.selects:
        return "its comparisons" + "; what it passes on is counted as events" * spiking
    if rule.kind is OperatorKind.LINEAR and spiking:
        return rule.reason or "its own additions: events are counted at the weights behind it"
    said = rule.reason if rule.kind in (*NON_LINEAR, OperatorKind.LINEAR) else ""
    return said or _REASONS.get(rule.kind, "")


_LOST = (
    "its additions: events cannot be followed to it, multiply-accumulates stand in for them in "
    "every step"
)
_REASONS = {
    OperatorKind.WEIGHTED: "a layer whose multiply-accumulates are not known",
    OperatorKind.AFFINE: "an affine of each entry, absorbed by thresholds where neurons follow",
    OperatorKind.LINEAR: "additions without weights",
    OperatorKind.PRODUCT: "an element-wise product",
    OperatorKind.DIFFERENCE: "a non-linear function",
    OperatorKind.FUNCTION: "a non-linear function",
}
