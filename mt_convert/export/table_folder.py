"""The folder of `tables`: a network as integers to take away.

network.json         the nodes in order, their settings, the name of each array, and every
                     value's shape, least and largest number and bits (docs/export.md has the
                     schema)
network.safetensors  weights int8, thresholds, factors, places and indices int32, multipliers
                     float32
reader.py            runs both with NumPy alone
golden/              what every node reads and makes on a few images, as .npy and as .hex
                     (one number a line, two's complement, for $readmemh)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..system.storage import load_tensors, read_json, save_tensors, write_json
from . import numpy_reader
from .forms.nodes import IntegerForm, Node

GOLDEN = 4  # images, or one of a network with more than
MANY = 2**22  # numbers
OPS = {
    "encode": ("scale",),
    "conv": ("weight",),
    "linear": ("weight",),
    "gather": ("index",),
    "reshape": (),
    "max_pool": (),
    "sum_pool": (),
    "max": (),
    "sum": (),
    "scale": ("factor",),
    "fire": (),
    "read_out": ("multiplier_0",),
}
LARGEST = 2**28  # numbers of one image that a value may have, and bytes of a description


@dataclass(frozen=True)
class Tables:
    """What a description says that it is."""

    format: str
    version: int


OWN = Tables("mt_convert tables", 1)


class TableReader:
    """The NumPy reader on a folder, node by node. Raises `CheckpointError`: see `read_tables`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network, self.arrays = read_tables(folder)
        self.version = f"numpy {np.__version__}"
        self._nodes = {node["out"]: index for index, node in enumerate(self.network["nodes"])}

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Every value of the network."""
        return self._guard(lambda: numpy_reader.run(self.network, self.arrays, images))

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """What one node makes of given inputs."""
        index = self._nodes.get(node.out, -1)
        if index < 0:
            raise CheckpointError(f"{self.folder} lacks {node.name}: write it again")
        written = self.network["nodes"][index]
        shape = self.network["values"][str(node.out)]["shape"]
        arrays = self.arrays[index]
        return self._guard(lambda: numpy_reader.run_node(written, shape, arrays, inputs))

    def _guard(self, call: Any) -> Any:
        try:
            with np.errstate(all="ignore"):
                return call()
        except Exception as error:
            raise _damage(self.folder, f"{type(error).__name__}: {error}") from error


def write_tables(form: IntegerForm, folder: Path) -> None:
    """Write everything but the verdict."""
    write_nodes(form, folder, OWN)
    shutil.copyfile(Path(numpy_reader.__file__), folder / "reader.py")
    _write_golden(form, folder)


def write_nodes(form: IntegerForm, folder: Path, kind: Tables) -> None:
    """Write the description and the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    nodes = []
    for node in form.nodes:
        names = {name: f"{node.out}.{name}" for name in node.arrays}
        tensors |= {names[name]: array for name, array in node.arrays.items()}
        row = {"op": node.op, "name": node.name, "in": list(node.inputs), "out": node.out}
        nodes.append(row | dict(node.settings) | {"arrays": names})
    values = {
        str(index): {
            "shape": list(value.shape),
            "low": value.low,
            "high": value.high,
            "bits": value.bits,
        }
        for index, value in form.values.items()
    }
    last = form.nodes[-1]
    logits = form.model.run(torch.zeros(1, *form.image_shape)).logits[-1]
    values[str(last.out)] = {"shape": list(logits.shape[1:]), "real": True}
    save_tensors(folder / "network.safetensors", tensors)
    description = {
        "format": kind.format,
        "version": kind.version,
        "time_steps": form.time_steps,
        "image_shape": list(form.image_shape),
        "values": values,
        "nodes": nodes,
    }
    write_json(folder / "network.json", description)


def _write_golden(form: IntegerForm, folder: Path) -> None:
    """Vectors of every value on seeded images, by the reader just written."""
    random = torch.Generator().manual_seed(0)
    count = 1 if sum(value.size for value in form.values.values()) > MANY else GOLDEN
    images = torch.randn(count, *form.image_shape, generator=random).numpy()
    network, arrays = read_tables(folder)
    values = numpy_reader.run(network, arrays, images)
    golden = folder / "golden"
    golden.mkdir(exist_ok=True)
    for index, value in values.items():
        known = form.values.get(index)
        numbers = value.astype(np.float32) if known is None else value.astype(np.int32)
        name = str(index).rjust(3, "0")
        np.save(golden / f"{name}.npy", numbers)
        (golden / f"{name}.hex").write_text(hex_text(numbers, 32 if known is None else known.bits))


def hex_text(numbers: np.ndarray, bits: int) -> str:
    """One number a line, two's complement in ``bits`` bits; of real numbers the 32 bits of each.

    Example:
        >>> hex_text(np.array([1, -1]), 5)
        '01\\n1f\\n'
    """
    flat = numbers.ravel()
    whole = flat.view(np.uint32) if flat.dtype == np.float32 else flat.astype(np.int64)
    digits, mask = -(-bits // 4), (1 << bits) - 1
    return "".join(f"{int(number) & mask:0{digits}x}\n" for number in whole)


# ------------------------------------------------------------------------------------- reading


def read_tables(
    folder: Path, kind: Tables = OWN
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """A folder of tables, looked through before anything is run or reserved.

    Raises:
        CheckpointError: it is missing, cut short, changed into something that is no network, or
            asks for more memory than a network could.
    """
    path = folder / "network.json"
    try:
        if path.stat().st_size > LARGEST:
            raise _damage(folder, f"network.json has {path.stat().st_size} bytes")
    except OSError as error:
        raise CheckpointError(f"no tables at {folder}: {error.strerror or error}") from error
    network = read_json(path)
    tensors = load_tensors(folder / "network.safetensors")
    try:
        return network, _arrays_of(network, tensors, kind)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _damage(folder, f"{type(error).__name__}: {error}") from error
    except _NoTables as error:
        raise _damage(folder, str(error)) from error


class _NoTables(Exception):
    """What is wrong with a description."""


def _damage(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{folder} holds no whole tables ({why[:200]}): write them again")


def _require(fact: bool, what: str) -> None:
    if not fact:
        raise _NoTables(what)


def _arrays_of(
    network: Any, tensors: Mapping[str, Tensor], kind: Tables
) -> list[dict[str, np.ndarray]]:
    """The arrays of each node; everything that a node names is there and fits."""
    same = isinstance(network, dict) and network.get("format") == kind.format
    _require(same, "of another kind")
    version = network["version"]
    _require(version == kind.version, f"version {version}, this reads {kind.version}")
    shapes: dict[int, tuple[int, ...]] = {0: _shape(network["image_shape"])}
    arrays = []
    for node in network["nodes"]:
        op, out = node["op"], node["out"]
        _require(op in OPS, f"unknown operator {str(op)[:40]}")
        _require(type(out) is int and out not in shapes, f"value {out} is made twice")
        _require(
            bool(node["in"]) and all(index in shapes for index in node["in"]), f"{out} reads ahead"
        )
        shape = _shape(network["values"][str(out)]["shape"])
        own = {name: tensors[key] for name, key in node["arrays"].items()}
        for name, tensor in own.items():
            allowed = (torch.float32, torch.int32, torch.int8)
            _require(tensor.dtype in allowed, f"{out} has {name} of {tensor.dtype}")
        _require(all(name in own for name in OPS[op]), f"{out} lacks an array")
        _check_node(node, [shapes[index] for index in node["in"]], shape, own)
        shapes[out] = shape
        arrays.append({name: _wide(tensor) for name, tensor in own.items()})
    _require(bool(arrays) and network["nodes"][-1]["op"] == "read_out", "no read-out at its end")
    return arrays


def _wide(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.numpy()
    return array if array.dtype == np.float32 else array.astype(np.int64)


def _shape(sizes: Any) -> tuple[int, ...]:
    good = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
    _require(good and len(sizes) <= 8 and math.prod(sizes) < LARGEST, f"shape {str(sizes)[:60]}")
    return tuple(sizes)


def _check_node(
    node: dict[str, Any],
    inputs: list[tuple[int, ...]],
    shape: tuple[int, ...],
    arrays: Mapping[str, Tensor],
) -> None:
    """Sizes of one node, so that running it reserves what its own shapes say and no more."""
    op, first = node["op"], inputs[0]
    unit = node.get("unit")  # of sums in two parts
    _require(unit is None or (type(unit) is int and 0 < unit < 2**24), f"unit of {node['out']}")
    if op in ("conv", "max_pool", "sum_pool"):
        names = ("kernel", "stride", "padding", "dilation")
        for name in names:
            whole = all(type(size) is int and 0 <= size < 2**16 for size in node[name])
            _require(whole and len(node[name]) == len(first) - 1, f"{name} of {node['out']}")
        for index, size in enumerate(first[1:]):
            kernel, stride, padding, dilation = (node[name][index] for name in names)
            whole = kernel > 0 and stride > 0 and dilation > 0
            _require(whole and padding <= 2 * kernel * dilation, f"windows of {node['out']}")
            fit = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
            slack = padding if op == "conv" else stride  # an even kernel; a pool past its rim
            _require(0 <= shape[1 + index] - fit <= slack, f"windows of {node['out']}")
    if op == "conv":
        groups, weight = node["groups"], arrays["weight"]
        _require(type(groups) is int and 0 < groups <= first[0], "groups")
        _require(tuple(weight.shape[2:]) == tuple(node["kernel"]), "the kernel of a weight")
        _require(weight.shape[1] * groups == first[0] and weight.shape[0] == shape[0], "channels")
    elif op == "linear":
        good = (shape[-1], first[-1]) == tuple(arrays["weight"].shape)
        _require(good and shape[:-1] == first[:-1], f"the weight of {node['out']}")
    elif op == "gather":
        places = arrays["index"]
        top = sum(math.prod(one) for one in inputs)
        _require(tuple(places.shape) == shape and not places.is_floating_point(), "places moved to")
        _require(int(places.min()) >= 0 and int(places.max()) <= top, "places moved from")
    elif op == "fire":
        _check_fire(node, inputs, shape, arrays)


def _check_fire(
    node: dict[str, Any],
    inputs: list[tuple[int, ...]],
    shape: tuple[int, ...],
    arrays: Mapping[str, Tensor],
) -> None:
    """The rows and columns of a layer of neurons."""
    if "few_spikes" in node:
        _check_steps(node, inputs, shape, arrays)
        return
    if "levels" in arrays:
        low, high = node["low"], node["high"]
        _require(type(low) is int and type(high) is int, "bounds of levels")
        _require(len(arrays["levels"]) == high - low + 1, "the number of levels")
        _require(
            all(f"multiplier_{index}" in arrays for index in range(len(inputs))), "multipliers"
        )
        return
    place, thresholds = arrays["place"], arrays["thresholds"]
    _require(int(place.min()) >= 0 and int(place.max()) < len(thresholds), "rows of thresholds")
    rows = [len(arrays[f"factor_{index}"]) for index in range(len(inputs))]
    _require(thresholds.dim() == 2 and {*rows} == {len(thresholds)}, "rows of factors")
    _require(torch.broadcast_shapes(place.shape, shape) == shape, "the shape of rows")
    for rows_of in (thresholds, arrays.get("falls", thresholds)):
        _require(bool((rows_of[:, 1:] >= rows_of[:, :-1]).all()), "the order of thresholds")
    falls = arrays.get("falls", thresholds)
    _require(falls.dim() == 2 and len(falls) == len(thresholds), "rows of thresholds that fall")
    _require(type(node["first"]) is int, "the first level")


def _check_steps(
    node: dict[str, Any],
    inputs: list[tuple[int, ...]],
    shape: tuple[int, ...],
    arrays: Mapping[str, Tensor],
) -> None:
    """The steps of a formula that counts in levels."""
    spikes, steps = node["few_spikes"], arrays["thresholds"]
    _require(type(spikes) is int and 0 <= spikes <= 16, "the number of spikes")
    _require(0 < steps.dim() <= len(shape) + 1 and steps.shape == arrays["weights"].shape, "steps")
    broadcast = [steps[0] if len(steps) else arrays["first"], arrays["first"]]
    broadcast += [arrays[f"multiplier_{index}"] for index in range(len(inputs))]
    broadcast += [arrays[name] for name in ("bias", "offset") if name in arrays]
    sizes = (one.shape for one in broadcast)
    _require(torch.broadcast_shapes(*sizes, shape) == shape, "the shape of steps")


def bytes_of(folder: Path) -> int:
    """What the network itself takes: without golden vectors."""
    return sum((folder / name).stat().st_size for name in ("network.json", "network.safetensors"))
