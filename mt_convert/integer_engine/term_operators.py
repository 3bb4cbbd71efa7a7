"""What operators do to values made of whole numbers: sums, moves, averages and maxima.

Each function takes the operator first and then its arguments, values as `terms.Terms`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.rules import DEFAULT_RULES, OperatorKind
from .terms import (
    NoIntegers,
    Part,
    Terms,
    along_axes,
    as_terms,
    constant,
    for_one_image,
    holds_terms,
    whole_numbers,
)

aten = torch.ops.aten


def _sum(first: Any, second: Any) -> Terms:
    """The sum of two values, one of which may be a constant."""
    if not isinstance(first, Terms):
        first, second = second, first
    if not isinstance(second, Terms):
        bias = constant(second, first)
        return Terms(first.parts, bias if first.bias is None else first.bias + bias)
    shape = torch.broadcast_shapes(first.shape, second.shape)
    if len(first.shape) != len(second.shape):
        raise NoIntegers("adds values of different numbers of axes")
    parts = [
        replace(part, numbers=part.numbers.expand(shape)) for part in (*first.parts, *second.parts)
    ]
    biases = [bias for bias in (first.bias, second.bias) if bias is not None]
    return Terms(tuple(parts), sum(biases[1:], biases[0]) if biases else None)


def _add(_: Any, first: Any, second: Any, alpha: float = 1) -> Terms:
    """first + alpha * second."""
    scaled = second.scale_by(alpha) if isinstance(second, Terms) else second * alpha
    return _sum(first, scaled)


def _subtract(_: Any, first: Any, second: Any, alpha: float = 1) -> Terms:
    """first - alpha * second."""
    return _add(_, first, second, -alpha)


def _scale(_: Any, first: Any, second: Any) -> Terms:
    """A value times a constant, on either side, or times another value."""
    if isinstance(first, Terms) and isinstance(second, Terms):
        return _product(first, second)
    return first.scale_by(second) if isinstance(first, Terms) else second.scale_by(first)


def _product(first: Terms, second: Terms) -> Terms:
    """Every part of one value times every part of the other; a bias is a multiplier."""
    if len(first.shape) != len(second.shape):
        raise NoIntegers("multiplies values of different numbers of axes")
    shape = torch.broadcast_shapes(first.shape, second.shape)
    parts = []
    for one in first.parts:
        for two in second.parts:
            limit = one.limit * two.limit
            numbers = whole_numbers(one, limit) * whole_numbers(two, limit)
            parts.append(Part(numbers, one.multiplier * two.multiplier, limit))
    for value, other in ((first, second), (second, first)):
        if other.bias is not None:
            parts += [
                Part(part.numbers.expand(shape), part.multiplier * other.bias, part.limit)
                for part in value.parts
            ]
    both = None if first.bias is None or second.bias is None else first.bias * second.bias
    return Terms(tuple(parts), both)


def _matrix_product(multiply: Any, first: Any, second: Any) -> Terms:
    """A product of two values that are matrices, as attention has it: sums of whole numbers."""
    if not (isinstance(first, Terms) and isinstance(second, Terms)):
        raise NoIntegers("a product with a constant that is no layer")
    if len(first.shape) != len(second.shape) or len(first.shape) < 3:
        raise NoIntegers("multiplies matrices of different numbers of axes")
    if first.bias is not None or second.bias is not None:
        raise NoIntegers("multiplies a value with a bias: put an activation in front of it")
    parts = []
    for one in first.parts:
        for two in second.parts:
            if not (one.constant_along([-1]) and two.constant_along([-2])):
                raise NoIntegers("adds products whose steps differ: put an activation in front")
            limit = first.shape[-1] * one.limit * two.limit
            numbers = multiply(whole_numbers(one, limit), whole_numbers(two, limit))
            parts.append(Part(numbers, one.multiplier * two.multiplier, limit))
    return Terms(tuple(parts))


_VIEWS = (aten.view.default, aten._unsafe_view.default)


def _move(move: Any, value: Any, *rest: Any, **named: Any) -> Any:
    """The same numbers elsewhere; one value, or the pieces of a split. A view is a reshape: whole
    numbers may lie in another order in memory than the floats that were traced."""
    move = aten.reshape.default if move in _VIEWS else move

    def pieces(tensor: Tensor, small: bool = False) -> tuple[Tensor, ...]:
        args, kwargs = for_one_image([rest, named]) if small else (rest, named)
        moved = move(tensor, *args, **kwargs)
        return (moved,) if isinstance(moved, Tensor) else tuple(moved)

    def follow(factor: Tensor, like: Tensor, moved: tuple[Tensor, ...]) -> list[Tensor]:
        """A multiplier or a bias, moved as the numbers were."""
        small = like.is_meta and not factor.is_meta
        shape = for_one_image(like.shape) if small else like.shape
        factors = [_compact(piece) for piece in pieces(factor.expand(shape).contiguous(), small)]
        for piece, numbers in zip(factors, moved, strict=True):
            if any(
                have not in (1, full) for have, full in zip(piece.shape, numbers.shape, strict=True)
            ):
                raise NoIntegers("moves parts of an image apart whose steps differ")
        return factors

    def multipliers(part: Part, moved: tuple[Tensor, ...]) -> list[Tensor]:
        if part.multiplier.numel() == 1:
            return [along_axes(part.multiplier, piece) for piece in moved]
        return follow(part.multiplier, part.numbers, moved)

    if holds_terms(rest):
        raise NoIntegers("takes its shape from another value; it has no integer form")
    value = as_terms(value)
    moved = [pieces(part.numbers) for part in value.parts]
    factors = [multipliers(part, numbers) for part, numbers in zip(value.parts, moved, strict=True)]
    first = value.parts[0].numbers
    biases = None if value.bias is None else follow(value.bias, first, moved[0])
    values = [
        Terms(
            tuple(
                Part(numbers[index], factor[index], part.limit)
                for part, numbers, factor in zip(value.parts, moved, factors, strict=True)
            ),
            None if biases is None else _compact(biases[index]),
        )
        for index in range(len(moved[0]))
    ]
    return values[0] if len(values) == 1 and move not in SPLITS else values


def _compact(factor: Tensor) -> Tensor:
    """The same factor with one entry along each axis on which it does not change."""
    if factor.is_meta or factor.numel() == 0:
        return factor
    for axis in range(factor.dim()):
        first = factor.narrow(axis, 0, 1)
        factor = first if bool((factor == first).all()) else factor
    return factor


def _cat(_: Any, values: Sequence[Any], dim: int = 0) -> Terms:
    """Values side by side: part i of the result joins part i of each."""
    values = [as_terms(value) for value in values]
    axis = dim % len(values[0].shape)
    parts = []
    for index in range(max(len(value.parts) for value in values)):
        column = [_part_or_zero(value, index) for value in values]
        factors = [part.multiplier for part in column]
        parts.append(
            Part(
                torch.cat([part.numbers for part in column], axis),
                _join(factors, [part.numbers for part in column], axis),
                max(part.limit for part in column),
            )
        )
    if all(value.bias is None for value in values):
        return Terms(tuple(parts))
    zero = torch.zeros([1] * len(values[0].shape), dtype=torch.float64)
    firsts = [value.parts[0].numbers for value in values]
    biases = [zero.to(firsts[0].device) if value.bias is None else value.bias for value in values]
    return Terms(tuple(parts), _join(biases, firsts, axis))


def _part_or_zero(value: Terms, index: int) -> Part:
    """Part ``index`` of a value, or a part that adds nothing."""
    if index < len(value.parts):
        return value.parts[index]
    first = value.parts[0]
    zero = torch.zeros([1] * len(value.shape), dtype=torch.float64, device=first.numbers.device)
    return Part(torch.zeros_like(first.numbers), zero, 0)


def _join(factors: list[Tensor], numbers: list[Tensor], axis: int) -> Tensor:
    """Multipliers or biases side by side, in full along ``axis`` and small elsewhere."""
    shapes = [[*factor.shape[:axis], 1, *factor.shape[axis + 1 :]] for factor in factors]
    common = list(torch.broadcast_shapes(*shapes))
    wide = []
    for factor, number in zip(factors, numbers, strict=True):
        common[axis] = number.shape[axis]
        wide.append(factor.expand(common))
    return _compact(torch.cat(wide, axis))


def _stack(_: Any, values: Sequence[Any], dim: int = 0) -> Terms:
    """Values along a new axis."""
    return _cat(_, [_move(aten.unsqueeze.default, value, dim) for value in values], dim)


def _largest(maximum: Any, value: Terms, *rest: Any, **named: Any) -> Terms:
    """A maximum: of whole numbers under one positive multiplier, of real numbers elsewhere."""
    axes = list(range(2, len(value.shape)))
    if maximum is aten.amax.default:
        axes = list(named.get("dim", rest[0] if rest else ())) or list(range(len(value.shape)))
    part = value.parts[0]
    single = len(value.parts) == 1 and value.bias is None and part.constant_along(axes)
    if not (single and bool((part.multiplier > 0).all())):
        device = part.numbers.device
        real = value.real(torch.ones((), device=device))
        return as_terms(maximum(real, *rest, **named))
    numbers = maximum(part.numbers, *rest, **named)
    multiplier = part.multiplier
    if maximum is aten.amax.default:
        multiplier = maximum(multiplier, *rest, **named)
    return Terms((replace(part, numbers=numbers, multiplier=multiplier),))


def _average(pool: Any, value: Terms, kernel: Any, *rest: Any, **named: Any) -> Terms:
    """Average pooling: whole-number sums over a common divisor, the border's included."""
    total = aten.avg_pool3d.default if pool is aten.avg_pool3d.default else aten.avg_pool2d.default
    named = dict(zip(_POOL_SETTINGS, rest, strict=False)) | named
    summing = named | {"divisor_override": 1}
    first = value.parts[0].numbers
    space = tuple(range(2, first.dim()))
    ones = torch.ones([1, 1, *first.shape[2:]], dtype=torch.float64, device=first.device)
    counts = total(ones, kernel, **summing)
    divisors = torch.round(counts / pool(ones, kernel, **named))
    common = math.lcm(*(int(divisor) for divisor in divisors.unique()))
    weights, parts = torch.round(common / divisors), []  # 49 / 49 can be 1 less an ulp
    for part in value.parts:
        _steady(part, space)
        limit = part.limit * float((counts * weights).max())
        numbers = whole_numbers(part, limit)
        numbers = total(numbers, kernel, **summing)
        if bool((weights != 1).any()):
            numbers = numbers * weights.to(numbers.dtype)
        parts.append(Part(numbers, part.multiplier / common, limit))
    if value.bias is None:
        return Terms(tuple(parts))
    bias = value.bias.expand(value.bias.shape[0], *first.shape[1:]).contiguous()
    return Terms(tuple(parts), pool(bias, kernel, **named))


_POOL_SETTINGS = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _adaptive_average(_: Any, value: Terms, size: Sequence[int]) -> Terms:
    """Adaptive average pooling to a size that divides the input's."""
    pool = aten.avg_pool2d.default if len(size) == 2 else aten.avg_pool3d.default
    space = value.shape[2:]
    if any(have % want for have, want in zip(space, size, strict=True)):
        raise NoIntegers(f"pools {tuple(space)} to {tuple(size)}, which does not divide it")
    kernel = [have // want for have, want in zip(space, size, strict=True)]
    return _average(pool, value, kernel, kernel)


def _reduce(reduce: Any, value: Terms, axes: Any, keepdim: bool = False, **_: Any) -> Terms:
    """A sum or mean over axes."""
    axes = [axis % len(value.shape) for axis in ([axes] if isinstance(axes, int) else axes)]
    count = math.prod(value.shape[axis] for axis in axes)
    divisor, parts = count if reduce is aten.mean.dim else 1, []
    for part in value.parts:
        _steady(part, axes)
        numbers = whole_numbers(part, part.limit * count).sum(axes, keepdim)
        multiplier = part.multiplier.sum(axes, keepdim) / divisor
        parts.append(Part(numbers, multiplier, part.limit * count))
    if value.bias is None:
        return Terms(tuple(parts))
    bias = value.bias.expand(value.bias.shape[0], *value.shape[1:]).contiguous()
    return Terms(tuple(parts), reduce(bias, axes, keepdim))


def _steady(part: Part, axes: Sequence[int]) -> None:
    """Refuse a sum over entries that are worth different amounts."""
    if not part.constant_along(axes):
        raise NoIntegers("sums a value whose steps vary: put an activation in front of it")


def _pad(pad: Any, value: Terms, *rest: Any, **named: Any) -> Terms:
    """Padding: by reflection a move; with a number other than 0, of real numbers."""
    settings = dict(zip(_PAD_SETTINGS[pad], rest[1:], strict=False)) | named
    if settings.get("mode", "constant") != "constant":
        return _move(pad, value, *rest, **named)
    if settings.get("value") in (None, 0):
        return _pad_with_zeros(value, rest[0])
    real = value.real(torch.ones((), device=value.parts[0].numbers.device))
    return as_terms(pad(real, *rest, **named))


_PAD_SETTINGS = {
    aten.constant_pad_nd.default: ("value",),
    aten.pad.default: ("mode", "value"),
}


def _pad_with_zeros(value: Terms, amounts: Sequence[int]) -> Terms:
    """Zeros around: multipliers that hold along a whole axis hold for its zeros too."""

    def pad(factor: Tensor) -> Tensor:
        kept = [factor.shape[-1 - index // 2] > 1 for index in range(len(amounts))]
        return F.pad(factor, [amount * keep for amount, keep in zip(amounts, kept, strict=True)])

    parts = [
        Part(F.pad(part.numbers, list(amounts)), pad(part.multiplier), part.limit)
        for part in value.parts
    ]
    if value.bias is None:
        return Terms(tuple(parts))
    spread = value.bias.expand(value.bias.shape[0], *value.shape[1:])
    return Terms(tuple(parts), F.pad(spread, list(amounts)))


def _operations() -> dict[Any, Callable[..., Any]]:
    """What each operator does to a value."""
    table: dict[Any, Callable[..., Any]] = {
        target: _move for target, rule in DEFAULT_RULES.items() if rule.kind is OperatorKind.MOVE
    }
    for names, function in (
        ("cat.default concat.default", _cat),
        ("stack.default", _stack),
        ("add.Tensor add.Scalar", _add),
        ("sub.Tensor sub.Scalar", _subtract),
        ("mul.Tensor mul.Scalar", _scale),
        (
            "div.Tensor div.Scalar",
            lambda _, value, factor: value.scale_by(1 / constant(factor, value)),
        ),
        ("matmul.default bmm.default", _matrix_product),
        ("neg.default", lambda _, value: value.scale_by(-1)),
        ("avg_pool2d.default avg_pool3d.default", _average),
        ("adaptive_avg_pool2d.default adaptive_avg_pool3d.default", _adaptive_average),
        ("mean.dim sum.dim_IntList", _reduce),
        ("max_pool1d.default max_pool2d.default max_pool3d.default amax.default", _largest),
        ("constant_pad_nd.default pad.default", _pad),
        ("sym_size.int", lambda _, value, axis: value.shape[axis]),
        ("sym_numel.default", lambda _, value: value.shape.numel()),
    ):
        for name in names.split():
            packet, overload = name.split(".")
            table[getattr(getattr(aten, packet), overload)] = function
    table[operator.getitem] = lambda _, values, index: values[index]
    return table


SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
)
OPERATIONS: Mapping[Any, Callable[..., Any]] = _operations()
