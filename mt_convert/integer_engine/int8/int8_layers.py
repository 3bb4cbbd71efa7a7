"""Weighted layers on a CPU as products of bytes with int32 sums, by the kernels that torch brings.

Convolutions run in oneDNN, levels as uint8, weights as int8. Its whole-number sums come back as
float32 (all scales are 1), in which they are exact: 255 times the sum of |weights| stays below
2^24. Linear layers and products of two activations are `torch._int_mm`. All of that only where the
CPU has VNNI: kernels for older ones add pairs of products in 16 bits, which saturate. `missing`
tries the kernels once on numbers that would; one sum that is off, and they are left alone.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ...errors import error_line
from ..arithmetic import weighted_sums
from ..program import Accumulate, Program, Whole
from ..terms import FLOAT32_WHOLE
from .int8_matmul import shift_into_int8

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default, torch.matmul)
SMALL = 2**15  # multiply-adds of a product of two activations that a call is not worth


def fits(item: Accumulate, whole: Whole) -> bool:
    """Whether a layer is such a product: bytes go in, 0 among them, over two axes or over rows."""
    if item.weight.dim() not in (2, 4) or not all(
        isinstance(part, (tuple, list)) for part in item.geometry[:-1]
    ):
        return False
    low, high = _bounds(item, whole)
    return low <= 0 <= high and high - low < 256 and 255 * _gain(item) < FLOAT32_WHOLE


def _gain(item: Accumulate) -> float:
    """The largest sum of |weights|."""
    return float(item.weight.abs().double().flatten(1).sum(1).max())


def _bounds(item: Accumulate, whole: Whole) -> tuple[float, float]:
    """The least and largest number that a layer reads, by its limit where the program does not say
    (in windows of attention)."""
    gain = _gain(item)
    if math.isfinite(whole.high) or gain == 0 or math.isinf(item.limit):
        return whole.low, whole.high
    reach = math.ceil(item.limit / gain)
    return -reach, reach


class Int8Layer:
    """One layer, its weights in the order that the kernels want.

    Example:
        >>> weight = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
        >>> layer = Int8Layer(Accumulate(2, "head", 1, weight, (), 7 * 255), Whole((2,), 0, 255))
        >>> layer(torch.tensor([[255.0, 1.0]])).tolist()
        [[253.0, 769.0]]
    """

    def __init__(self, item: Accumulate, whole: Whole) -> None:
        self.low, self.high = map(int, _bounds(item, whole))
        self._geometry = item.geometry
        self._linear = not item.geometry
        if self._linear:
            self._matrix = item.weight.T.contiguous()
            self._shift = shift_into_int8(self.low, self.high)
            self._shifted = self._shift * self._matrix.sum(0, dtype=torch.int32)
            return
        stride, padding, dilation, groups = item.geometry
        self._ways = [list(stride), list(padding), list(dilation), groups]
        self._scales = torch.ones(len(item.weight))
        self._zeros = torch.zeros(len(item.weight), dtype=torch.int64)
        self._packed = torch.ops.onednn.qconv_prepack(
            item.weight, self._scales, 1.0, -self.low, *self._ways, None
        )

    def __call__(self, numbers: Tensor) -> Tensor:
        """The layer's sums in float32; those of a convolution lie channels last."""
        return self.sums(self.prepare(numbers))

    def prepare(self, numbers: Tensor) -> Tensor:
        """The numbers as bytes, as the kernels read them; what lies beyond is moved."""
        start = self._shift if self._linear else self.low
        moved = numbers - start if start else numbers
        if self._linear:
            return moved.to(torch.int8)
        return moved.to(torch.uint8, memory_format=torch.channels_last)

    def sums(self, ready: Tensor) -> Tensor:
        """The sums in float32 of what `prepare` gave, by the library's kernel."""
        if not self._linear:
            found: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
                ready, 1.0, -self.low, self._packed, self._scales, self._zeros, None,
                *self._ways, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
            return found
        rows = ready.reshape(-1, len(self._matrix))
        sums = torch._int_mm(rows.contiguous(), self._matrix)
        if self._shift:
            sums += self._shifted
        return sums.float().reshape(*ready.shape[:-1], -1)


def layers(program: Program) -> dict[int, Int8Layer]:
    """The layers of a program that are such products, by the value that they make."""
    whole = program.values
    items = [item for item in program.instructions if isinstance(item, Accumulate)]
    if not items or items[0].weight.device.type != "cpu" or missing() is not None:
        return {}
    return {
        item.out: Int8Layer(item, whole[item.value])
        for item in items
        if fits(item, whole[item.value])
    }


def product(first: Tensor, second: Tensor) -> Tensor:
    """A product of two batches of matrices of whole numbers from -128 to 127, in float32.

    Example:
        >>> product(torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[5.0], [-7.0]]])).tolist()
        [[[-11.0]]]
    """
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    left, right = (
        side.to(torch.int8).expand(*batch, *side.shape[-2:]).flatten(0, -3).contiguous()
        if batch
        else side.to(torch.int8)[None].contiguous()
        for side in (first, second)
    )
    sums = [torch._int_mm(one, other) for one, other in zip(left, right, strict=True)]
    if not sums:
        return first.new_zeros(*batch, first.shape[-2], second.shape[-1])
    return torch.stack(sums).float().reshape(*batch, first.shape[-2], second.shape[-1])


def product_fits(first: Whole, second: Whole) -> bool:
    """Whether two activations are matrices of int8 whose product has sums of int32."""
    if min(len(first.shape), len(second.shape)) < 2 or missing() is not None:
        return False
    bounds = [abs(end) for whole in (first, second) for end in (whole.low, whole.high)]
    return max(bounds) <= 127 and first.shape[-1] * 127 * 127 < 2**31


def worth(first: Tensor, second: Tensor) -> bool:
    """Whether a product of two activations is large enough for a call for each matrix."""
    size = first.shape[-2] * first.shape[-1] * second.shape[-1]
    return size >= SMALL and first.device.type == "cpu"


@cache
def missing() -> str | None:
    """Why the kernels cannot be used here; None if they can and are exact."""
    if not torch.cpu._is_vnni_supported():
        return "this CPU has no VNNI: its int8 kernels are slow, or saturate"
    try:
        with torch.inference_mode():
            off = [name for name, item, whole in _saturating() if not _exact(item, whole)]
    except Exception as error:  # private operators of torch: another version has others
        return f"torch {torch.__version__} has other int8 kernels: {error_line(error)}"
    return f"int8 kernels that are not exact: {', '.join(off)}" if off else None


def _saturating() -> list[tuple[str, Accumulate, Whole]]:
    """Layers on which sums cut to 16 bits, or zero points that are not whole, would show."""
    found = []
    for groups, kernel in ((1, 3), (1, 1), (8, 3)):
        weight = torch.full((8, 8 // groups, kernel, kernel), 127, dtype=torch.int8)
        weight[1::2] = -127
        geometry = ((1, 1), (kernel // 2,) * 2, (1, 1), groups)
        for low, high in ((0, 255), (-15, 240)):
            item = Accumulate(2, "layer", 1, weight, geometry, math.inf)
            found.append((f"convolution {kernel}x{kernel}", item, Whole((8, 4, 4), low, high)))
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    weight[1::2] = -128
    return [
        *found,
        ("linear", Accumulate(2, "layer", 1, weight, (), math.inf), Whole((64,), 0, 255)),
    ]


def _exact(item: Accumulate, whole: Whole) -> bool:
    """Whether the kernels give the sums of a layer on the largest numbers and on the smallest."""
    for number in (whole.high, whole.low, 1):
        numbers = torch.full((2, *whole.shape), float(number))
        sums = weighted_sums(numbers.double(), item.weight, item.geometry)
        if not torch.equal(Int8Layer(item, whole)(numbers).double(), sums):
            return False
    return True
