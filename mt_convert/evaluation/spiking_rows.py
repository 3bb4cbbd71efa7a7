"""Rows of stored spiking networks: trained from scratch; calibrated or fine-tuned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageSet, batches
from ..errors import Fault, SpecError
from ..graph.nodes import WEIGHTED
from ..neurons.ladder import Uniform
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..neurons.totals import count_events
from ..report.rows import Row
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation
from ..spiking.simulate import simulate
from ..spiking.weight_grid import weight_step
from ..system.devices import device_of
from ..system.processes import Processes
from ..system.progress import progress
from ..training.from_scratch.network import ScratchNetwork
from ..training.from_scratch.spec import SpikingSpec
from .counter import over_layers, percent
from .energy.bits import weight_bits as bits_of
from .subject import network_digest


def rows_of(
    network: ScratchNetwork,
    spec: SpikingSpec,
    test: ImageSet,
    time_steps: Sequence[int],
    columns: dict[str, Any],
    *,
    batch_size: int,
    processes: Processes,
) -> list[Row]:
    """A row behind each of ``time_steps``, all from one pass over the test images.

    ``columns``: those that are not measured here, such as model, dataset, presentation.

    Raises:
        SpecError: no images, or steps beyond those of the network.
    """
    steps = sorted(set(time_steps))
    if not len(test):
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    _check_steps(steps, network.time_steps)
    counts, neurons = _count_steps(network.eval(), test, batch_size, processes)
    ladder = spec.neuron_spec().ladder
    row = Row(
        mode=str(spec.mode),
        signed=spec.signed,
        n=spec.n,
        T=steps[-1],
        snn_accuracy=0.0,
        spikes_per_neuron=0.0,
        images=len(test),
        qann_accuracy=None,
        agreement=None,
        exact_share=None,
        ladder=ladder.kind,
        levels=int(ladder.reach),
        weight_bits=None,
        whole_window=False,
        settling_T=None,
        method=f"mt_{spec.neuron}",
        digest=network_digest(network),
        **columns,
    )
    return [_after(T, row, counts, neurons) for T in steps]


def rows_of_stored(
    network: ScratchNetwork | SpikingModel,
    test: ImageSet,
    time_steps: Sequence[int],
    columns: dict[str, Any],
    *,
    batch_size: int,
    processes: Processes,
) -> list[Row]:
    """A row of a stored network behind each of ``time_steps``; its neurons are as they are stored.

    Raises:
        SpecError: no images, or steps beyond those that a network was trained for.
    """
    if not len(test):
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    specs = [layer.spec for _, layer in network.neurons()] or [NeuronSpec(Uniform(1))]
    ladders = [spec.ladder for spec in specs]
    widest = max(ladders, key=lambda ladder: ladder.n)
    charge = next((spec.charge.kind.lower() for spec in specs if spec.charge.kind != "IF"), "if")
    steps = sorted(set(time_steps))
    if isinstance(network, ScratchNetwork):
        _check_steps(steps, network.time_steps)
        counts, neurons = _count_steps(network.eval(), test, batch_size, processes)
        counted = dict.fromkeys(steps, (counts, neurons))
    else:
        runs = {T: T if network.whole_window else steps[-1] for T in steps}
        done = {
            T: _count_snn_steps(network, test, T, batch_size, processes)
            for T in dict.fromkeys(runs.values())
        }
        counted = {T: done[run] for T, run in runs.items()}
    presentation, waits = Presentation.EVERY_STEP, False
    if isinstance(network, SpikingModel):
        presentation, waits = network.presentation, network.whole_window
    first = Row(
        presentation=str(presentation),
        mode=str(specs[0].rule),
        signed=any(spec.signed for spec in specs),
        n=widest.n,
        T=steps[-1],
        ann_accuracy=None,
        snn_accuracy=0.0,
        spikes_per_neuron=0.0,
        images=len(test),
        qann_accuracy=None,
        agreement=None,
        exact_share=None,
        ladder=widest.kind,
        levels=int(max((spec.bounds or (0, None))[1] or spec.ladder.reach for spec in specs)),
        weight_bits=_usual_bits(network),
        whole_window=waits,
        settling_T=None,
        method=f"mt_{charge}",
        digest=network_digest(network),
        **columns,
    )
    return [_after(T, first, *counted[T]) for T in steps]


def _after(T: int, row: Row, counts: Tensor, neurons: int) -> Row:
    """The row behind T steps, from what was counted in each, [2, T]."""
    return replace(
        row,
        T=T,
        snn_accuracy=percent(float(counts[0, T - 1]), row.images),
        spikes_per_neuron=float(counts[1, :T].sum()) / (max(1, neurons) * row.images),
    )


def _usual_bits(network: nn.Module) -> int | None:
    """Bits of the weights of most layers; None where they are floats."""
    layers = [layer for layer in network.modules() if isinstance(layer, WEIGHTED)]
    bits = Counter(bits_of(layer) for layer in layers if weight_step(layer) is not None)
    return bits.most_common(1)[0][0] if bits else None


def _check_steps(steps: Sequence[int], most: int) -> None:
    """Raise for steps beyond those that a network was trained for."""
    if not steps or steps[-1] > most:
        hint = f"the network was trained for {most}; allowed are steps up to that"
        raise SpecError("cannot evaluate", [Fault("time_steps", str(list(steps)), hint)])


@torch.no_grad()
def _count_snn_steps(
    snn: SpikingModel, test: ImageSet, time_steps: int, batch_size: int, processes: Processes
) -> tuple[Tensor, int]:
    """As `_count_steps`, of a converted network."""
    counts, neurons = torch.zeros(2, time_steps, dtype=torch.float64), 0
    where = device_of(snn)
    for images, labels in batches(test, batch_size, share=processes.share):
        run = simulate(snn, images.to(where), time_steps=time_steps)
        counts[0] += (run.logits.argmax(2).cpu() == labels).sum(1)
        counts[1] += over_layers(run.spike_counts, time_steps)
        neurons = sum(run.neurons.values())
    return processes.sum(counts), max(processes.all_of(neurons))


@torch.no_grad()
def _count_steps(
    network: ScratchNetwork, test: ImageSet, batch_size: int, processes: Processes
) -> tuple[Tensor, int]:
    """Right answers after, and events in, each step [2, T]; and how many neurons there are."""
    steps = range(network.time_steps)
    counts = torch.zeros(2, len(steps), dtype=torch.float64)
    device = device_of(network)
    neurons = 0
    shown: Any = batches(test, batch_size, share=processes.share)
    if processes.first:
        total = -(-len(test) // (batch_size * processes.share[1]))
        shown = progress(shown, f"test images, T = {network.time_steps}", total=total)
    for images, labels in shown:
        with _events(network) as seen:
            read_outs, _ = network(images.to(device), steps)
        counts[0] += (read_outs.argmax(2).cpu() == labels).sum(1)
        calls = [count for each in seen.values() for count, _ in each]  # T for each layer's place
        counts[1] += torch.stack(calls).reshape(-1, len(steps)).sum(0).cpu()
        neurons = sum(size for each in seen.values() for _, size in each[:: len(steps)])
    return processes.sum(counts), max(processes.all_of(neurons))


@contextmanager
def _events(network: ScratchNetwork) -> Iterator[dict[str, list[tuple[Tensor, int]]]]:
    """Events in each step and neurons per image, of each layer that runs in this context; step by
    step, which a compiled kernel does not show."""
    seen: dict[str, list[tuple[Tensor, int]]] = {}
    handles = []
    compiled, network.compiled = network.compiled, False

    def listener(name: str) -> Any:
        def hear(layer: nn.Module, _: Any, result: Any) -> None:
            assert isinstance(layer, MTNeuron)
            emitted = (result[0] / layer.delta).round()
            events = count_events(emitted, layer.spec.ladder).sum(dtype=torch.float64)
            seen.setdefault(name, []).append((events, emitted[0].numel()))

        return hear

    for name, layer in network.named_modules():
        if isinstance(layer, MTNeuron):
            handles.append(layer.register_forward_hook(listener(name)))
    try:
        yield seen
    finally:
        network.compiled = compiled
        for handle in handles:
            handle.remove()
