"""A converted network as a model of the NeuroBench package, where that is installed.

NeuroBench looks at what is handed to layers of weights: what is −1, 0 or 1 everywhere counts as
spikes, all else as numbers. So each layer is called, in each step, on the spikes that arrive: one
that carries k thresholds comes as k spikes, one after the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import SpecError
from ...graph.float32 import in_float32
from ...graph.nodes import WEIGHTED
from ...graph.operations import Operations
from ...graph.rules import OperatorKind
from ...graph.signals import Signal
from ...neurons.layer import MTNeuron
from ...spiking.levels import unit
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import check_time_steps
from ...spiking.single_spikes.spike_by_spike import spike_by_spike

NEAR = 1e-3
"""How far from a whole number of spikes rounding may leave what arrives."""


class Neurons(nn.Identity):
    """Stands for a layer of neurons: it is called on what they emit in a step."""


class Synapses:
    """What NeuroBench watches: a copy of each weighted layer, a stand-in of each layer of neurons.

    Layers that one layer of neurons feeds, through moves alone, are handed its spikes. Others that
    are fed by spikes (sums, averages) are handed the numbers that arrive, which NeuroBench counts
    as multiply-accumulates; so are those that the image feeds, once.

    Example:
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.rand(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> synapses = Synapses(snn, time_steps=1)
        >>> synapses(images).shape, len(synapses.net)
        (torch.Size([8, 2]), 3)
    """

    def __init__(self, snn: SpikingModel, *, time_steps: int) -> None:
        self.snn, self.time_steps = spiking_network(snn, "NeuroBench"), time_steps
        check_time_steps(time_steps)
        self.operations: Operations = snn.operations
        self.layers: dict[fx.Node, nn.Module] = {}
        for node, row in self.operations.items():
            if isinstance(row.layer, MTNeuron):
                self.layers[node] = Neurons()
            elif isinstance(row.layer, WEIGHTED):
                self.layers[node] = _plain(row.layer)
        self.net = nn.ModuleList(self.layers.values()).eval()

    @in_float32()
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits behind the last step; every layer is called on what arrives in each step."""
        run = spike_by_spike(self.snn, images, time_steps=self.time_steps)
        for node, layer in self.layers.items():
            if isinstance(layer, Neurons):
                for emitted in run.arriving[node.name]:
                    layer(emitted)
                continue
            source = node.all_input_nodes[0]
            size = self._spike_size(source)
            fed_by = self.operations[node].fed_by
            for arrived in run.arriving[source.name]:
                if fed_by is Signal.IMAGE and not bool(arrived.any()):
                    continue  # the image was there in an earlier step
                for part in _spikes(arrived, size):
                    layer(part)
        return run.logits[-1]

    def _spike_size(self, node: fx.Node) -> float | None:
        """What one spike is worth that arrives at a node through moves alone; else None."""
        while not isinstance(layer := self.operations[node].layer, MTNeuron):
            rows = [self.operations[item] for item in node.all_input_nodes]
            sources = [row for row in rows if row.kind is not OperatorKind.SIZE]
            if self.operations[node].signal is not Signal.SPIKES or len(sources) != 1:
                return None
            node = sources[0].node
        if layer.gain is not None:
            return None
        return float(unit(layer, self.snn.presentation, 0))


def neurobench_model(snn: SpikingModel, *, time_steps: int) -> Any:
    """A ``NeuroBenchModel`` of T steps, for ``neurobench.benchmarks.Benchmark``.

    Its ``Effective_ACs`` are the SynOps of `neurobench` and, without weights of 0, of `energy`,
    where `Synapses` can hand over spikes.

    Raises:
        SpecError: neurobench is not installed; no converted network; fewer than one time step.
    """
    try:
        base = import_module("neurobench.models").NeuroBenchModel
    except ImportError as error:
        hint = "pip install neurobench; mt_convert's own `neurobench` needs no package"
        raise SpecError(f"neurobench cannot be imported ({error}): {hint}") from error
    synapses = Synapses(snn, time_steps=time_steps)

    class ConvertedNetwork(base):  # type: ignore[misc, valid-type]
        """The network as NeuroBench calls it."""

        def __call__(self, batch: Tensor) -> Tensor:
            return synapses(batch)

        def __net__(self) -> nn.Module:
            return synapses.net

    model = ConvertedNetwork()
    model.add_activation_module(Neurons)
    return model


def _plain(layer: nn.Module) -> nn.Module:
    """A layer of torch with the same weights, without parametrizations and hooks."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind: Any = next((item for item in kinds if isinstance(layer, item)), None)
    if kind is None:
        raise SpecError(f"NeuroBench knows no {type(layer).__name__}")
    own: Any = layer
    given = {"bias": own.bias is not None, "dtype": own.weight.dtype, "device": own.weight.device}
    if kind is nn.Linear:
        plain = kind(own.in_features, own.out_features, **given)
    else:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        given |= {name: getattr(own, name) for name in names}
        plain = kind(own.in_channels, own.out_channels, own.kernel_size, **given)
    with torch.no_grad():
        plain.weight.copy_(own.weight)
        if own.bias is not None:
            plain.bias.copy_(own.bias)
    result: nn.Module = plain
    return result


def _spikes(arrived: Tensor, size: float | None) -> list[Tensor]:
    """What arrives in a step as tensors of −1, 0 and 1; as it is, where it is no number of spikes.

    Example:
        >>> [part.tolist() for part in _spikes(torch.tensor([1.0, -0.5, 0.0]), 0.5)]
        [[1.0, -1.0, 0.0], [1.0, 0.0, 0.0]]
        >>> len(_spikes(torch.tensor([0.3]), 0.5))
        1
    """
    if size is None:
        return [arrived]
    numbers = arrived / size
    whole = numbers.round()
    if bool((numbers - whole).abs().max() > NEAR):
        return [arrived]
    most = max(1, int(whole.abs().max()))
    sign, none = whole.sign(), torch.zeros_like(whole)
    return [torch.where(whole.abs() >= k, sign, none) for k in range(1, most + 1)]
