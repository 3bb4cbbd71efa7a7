"""Weights normalised before they are quantized, where a batch norm behind takes their scale up."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..graph.nodes import NORMS, WEIGHTED, is_constant, layer_nodes, layer_of


def normalize(weight: Tensor) -> Tensor:
    """(w − mean w) / std w over the layer, mean and deviation held constant in the gradient.

    Both are taken in float64, so that a weight is the same number on every machine.

    Source:
        APoT (ICLR 2020), section 2.3.

    Example:
        >>> normalize(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [-1.0, 0.0, 1.0]
    """
    mean, spread = _mean_and_spread(weight)
    return (weight - mean) / spread


@torch.no_grad()
def _mean_and_spread(weight: Tensor) -> tuple[Tensor, Tensor]:
    exact = weight.double()
    spread = exact.std().clamp(min=torch.finfo(weight.dtype).tiny)
    return exact.mean().to(weight.dtype), spread.to(weight.dtype)


def denormalize(value: Tensor, weight: Tensor) -> Tensor:
    """What `normalize` would make ``value`` of, with mean and deviation of ``weight``.

    Example:
        >>> weight = torch.tensor([1.0, 2.0, 3.0])
        >>> denormalize(normalize(weight), weight).tolist()
        [1.0, 2.0, 3.0]
    """
    mean, spread = _mean_and_spread(weight)
    return value * spread + mean


def normalize_first(proxy: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of a weight quantizer."""
    return (normalize(inputs[0]), *inputs[1:])


def normalize_(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Normalise a layer's weights for good, and divide its bias too; what was taken out."""
    weight, bias = layer.get_parameter("weight"), layer.bias
    mean, spread = _mean_and_spread(weight)
    weight.data = (weight.data - mean) / spread
    if isinstance(bias, nn.Parameter):
        bias.data = bias.data / spread
    return mean, spread


def follow_(norm: nn.Module, layer: nn.Module, x: Tensor, mean: Tensor, spread: Tensor) -> None:
    """Move the statistics of a batch norm behind a layer that was normalised.

    What the layer gives now is what it gave, less its mean weight's share, divided by the
    deviation. That share is taken from the inputs ``x``; only where it is not the same in all
    places and images the network changes.
    """
    even = {"weight": mean.expand_as(layer.get_parameter("weight"))}
    if layer.bias is not None:
        even["bias"] = torch.zeros_like(layer.get_parameter("bias"))
    share = functional_call(layer, even, (x,))
    share = share.transpose(0, 1).flatten(1).mean(1)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    norm.running_mean.sub_(share).div_(spread)
    norm.running_var.div_(spread.square())


def in_front_of_norms(layers: fx.GraphModule) -> dict[str, list[nn.Module]]:
    """Weighted layers whose every use is read by a batch norm alone, and these batch norms.

    Example:
        >>> from ..graph.tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
        >>> list(in_front_of_norms(trace(net.eval(), torch.zeros(2, 1, 4, 4))))
        ['0']
    """
    norms: dict[str, list[nn.Module]] = {}
    others: set[str] = set()
    for node, _ in layer_nodes(layers, WEIGHTED):
        if is_constant(node):
            continue
        readers = [layer_of(layers, user) for user in node.users]
        if len(readers) == 1 and isinstance(readers[0], NORMS):
            norms.setdefault(str(node.target), []).append(readers[0])
        else:
            others.add(str(node.target))
    return {name: behind for name, behind in norms.items() if name not in others}
