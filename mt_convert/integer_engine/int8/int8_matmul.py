"""Convolutions and linear layers as one product of int8 matrices with int32 sums.

The product is `torch._int_mm`: int8 tensor cores on CUDA, where it wants more than 16 rows and the
other two sizes in multiples of 8; zeros fill up. The same lines run on a CPU, where tests hold them
to the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..program import Accumulate, Whole

ROWS, MULTIPLE = 17, 8  # what the product asks for on CUDA


def fits(item: Accumulate, whole: Whole) -> bool:
    """Whether the layer is such a product: one group, and numbers within 8 bits, 0 among them."""
    one_group = not item.geometry or item.geometry[-1] == 1
    narrow = whole.low <= 0 <= whole.high and whole.high - whole.low < 256
    return one_group and narrow and 2**14 * item.weight[0].numel() < 2**31


def shift_into_int8(low: int, high: int) -> int:
    """What to take off 256 whole numbers at most so that they lie in int8; 0 where they do.

    Example:
        >>> shift_into_int8(0, 127), shift_into_int8(0, 255), shift_into_int8(-200, 20)
        (0, 128, -72)
    """
    return 0 if low >= -128 and high <= 127 else low + 128


def product(item: Accumulate, numbers: Tensor, whole: Whole) -> Tensor:
    """The layer's products and sums as int32, of the shape that `arithmetic.weighted_sums` gives.

    What does not fit int8 is moved by a whole number, and its share of the sums added behind.

    Example:
        >>> weight = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
        >>> layer = Accumulate(2, "head", 1, weight, (), limit=7 * 255)
        >>> product(layer, torch.tensor([[255.0, 1.0]]), Whole((2,), 0, 255)).tolist()
        [[253, 769]]
    """
    shift = shift_into_int8(int(whole.low), int(whole.high))
    moved = (numbers - shift).to(torch.int8)
    rows = _patches(item, moved, -shift) if item.geometry else moved
    flat = rows.reshape(-1, item.weight[0].numel())
    matrix = item.weight.movedim(1, -1).flatten(1).T
    sums = _multiply_padded(flat, matrix) + shift * matrix.sum(0, dtype=torch.int32)
    features = sums.reshape(*rows.shape[: rows.dim() - item.weight.dim() + 1], -1)
    return features.movedim(-1, 1).contiguous() if item.geometry else features


def _patches(item: Accumulate, numbers: Tensor, zero: int) -> Tensor:
    """What each output reads: [batch, *out, *kernel, channels]; the border holds ``zero``."""
    stride, padding, dilation, _ = item.geometry
    kernel = item.weight.shape[2:]
    border = [side for size in reversed(padding) for side in (size, size)]
    last = F.pad(numbers, border, value=zero).movedim(1, -1).contiguous()
    batch, *space, channels = last.shape
    sizes = zip(space, kernel, stride, dilation, strict=True)
    out = [(size - step * (taps - 1) - 1) // jump + 1 for size, taps, jump, step in sizes]
    first, *along, unit = last.stride()
    jumps = [one * jump for one, jump in zip(along, stride, strict=True)]
    steps = [one * step for one, step in zip(along, dilation, strict=True)]
    return last.as_strided((batch, *out, *kernel, channels), (first, *jumps, *steps, unit))


def _multiply_padded(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix, both filled with zeros to sizes that the product takes."""
    (height, inner), width = rows.shape, matrix.shape[1]
    more = -inner % MULTIPLE
    left = F.pad(rows, (0, more, 0, max(0, ROWS - height)))
    right = F.pad(matrix, (0, -width % MULTIPLE, 0, more))
    return torch._int_mm(left.contiguous(), right.contiguous())[:height, :width]
