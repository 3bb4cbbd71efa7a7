"""What operators of torch do, in the kernels' terms: windows that move over pixels, and moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..program import Operate
from ..terms import BATCH

aten = torch.ops.aten
_CATS = {torch.cat, aten.cat.default}
_SPLITS = {aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default}
_SLICE = ("input", "dim", "start", "end", "step")
_MOVES = (
    (_CATS, ("tensors", "dim")),
    (_SPLITS, ("input", "sizes", "dim")),
    ({aten.slice.Tensor}, _SLICE),
    ({aten.narrow.default}, ("input", "dim", "start", "length")),
)
_PAD_NAMES = {
    F.pad: ("input", "pad", "mode", "value"),
    aten.pad.default: ("input", "pad", "mode", "value"),
    aten.constant_pad_nd.default: ("input", "pad", "value"),
}
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """The pixels and channels of a value, and how far apart torch holds rows, columns, channels."""

    height: int
    width: int
    channels: int
    axes: Triple

    @property
    def pixels(self) -> int:
        return self.height * self.width


def grid_of(shape: Sequence[int]) -> Grid | None:
    """Channels, height, width; or rows of a linear layer with channels; or channels alone.

    Example:
        >>> grid_of((8, 4, 5))
        Grid(height=4, width=5, channels=8, axes=(5, 1, 20))
    """
    if len(shape) == 3:
        channels, height, width = shape
        return Grid(height, width, channels, (width, 1, height * width))
    if len(shape) == 2:
        return Grid(1, shape[0], shape[1], (0, shape[1], 1))
    return Grid(1, 1, shape[0], (0, 0, 1)) if len(shape) == 1 else None


@dataclass(frozen=True)
class Window:
    """How a convolution or pool moves over its input."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> Triple:
        """Output row y reads input rows y * step + first to y * step + last."""
        first = -self.padding[0]
        return self.stride[0], first, first + (self.kernel[0] - 1) * self.dilation[0]


@dataclass(frozen=True)
class Move:
    """A part of one value into a part of another, over rows, columns and channels.

    Entry i, below ``size``, is read at ``start`` + ``step`` * i and written at ``to`` + i.
    """

    size: Triple
    start: Triple = (0, 0, 0)
    to: Triple = (0, 0, 0)
    step: Triple = (1, 1, 1)

    @property
    def rows(self) -> Triple:
        """As those of a `Window`."""
        return self.step[0], self.start[0], self.start[0]


def pair(sizes: Any) -> tuple[int, int]:
    """One number, or two, as two."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return (int(sizes[0]), int(sizes[-1]))


def pool(item: Operate, names: Sequence[str]) -> Window:
    """The window of a pool as torch gives it: no stride is that of the kernel."""
    named = _arguments_by_name(item, ("input", "kernel_size", *names))
    kernel = pair(named["kernel_size"])
    stride = pair(named.get("stride") or kernel)
    return Window(kernel, stride, pair(named.get("padding", 0)), pair(named.get("dilation", 1)))


def sum_window(item: Operate, in_shape: Sequence[int], shape: Sequence[int]) -> Window | None:
    """The window of a pool that sums, or of a sum over all pixels; None for the rest."""
    if item.target is aten.avg_pool2d.default and len(shape) == 3:
        names = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        named = _arguments_by_name(item, ("input", "kernel_size", *names))
        return pool(item, names) if named.get("divisor_override") == 1 else None
    grid = grid_of(in_shape)
    if item.target is not Tensor.sum or len(in_shape) < 2 or len(item.args) < 2 or grid is None:
        return None
    axes = item.args[1] if isinstance(item.args[1], (list, tuple)) else [item.args[1]]
    positive_axes = {axis % (len(in_shape) + 1) for axis in axes}
    over_pixels = positive_axes == ({2, 3} if len(in_shape) == 3 else {1})
    return Window((grid.height, grid.width)) if over_pixels else None


def moves(
    item: Operate, in_shapes: Sequence[Sequence[int]], out_shapes: Sequence[Sequence[int]]
) -> tuple[Move, ...]:
    """One for each input of a concatenation, else one for each output; empty for other operators.

    Shapes: ``in_shapes`` of the inputs, ``out_shapes`` of the outputs, without the batch axis.
    """
    if item.target in _PAD_NAMES:
        return _pad(item, in_shapes[0], out_shapes[0])
    names = next((names for targets, names in _MOVES if item.target in targets), None)
    if names is None:
        return ()
    named = _arguments_by_name(item, names)
    dim, step = named.get("dim", 0) % (len(in_shapes[0]) + 1), named.get("step") or 1
    if dim == 0:
        return ()
    if item.target in _CATS:
        whole = len(in_shapes) == len(named["tensors"])  # none of them is a constant
        starts = _one_by_one(in_shapes, dim) if whole else []
        return tuple(
            Move(_sizes(shape), to=to) for shape, to in zip(in_shapes, starts, strict=False)
        )
    if item.target in _SPLITS:
        starts = _one_by_one(out_shapes, dim)
        return tuple(Move(_sizes(shape), at) for shape, at in zip(out_shapes, starts, strict=True))
    full, first = in_shapes[0][dim - 1], named.get("start") or 0
    first = min(max(first + full if first < 0 else first, 0), full)
    rank = len(in_shapes[0])
    return (Move(_sizes(out_shapes[0]), _along(dim, rank, first), step=_along(dim, rank, step, 1)),)


def is_whole(item: Operate, in_shape: Sequence[int]) -> bool:
    """Whether a slice that keeps the shape of an image keeps all images too."""
    if item.target is not aten.slice.Tensor:
        return False
    named = {"dim": 0, "start": None, "end": None, "step": None} | _arguments_by_name(item, _SLICE)
    all_images = not named["start"] and (named["step"] or 1) == 1
    return named["dim"] % (len(in_shape) + 1) > 0 or (
        all_images and (named["end"] is None or named["end"] >= BATCH)
    )


def _pad(item: Operate, in_shape: Sequence[int], out_shape: Sequence[int]) -> tuple[Move, ...]:
    """Zeros around a value; amounts below 0 cut some of it off."""
    named = {"mode": "constant"} | _arguments_by_name(item, _PAD_NAMES[item.target])
    amounts = [int(amount) for amount in named["pad"]]
    if named["mode"] != "constant" or named.get("value") or len(amounts) > 2 * len(in_shape):
        return ()
    before = [0] * len(in_shape)
    behind = [0] * len(in_shape)
    for index in range(len(amounts) // 2):  # the last axis comes first
        before[-1 - index], behind[-1 - index] = amounts[2 * index : 2 * index + 2]
    start, to = [max(-cut, 0) for cut in before], [max(added, 0) for added in before]
    size = [
        total - first - max(last, 0)
        for total, first, last in zip(out_shape, to, behind, strict=True)
    ]
    return (Move(_sizes(size), _triple(start, 0), _triple(to, 0)),) if min(size) > 0 else ()


def _arguments_by_name(item: Operate, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return dict(zip(names, item.args, strict=False)) | dict(item.kwargs)


def _triple(numbers: Sequence[int], missing: int) -> Triple:
    """Numbers by torch's axes as those of rows, columns and channels.

    Example:
        >>> _triple([7, 5, 6], 1), _triple([8, 3], 1)
        ((5, 6, 7), (1, 8, 3))
    """
    if len(numbers) == 3:
        return numbers[1], numbers[2], numbers[0]
    row, column, channel = [missing] * (3 - len(numbers)) + list(numbers)
    return row, column, channel


def _sizes(shape: Sequence[int]) -> Triple:
    return _triple(shape, 1)


def _along(dim: int, rank: int, number: int, others: int = 0) -> Triple:
    """A number for one of torch's axes, batch included."""
    return _triple([number if axis == dim else others for axis in range(1, rank + 1)], others)


def _one_by_one(shapes: Sequence[Sequence[int]], dim: int) -> list[Triple]:
    """Where values start that lie one behind the other along an axis."""
    ends = accumulate((shape[dim - 1] for shape in shapes), initial=0)
    return [_along(dim, len(shape), start) for shape, start in zip(shapes, ends, strict=False)]
