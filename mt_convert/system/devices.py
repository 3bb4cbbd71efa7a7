"""Where networks run, and where one is."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn


def device() -> torch.device:
    """Where evaluation runs: the accelerator if there is one."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a network's parameters and buffers are; the CPU where it has none.

    Example:
        >>> device_of(nn.ReLU()), device_of(nn.Linear(1, 1, device="meta"))
        (device(type='cpu'), device(type='meta'))
    """
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def compile_options() -> dict[str, Any]:
    """Keyword arguments of torch.compile.

    On a CPU tensors keep their layout: where torch 2.15 puts bfloat16 activations of 64 channels
    and 8x8 pixels channels-last, its vectorised code gives NaN gradients.

    Example:
        >>> compile_options()["backend"]
        'inductor'
    """
    on_cpu = not torch.accelerator.is_available()
    return {"backend": "inductor", "options": {"layout_optimization": False} if on_cpu else None}
