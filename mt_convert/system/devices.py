"""Where networks run, where one is, and how torch compiles one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

INDUCTOR_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


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


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


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


def compile_by_torch(call: Callable[..., Any], **options: Any) -> Any:
    """What torch.compile makes of a module or function, of code for this CPU alone.

    Example:
        >>> compile_by_torch(torch.neg, backend="eager")(torch.ones(2))
        tensor([-1., -1.])
    """
    keep_code_apart()
    return torch.compile(call, **options)


def keep_code_apart() -> None:
    """Let torch keep what it compiles in a folder of its own for each instruction set.

    Its cache does not ask for the instruction set: code written for AVX-512 is taken up by a
    process that compiles it for AVX2 (another machine with the same folder, or
    ATEN_CPU_CAPABILITY), and leaves half of each vector unwritten (torch 2.15). A folder that the
    user names stays; that which torch names itself, once it has looked, is the same for all.
    """
    kind = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "_")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    own = Path(tempfile.gettempdir(), f"torchinductor_{user}")
    given = Path(os.environ.get(INDUCTOR_FOLDER, own))
    torchs = given.parent == own.parent and given.name.startswith("torchinductor_")
    if torchs and not given.name.endswith(f"_{kind}"):
        os.environ[INDUCTOR_FOLDER] = f"{given}_{kind}"
