"""What Python and the kernels share: the numbers and structures of structures.h, in its order.

`build.library` compares their sizes with those of the build.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint32, c_void_p

LOAD, STORE, DOT, DEPTHWISE, WIDE, NONE, MAX_POOL, SUM_POOL, COPY, FLATTEN = range(10)
KEEP, FIRE, READ_OUT = range(3)
BYTES, INTS = range(2)
SHORT, WHOLE, INT16_WEIGHTS, TILES = range(4)
OTHERWISE, OWN, OWN_AND_BYTES, BYTES_AND_OWN = range(4)
IMAGES, LOGITS = 0, 1  # the first two places outside the arena


class Value(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("offset", "start", "bytes", "changed")),
        *((name, c_int32) for name in ("kind", "height", "width", "channels")),
        *((name, c_int32) for name in ("row", "pixel", "low", "unused")),
    ]


class Dependence(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("value", "step", "first", "last")]


class Piece(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("offset", "quads", "flush", "unused")]


class Block(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("channel", "count", "offset", "unused")]


class Constant(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("pixel", c_int64)]


class Term(ctypes.Structure):
    _fields_ = [("value", c_int64), ("multiplier", Constant)]


class Thresholds(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("thresholds", "weights", "start", "levels")),
        *((name, c_int32) for name in ("count", "width", "rows", "searched")),
    ]


class Op(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("kind", "finish", "in_", "out", "rows", "columns")),
        *((name, c_int32) for name in ("external", "sums", "n_blocks", "n_pieces")),
        *((name, c_int32) for name in ("n_terms", "n_dependences")),
        *((name, c_int32 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, c_int32 * 3) for name in ("start", "step", "shift")),
        *((name, c_int32) for name in ("channels", "tile")),
        ("axes", c_int64 * 3),
        *((name, c_float) for name in ("low", "high", "down", "up", "scale")),
        ("bits", c_uint32),
        ("target", c_int64),
        ("unsettled", c_int64),
        *((name, c_void_p) for name in ("weights", "correction")),
        *((name, c_void_p) for name in ("pieces", "blocks", "terms", "dependences")),
        ("bias", Constant),
        ("offset", Constant),
        *((name, c_int32) for name in ("summed", "depth")),
        ("thresholds", c_void_p),
    ]


class External(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("image", c_int64), ("step", c_int64)]


class Call(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("values", "steps", "last_ops", "externals", "arena")),
        *((name, c_int64) for name in ("arena_bytes", "marks", "n_marks", "least_work")),
        *((name, c_int32) for name in ("n_values", "n_ops", "n_last_ops", "n_externals")),
        *((name, c_int32) for name in ("batch", "first_step", "end_step", "threads")),
        *((name, c_int32) for name in ("keep_images", "skip")),
        ("times", c_void_p),
    ]


STRUCTURES = (Value, Dependence, Piece, Block, Term, Thresholds, Op, External, Call)
