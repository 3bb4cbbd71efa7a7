"""A spiking network that was stored, evaluated as it is: its thresholds are chosen already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.nodes import WEIGHTED, layer_nodes
from ..neurons.ladder import Uniform
from ..neurons.layer import MTNeuron
from ..neurons.spec import NeuronSpec
from ..spiking.interpreter import forward_with
from ..spiking.levels import quantized_activation
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation
from ..system.keys import to_json
from .settings import Setting, with_calibration

METHOD = "stored"


@dataclass(frozen=True)
class StoredSpec:
    """What rows and cached results say of a stored network, which keeps no QuantSpec: the levels of
    most layers, and the fewest bits of weights."""

    levels: int
    weight_bits: int | None
    neurons: tuple[Any, ...]
    act_noise: str = "none"
    weights: str = "uniform"
    spacing: str = "equal"
    rounding: str = "half_even"

    @property
    def act_bits(self) -> int | None:
        """The bits of so many levels, where they are those of a number of bits."""
        return self.levels.bit_length() if self.levels & (self.levels + 1) == 0 else None

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {"stored": [self.levels, self.weight_bits, *self.neurons]}


class StoredNetwork(nn.Module):
    """A converted network in the place of the quantized one that it came from, which is not at
    hand: each of its neurons gives the activation it stands for, bit for bit.

    Shapes: images [batch, channels, height, width]; logits [batch, classes].

    Example:
        >>> from ..quantization.quantize import quantize
        >>> from ..spiking.convert import convert
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, 4, calibration=images)
        >>> torch.equal(StoredNetwork(convert(qann))(images), qann(images))
        True
    """

    def __init__(self, snn: SpikingModel) -> None:
        super().__init__()
        self.snn = snn
        self.image_shape = snn.image_shape
        neurons = [neuron for _, neuron in snn.neurons()]
        limits = Counter(int(max(map(abs, neuron.spec.limits))) for neuron in neurons)
        self.spec = StoredSpec(
            limits.most_common(1)[0][0] if limits else 0,
            _weight_bits(snn),
            (*(_description(neuron.spec) for neuron in neurons), str(snn.presentation)),
            rounding="half_up" if any(map(_rounds_half_up, neurons)) else "half_even",
        )

    @property
    def is_as_converted(self) -> bool:
        """Whether its neurons are those of the quantizers, so that levels can be compared."""
        return all(
            neuron.offset is None and neuron.gain is None for _, neuron in self.snn.neurons()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[0]

    def levels(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the level of every activation by layer."""
        levels: dict[str, Tensor] = {}

        def neuron(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
            value = quantized_activation(layer, x)
            levels[name] = torch.round(value / layer.delta)
            return value

        return forward_with(self.snn, images, neuron), levels

    def settings(
        self,
        time_steps: Sequence[int],
        calibrations: Sequence[str] = ("none",),
        calibrated_for: Sequence[int] | None = None,
    ) -> list[Setting]:
        """The one way in which the network was converted, as it is and with each calibration."""
        neurons = [neuron.spec for _, neuron in self.snn.neurons()]
        spec = max(neurons, key=lambda spec: spec.ladder.n, default=NeuronSpec(Uniform(1)))
        plain = Setting(
            spec.ladder,
            tuple(time_steps),
            firing=spec.rule,
            signed=any(item.signed for item in neurons),
            presentation=Presentation(self.snn.presentation),
            whole_window=self.snn.whole_window,
            method=METHOD,
        )
        texts = dict.fromkeys(calibrations)
        return [item for text in texts for item in with_calibration(plain, text, calibrated_for)]


def _rounds_half_up(neuron: MTNeuron) -> bool:
    """Whether half-way values go up."""
    return bool(getattr(neuron.formula, "half_up", False))


def _description(spec: NeuronSpec) -> Any:
    """What tells layers of neurons apart whose tensors are equal."""
    bounds = [None if bound is None else int(bound) for bound in spec.bounds or ()]
    return [to_json(spec.ladder), str(spec.rule), spec.signed, float(spec.initial), bounds]


def _weight_bits(snn: SpikingModel) -> int | None:
    """The fewest bits that hold the weights of any layer, as first and last layers often have more;
    None where all are floats."""
    ranges = []
    for _, layer in layer_nodes(snn.layers, WEIGHTED):
        if isinstance(step := getattr(layer, "weight_scale", None), Tensor):
            low, high = (int(end) for end in torch.round(layer.weight.detach() / step).aminmax())
            ranges.append(max(high, -low - 1).bit_length() + 1)
    return min(ranges, default=None)
