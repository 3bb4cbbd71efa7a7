"""Weights of a converted network while they learn: on the grid that their quantizer left.

Floor 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call


class OnGrid:
    """A weighted layer whose weights are rounded in the forward pass, straight through back.

    The largest level is the one they reach now. A layer without a grid (``weight_scale``) is taken
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
        self.most = math.inf
        if self._scale is not None:
            levels = layer.get_parameter("weight").detach() / self._scale
            self.most = float(levels.round().abs().max())

    @property
    def _scale(self) -> Tensor | None:
        return getattr(self.layer, "weight_scale", None)

    @property
    def fixed(self) -> bool:
        """Whether the weights are of 1 bit, or ternary."""
        return self.most <= 1

    def weight(self) -> Tensor:
        """The weight in force."""
        weight, scale = self.layer.get_parameter("weight"), self._scale
        if scale is None or self.fixed:
            return weight
        levels = (weight / scale).round().clamp(-self.most, self.most)
        return (levels * scale).detach() + (weight - weight.detach())

    def call(self) -> Callable[[Tensor], Tensor]:
        """The layer with the weight in force, rounded once."""
        weight = self.weight()
        return lambda x: functional_call(self.layer, {"weight": weight}, (x,))
