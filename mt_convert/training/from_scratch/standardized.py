"""What learns in another form than it counts: standardised weights, logarithms of thresholds."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ...graph.nodes import layer_nodes
from ...neurons.layer import MTNeuron

FLOOR = 1e-4
GAIN = 2.74
_STANDARD = (nn.Conv1d, nn.Conv2d, nn.Linear)


class Standardized(nn.Module):
    """γ (W − mean W) / sqrt(var W · fan-in + 1e-4) of each output, with a learned gain γ.

    Source: OTTT (arXiv 2210.04195), the convolutions of its networks without batch norm; the 2.74
    by which it multiplies spikes is where γ starts.

    Example:
        >>> layer = Standardized(torch.ones(2, 3), 1.0)
        >>> layer(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])).sum(1).tolist()
        [0.0, 0.0]
    """

    def __init__(self, weight: Tensor, gain: float = GAIN) -> None:
        super().__init__()
        shape = (len(weight), *[1] * (weight.dim() - 1))
        self.gain = nn.Parameter(weight.new_full(shape, gain))

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


class Positive(nn.Module):
    """exp of what learns, so that a threshold stays above 0.

    Example:
        >>> layer = Positive()
        >>> round(float(layer(layer.right_inverse(torch.tensor(0.5)))), 6)
        0.5
    """

    def forward(self, logarithm: Tensor) -> Tensor:
        """The threshold."""
        return logarithm.exp()

    def right_inverse(self, threshold: Tensor) -> Tensor:
        """What learns, of a threshold."""
        return threshold.log()


def learn_thresholds_(layers: fx.GraphModule) -> None:
    """Let the step of each layer of neurons learn, in place."""
    for layer in dict.fromkeys(layer for _, layer in layer_nodes(layers, MTNeuron)):
        start = layer.delta.detach().clone()
        del layer._buffers["delta"]
        layer.register_parameter("delta", nn.Parameter(start))
        parametrize.register_parametrization(layer, "delta", Positive())


def is_standardized(layers: nn.Module) -> bool:
    """Whether any layer learns standardised.

    Example:
        >>> is_standardized(nn.Sequential(nn.Linear(2, 2)))
        False
    """
    return any(isinstance(layer, Standardized) for layer in layers.modules())


def with_plain_weights(layers: nn.Module) -> nn.Module:
    """A copy whose weights and thresholds are those that count; the same network where they are
    what learns."""
    if not any(parametrize.is_parametrized(layer) for layer in layers.modules()):
        return layers
    plain = copy.deepcopy(layers)
    for layer in list(plain.modules()):
        names = [name for name in ("weight", "delta") if parametrize.is_parametrized(layer, name)]
        values = {name: getattr(layer, name).detach().clone() for name in names}
        if values:
            # torch's own way of removing them would take the name from the original's class too
            kind = parametrize.type_before_parametrizations(layer)
            del layer._modules["parametrizations"]
            layer.__class__ = kind
        if "weight" in values:
            layer.register_parameter("weight", nn.Parameter(values["weight"]))
        if "delta" in values:
            layer.register_buffer("delta", values["delta"])
    return plain
