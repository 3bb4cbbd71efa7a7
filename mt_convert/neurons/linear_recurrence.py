"""A leaky sum over time with its own backward pass: no graph over the steps, one tensor saved.

It covers what is linear in time: membranes that never reset, traces, leaky read-outs, the
weighted rates of DSR. Firing and reset are not linear and have no place here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import SpecError


def linrec(x: Tensor, decay: Tensor | float, *, start: Tensor | None = None) -> Tensor:
    """y_t = λ y_(t−1) + x_t with y_(−1) = ``start``, 0 by default; λ is ``decay``.

    Gradients reach x, λ and the start. With ḡ what arrives at y, the adjoint runs backwards::

        g_t = ḡ_t + λ g_(t+1)     ∂x_t = g_t     ∂λ = Σ_t g_t y_(t−1)     ∂start = λ g_0

    Both passes take O(T) and go once. Saved are y and λ, and the start where one is given. λ is not
    held to [0, 1]: looking at its values would make a GPU wait, and the formulas hold for any.

    Shapes:
        x [T, …]; decay and start broadcastable to one step x[0]; the result as x.
    Raises:
        SpecError: x is not of floating point or has no step, decay or start does not fit one step.
    Source:
        the principle of Scalable Mechanistic Neural Networks (arXiv 2410.06074): (I − λS) y = x
        with S the shift by one step is a banded system, its gradient the transposed one.

    Example:
        >>> x = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
        >>> y = linrec(x, 0.5)
        >>> y.tolist()
        [1.0, 0.5, 2.25]
        >>> y[2].backward()
        >>> x.grad.tolist()
        [0.25, 0.5, 1.0]
    """
    rate = _check_decay("linrec", x, decay)
    if start is not None:
        _check_fits("linrec", "start", start, x)
        start = start.to(x.dtype).expand(x.shape[1:])
    y: Tensor = _LinearRecurrence.apply(x, rate, start)
    return y


def leaky_mean(x: Tensor, decay: Tensor | float) -> Tensor:
    """r = Σ_t w_t x_t / Σ_t w_t with w_t = λ^(T−1−t); λ = 1 is the plain mean, 0 the last step.

    The sum is closed, not a recurrence: only its end is wanted, and x is all that is saved of its
    size. The numerator is ``linrec(x, decay)[-1]``.

    Shapes:
        x [T, …]; decay broadcastable to one step x[0]; the result as x[0].
    Raises:
        SpecError: as `linrec`.
    Source:
        DSR (arXiv 2205.00459), the representation of a spike train.

    Example:
        >>> leaky_mean(torch.tensor([3.0, 6.0]), 0.5).item()
        5.0
    """
    rate = _check_decay("leaky_mean", x, decay)
    ages = torch.arange(len(x) - 1, -1, -1, dtype=x.dtype, device=x.device)
    weights = rate ** ages.reshape(-1, *[1] * (x.ndim - 1))
    return (weights * x).sum(0) / weights.sum(0)


class _LinearRecurrence(torch.autograd.Function):
    """The recurrence forward, its adjoint backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor, start: Tensor | None) -> Tensor:
        y = torch.empty_like(x)
        y[0] = x[0] if start is None else torch.addcmul(x[0], decay, start)
        for t in range(1, len(x)):
            torch.addcmul(x[t], decay, y[t - 1], out=y[t])
        ctx.save_for_backward(y, decay, *(() if start is None else (start,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y, decay, *start = ctx.saved_tensors
        g = torch.empty_like(y)
        g[-1] = grad[-1]
        at_decay = torch.zeros_like(y[0])
        for t in range(len(y) - 2, -1, -1):
            if ctx.needs_input_grad[1]:
                at_decay.addcmul_(g[t + 1], y[t])
            torch.addcmul(grad[t], decay, g[t + 1], out=g[t])
        if start:
            at_decay.addcmul_(g[0], start[0])
        return (
            g,
            at_decay.sum_to_size(decay.shape) if ctx.needs_input_grad[1] else None,
            decay * g[0] if start else None,
        )


def _check_decay(name: str, x: Tensor, decay: Tensor | float) -> Tensor:
    """The decay as a tensor beside x; raise unless x has steps and the decay fits one of them."""
    if not x.is_floating_point():
        raise SpecError(f"{name}: x is of {x.dtype}; allowed is floating point: pass x.float()")
    if x.ndim == 0 or len(x) == 0:
        raise SpecError(
            f"{name}: x of shape {list(x.shape)} has no time steps; allowed is [T, ...] with T >= 1"
        )
    if not isinstance(decay, Tensor):
        return torch.tensor(decay, dtype=x.dtype, device=x.device)
    _check_fits(name, "decay", decay, x)
    return decay.to(x.dtype)


def _check_fits(name: str, what: str, value: Tensor, x: Tensor) -> None:
    """Raise unless the value broadcasts to one step of x."""
    step = x.shape[1:]
    sizes = zip(reversed(value.shape), reversed(step), strict=False)
    if value.ndim > len(step) or any(own not in (1, other) for own, other in sizes):
        hint = "one number, or per channel [C, 1, 1] where a step is [batch, C, H, W]"
        raise SpecError(
            f"{name}: {what} of shape {list(value.shape)} does not broadcast to one step "
            f"{list(step)} of x; allowed is {hint}"
        )
