"""Additions, multiply-accumulates, comparisons and leaks per image of a network from scratch.

Counted as `measure` counts a converted one, with what differs: every operator looks at one step
alone, so that a maximum passes on spikes of that step, and a product of two activations is counted
as multiply-accumulates in each step. Images are multiplied by the first layer once where they are
the same in every step (direct coding), in every step where they are frames; where they are Poisson
spikes, they cause additions. A leak is a multiply-accumulate per neuron and step. A merged HTT has
fewer connections in late steps, which its additions there have too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from ...errors import DataError, Fault, SpecError
from ...graph.float32 import in_float32
from ...graph.image_batches import collect
from ...graph.nodes import check_images, layer_nodes, set_image_shape
from ...graph.operations import Operation, Operations, operation
from ...graph.signals import Signal
from ...spiking.model import SPIKING_RULES
from ...spiking.presentation import step_counts
from ...system.devices import device_of
from ...system.progress import progress
from ...training.from_scratch.network import ScratchNetwork
from ...training.from_scratch.norm_by_step import NormByStep
from ...training.from_scratch.poisson import Coding
from ...training.from_scratch.record import counted_network, watch
from ...training.from_scratch.tensor_trains.tensor_train import ConvByStep
from .fanout import Paths, event_paths
from .layer_rows import layer_rows, list_uncounted, total
from .report import EnergyReport, EnergyRow, EnergyTable, NotCounted
from .synops import EventTally, StepCounts


@dataclass(frozen=True)
class Counted:
    """The layers of a network from scratch as they are in one half of its steps."""

    layers: fx.GraphModule
    image_shape: tuple[int, ...]
    operations: Operations


def counted_layers(network: ScratchNetwork, *, late: bool = False) -> Counted:
    """A copy of its layers without what depends on the step, and a row for each of its nodes.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ...neurons.ladder import Uniform
        >>> from ...neurons.spec import NeuronSpec
        >>> from ...neurons.surrogate import ATan
        >>> from ...training.from_scratch.network import build_from_scratch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> spec, shown = NeuronSpec(Uniform(1), surrogate=ATan()), torch.zeros(2, 1, 4, 4)
        >>> network = build_from_scratch(net, spec, example=shown, time_steps=2)
        >>> rows = counted_layers(network).operations.values()
        >>> [(row.name, str(row.fed_by)) for row in rows if row.operator in ("Conv2d", "Linear")]
        [('0', 'image'), ('3', 'spikes')]
    """
    layers = copy.deepcopy(network.layers)
    for name, layer in list(layers.named_modules()):
        if isinstance(layer, ConvByStep):
            half = layer.late if late else layer.early
            assert isinstance(half, nn.Module)
            layers.set_submodule(name, half)
        elif isinstance(layer, NormByStep):
            layers.set_submodule(name, layer.norms[-1 if late else 0])
    set_image_shape(layers, network.image_shape)
    rows: dict[fx.Node, Operation] = {}
    for node in layers.graph.nodes:
        rows[node] = operation(layers, node, rows, SPIKING_RULES)
        if node.op == "placeholder" and network.coding is Coding.POISSON:
            rows[node] = replace(rows[node], signal=Signal.SPIKES)
    return Counted(layers, network.image_shape, rows)


@in_float32()
def scratch_energy(
    network: ScratchNetwork,
    images: Any,
    *,
    time_steps: int | Sequence[int],
    table: EnergyTable,
    batch_size: int = 64,
) -> EnergyReport:
    """Count what a network from scratch does per image within T of its steps; `measure.energy`
    hands it over.

    Shapes: images [n, channels, height, width], or frames [n, T, channels, height, width].
    Raises:
        SpecError: no images, a batch size below 1, or steps beyond those it was trained for.
        DataError: images of another shape, or with NaN.
    """
    shown = scratch_images(network, images, batch_size)
    steps = _steps(network, time_steps)
    counted = counted_network(network)
    paths, counts = count_events(counted, shown, batch_size)
    rows = [row for at in steps for row in _rows(paths, counts, at, counted.time_steps, len(shown))]
    return EnergyReport(
        images=len(shown),
        prices=table,
        rows=tuple(rows),
        totals=tuple(
            total([row for row in rows if row.time_steps == at], at, table) for at in steps
        ),
        not_counted=(*_list_own_uncounted(counted), *list_uncounted(paths[0])),
    )


def count_events(
    counted: ScratchNetwork, shown: Tensor, batch_size: int, *, zero_weights: bool = True
) -> tuple[list[Paths], StepCounts]:
    """The ways of events through a `counted_network`, of either half of its steps where these
    differ, and what happened on images, or frames, in each step.

    ``zero_weights``: whether a weight of 0 is a connection.
    """
    halves = [counted_layers(counted)]
    if any(isinstance(layer, ConvByStep) for layer in counted.layers.modules()):
        halves.append(counted_layers(counted, late=True))
    changes = shown.dim() > 1 + len(counted.image_shape) or counted.coding is Coding.POISSON
    options = {"zero_weights": zero_weights, "image_changes": changes, "running": False}
    paths = [event_paths(item, **options) for item in halves]
    T = counted.time_steps
    tallies = [
        EventTally(item.layers, path, T, by_node=True)
        for item, path in zip(halves, paths, strict=True)
    ]

    def observe(t: int, node: fx.Node, levels: Tensor, _: Tensor | None) -> None:
        tally = tallies[-1 if 2 * t >= T else 0]
        if node.name in tally.nodes:
            tally.observe(t, node.name, levels, levels)

    where = device_of(counted)
    for batch in progress(shown.split(batch_size), f"energy, T = {T}"):
        for tally in tallies:
            tally.begin()
        watch(counted, batch.to(where), observe)
    return paths, _join([tally.counts() for tally in tallies])


def scratch_images(network: ScratchNetwork, images: Any, batch_size: int) -> Tensor:
    """Images, or frames of as many steps as the network has.

    Raises:
        SpecError: no images, or a batch size below 1.
        DataError: images of another shape, or with NaN.
    """
    shown = collect(images, image_shape=network.image_shape)
    shape, T = tuple(network.image_shape), network.time_steps
    if not len(shown) or batch_size < 1:
        raise SpecError(f"{len(shown)} images in batches of {batch_size}: both must be 1 or more")
    if shown.dim() != len(shape) + 2:
        return check_images(shown, shape)
    if tuple(shown.shape[1:]) != (T, *shape):
        sizes = ", ".join(map(str, (T, *shape)))
        raise DataError(
            f"frames of shape {tuple(shown.shape)} do not fit: allowed are [batch, {sizes}]"
        )
    return check_images(shown.flatten(0, 1), shape).unflatten(0, (len(shown), T))


def _steps(network: ScratchNetwork, time_steps: int | Sequence[int]) -> list[int]:
    """The numbers of steps, ascending; none beyond those that the network was trained for."""
    steps = step_counts(time_steps)
    if steps[-1] > network.time_steps:
        hint = f"the network was trained for {network.time_steps}; allowed are steps up to that"
        raise SpecError("cannot count", [Fault("time_steps", str(steps), hint)])
    return steps


def _join(counts: Sequence[StepCounts]) -> StepCounts:
    """What was counted in either half of the steps, by the nodes of the first."""
    parts = []
    for name in ("events", "packets", "synops"):
        first: Mapping[fx.Node, Tensor] = getattr(counts[0], name)
        by_name: dict[str, Tensor] = {node.name: item for node, item in first.items()}
        for more in counts[1:]:
            for node, item in getattr(more, name).items():
                by_name[node.name] = by_name[node.name] + item
        parts.append({node: by_name[node.name] for node in first})
    return StepCounts(*parts)


def _rows(
    paths: Sequence[Paths], counts: StepCounts, steps: int, T: int, images: int
) -> list[EnergyRow]:
    """The rows after so many of T steps; what stays multiplied in late ones as it is there."""
    rows = layer_rows(paths[0], counts, steps, images)
    if len(paths) == 1:
        return rows
    early = min(steps, -(-T // 2))
    late = {item.row.name: item.row.macs for item in paths[1].fanouts.values()}
    return [
        replace(row, macs=row.ann_macs * early + late[row.name] * (steps - early))
        if row.macs > row.ann_macs
        else row
        for row in rows
    ]


def _list_own_uncounted(network: ScratchNetwork) -> list[NotCounted]:
    """What works in a network from scratch alone and has no number."""
    rows = []
    if network.coding is Coding.POISSON:
        rows.append(NotCounted("images", "poisson", "drawing their spikes"))
    rows += [
        NotCounted(
            str(node.target), "NormByStep", "a batch norm of each step: no weight takes it up"
        )
        for node, _ in layer_nodes(network.layers, NormByStep)
    ]
    kind = "a leaky mean" if network.read_out_tau is not None else "a mean"
    return [*rows, NotCounted("read-out", "read-out", f"{kind} over the steps, of each class")]
