"""Graphs and plain layers as JSON, and back; nothing in a stored graph is run or trusted."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ..errors import CheckpointError
from .nodes import CONVS, NORMS, PLAIN, set_image_shape

aten = torch.ops.aten

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "neg", "mod")
}


_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")


def graph_to_json(graph_module: fx.GraphModule) -> list[dict[str, Any]]:
    """The nodes of a graph as plain data; layers are named, not held.

    Example:
        >>> from .tracing.trace import trace
        >>> net = trace(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(2, 1, 4, 4))
        >>> [node["op"] for node in graph_to_json(net)]
        ['placeholder', 'call_module', 'output']
    """
    return [
        {
            "name": node.name,
            "op": node.op,
            "target": _target_name(node),
            "args": _encode(node.args),
            "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
            "path": node.meta.get("path", ""),
        }
        for node in graph_module.graph.nodes
    ]


def graph_from_json(
    nodes: list[dict[str, Any]], modules: Mapping[str, Any], image_shape: tuple[int, ...]
) -> fx.GraphModule:
    """The graph module that `graph_to_json` described, around the given layers and tensors.

    Raises:
        CheckpointError: an unknown operator, layer or node: the file is damaged or not ours.
    """
    graph = fx.Graph()
    by_name: dict[str, fx.Node] = {}
    try:
        for item in nodes:
            by_name[item["name"]] = _node_from_json(graph, item, modules, by_name)
        if not nodes or nodes[-1]["op"] != "output":
            raise ValueError("no output")
        graph.lint()
        graph_module = fx.GraphModule(dict(modules), graph)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the stored graph cannot be rebuilt ({type(error).__name__}: {error}): "
            "it is damaged, or written by another version of mt_convert"
        ) from error
    set_image_shape(graph_module, image_shape)
    return graph_module


def _node_from_json(
    graph: fx.Graph,
    item: Mapping[str, Any],
    modules: Mapping[str, Any],
    nodes: Mapping[str, fx.Node],
) -> fx.Node:
    """One node. torch.fx writes targets and keywords into source code and runs it, so all that is
    not a plain name is refused."""
    op, target = item["op"], item["target"]
    if op not in _OPS:
        raise ValueError(f"{op!r} is none of {', '.join(_OPS)}")
    if op == "call_function":
        target = _target(target)
    elif not _is_path(target) or (op == "placeholder" and not _is_keyword(target)):
        raise ValueError(f"{target!r} is no name")
    if op in ("call_module", "get_attr") and target not in modules:
        raise KeyError(target)
    for key in item["kwargs"]:
        if not _is_keyword(key):
            raise ValueError(f"{key!r} is no name")
    args = _decode(item["args"], nodes)
    kwargs = {key: _decode(value, nodes) for key, value in item["kwargs"].items()}
    node = graph.create_node(op, target, args, kwargs, name=item["name"])
    node.meta["path"] = str(item["path"])
    return node


def _is_path(text: str) -> bool:
    """Whether a text is words or numbers with dots between, as modules' paths are."""
    return all(f"_{part}".isidentifier() for part in text.split("."))


def _is_keyword(text: str) -> bool:
    """Whether a text can be an argument's name."""
    return text.isidentifier() and not keyword.iskeyword(text)


def _target_name(node: fx.Node) -> str:
    """A node's target as text; functions outside ATen and `operator` are a bug of ours."""
    if node.op != "call_function":
        return str(node.target)
    for name, function in _FUNCTIONS.items():
        if node.target is function:
            return name
    assert isinstance(node.target, torch._ops.OpOverload), node.target
    return str(node.target)


def _target(name: str) -> Callable[..., Any]:
    """The operator of a stored name: ATen operators and a few of Python's, nothing else."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    match = re.fullmatch(r"aten\.(\w+)\.(\w+)", name)
    if match is None:
        raise KeyError(name)
    overload = getattr(getattr(aten, match[1]), match[2])
    if not isinstance(overload, torch._ops.OpOverload):
        raise KeyError(name)
    if any(argument.name == "filename" for argument in overload._schema.arguments):
        raise ValueError(f"{name} touches files")
    return overload


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_TYPES = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def _encode(value: Any) -> Any:
    """An argument as JSON: nodes, tuples and torch constants get a tag."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)):
        return {
            type(value).__name__ if isinstance(value, tuple) else "list": [
                _encode(v) for v in value
            ]
        }
    for tag, kind in _TYPES.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    assert value is None or isinstance(value, (bool, int, float, str)), value
    return value


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The inverse of `_encode`."""
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return nodes[content]
    if tag in ("tuple", "list", "immutable_list"):
        items = [_decode(item, nodes) for item in content]
        return tuple(items) if tag == "tuple" else items
    if tag in _TYPES:
        constant = getattr(torch, content)
        if not isinstance(constant, _TYPES[tag]):
            raise ValueError(f"{content} is no {tag}")
        return constant
    if tag == "device":
        device = torch.device(content)
        if device.type not in _DEVICES:
            raise ValueError(f"device {content!r} is none of {', '.join(_DEVICES)}")
        return device
    return {"float": float}[tag](content)


# ------------------------------------------------------------------------ plain layers as data

_CONV_FIELDS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
)


def plain_layer_to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer's class and settings; its tensors are stored apart. Subclasses count as their base.

    Example:
        >>> plain_layer_to_json(nn.Linear(2, 3))
        {'type': 'Linear', 'in_features': 2, 'out_features': 3, 'bias': True}
    """
    if isinstance(layer, CONVS):
        sizes = {name: _plain(getattr(layer, name)) for name in _CONV_FIELDS}
        return {"type": _base(layer, CONVS).__name__, **sizes, "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"type": "Linear", **sizes, "bias": layer.bias is not None}
    if isinstance(layer, NORMS):
        fields = ("num_features", "eps", "momentum", "affine")
        kept = {name: getattr(layer, name) for name in fields}
        return {"type": _base(layer, NORMS).__name__, **kept}
    if isinstance(layer, nn.Dropout):
        return {"type": "Dropout", "p": layer.p}
    if isinstance(layer, nn.Hardtanh):
        return {"type": "Hardtanh", "min_val": layer.min_val, "max_val": layer.max_val}
    assert isinstance(layer, nn.ReLU), layer
    return {"type": "ReLU"}


def plain_layer_from_json(config: Mapping[str, Any]) -> nn.Module:
    """The layer that `plain_layer_to_json` described, with tensors of the right shape.

    Raises:
        CheckpointError: a class that is not ours to build.
    """
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    kind = settings.pop("type", None)
    allowed: dict[Any, Any] = {item.__name__: item for item in PLAIN}
    if kind not in allowed:
        raise CheckpointError(f"unknown layer type {kind!r}: allowed are {', '.join(allowed)}")
    try:
        return allowed[kind](**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a stored {kind} cannot be built: {error}") from error


def _base(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> type[nn.Module]:
    """The plain class that a layer is, or is derived from."""
    return next(kind for kind in kinds if isinstance(layer, kind))


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value
