"""What calibrations look at: images, split, and what each layer of neurons gets from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ..errors import SpecError
from ..graph.nodes import check_images, input_reach
from ..neurons.layer import MTNeuron
from ..spiking.interpreter import forward_with
from ..spiking.levels import quantized_activation
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation, check_time_steps
from ..spiking.simulate import like_network

MOST_IMAGES = 1024
_MOST_VALUES = 2**16
_BATCH = 64
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Samples:
    """Images for calibration and what the quantized network makes of them, computed when asked for.

    ``reference`` is the converted network before calibration: it stands for the quantized network.

    Shapes:
        fit and held_out [images, channels, height, width], normalised as in training.
    """

    reference: SpikingModel
    fit: Tensor
    held_out: Tensor
    time_steps: int

    @classmethod
    def split(cls, snn: SpikingModel, images: Tensor, time_steps: int) -> Samples:
        """The last quarter of the images held out, one at least; all images in order.

        Raises:
            SpecError: fewer than 2 images, or more than 1,024; fewer than one time step.
            DataError: images of another shape, or with NaN.

        Example:
            >>> from torch import nn
            >>> from ..spiking.convert import convert
            >>> from ..quantization.quantize import QuantSpec, quantize
            >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> images = torch.randn(8, 1, 4, 4)
            >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
            >>> samples = Samples.split(snn, images, time_steps=2)
            >>> len(samples.fit), len(samples.held_out), samples.inputs(held_out=True)["1"].shape
            (6, 2, torch.Size([32]))
        """
        check_time_steps(time_steps)
        images = check_images(images, snn.image_shape, like_network(snn), input_reach(snn.layers))
        if not 2 <= len(images) <= MOST_IMAGES:
            raise SpecError(f"{len(images)} images to calibrate on: allowed are 2 to {MOST_IMAGES}")
        held_out = max(1, len(images) // 4)
        return cls(snn, images[:-held_out], images[-held_out:], time_steps)

    @property
    def presentation(self) -> Presentation:
        """How images are shown."""
        return self.reference.presentation

    def inputs(self, held_out: bool) -> dict[str, Tensor]:
        """Inputs of each layer of neurons in the quantized network: at most 65,536 values of each,
        spread over images and neurons.

        Shapes: [values]. Units: those of the network.
        """
        return (self._seen_held_out if held_out else self._seen_fit).inputs

    def means(self, held_out: bool) -> dict[str, Tensor]:
        """Mean over images of each neuron's quantized activation.

        Shapes: [features...], as the layer's without its first axis, along which images lie.
        """
        return self._means_held_out if held_out else self._means_fit

    @property
    def largest(self) -> dict[str, Tensor]:
        """The largest input of each layer of neurons, over all images to fit and all neurons; of
        layers with levels below 0 the largest size."""
        return self._seen_fit.largest

    @cached_property
    def _seen_fit(self) -> _Seen:
        return _look(self.reference, self.fit)

    @cached_property
    def _seen_held_out(self) -> _Seen:
        return _look(self.reference, self.held_out)

    @cached_property
    def _means_fit(self) -> dict[str, Tensor]:
        return _means(self.reference, self.fit)

    @cached_property
    def _means_held_out(self) -> dict[str, Tensor]:
        return _means(self.reference, self.held_out)


@dataclass(frozen=True)
class _Seen:
    """What one set of images does in the quantized network, by layer."""

    inputs: dict[str, Tensor]
    largest: dict[str, Tensor]


def batches(images: Tensor) -> Iterator[Tensor]:
    """The images in order, 64 at a time."""
    yield from images.split(_BATCH)


@torch.no_grad()
def _look(snn: SpikingModel, images: Tensor) -> _Seen:
    """One walk through the quantized network for what layers get."""
    inputs: dict[str, list[Tensor]] = {}
    largest: dict[str, Tensor] = {}

    def look(name: str, layer: MTNeuron, x: Tensor, share: int) -> Tensor:
        inputs.setdefault(name, []).append(_spread(x, share))
        top = sizes(layer, x).amax()
        largest[name] = torch.maximum(largest.get(name, top), top)
        return quantized_activation(layer, x)

    for batch in batches(images):
        forward_with(
            snn, batch, partial(look, share=max(1, _MOST_VALUES * len(batch) // len(images)))
        )
    return _Seen({name: torch.cat(parts) for name, parts in inputs.items()}, largest)


@torch.no_grad()
def _means(snn: SpikingModel, images: Tensor) -> dict[str, Tensor]:
    """One walk through the quantized network for what layers give, on average."""
    sums: dict[str, Tensor] = {}

    def add(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        out = quantized_activation(layer, x)
        total = out.sum(0, dtype=torch.float64)
        sums[name] = sums[name] + total if name in sums else total
        return out

    for batch in batches(images):
        forward_with(snn, batch, add)
    return {name: (total / len(images)).to(images.dtype) for name, total in sums.items()}


def sizes(layer: MTNeuron, x: Tensor) -> Tensor:
    """How large inputs are: above 0, or in both directions where levels go below 0.

    Shapes: any.
    """
    return x.abs() if layer.spec.limits[0] < 0 else x.clamp(min=0)


def _spread(x: Tensor, count: int) -> Tensor:
    """At most ``count`` of a tensor's values, at multiples of the golden ratio of its length: even,
    and in step with no axis."""
    flat = x.reshape(-1)
    if len(flat) <= count:
        return flat.clone()
    places = torch.arange(1, count + 1, dtype=torch.float64, device=x.device) * _GOLDEN
    return flat[(places.frac() * len(flat)).long()]
