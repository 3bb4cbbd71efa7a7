"""Values of a network as sums of whole numbers: what `arithmetic` computes with.

A value is a sum of parts, each whole numbers times a multiplier, plus a bias. What operators do to
it stands in `term_operations`; what has no exact form raises `NoIntegers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FLOAT32_WHOLE = 2**24  # whole numbers below are exact in float32
FLOAT64_WHOLE = 2**53
BATCH = 104729  # a large prime: the number of images where values have shapes but no data


@dataclass(frozen=True)
class Part:
    """``numbers`` times ``multiplier``; |numbers| never passes ``limit``.

    Whole numbers in float32 or float64; a ``limit`` of infinity marks numbers that are not whole.
    ``multiplier`` is float64 with as many axes as ``numbers``, each of size 1 or the full size.
    """

    numbers: Tensor
    multiplier: Tensor
    limit: float

    def constant_along(self, axes: Sequence[int]) -> bool:
        """Whether one multiplier holds along all of these axes."""
        return all(self.multiplier.shape[axis] == 1 for axis in axes)


@dataclass(frozen=True)
class Terms:
    """A value of the network: the sum of its parts, all of one shape, and of a float64 bias."""

    parts: tuple[Part, ...]
    bias: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.parts[0].numbers.shape

    def factors(self, step: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The multiplier of each part and the bias in units of ``step``, rounded to float32."""
        unit = along_axes(step, self.parts[0].numbers)
        multipliers = [(part.multiplier / unit).float() for part in self.parts]
        return multipliers, None if self.bias is None else (self.bias / unit).float()

    def real(self, step: Tensor) -> Tensor:
        """The value in units of ``step`` (a number, or one per entry of the batch), in float32."""
        return written_sum([part.numbers for part in self.parts], *self.factors(step))

    def scale_by(self, factor: Any) -> Terms:
        """The value times a number or a constant tensor."""
        factor = constant(factor, self)
        parts = [replace(part, multiplier=part.multiplier * factor) for part in self.parts]
        return Terms(tuple(parts), None if self.bias is None else self.bias * factor)


def written_sum(
    numbers: Sequence[Tensor], multipliers: Sequence[Tensor], bias: Tensor | None
) -> Tensor:
    """numbers_1 * M_1 + B + numbers_2 * M_2 + ...: float32, in this order, each operator rounded.

    Example:
        >>> numbers, factors = [torch.tensor([2.0]), torch.tensor([3.0])], torch.tensor([0.5, 2.0])
        >>> written_sum(numbers, list(factors), torch.tensor(1.0)).tolist()
        [8.0]
    """
    products = (
        value.float() * multiplier for value, multiplier in zip(numbers, multipliers, strict=True)
    )
    total = next(products) if bias is None else next(products) + bias
    for product in products:
        total = total + product
    return total


class NoIntegers(Exception):
    """A value or operator without an integer form: what it is, and what to do about it."""


def along_axes(step: Tensor, like: Tensor) -> Tensor:
    """A multiplier in float64 from one step, or one for each entry of the batch."""
    return step.detach().double().reshape(-1, *[1] * (like.dim() - 1))


def for_one_image(sizes: Any) -> Any:
    """Sizes, in whatever lists and mappings, of one image instead of `BATCH`."""
    if isinstance(sizes, Mapping):
        return {name: for_one_image(size) for name, size in sizes.items()}
    if isinstance(sizes, (list, tuple)):
        return [for_one_image(size) for size in sizes]
    return sizes // BATCH if type(sizes) is int and sizes > 0 and sizes % BATCH == 0 else sizes


def as_terms(value: Any) -> Terms:
    """A value as terms; a tensor of real numbers is one part that is not whole."""
    if isinstance(value, Terms):
        return value
    ones = torch.ones([1] * value.dim(), dtype=torch.float64, device=value.device)
    return Terms((Part(value, ones, math.inf),))


def real_numbers(values: Any) -> Any:
    """Arguments, in whatever lists and mappings, with real numbers in place of terms."""
    if isinstance(values, Terms):
        return values.real(torch.ones((), device=values.parts[0].numbers.device))
    if isinstance(values, Mapping):
        return {name: real_numbers(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [real_numbers(value) for value in values]
    return values


def holds_terms(args: Any) -> bool:
    """Whether any argument, or any item of a list among them, is a value of the network."""
    items = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return any(isinstance(item, Terms) for item in items)


def constant(value: Any, like: Terms) -> Tensor:
    """A number or a constant tensor in float64, with the axes of ``like``."""
    if isinstance(value, Terms):
        raise NoIntegers("a product of two activations; simulate without IntegerArithmetic")
    if not isinstance(value, Tensor):
        value = torch.tensor(value, device=like.parts[0].numbers.device)
    value = value.detach().double()
    return value.reshape(*[1] * (len(like.shape) - value.dim()), *value.shape)


def on_axis(like: Tensor, axis: int) -> list[int]:
    """The shape of one number per index of ``axis``."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return shape


def whole_numbers(part: Part, limit: float) -> Tensor:
    """The whole numbers of a part in the type that holds results up to ``limit`` exactly."""
    if math.isinf(part.limit):
        raise NoIntegers("reads a value that is not whole: put an activation in front of it")
    if limit >= FLOAT64_WHOLE:
        raise NoIntegers(f"sums could reach {limit:.1e}, past 2^53: use fewer bits")
    return in_exact_type(part.numbers, limit)


def in_exact_type(numbers: Tensor, limit: float) -> Tensor:
    """Whole numbers in the type whose products and sums up to ``limit`` are exact."""
    # only a CPU's float32 products are known to be neither shortened nor transformed
    short = numbers.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"
    return numbers.double() if short or limit >= FLOAT32_WHOLE else numbers.float()
