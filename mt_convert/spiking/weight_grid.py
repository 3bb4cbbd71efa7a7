"""Weights of a converted network while they learn: on the grid that their quantizer left."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call


def weight_step(layer: nn.Module) -> Tensor | None:
    """The step of a converted layer's weights [out, 1, …]; None where its weights are floats.

    Example:
        >>> weight_step(nn.Linear(2, 1)) is None
        True
    """
    return getattr(layer, "weight_scale", None)


def weight_levels(layer: nn.Module) -> tuple[int, int] | None:
    """Smallest and largest level of a converted layer's weights, where they differ in size.

    Example:
        >>> weight_levels(nn.Linear(2, 1)) is None
        True
    """
    bounds = getattr(layer, "weight_range", None)
    return None if bounds is None else (int(bounds[0]), int(bounds[1]))


class OnGrid:
    """A weighted layer whose weights are rounded in the forward pass, straight through back.

    The largest level is the one they reach now, on either side, unless the layer has a range of its
    own (``weight_range``). A layer without a grid (``weight_scale``) is taken
    as it is. `fixed`: levels of -1, 0 and 1 leave nothing to learn by rounding.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, -1.5]])
        >>> layer.register_buffer("weight_scale", torch.tensor([[0.5]]))
        >>> grid = OnGrid(layer)
        >>> layer.weight.data = torch.tensor([[0.8, 9.0]])
        >>> grid.weight().tolist()
        [[1.0, 1.5]]
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.most, uneven = math.inf, weight_levels(layer)
        if (step := weight_step(layer)) is not None:
            levels = layer.get_parameter("weight").detach() / step
            self.most = float(levels.round().abs().max())
        if uneven is not None:
            self.most = float(max(map(abs, uneven)))
        self.bounds: tuple[float, float] = uneven or (-self.most, self.most)

    @property
    def fixed(self) -> bool:
        """Whether the weights are of 1 bit, or ternary."""
        return self.most <= 1

    def weight(self) -> Tensor:
        """The weight in force."""
        weight, step = self.layer.get_parameter("weight"), weight_step(self.layer)
        if step is None or self.fixed:
            return weight
        levels = (weight / step).round().clamp(*self.bounds)
        return (levels * step).detach() + (weight - weight.detach())

    def call(self) -> Callable[[Tensor], Tensor]:
        """The layer with the weight in force, rounded once."""
        weight = self.weight()
        return lambda x: functional_call(self.layer, {"weight": weight}, (x,))
