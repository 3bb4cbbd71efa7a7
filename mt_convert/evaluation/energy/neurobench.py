"""The metrics of a converted network under the names that NeuroBench gives them.

Source: Yik et al., "The NeuroBench framework" (Nature Communications, 2025), and the metrics
`Footprint`, `ConnectionSparsity`, `ActivationSparsity` and `SynapticOperations` of its package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, SpecError
from ...graph.float32 import in_float32
from ...graph.image_batches import collect
from ...graph.nodes import WEIGHTED
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import step_counts
from ...spiking.simulate import simulate
from ...system.devices import device_of
from ...training.from_scratch.network import ScratchNetwork
from ...training.from_scratch.record import counted_network, watch
from .bits import FLOAT_BITS, weight_bits
from .event_sums import connections
from .fanout import Paths, event_paths
from .from_scratch import count_events, scratch_images
from .synops import StepCounts, count_synops


@dataclass(frozen=True)
class SynapticOperations:
    """Per image, after all steps. Units: numbers of operations; weights of 0 and inputs of 0 are
    left out of the effective ones, which biases are no part of.

    ``Effective_ACs``: additions that spikes cause; one of k thresholds is k of them, so that it is
    NeuroBench's own number where neurons have one threshold. ``Effective_MACs``: of layers that
    the image feeds; layers whose analog input changes from step to step count all their products
    in each. ``Dense``: all products, in each step in which the input can change.
    """

    Effective_MACs: float
    Effective_ACs: float
    Dense: float


@dataclass(frozen=True)
class NeuroBench:
    """What NeuroBench reports of a network and its workload.

    Units: ``footprint`` bytes: weights in their own bits, all other numbers in 32; potentials are
        state and no part of it. ``connection_sparsity``: the share of weights that are 0.
        ``activation_sparsity``: the share of emissions, over neurons, steps and images, that are 0.
    """

    footprint: int
    connection_sparsity: float
    activation_sparsity: float
    synaptic_operations: SynapticOperations

    def to_json(self) -> dict[str, Any]:
        """By NeuroBench's names."""
        return asdict(self)


@in_float32()
@torch.no_grad()
def neurobench(
    snn: SpikingModel | ScratchNetwork, images: Any, *, time_steps: int, batch_size: int = 64
) -> NeuroBench:
    """Measure a converted network on images, run for T steps; or one from scratch, for as many as
    it was trained for.

    Raises:
        SpecError: no images, or steps below 1; other steps than those of a network from scratch.
        DataError: images of another shape, or with NaN.

    Example:
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.rand(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> measured = neurobench(snn, images, time_steps=1)
        >>> sorted(measured.to_json())[:3], measured.synaptic_operations.Dense
        (['activation_sparsity', 'connection_sparsity', 'footprint'], 176.0)
    """
    if isinstance(snn, ScratchNetwork):
        return _of_scratch(snn, images, time_steps, batch_size)
    snn = spiking_network(snn, "neurobench")
    shown = collect(images, image_shape=snn.image_shape)
    (T,) = step_counts(time_steps)
    paths = event_paths(snn, zero_weights=False)
    batches = shown.split(batch_size)
    counts = count_synops(snn, paths, batches, T)
    macs = _effective_macs(snn, paths, batches, T)
    return _metrics(snn.layers, paths, counts, T, len(shown), macs)


def _of_scratch(
    network: ScratchNetwork, images: Any, time_steps: int, batch_size: int
) -> NeuroBench:
    """The metrics of a network from scratch; of a merged HTT with the weights of its early steps
    in ``connection_sparsity`` and ``Dense``."""
    shown = scratch_images(network, images, batch_size)
    (T,) = step_counts(time_steps)
    if network.time_steps != T:
        hint = f"the network was trained for {network.time_steps}, and is measured with all of them"
        raise SpecError("cannot measure", [Fault("time_steps", str(T), hint)])
    counted = counted_network(network)
    paths, counts = count_events(counted, shown, batch_size, zero_weights=False)
    with _products(counted) as products:
        for batch in shown.split(batch_size):
            watch(counted, batch.to(device_of(counted)), lambda *_: None)
    analog = {node: item for node, item in paths[0].fanouts.items() if item.additions is None}
    macs = 0.0
    for node, item in analog.items():
        seen = products.get(str(node.target))
        dense = float(item.row.macs * len(shown))
        times = T if item.changes else 1
        macs += dense * times if seen is None else seen * times / T
    return _metrics(counted.layers, paths[0], counts, T, len(shown), macs)


@contextmanager
def _products(network: ScratchNetwork) -> Iterator[dict[str, float]]:
    """Products of numbers that are not 0 in each weighted layer, over all steps, while it runs."""
    seen: dict[str, float] = {}
    handles = []
    for name, layer in network.layers.named_modules():
        if isinstance(layer, WEIGHTED):

            def add(own: Any, given: tuple[Tensor, ...], name: str = name) -> None:
                used = connections(own, (given[0] != 0).double(), zero_weights=False)
                seen[name] = seen.get(name, 0.0) + float(used)

            handles.append(layer.register_forward_pre_hook(add))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _metrics(
    layers: nn.Module, paths: Paths, counts: StepCounts, T: int, images: int, macs: float
) -> NeuroBench:
    """All metrics, from what was counted over the images."""
    nodes = [node for node in paths.neurons if node.op != "placeholder"]  # not Poisson's images
    packets = sum(float(counts.packets[node].sum()) for node in nodes)
    neurons = sum(paths.shows[node].numel() for node in nodes)
    fanouts = paths.fanouts.values()
    synops = sum(float(steps.sum()) for steps in counts.synops.values())
    weights = [layer.weight for layer in _weighted_layers(paths)]
    zeros = sum(int((item == 0).sum()) for item in weights)
    emissions = max(1, neurons * T * images)
    return NeuroBench(
        footprint=_footprint(layers),
        connection_sparsity=zeros / max(1, sum(item.numel() for item in weights)),
        activation_sparsity=1 - packets / emissions,
        synaptic_operations=SynapticOperations(
            Effective_MACs=macs / images,
            Effective_ACs=synops / images,
            Dense=float(sum(item.row.macs * (T if item.changes else 1) for item in fanouts)),
        ),
    )


def _weighted_layers(paths: Paths) -> list[Any]:
    """The weighted layers, each once."""
    rows = (paths.operations[node] for node in paths.fanouts)
    return list(dict.fromkeys(row.layer for row in rows if isinstance(row.layer, WEIGHTED)))


def _footprint(layers: nn.Module) -> int:
    """Bytes of all numbers of a network."""
    bits, seen = 0, set()
    for layer in layers.modules():
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            own = isinstance(layer, WEIGHTED) and name == "weight"
            bits += tensor.numel() * (weight_bits(layer) if own else FLOAT_BITS)
    return -(-bits // 8)


def _effective_macs(
    snn: SpikingModel, paths: Paths, batches: Iterable[Tensor], time_steps: int
) -> float:
    """Products of numbers that are not 0 in layers that spikes do not feed, over all images."""
    analog = {node: item for node, item in paths.fanouts.items() if item.additions is None}
    plain = {
        node
        for node, item in analog.items()
        if not item.changes and isinstance(paths.operations[node].layer, WEIGHTED)
    }
    images, total = 0, 0.0
    for batch in batches:
        images += len(batch)
        with _first_inputs(paths, plain) as inputs:
            simulate(snn, batch, time_steps=1)
        for node, value in inputs.items():
            layer = paths.operations[node].layer
            total += float(connections(layer, (value != 0).double(), zero_weights=False))
    steps = {node: time_steps if item.changes else 1 for node, item in analog.items()}
    rest = sum(item.row.macs * steps[node] for node, item in analog.items() if node not in plain)
    return total + images * float(rest)


@contextmanager
def _first_inputs(paths: Paths, nodes: set[fx.Node]) -> Iterator[dict[fx.Node, Tensor]]:
    """What is handed to some layers first, while a network runs."""
    inputs: dict[fx.Node, Tensor] = {}
    handles = []
    for node in nodes:
        layer = paths.operations[node].layer
        assert isinstance(layer, nn.Module)

        def keep(_: Any, given: tuple[Tensor, ...], node: fx.Node = node) -> None:
            inputs.setdefault(node, given[0].detach())

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
