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
from ...graph.nodes import NORMS
from ...graph.rules import DEFAULT_RULES, Rule
from ...graph.serialization import (
    graph_from_json,
    graph_to_json,
    plain_layer_from_json,
    plain_layer_to_json,
)
from ...neurons.bisection import NotAFunction, Samples, level_in_float64, sample, step_table
from ...neurons.step_table import StepTable

_TYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
_KNOWN = 16  # functions whose samples are kept
_RELU, _CLIP = torch.ops.aten.relu.default, torch.ops.aten.hardtanh.default
_CLIPS = {_RELU, _CLIP}


class Formula(nn.Module):
    """A function of each number by itself: ``graph`` computes it, with the network's constants.

    Where ``channels`` is more than 1 each entry of ``axis``, counted from the end, has constants of
    its own. In training it runs in float32, batch norms in it on the statistics of their batch; the
    level of a quantizer behind it is *defined* by float64, see `bisection`, and ``table`` makes the
    thresholds of that. ``origins`` are the names that its tensors had in the network, by the own
    name of each; one that is ``fixed`` belongs to neurons, and nothing of it is trained. Half-way
    between two levels the even one is meant, or the upper one (``half_up``).

    Example:
        >>> graph = fx.symbolic_trace(lambda x: torch.ops.aten.silu.default(x))
        >>> formula = Formula(graph, "silu")
        >>> formula.table(0.25, (-1, 14)).weights.sum(), formula(torch.zeros(2)).tolist()
        (tensor(14), [0.0, 0.0])
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        text: str,
        channels: int = 1,
        axis: int = -1,
        *,
        origins: Mapping[str, str] | None = None,
        fixed: bool = False,
        half_up: bool = False,
    ) -> None:
        super().__init__()
        self.graph, self.text, self.channels, self.axis = graph, text, channels, axis
        self.origins = _origins(graph) if origins is None else dict(origins)
        self.fixed, self.half_up = fixed, half_up
        if fixed:
            self.eval()

    def train(self, mode: bool = True) -> Formula:
        """As of any module; a fixed one stays in evaluation mode, its batch norms too."""
        super().train(mode and not self.fixed)
        return self

    @property
    def watches(self) -> bool:
        """Whether a batch norm in it is in training mode: it estimates its statistics."""
        return any(norm.training for norm in self.graph.children())

    @property
    def only_clips(self) -> bool:
        """Whether it is a ReLU, ReLU6, clip, or nothing: equal levels say it too."""
        called = {node.target for node in self.graph.graph.nodes if node.op.startswith("call")}
        return called <= _CLIPS

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.graph(x)
        return out

    def key(self) -> str:
        """What names the function: its operators and the bits of its constants."""
        digest = hashlib.sha256(str((_plain_graph(self.graph), self._norms())).encode())
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
        return step_table(
            function, self.samples(), step, bounds, self.axis, name, half_up=self.half_up
        )

    @torch.no_grad()
    def levels(self, x: Tensor, step: float, bounds: tuple[int, int]) -> Tensor:
        """The definition of its levels, in float64."""
        if self.channels > 1:
            shape = list(x.shape)
            shape[self.axis] = self.channels
            x = x.expand(shape)
        function, numbers = self._in_float64(), x.detach().float().cpu()
        return level_in_float64(function, numbers, step, bounds, half_up=self.half_up)

    def _in_float64(self) -> nn.Module:
        """The definition: what takes and gives float64, a batch norm as x * a + b."""
        graph = copy.deepcopy(self.graph).cpu().double().eval()
        for node in list(graph.graph.nodes):
            if node.op == "call_module":
                _write_as_affine_(graph, node, self.axis if self.channels > 1 else -1)
        graph.recompile()
        return graph

    def freeze(self) -> Formula:
        """A copy of which nothing is trained."""
        graph = copy.deepcopy(self.graph)
        for name, tensor in list(graph.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            holder = graph.get_submodule(owner)
            delattr(holder, leaf)
            holder.register_buffer(leaf, tensor.detach().clone())
        return Formula(
            graph,
            self.text,
            self.channels,
            self.axis,
            origins=self.origins,
            fixed=True,
            half_up=self.half_up,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors under the names that they had in the network."""
        named = {**dict(self.graph.named_parameters()), **dict(self.graph.named_buffers())}
        found = {}
        for own, origin in self.origins.items():
            for name, tensor in named.items():
                if name == own or name.startswith(f"{own}."):
                    found[origin + name.removeprefix(own)] = tensor.detach()
        return found

    def _norms(self) -> dict[str, dict[str, Any]]:
        """The settings of its batch norms, by name."""
        return {name: plain_layer_to_json(item) for name, item in self.graph.named_children()}

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
            "norms": self._norms(),
            "origins": self.origins,
            "fixed": self.fixed,
            "trained": [name for name, _ in self.graph.named_parameters()],
            **({"half_up": True} if self.half_up else {}),
        }

    @classmethod
    def from_json(
        cls, stored: Mapping[str, Any], rules: Mapping[Any, Rule] = DEFAULT_RULES
    ) -> Formula:
        """What `to_json` described, its tensors not yet filled in.

        Raises:
            CheckpointError: operators that are no functions of each number by itself, by ``rules``.
        """
        modules: dict[str, Any] = dict(_norms_from_json(stored))
        for name, (kind, *shape) in stored["tensors"].items():
            if kind not in _TYPES:
                raise CheckpointError(f"{name}: {kind} is none of {', '.join(_TYPES)}")
            if name.rpartition(".")[0] in modules:
                continue  # of a batch norm
            tensor = torch.ones(shape, dtype=_TYPES[kind])
            trained = name in stored["trained"]
            modules[name] = nn.Parameter(tensor) if trained else tensor
        graph = graph_from_json(list(stored["graph"]), modules, (1,))
        for node in graph.graph.nodes:
            fits = node.op in ("placeholder", "get_attr", "output", "call_module")
            if not fits and not allowed_in_functions(node.target, rules):
                text = f"{node.target} is no function of each number by itself"
                raise CheckpointError(f"{text}; one by a rule of yours: load with these rules")
        axis, channels = int(stored["axis"]), int(stored["channels"])
        if not -8 <= axis < 0 or channels < 1:
            raise CheckpointError(f"channels {channels} on axis {axis} are none")
        if fixed := bool(stored.get("fixed")):
            trained_names = [name for name, _ in graph.named_parameters()]
            if trained_names:
                raise CheckpointError(f"{', '.join(trained_names)}: trained in a fixed function")
        origins = {str(own): str(name) for own, name in stored.get("origins", {}).items()}
        text, half_up = str(stored["text"]), bool(stored.get("half_up"))
        return cls(graph, text, channels, axis, origins=origins, fixed=fixed, half_up=half_up)

    def extra_repr(self) -> str:
        return self.text


def clip_formula(low: float, high: float) -> Formula:
    """A ReLU (0, inf), a clip, or nothing (-inf, inf), with half-way values going up.

    Example:
        >>> clip_formula(0, 6)(torch.tensor([-1.0, 2.0, 9.0])).tolist()
        [0.0, 2.0, 6.0]
    """
    graph = fx.Graph()
    out, text = graph.placeholder("x"), "identity"
    if (low, high) == (0, math.inf):
        out, text = graph.call_function(_RELU, (out,)), "relu"
    elif (low, high) != (-math.inf, math.inf):
        out, text = graph.call_function(_CLIP, (out, low, high)), "hardtanh"
    graph.output(out)
    return Formula(fx.GraphModule(nn.Module(), graph), text, half_up=True)


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


def _origins(graph: fx.GraphModule) -> dict[str, str]:
    """What the constants and batch norms of a function were called in the network."""
    return {
        str(node.target): node.meta["origin"]
        for node in graph.graph.nodes
        if "origin" in node.meta and node.op in ("get_attr", "call_module")
    }


def _write_as_affine_(graph: fx.GraphModule, node: fx.Node, axis: int) -> None:
    """Put x * a + b in the place of a batch norm, in its type and in one written order."""
    norm = graph.get_submodule(str(node.target))
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    names = [f"{node.target}_{part}" for part in ("scale", "shift")]
    for name, tensor in zip(names, (scale, shift), strict=True):
        graph.register_buffer(name, tensor.detach().reshape(-1, *[1] * (-1 - axis)))
    with graph.graph.inserting_before(node):
        factor, added = (graph.graph.get_attr(name) for name in names)
        product = graph.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], factor))
        total = graph.graph.call_function(torch.ops.aten.add.Tensor, (product, added))
    node.replace_all_uses_with(total)
    graph.graph.erase_node(node)


def _norms_from_json(stored: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The batch norms of a stored function, as large as its tensors say and no larger."""
    norms = {}
    for name, config in stored.get("norms", {}).items():
        known = {item.__name__ for item in NORMS}
        sizes = [shape for own, (_, *shape) in stored["tensors"].items() if own.startswith(name)]
        if config.get("type") not in known or [config.get("num_features")] not in sizes:
            raise CheckpointError(f"{name}: {config} is no batch norm of these tensors")
        norm = plain_layer_from_json(config)
        if stored.get("fixed"):
            for own, parameter in list(norm.named_parameters()):
                delattr(norm, own)
                norm.register_buffer(own, parameter.detach())
        for own, parameter in norm.named_parameters():
            parameter.requires_grad_(f"{name}.{own}" in stored["trained"])
        norms[name] = norm
    return norms


def _plain_graph(graph: fx.GraphModule) -> list[dict[str, Any]]:
    """The nodes as plain data, without the paths that they were traced from."""
    return [{**node, "path": ""} for node in graph_to_json(graph)]


__all__ = ["Formula", "NotAFunction", "clip_formula", "size_of", "table_placeholder"]
