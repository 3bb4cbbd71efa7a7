"""One pass through a converted network's graph with a function in place of each layer of neurons.

With `levels.quantized_activation` it is the quantized network bit for bit, with
`levels.analog` the network without activation quantization: references that need nothing but the
converted network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from ..graph.by_values import ByValues, call
from ..graph.float32 import in_float32
from ..graph.nodes import check_images
from ..neurons.layer import MTNeuron
from .model import SpikingModel
from .simulate import like_network

Activation = Callable[[str, MTNeuron, Tensor], Tensor]
Call = Callable[[Tensor], Tensor]


@in_float32()
def forward_with(
    snn: SpikingModel, images: Tensor, neuron: Activation, calls: Mapping[str, Call] | None = None
) -> Tensor:
    """The logits of one pass, each layer of neurons replaced by ``neuron(name, layer, input)``.

    ``calls`` replace other layers, by name. Gradients pass where the functions let them.

    Shapes:
        images [batch, channels, height, width], normalised as in training; logits [batch, classes].
    Raises:
        DataError: images of another shape, or with NaN.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from .convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from .levels import quantized_activation
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, QuantSpec(), calibration=images)
        >>> def as_quantized(name, layer, x): return quantized_activation(layer, x)
        >>> logits = forward_with(convert(qann), images, as_quantized)
        >>> torch.equal(logits, qann(images))
        True
    """
    images = check_images(images, snn.image_shape, like_network(snn))
    logits: Tensor = _Walk(snn.layers, neuron, calls or {}).run(images)
    return logits


class _Walk(ByValues):
    """The graph, with functions instead of neurons and of some layers."""

    def __init__(
        self, layers: fx.GraphModule, neuron: Activation, calls: Mapping[str, Call]
    ) -> None:
        super().__init__(layers)
        self._neuron, self._calls = neuron, calls

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(layer, MTNeuron):
            return self._neuron(str(target), layer, args[0])
        return call(self._calls.get(str(target), layer), args, kwargs)
