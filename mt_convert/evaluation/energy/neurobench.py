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

from ...graph.float32 import in_float32
from ...graph.image_batches import collect
from ...graph.nodes import WEIGHTED
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import step_counts
from ...spiking.simulate import simulate
from .bits import FLOAT_BITS, weight_bits
from .event_sums import connections
from .fanout import Paths, event_paths
from .synops import count_synops


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
    snn: SpikingModel, images: Any, *, time_steps: int, batch_size: int = 64
) -> NeuroBench:
    """Measure a converted network on images, run for T steps.

    Raises:
        SpecError: no images, or steps below 1.
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
    snn = spiking_network(snn, "neurobench")
    shown = collect(images, image_shape=snn.image_shape)
    (T,) = step_counts(time_steps)
    paths = event_paths(snn, zero_weights=False)
    batches = shown.split(batch_size)
    counts = count_synops(snn, paths, batches, T)
    packets = sum(float(counts.packets[node].sum()) for node in paths.neurons)
    neurons = sum(paths.shows[node].numel() for node in paths.neurons)
    fanouts = paths.fanouts.values()
    synops = sum(float(steps.sum()) for steps in counts.synops.values())
    weights = [layer.weight for layer in _weighted_layers(paths)]
    zeros = sum(int((item == 0).sum()) for item in weights)
    emissions = max(1, neurons * T * len(shown))
    return NeuroBench(
        footprint=_footprint(snn),
        connection_sparsity=zeros / max(1, sum(item.numel() for item in weights)),
        activation_sparsity=1 - packets / emissions,
        synaptic_operations=SynapticOperations(
            Effective_MACs=_effective_macs(snn, paths, batches, T) / len(shown),
            Effective_ACs=synops / len(shown),
            Dense=float(sum(item.row.macs * (T if item.changes else 1) for item in fanouts)),
        ),
    )


def _weighted_layers(paths: Paths) -> list[Any]:
    """The weighted layers, each once."""
    rows = (paths.operations[node] for node in paths.fanouts)
    return list(dict.fromkeys(row.layer for row in rows if isinstance(row.layer, WEIGHTED)))


def _footprint(snn: SpikingModel) -> int:
    """Bytes of all numbers of a network."""
    bits, seen = 0, set()
    for layer in snn.layers.modules():
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
