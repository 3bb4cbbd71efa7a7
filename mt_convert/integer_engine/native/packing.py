"""Weights and constants as the kernels read them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..program import Accumulate
from .layout import (
    DEPTHWISE,
    DOT,
    INT16_WEIGHTS,
    SHORT,
    TILES,
    WHOLE,
    WIDE,
    Block,
    Constant,
    Piece,
    Value,
)
from .operators import Grid
from .plans import Plan

TILE_QUADS = 16  # of a tile, at most
TILED_QUADS, TILED_PIXELS = 8, 8  # at least, of a piece and of the output: else tiles stay empty


class Kept:
    """What the kernels point to, alive as long as this is."""

    def __init__(self) -> None:
        self.alive: list[Any] = []

    def structs(self, kind: Any, entries: Sequence[Any]) -> int:
        """The address of structures that stay."""
        array = (kind * max(len(entries), 1))(*entries)
        self.alive.append(array)
        return ctypes.addressof(array)

    def tensor(self, tensor: Tensor, dtype: torch.dtype) -> int:
        """The address of numbers that stay, of the type that the kernels read."""
        assert tensor.dtype == dtype, (tensor.dtype, dtype)
        assert tensor.device.type == "cpu", tensor.device
        kept = tensor.contiguous()
        self.alive.append(kept)
        return kept.data_ptr()

    def constant(self, factor: Any, grid: Grid) -> Any:
        """A constant by channel, or by pixel and channel, with room behind for whole registers."""
        shaped = factor.detach().float()[0]
        channel = 0 if shaped.dim() == 3 else shaped.dim() - 1
        by_pixel = shaped.movedim(channel, -1)
        if by_pixel[..., 0].numel() == 1:
            row = by_pixel.reshape(-1).expand(grid.channels)
            return Constant(self.tensor(F.pad(row, (0, 32)), torch.float32), 0)
        sizes = (grid.height, grid.width) if shaped.dim() == 3 else (grid.width,)
        rows = by_pixel.expand(*sizes, grid.channels).reshape(grid.pixels, grid.channels)
        return Constant(self.tensor(F.pad(rows, (0, 32)), torch.float32), grid.channels + 32)


class Packing:
    """The weights of layers, in the form that an instruction set wants.

    ``short_sums``: the kernels add pairs of products in int16 as long as they fit. ``quads``: they
    add four products at once also where each channel has weights of its own. ``tiles``: they
    multiply tiles of pixels and weights.
    """

    def __init__(self, kept: Kept, *, short_sums: bool, quads: bool, tiles: bool) -> None:
        self.kept, self.short_sums, self.quads, self.tiles = kept, short_sums, quads, tiles
        self.packed: dict[int, list[tuple[Tensor, dict[str, Any]]]] = {}

    def layer(
        self, place: int, item: Accumulate, plan: Plan, value: Value, most: int, pixels: int
    ) -> dict[str, Any]:
        """Fields of the op of instruction ``place``, shared between steps of equal weights.

        ``value``: where its input lies, whose bytes are at most ``most``; ``pixels`` of the output.
        """
        for packed_weight, fields in self.packed.setdefault(place, []):
            if packed_weight is item.weight or torch.equal(packed_weight, item.weight):
                return fields
        weight = item.weight if item.weight.dim() == 4 else item.weight[:, :, None, None]
        groups = item.geometry[3] if item.geometry else 1
        packed: dict[str, Any] = {}
        sums = weight.flatten(1).long().sum(1) * value.low
        packed["correction"] = self.kept.tensor(F.pad(sums.int(), (0, 64)), torch.int32)
        each = len(weight) if plan.kind == DEPTHWISE else len(weight) // groups
        blocks = [
            Block(start + c, min(16, each - c), start // each * weight.shape[1] + c * own)
            for start in range(0, len(weight), each)
            for own in [plan.kind == DEPTHWISE]
            for c in range(0, each, 16)
        ]
        packed["blocks"], packed["n_blocks"] = self.kept.structs(Block, blocks), len(blocks)
        offsets = [
            i * plan.window.dilation[0] * value.row + j * plan.window.dilation[1] * value.pixel
            for i in range(weight.shape[2])
            for j in range(weight.shape[3])
        ]
        if plan.kind == DOT:
            quads = _quads(weight, each)
            side_by_side = groups == 1 and plan.window.dilation[1] == 1
            joined = weight.shape[3] if side_by_side else 1
            length = math.ceil(weight.shape[1] / 4) * joined
            taps = [(offset, length) for offset in offsets[::joined]]
            tiles = self.tiles and length >= TILED_QUADS and pixels >= TILED_PIXELS
            packed |= self._tiles(quads, taps) if tiles else self._dot_weights(quads, taps, most)
        else:
            own = plan.kind == DEPTHWISE
            in_order = self._depthwise(weight, plan) if own else _sixteen_by_pair(weight.flatten(1))
            packed["weights"] = self.kept.tensor(in_order, torch.int8)
            packed["sums"] = SHORT if plan.kind == WIDE and most <= 32767 else WHOLE
            pieces = [Piece(offset, 1, 0) for offset in offsets]
            packed["pieces"], packed["n_pieces"] = self.kept.structs(Piece, pieces), len(pieces)
        self.packed[place].append((item.weight, packed))
        return packed

    def _depthwise(self, weight: Tensor, plan: Plan) -> Tensor:
        """Weights of channels by themselves, in the order of the kernel for their windows."""
        if not self.quads:
            return _sixteen_by_tap(weight.flatten(1))
        columns = weight.shape[3], plan.window.stride[1], plan.window.dilation[1]
        if columns != (3, 1, 1):
            return _quads_of_taps(weight.flatten(1))
        pairs = [F.pad(weight, (shift, 1 - shift)) for shift in range(2)]  # two pixels, one read
        return _quads_of_taps(torch.stack(pairs, 3).flatten(1))

    def _tiles(self, quads: Tensor, taps: list[tuple[int, int]]) -> dict[str, Any]:
        """Weights [blocks, quads, 16, 4] in whole tiles, zeros behind each piece of input."""
        length = taps[0][1]
        count = math.ceil(length / TILE_QUADS)
        depth = math.ceil(length / count)
        parts = quads.reshape(len(quads), len(taps), length, 16, 4)
        filled = F.pad(parts, (0, 0, 0, 0, 0, count * depth - length))
        pieces = [Piece(offset, count * depth, 0) for offset, _ in taps]
        return {
            "weights": self.kept.tensor(filled, torch.int8),
            "sums": TILES,
            "depth": depth,
            "pieces": self.kept.structs(Piece, pieces),
            "n_pieces": len(pieces),
        }

    def _dot_weights(self, quads: Tensor, taps: list[tuple[int, int]], most: int) -> dict[str, Any]:
        """Weights [blocks, quads, 16, 4] in order of use, and the pieces of input they meet."""
        sums, ends = WHOLE, None
        if self.short_sums:
            ends = _int16_chunks(quads, most)
            sums = WHOLE if ends is None else SHORT
            if ends is None and 2 * most * int(quads.to(torch.int16).abs().max()) > 32767:
                sums = INT16_WEIGHTS
                quads = quads.to(torch.int16).unflatten(-1, (2, 2)).permute(0, 1, 4, 2, 3)
        cuts, position, pieces = set(ends or ()), 0, []
        for offset, length in taps:
            begin = 0
            for quad in range(1, length + 1):
                flush = position + quad in cuts
                if flush or quad == length:
                    pieces.append(Piece(offset + 4 * begin, quad - begin, int(flush)))
                    begin = quad
            position += length
        return {
            "weights": self.kept.tensor(
                quads, torch.int16 if sums == INT16_WEIGHTS else torch.int8
            ),
            "sums": sums,
            "pieces": self.kept.structs(Piece, pieces),
            "n_pieces": len(pieces),
        }


def _quads(weight: Tensor, each: int) -> Tensor:
    """Weights [out, in, h, w], ``each`` of them per group, as [blocks of 16, quads, 16, 4]."""
    channels_last = F.pad(weight.permute(0, 2, 3, 1), (0, -weight.shape[1] % 4))
    flat = channels_last.reshape(len(weight) // each, each, -1, 4)
    padded = F.pad(flat, (0, 0, 0, 0, 0, -each % 16))
    return padded.reshape(-1, 16, *padded.shape[2:]).transpose(1, 2).contiguous()


def _sixteen_by_tap(weight: Tensor) -> Tensor:
    """Weights [channels, taps] as [blocks, taps, 16]."""
    rows = F.pad(weight.t(), (0, -len(weight) % 16))
    return rows.reshape(len(rows), -1, 16).transpose(0, 1)


def _sixteen_by_pair(weight: Tensor) -> Tensor:
    """Weights [out, inputs] as [blocks, pairs of inputs, 16, 2]."""
    padded = F.pad(weight, (0, weight.shape[1] % 2, 0, -len(weight) % 16))
    return padded.reshape(len(padded) // 16, 16, -1, 2).transpose(1, 2)


def _quads_of_taps(weight: Tensor) -> Tensor:
    """Weights [channels, taps] as `join_taps` in the kernels orders bytes, 64 channels after 64."""
    padded = F.pad(weight, (0, -weight.shape[1] % 4, 0, -len(weight) % 64))
    parts = padded.reshape(len(padded) // 64, 4, 4, 4, -1, 4)  # 16 j + 4 k + i, quad, tap
    return parts.permute(0, 4, 2, 1, 3, 5)


def _int16_chunks(quads: Tensor, most: int) -> list[int] | None:
    """Ends of the longest runs of quads whose sums fit int16 for any input up to ``most``.

    None where runs are too short to be worth it, or where a single pair of products does not fit.
    """
    numbers = quads.numpy().astype(np.int64).transpose(1, 0, 2, 3).reshape(quads.shape[1], -1, 2)
    if not numbers.size or 2 * most * int(np.abs(numbers).max()) > 32767:
        return None
    above = most * np.maximum(numbers, 0).sum(2)
    below = most * np.maximum(-numbers, 0).sum(2)
    ends, up, down = [], np.zeros_like(above[0]), np.zeros_like(above[0])
    for quad in range(len(numbers)):
        up, down = up + above[quad], down + below[quad]
        if max(up.max(), down.max()) > 32767:
            ends.append(quad)
            up, down = above[quad], below[quad]
    ends.append(len(numbers))
    return ends if len(numbers) >= 4 * len(ends) or len(ends) == 1 else None
