"""Which floating type a network runs on: its own, whatever torch's default and autocast say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import fx, nn

from ..errors import Fault, SpecError

EXACT = (torch.float32, torch.float64)  # in which the levels of neurons and their sums are exact
_CASTING = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def in_float32() -> Iterator[None]:
    """New tensors are float32 and nothing is cast, as on a fresh start of torch; also a decorator.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> with in_float32():
        ...     print(torch.ones(1).dtype)
        torch.float32
        >>> torch.ones(1).dtype
        torch.float64
        >>> torch.set_default_dtype(torch.float32)
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in _CASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default is not torch.float32:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


def network_dtype(network: nn.Module, allowed: tuple[torch.dtype, ...] = EXACT) -> torch.dtype:
    """The one floating type of a network's layers; float32 where they hold no numbers.

    Raises:
        SpecError: another type than allowed, or several, with the tensors that hold it.

    Example:
        >>> network_dtype(nn.Linear(2, 2).double())
        torch.float64
    """
    found: dict[torch.dtype, str] = {}
    for path, module in network.named_modules():
        if type(module) is nn.Module or isinstance(module, fx.GraphModule):
            continue  # constants that a graph reads: they may be of any type
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                found.setdefault(tensor.dtype, f"{path}.{name}".lstrip("."))
    if len(found) <= 1 and set(found) <= set(allowed):
        return next(iter(found), torch.float32)
    hint = "pass network.float(), or convert the float32 network again; images may be of any type"
    words = " or ".join(str(item).removeprefix("torch.") for item in allowed)
    raise SpecError(
        f"the layers of this {type(network).__name__} are not in {words} alone",
        [Fault(name, str(dtype), hint) for dtype, name in found.items() if dtype not in allowed]
        or [
            Fault(name, str(dtype), f"one of several types: {hint}")
            for dtype, name in found.items()
        ],
    )
