"""The file of `torch`: a program of torch.export on whole numbers, and what runs it elsewhere.

Whole numbers are int32 between nodes; products and sums are of float32, or of float64 past 2^24,
in which they are exact. A level is a count of comparisons, or, of more thresholds than
`MOST_COMPARED`, a search among them in halves. No real number stands between the image and the
read-out but in sums of two accumulators, which have the written float32 formula, and where the
network itself has some (norms, softmax): there are torch's own operators.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import CheckpointError, Fault
from ...integer_engine.terms import FLOAT32_WHOLE
from ...integer_engine.torch_backend import fill_arguments
from ..forms.float32_sums import furthest, sum_fits
from ..forms.float_segments import put_constants
from ..forms.nodes import IntegerForm, Node
from ..forms.threshold_sums import INT32
from ..onnx_formats.onnx_floats import name_of
from ..onnx_formats.onnx_graph import window_pads
from . import torch_reader

MOST_COMPARED = 15
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def torch_refused(form: IntegerForm) -> list[Fault]:
    """Operators on real numbers that the check's reader does not let through."""
    operators = ((node, item) for node in form.nodes for item in node.settings.get("operators", ()))
    hint = "is none of those that a program is looked through for: keep it out, or run mt.integer"
    return [
        Fault(node.name, str(item.target), hint)
        for node, item in operators
        if not torch_reader.TARGETS.fullmatch(f"torch.ops.aten.{name_of(item)}.default")
    ]


def write_torch(form: IntegerForm, path: Path) -> None:
    """Write the program; batches of any size."""
    network = Network(form).eval()
    batch = torch.export.Dim("batch", min=1)
    images = torch.zeros(2, *form.image_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: batch},), strict=False
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names files of this machine
        program._example_inputs = None  # would be pickled
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path)


class Network(nn.Module):
    """The nodes as modules value_N, run in order."""

    def __init__(self, form: IntegerForm) -> None:
        super().__init__()
        self.nodes = [(node.out, node.inputs) for node in form.nodes]
        for node in form.nodes:
            self.add_module(f"value_{node.out}", _KINDS[node.op](form, node))

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        values = {0: image}
        for out, inputs in self.nodes:
            layer = self.get_submodule(f"value_{out}")
            values[out] = layer(*(values[index] for index in inputs))
        return values[out]


class _Node(nn.Module):
    """A node; its arrays as buffers."""

    scale: Tensor
    weight: Tensor
    ones: Tensor
    index: Tensor
    factor: Tensor
    factor_0: Tensor
    levels: Tensor
    multiplier_0: Tensor
    bias: Tensor
    offset: Tensor
    steps: Tensor

    def __init__(self, form: IntegerForm, node: Node) -> None:
        super().__init__()
        self.settings: Mapping[str, Any] = node.settings
        self.out = node.out
        value = form.values.get(node.out)
        self.shape = () if value is None else value.shape
        for name, array in self.arrays(form, node).items():
            self.register_buffer(name, array.contiguous())

    def arrays(self, form: IntegerForm, node: Node) -> dict[str, Tensor]:
        """What it holds."""
        return dict(node.arrays)


class _Encode(_Node):
    def forward(self, x: Tensor) -> Tensor:
        low, high = self.settings["low"], self.settings["high"]
        return torch.round(x / self.scale).clamp(low, high).to(torch.int32)


class _Products(_Node):
    """A convolution or a linear layer."""

    def arrays(self, form: IntegerForm, node: Node) -> dict[str, Tensor]:
        kind = torch.float32 if furthest(form, node) < FLOAT32_WHOLE else torch.float64
        self.pads = window_pads(form, node) if node.op == "conv" else []
        return {"weight": node.arrays["weight"].to(kind)}

    def forward(self, x: Tensor) -> Tensor:
        x, settings = x.to(self.weight.dtype), self.settings
        if not settings:
            return F.linear(x, self.weight).to(torch.int32)
        x = _pad(x, self.pads, 0.0)
        stride, dilation, groups = (settings[name] for name in ("stride", "dilation", "groups"))
        convolution = _CONVOLUTIONS[len(stride) - 1]
        return convolution(x, self.weight, stride=stride, dilation=dilation, groups=groups).to(
            torch.int32
        )


class _Pool(_Node):
    """The largest of a window, or its sum as a convolution with ones."""

    def arrays(self, form: IntegerForm, node: Node) -> dict[str, Tensor]:
        kind = torch.float32 if sum_fits(form, node) else torch.float64
        self.pads, self.kind = window_pads(form, node), kind
        if node.op == "max_pool":
            return {}
        channels = form.values[node.inputs[0]].shape[0]
        return {"ones": torch.ones(channels, 1, *node.settings["kernel"], dtype=kind)}

    def forward(self, x: Tensor) -> Tensor:
        x, settings = x.to(self.kind), self.settings
        kernel, stride, dilation = (settings[name] for name in ("kernel", "stride", "dilation"))
        place = len(kernel) - 1
        if hasattr(self, "ones"):
            x, ones = _pad(x, self.pads, 0.0), self.ones
            pooled = _CONVOLUTIONS[place](
                x, ones, stride=stride, dilation=dilation, groups=len(ones)
            )
        else:
            x = _pad(x, self.pads, -float(INT32))
            pooled = _POOLS[place](x, kernel, stride, 0, dilation)
        return pooled.to(torch.int32)


def _pad(x: Tensor, pads: list[int], value: float) -> Tensor:
    """Numbers before and behind each axis of space, as ``window_pads`` says."""
    axes = len(pads) // 2
    around = [pads[axis + side] for axis in reversed(range(axes)) for side in (0, axes)]
    return F.pad(x, around, value=value) if any(around) else x


class _Gather(_Node):
    def arrays(self, form: IntegerForm, node: Node) -> dict[str, Tensor]:
        return {"index": node.arrays["index"].long().flatten()}

    def forward(self, *inputs: Tensor) -> Tensor:
        count = inputs[0].shape[0]
        flat = [inputs[0].new_zeros(count, 1), *(one.reshape(count, -1) for one in inputs)]
        chosen = torch.cat(flat, 1).index_select(1, self.index)
        return chosen.reshape(count, *self.shape)


class _Reshape(_Node):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class _Reduce(_Node):
    def __init__(self, form: IntegerForm, node: Node) -> None:
        super().__init__(form, node)
        self.largest = node.op == "max"

    def forward(self, x: Tensor) -> Tensor:
        axes = self.settings["axes"]
        made = x.amax(axes) if self.largest else x.sum(axes, dtype=torch.int32)
        return made.reshape(x.shape[0], *self.shape)


class _Scale(_Node):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Fire(_Node):
    """Levels: a count of comparisons, a search in halves, or the written formula."""

    def arrays(self, form: IntegerForm, node: Node) -> dict[str, Tensor]:
        arrays = dict(node.arrays)
        if "levels" in arrays:
            return arrays
        place = arrays.pop("place").long()
        made = {name: arrays[name][place] for name in arrays if name.startswith("factor")}
        self.counts: dict[str, int] = {}
        for name in ("thresholds", "falls"):
            if name not in arrays:
                continue
            numbers = arrays[name]
            self.counts[name] = count = numbers.shape[1]
            if count <= MOST_COMPARED:
                made[name] = numbers[place]
                continue
            width = 1 << count.bit_length()
            above = torch.full((len(numbers), width - count), INT32 - 1)
            made[name] = torch.cat([numbers, above.int()], 1).flatten()
            rows = (place * width).expand(self.shape)  # one lies below the place of the first
            made[f"{name}_rows"] = rows - 1
        return made

    def forward(self, *inputs: Tensor) -> Tensor:
        settings = self.settings
        if hasattr(self, "levels"):
            low, high = settings["low"], settings["high"]
            q = torch.round(_formula(self, inputs)).clamp(low, high).to(torch.int64)
            return self.levels[q - low]
        u = inputs[0] * self.factor_0
        for index, x in enumerate(inputs[1:], start=1):
            u = u + x * self.get_buffer(f"factor_{index}")
        level = self._count_reached("thresholds", u)
        level = level - self._count_reached("falls", u) if "falls" in self.counts else level
        return level + settings["first"]

    def _count_reached(self, name: str, u: Tensor) -> Tensor:
        """How many thresholds a sum reaches."""
        thresholds, count = self.get_buffer(name), self.counts[name]
        if count <= MOST_COMPARED:
            return (u.unsqueeze(-1) >= thresholds).sum(-1, dtype=torch.int32)
        at = rows = self.get_buffer(f"{name}_rows")
        for bit in reversed(range(count.bit_length())):
            higher = at + (1 << bit)
            at = torch.where(u >= thresholds[higher], higher, at)
        return (at - rows).to(torch.int32)


class _Emit(_Node):
    """What was emitted before, moved towards the level that is asked for."""

    def forward(self, asked: Tensor, before: Tensor | None = None) -> Tensor:
        settings, distance = self.settings, asked if before is None else asked - before
        if hasattr(self, "steps"):
            step = self.steps[(distance + settings["span"]).to(torch.int64)]
        else:
            step = distance.clamp(settings["least"], settings["most"])
        return step if before is None else before + step


class _Float(_Node):
    """Operators on real numbers, in float32."""

    def forward(self, *inputs: Tensor) -> Tensor:
        settings, batch = self.settings, inputs[0].shape[0]
        values: dict[int, Any] = {
            index: inputs[settings["inputs"][index]].to(kind)
            for index, kind in settings["reads"].items()
        }

        def constant(index: int) -> Tensor:
            return self.get_buffer(f"constant_{index}")

        for item in settings["operators"]:
            args, kwargs = (put_constants(part, constant) for part in (item.args, item.kwargs))
            args, kwargs = (fill_arguments(part, values, batch) for part in (args, kwargs))
            made = item.target(*args, **kwargs)
            values.update(zip(item.out, [made] if isinstance(made, Tensor) else made, strict=True))
        result: Tensor = values[self.out]
        return result


class _ReadOut(_Node):
    def forward(self, *inputs: Tensor) -> Tensor:
        return _formula(self, inputs)


def _formula(node: _Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """A written sum in float32, operator by operator."""
    total = inputs[0].to(torch.float32) * node.multiplier_0
    total = total + node.bias if hasattr(node, "bias") else total
    for index, x in enumerate(inputs[1:], start=1):
        total = total + x.to(torch.float32) * node.get_buffer(f"multiplier_{index}")
    return total + node.offset if hasattr(node, "offset") else total


_KINDS: dict[str, type[_Node]] = {
    "encode": _Encode,
    "conv": _Products,
    "linear": _Products,
    "gather": _Gather,
    "reshape": _Reshape,
    "max_pool": _Pool,
    "sum_pool": _Pool,
    "max": _Reduce,
    "sum": _Reduce,
    "scale": _Scale,
    "fire": _Fire,
    "emit": _Emit,
    "float": _Float,
    "read_out": _ReadOut,
}


class TorchProgram:
    """A written program in a process of its own, which has torch and not this package.

    Raises:
        CheckpointError: the file is missing, damaged, no program of ours, or stops.
    """

    def __init__(self, path: Path, form: IntegerForm) -> None:
        self.path, self.form = path, form
        threads = str(torch.get_num_threads())  # sums of real numbers hang on it
        words = [sys.executable, "-I", str(Path(torch_reader.__file__)), str(path), threads]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._process = process
        self._end = weakref.finalize(self, _end, process)
        head = self._answer()
        lacking = {0, *(node.out for node in form.nodes)} - {*head["values"]}
        if lacking:
            raise CheckpointError(f"{path} lacks value {min(lacking)}: write it again")
        self.version = f"torch {head['version']}"

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Levels of all neurons and the logits."""
        shown = [*self.form.levels, self.form.nodes[-1].out]
        found = self._ask({0: images.astype(np.float32)}, shown)
        return dict(zip(shown, found, strict=True))

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """The part of the program between the inputs of a node and what it makes."""
        values, given = self.form.values, {}
        for index, one in zip(node.inputs, inputs, strict=True):
            is_real = index == 0 or values[index].real
            given[index] = one.astype(np.float32 if is_real else np.int32)
        (found,) = self._ask(given, [node.out])
        return found

    def _ask(self, given: dict[int, np.ndarray], show: list[int]) -> list[np.ndarray]:
        inputs = {index: [one.dtype.str, *one.shape] for index, one in given.items()}
        line = json.dumps({"inputs": inputs, "show": show}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            for one in given.values():
                self._process.stdin.write(np.ascontiguousarray(one).tobytes())
            self._process.stdin.flush()
        except OSError as error:
            raise self._refusal(str(error)) from error
        found = []
        for kind, *shape in self._answer()["values"]:
            size = np.dtype(kind).itemsize * int(np.prod(shape))
            assert self._process.stdout is not None
            found.append(np.frombuffer(self._process.stdout.read(size), kind).reshape(shape))
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            head: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._refusal("no answer") from error
        if "error" in head:
            raise self._refusal(head["error"])
        return head

    def _refusal(self, why: str) -> CheckpointError:
        self._end()
        return CheckpointError(f"{self.path} does not run ({why[:200]}): write it again")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process's end, whatever it is doing."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was still to be written, nobody reads
                pipe.close()
    process.wait()
