"""Networks that behave badly, in timm's registry under names that start with odd_."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn


class _Odd(nn.Module):
    """A small classifier; subclasses are odd in one way."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.conv(images))
        return self.head((x * self.gamma + x).mean((2, 3)))


class _Unsupported(_Odd):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).cumsum(1).sort(1).values


class _Failing(_Odd):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("this network\nnever runs")


@register_model
def odd_fine(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _Odd()


@register_model
def odd_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _Odd(width=64)


@register_model
def odd_unsupported(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _Unsupported()


@register_model
def odd_failing(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _Failing()


@register_model
def odd_leaving(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    os._exit(3)


@register_model
def odd_crashing(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


@register_model
def odd_slow(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    time.sleep(600)
    return _Odd()


@register_model
def odd_hungry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    blocks = []
    for _ in range(64):
        blocks.append(bytearray(os.urandom(2**20)) * 128)
        time.sleep(0.05)
    return _Odd()
