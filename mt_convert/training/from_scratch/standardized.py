"""Weight standardisation: what a layer learns is normalised before it weighs anything."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ...graph.nodes import layer_nodes

FLOOR = 1e-4
_STANDARD = (nn.Conv1d, nn.Conv2d, nn.Linear)


class Standardized(nn.Module):
    """γ (W − mean W) / sqrt(var W · fan-in + 1e-4) of each output, with a learned gain γ.

    Source: OTTT (arXiv 2210.04195), the convolutions of its networks without batch norm.

    Example:
        >>> layer = Standardized(torch.ones(2, 3))
        >>> layer(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])).sum(1).tolist()
        [0.0, 0.0]
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(weight.new_ones(len(weight), *[1] * (weight.dim() - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that counts, of the one that learns."""
        over = tuple(range(1, weight.dim()))
        variance, mean = torch.var_mean(weight, over, keepdim=True, correction=1)
        fan_in = weight[0].numel()
        return self.gain * (weight - mean) / torch.sqrt(variance * fan_in + FLOOR)


def standardize_(layers: fx.GraphModule, apart: Collection[str]) -> None:
    """Let every convolution and linear layer learn standardised, in place; those ``apart`` stay."""
    for node, layer in layer_nodes(layers, _STANDARD):
        weight = layer.get_parameter("weight") if not parametrize.is_parametrized(layer) else None
        if weight is not None and node.name not in apart and weight[0].numel() > 1:
            parametrize.register_parametrization(layer, "weight", Standardized(weight.detach()))


def is_standardized(layers: nn.Module) -> bool:
    """Whether any layer learns so.

    Example:
        >>> is_standardized(nn.Sequential(nn.Linear(2, 2)))
        False
    """
    return any(isinstance(layer, Standardized) for layer in layers.modules())


def with_plain_weights(layers: nn.Module) -> nn.Module:
    """A copy whose weights are those that count; the same network where none is standardised."""
    if not is_standardized(layers):
        return layers
    plain = copy.deepcopy(layers)
    for layer in list(plain.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return plain
