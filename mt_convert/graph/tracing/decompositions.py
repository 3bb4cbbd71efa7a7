"""Operators that export takes apart: those that hide products, weighted layers or several outputs.

Attention and recurrent cells become products and functions, so that neurons can feed
each product; what only looks at a shape becomes a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

BY_TORCH = (
    aten.einsum.default,
    aten.lstm.input,
    aten.gru.input,
    aten.rnn_tanh.input,
    aten.rnn_relu.input,
    aten.addcmul.default,
    aten.addcdiv.default,
    aten.baddbmm.default,
    aten.bilinear.default,
    aten.clip.default,
    aten.cosine_similarity.default,
    aten.glu.default,
    aten.inner.default,
    aten.outer.default,
    aten.tensordot.default,
    aten.tile.default,
)


@cache
def decomposition_table() -> Mapping[Any, Callable[..., Any]]:
    """The decompositions that export is given: attention in our words, the rest in torch's."""
    defaults = torch.export.default_decompositions()
    table = {target: defaults[target] for target in BY_TORCH}
    return {
        **table,
        aten.scaled_dot_product_attention.default: _attention,
        aten.instance_norm.default: _instance_norm,
        aten.addmm.default: _addmm,
        aten.hstack.default: lambda tensors: torch.cat(list(tensors), 1),
        aten.lerp.Scalar: lambda start, end, weight: start + (end - start) * weight,
        aten.rrelu.default: lambda x, lower=0.125, upper=1 / 3, *_: torch.nn.functional.leaky_relu(
            x, (lower + upper) / 2
        ),
        aten.var_mean.correction: _var_mean,
        aten.var_mean.dim: lambda x, dim, unbiased=True, keepdim=False: _var_mean(
            x, dim, correction=int(unbiased), keepdim=keepdim
        ),
        aten.zeros_like.default: lambda like, **settings: _fill_constant(
            like, like.shape, 0, **settings
        ),
        aten.ones_like.default: lambda like, **settings: _fill_constant(
            like, like.shape, 1, **settings
        ),
        aten.full_like.default: lambda like, value, **settings: _fill_constant(
            like, like.shape, value, **settings
        ),
        aten.new_zeros.default: lambda like, size, **settings: _fill_constant(
            like, size, 0, **settings
        ),
        aten.new_ones.default: lambda like, size, **settings: _fill_constant(
            like, size, 1, **settings
        ),
        aten.new_full.default: _fill_constant,
        aten.fill.Scalar: lambda like, value: _fill_constant(like, like.shape, value),
    }


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v, both products on their own. Source: Vaswani et al. 2017."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (item.repeat_interleave(repeats, -3) for item in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    return torch.matmul(weights, value)


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    own: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Tensor:
    """A group norm of groups of one channel, or a batch norm where statistics were stored."""
    if own:
        return torch.group_norm(x, x.shape[1], weight, bias, eps, cudnn)
    return torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, cudnn)


def _addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """x · beta + a b · alpha, the product on its own."""
    product = torch.matmul(a, b)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def _var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Two operators of one output each."""
    axes = list(range(x.dim())) if dim is None else dim
    return torch.var(x, dim, correction=correction, keepdim=keepdim), x.mean(axes, keepdim)


def _fill_constant(
    like: Tensor, size: Sequence[int], value: float, *, dtype: Any = None, **settings: Any
) -> Tensor:
    """A constant, which an operator on an image that only looks at its shape is."""
    dtype = like.dtype if dtype is None else dtype
    return torch.full(list(size), value, dtype=dtype, device=settings.get("device") or like.device)
