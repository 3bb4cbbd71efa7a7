"""Seeded convolutions for trains of tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def dense(
    inputs: int, outputs: int, stride: int = 1, *, bias: bool = True, seed: int = 0
) -> nn.Conv2d:
    """A seeded convolution in float64."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias).double()
    with torch.no_grad():
        for i, parameter in enumerate(conv.parameters()):
            parameter.copy_(random_tensor(*parameter.shape, seed=100 * seed + i))
    return conv
