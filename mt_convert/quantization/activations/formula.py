"""The function in front of a quantizer, in float32 to train on and in float64 to be a ladder."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import CheckpointError
from ...graph.functions import allowed_in_functions
from ...graph.serialization import graph_from_json, graph_to_json
from ...neurons.bisection import NotAFunction, Samples, level_in_float64, sample, step_table
from ...neurons.step_table import StepTable

_TYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
_KNOWN = 16  # functions whose samples are kept


class Formula(nn.Module):
    """A function of each number by itself: ``graph`` computes it, with the network's constants.

    Where ``channels`` is more than 1 each entry of ``axis``, counted from the end, has constants of
    its own. In training it runs in float32; the level of a quantizer behind it is *defined* by
    float64, see `bisection`, and ``table`` makes the thresholds of that.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.SiLU()))
        >>> formula = Formula(graph, "silu")
        >>> formula.table(0.25, (-1, 14)).weights.sum(), formula(torch.zeros(2)).tolist()
        (tensor(14), [0.0, 0.0])
    """

    def __init__(self, graph: fx.GraphModule, text: str, channels: int = 1, axis: int = -1) -> None:
        super().__init__()
        self.graph, self.text, self.channels, self.axis = graph, text, channels, axis

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.graph(x)
        return out

    def key(self) -> str:
        """What names the function: its operators and the bits of its constants."""
        digest = hashlib.sha256(str(_plain_graph(self.graph)).encode())
        for name, tensor in self.graph.state_dict().items():
            numbers = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {numbers.dtype} {list(numbers.shape)}".encode())
            digest.update(numbers.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def constants(self) -> tuple[Any, ...]:
        """The bits of what can change while it is trained."""
        return tuple(
            (name, *tensor.detach().flatten().tolist())
            for name, tensor in self.graph.state_dict().items()
        )

    @torch.no_grad()
    def samples(self) -> Samples:
        """The function all over the float32 numbers.

        Raises:
            NotAFunction: it is not a number somewhere.
        """
        if self.channels > 1:
            return sample(self._in_float64(), self.channels, self.axis)
        key = self.key()
        if key not in _samples:
            _samples[key] = sample(self._in_float64())
            while len(_samples) > _KNOWN:
                _samples.popitem(last=False)
        _samples.move_to_end(key)
        return _samples[key]

    @torch.no_grad()
    def table(self, step: float, bounds: tuple[int, int], name: str = "function") -> StepTable:
        """The thresholds of clamp(round(f(x) / step), *bounds).

        Raises:
            NotAFunction: no finite number of thresholds describes it.
            SpecError: a threshold is not clean.
        """
        function = self._in_float64()
        return step_table(function, self.samples(), step, bounds, self.axis, name)

    @torch.no_grad()
    def levels(self, x: Tensor, step: float, bounds: tuple[int, int]) -> Tensor:
        """The definition of its levels, in float64."""
        if self.channels > 1:
            shape = list(x.shape)
            shape[self.axis] = self.channels
            x = x.expand(shape)
        function = self._in_float64()
        return level_in_float64(function, x.detach().float().cpu(), step, bounds)

    def _in_float64(self) -> nn.Module:
        return copy.deepcopy(self.graph).cpu().double().eval()

    def freeze(self) -> Formula:
        """A copy whose constants are not trained."""
        graph = copy.deepcopy(self.graph)
        for name, tensor in list(graph.named_parameters()):
            delattr(graph, name)
            graph.register_buffer(name, tensor.detach().clone())
        return Formula(graph, self.text, self.channels, self.axis)

    def to_json(self) -> dict[str, Any]:
        """Plain data; its tensors are stored apart."""
        tensors = {
            name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape]
            for name, tensor in self.graph.state_dict().items()
        }
        return {
            "text": self.text,
            "channels": self.channels,
            "axis": self.axis,
            "graph": _plain_graph(self.graph),
            "tensors": tensors,
            "trained": [name for name, _ in self.graph.named_parameters()],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Formula:
        """What `to_json` described, its tensors not yet filled in.

        Raises:
            CheckpointError: operators that are no functions of each number by itself.
        """
        modules: dict[str, Any] = {}
        for name, (kind, *shape) in stored["tensors"].items():
            if kind not in _TYPES:
                raise CheckpointError(f"{name}: {kind} is none of {', '.join(_TYPES)}")
            tensor = torch.ones(shape, dtype=_TYPES[kind])
            trained = name in stored["trained"]
            modules[name] = nn.Parameter(tensor) if trained else tensor
        graph = graph_from_json(list(stored["graph"]), modules, (1,))
        for node in graph.graph.nodes:
            fits = node.op in ("placeholder", "get_attr", "output")
            if not fits and not (node.op == "call_function" and allowed_in_functions(node.target)):
                raise CheckpointError(f"{node.target} is no function of each number by itself")
        axis, channels = int(stored["axis"]), int(stored["channels"])
        if not -8 <= axis < 0 or channels < 1:
            raise CheckpointError(f"channels {channels} on axis {axis} are none")
        return cls(graph, str(stored["text"]), channels, axis)

    def extra_repr(self) -> str:
        return self.text


def table_placeholder(shape: list[int] | None, axis: int) -> StepTable | None:
    """A table to load into, if there is one."""
    if shape is None:
        return None
    channels, count = shape
    return StepTable(torch.zeros(channels, count), torch.zeros(channels, count), axis=axis)


def size_of(stored: Mapping[str, Any]) -> int:
    """How many numbers a stored function asks for, built without memory."""
    sizes = [shape for _, *shape in stored["tensors"].values()]
    if (table := stored.get("table")) is not None:
        sizes += [table, table, table[:1]]
    if any(not isinstance(axis, int) or axis < 0 for shape in sizes for axis in shape):
        raise CheckpointError(f"{sizes} are no shapes")
    return sum(math.prod(shape) for shape in sizes)


_samples: OrderedDict[str, Samples] = OrderedDict()


def _plain_graph(graph: fx.GraphModule) -> list[dict[str, Any]]:
    """The nodes as plain data, without the paths that they were traced from."""
    return [{**node, "path": ""} for node in graph_to_json(graph)]


__all__ = ["Formula", "NotAFunction", "size_of", "table_placeholder"]
