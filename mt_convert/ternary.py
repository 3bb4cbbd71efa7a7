"""The inner product of ternary vectors by counting bits: a reference for the energy model.

Floor 2. A value in {-1, 0, 1} is two bits, v = high + low - 1: 00 is -1, 11 is 1 and both mixed
codes are 0. With two planes of 64 values to a word, a product of two ternary vectors needs two
population counts per word, where two-bit numbers multiplied bit plane by bit plane need four.

Source: FATNN (ICCV 2021, arXiv 2008.05101) for the two-plane form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SpecError

WORD = 64


@dataclass(frozen=True)
class BitPlanes:
    """Ternary vectors, packed: the high and the low bit of each value.

    Shapes: high, low [..., words], int64; value i of a vector is bit i % 64 of word i // 64. What
        is left of the last word holds zeros of the mixed codes.

    Example:
        >>> planes = pack(torch.tensor([-1, 0, 1]))
        >>> planes.high.tolist(), (planes.low & 0b111).tolist()
        ([4], [6])
    """

    high: Tensor
    low: Tensor


def pack(values: Tensor) -> BitPlanes:
    """Vectors of -1, 0 and 1 as bit planes; 0 takes the code 01.

    Shapes: values [..., length], of any type.
    Raises:
        SpecError: a value that is not -1, 0 or 1.

    Example:
        >>> pack(torch.zeros(2, 65)).low.shape
        torch.Size([2, 2])
    """
    if not bool(((values == -1) | (values == 0) | (values == 1)).all()):
        raise SpecError("pack: allowed are the values -1, 0 and 1; quantize to ternary first")
    words = -(-values.shape[-1] // WORD)
    padded = torch.nn.functional.pad(values, (0, words * WORD - values.shape[-1]))
    lanes = padded.unflatten(-1, (words, WORD))
    return BitPlanes(high=_words(lanes > 0), low=_words(lanes >= 0))


def ternary_dot(a: BitPlanes, w: BitPlanes) -> Tensor:
    """The inner products, from the four planes: two population counts per word.

    A product is 0 unless both codes are pure (``nz``); then it is 1 where the codes are the same,
    else -1. Coded like the factors, its bits are high' = nz and same, low' = high' or not nz, and
    the sum of high' + low' - 1 over all lanes is popcount(high') + popcount(low') - lanes.

    Shapes: planes [..., words], broadcast against each other; returns int64 [...].

    Example:
        >>> ternary_dot(pack(torch.tensor([1, -1, 0, 1])), pack(torch.tensor([1, 1, 1, 1]))).item()
        1
    """
    nz = ~(a.high ^ a.low) & ~(w.high ^ w.low)
    same = ~(a.high ^ w.high)
    high = nz & same
    low = high | ~nz
    return (popcount(high) + popcount(low)).sum(-1) - WORD * high.shape[-1]


def sign_plane_dot(a: BitPlanes, w: BitPlanes) -> Tensor:
    """The same inner products as (products that are 1) - (products that are -1).

    Shapes: as `ternary_dot`.

    Example:
        >>> sign_plane_dot(pack(torch.tensor([1, -1, 0])), pack(torch.tensor([-1, -1, 1]))).item()
        0
    """
    a_plus, a_minus = a.high & a.low, ~(a.high | a.low)
    w_plus, w_minus = w.high & w.low, ~(w.high | w.low)
    plus = (a_plus & w_plus) | (a_minus & w_minus)
    minus = (a_plus & w_minus) | (a_minus & w_plus)
    return (popcount(plus) - popcount(minus)).sum(-1)


def popcount(words: Tensor) -> Tensor:
    """How many bits are set in each word: sums of neighbours, in fields of 2, 4 and 8 bits.

    Shapes: int64, any.

    Example:
        >>> popcount(torch.tensor([0, 7, -1])).tolist()
        [0, 3, 64]
    """
    pairs = words - ((words >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((bytes_ * 0x0101010101010101) >> 56) & 0xFF  # the shift of an int64 keeps its sign


def _words(lanes: Tensor) -> Tensor:
    """Lanes of bits [..., 64] as int64 [...]; bit 63 is the sign."""
    places = torch.arange(WORD, device=lanes.device)
    return (lanes.long() << places).sum(-1)
