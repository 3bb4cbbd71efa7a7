"""Running a graph so that a result depends on the values alone, not on how they lie in memory.

torch chooses kernels, and with them the order of sums and the form of a function, by more than
numbers: by strides (GELU of a transposed view differs from GELU of a copy of it in a third of all
values), and by whether a *weight* asks for a gradient (a linear layer on a transposed view; a
matrix times a batch of matrices). The quantized and the spiking network do not have the same
strides and flags, so that both run every operator through `call`: on contiguous tensors, by a
kernel that no flag chooses. Their sums then agree to the last bit, with gradients and without.

What is left is what both have in common: the number of images in a batch, of threads, and the
machine. The integer engine depends on none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

aten = torch.ops.aten


def call(operator: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An operator or layer on its arguments: the same values in give the same values out.

    Example:
        >>> x = torch.randn(64, 96, 7)
        >>> turned = x.transpose(1, 2)
        >>> copy = turned.contiguous()
        >>> gelu = torch.nn.functional.gelu
        >>> torch.equal(call(gelu, (turned,), {}), call(gelu, (copy,), {}))
        True
    """
    args, kwargs = _contiguous(args), _contiguous(kwargs)
    if isinstance(operator, nn.Module):
        turned = {
            name: tensor.contiguous()
            for held in (operator._parameters, operator._buffers)
            for name, tensor in held.items()
            if tensor is not None and not tensor.is_contiguous()
        }
        if turned:
            return functional_call(operator, turned, args, kwargs)
    if operator is aten.matmul.default and args[0].dim() <= 2 < args[1].dim():
        return _matrix_times_batch(*args)
    return operator(*args, **kwargs)


class ByValues(fx.Interpreter):
    """A graph module, each of its operators and layers run by `call`."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(self.fetch_attr(target), args, kwargs)


def _contiguous(part: Any) -> Any:
    """Arguments, every tensor among them in the order of its axes."""
    if isinstance(part, Tensor):
        return part.contiguous()
    if isinstance(part, dict):
        return {name: _contiguous(value) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return (tuple if isinstance(part, tuple) else list)(map(_contiguous, part))
    return part


def _matrix_times_batch(a: Tensor, b: Tensor) -> Tensor:
    """a b of a matrix or vector and matrices in a batch, as one product of two matrices: torch
    takes either that or one product for each matrix, as gradients are asked for or not."""
    turned = b.transpose(-2, -1).contiguous()
    if a.dim() == 1:
        return torch.matmul(turned, a)
    return torch.matmul(turned, a.t()).transpose(-2, -1)
