"""One form of a model through all stages: a `torch.fx.GraphModule` of layers and ATen operators.

`trace` exports the model with `torch.export` (control flow resolved, functional activations and
re-used modules are no special cases, batch size free) and lifts what carries parameters or becomes
a neuron back into modules under their own names: convolutions, linears, batch norms, activations,
dropouts. Everything else stays an ATen operator. Quantizing and converting swap modules in that
graph; the rules table (`rules`) says what each operator does over time.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .errors import CheckpointError, DataError, Fault, UnsupportedLayerError

aten = torch.ops.aten

CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.padding: nn.Conv2d,
}
BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
RELUS = (aten.relu.default, aten.relu_.default)
CLAMPS = (
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.relu6.default,
    aten.clamp_min.default,
)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Path = str


# ----------------------------------------------------------------------------------------- trace


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The layer graph of ``model``: same function, batch size free, module names kept.

    Shapes:
        example: [batch, channels, height, width]; only its shape, type and device matter.

    Returns:
        A new graph module in eval mode; ``model`` is untouched. ``graph_module.image_shape`` holds
        (channels, height, width).

    Raises:
        UnsupportedLayerError: `torch.export` cannot follow the model; the message names the line.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
        >>> graph = trace(net, torch.zeros(2, 1, 4, 4))
        >>> images = torch.randn(5, 1, 4, 4)
        >>> torch.equal(graph(images), net(images)), [name for name, _ in graph.named_children()]
        (True, ['0', '1', '3'])
    """
    exported = _export(model, example)
    source = exported.module(check_guards=False)
    lifted = _Lift(source)
    graph_module = fx.GraphModule({**lifted.tensors, **lifted.modules}, lifted.graph)
    graph_module.image_shape = tuple(example.shape[1:])
    for module in graph_module.modules():
        module.training = False
    return graph_module


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """`torch.export` with a free batch dimension, in functional form, high-level operators kept."""
    model = copy.deepcopy(model).eval()
    # a batch of 1 would be baked in as a constant, so two copies of one image are exported
    example = torch.cat([example[:1], example[:1]])
    batch = torch.export.Dim("batch", min=1, max=2**20)
    try:
        with torch.no_grad():
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        return exported.run_decompositions({})
    except Exception as error:  # torch.export raises many unrelated types
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape[1:])}",
            [Fault("torch.export", type(error).__name__, _useful_lines(error))],
        ) from error


def _useful_lines(error: Exception) -> str:
    """The first line of an export error, the line of user code it names, and the way out."""
    text = str(error)
    first = (text.strip().splitlines() or [""])[0]
    place = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [f"{file}:{line}" for file, line in place if "/torch/" not in file]
    at = f" at {own[-1]}" if own else ""
    return f"{first[:200]}{at}; check the image size, or rewrite that line without data-dependent control flow"


class _Lift:
    """Copies an exported graph and turns layers back into modules, one name per use of a neuron."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.graph = fx.Graph()
        self.modules: dict[Path, Any] = {}
        self.tensors: dict[Path, Tensor] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.weight_owner: dict[str, Path] = {}
        for node in source.graph.nodes:
            self._copy(node)
        for node in reversed(list(self.graph.nodes)):  # parameters that moved into modules
            if node.op in ("get_attr", "call_function") and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()

    def _copy(self, node: fx.Node) -> None:
        """Lift or copy one node; order is the exported program's own."""
        if node.op == "get_attr":
            self.tensors[str(node.target)] = attribute(self.source, str(node.target))
        if node.op == "call_function" and self._lifted(node):
            return
        if node.op == "output":
            self._copy_output(node)
            return
        self.new[node] = self.graph.node_copy(node, lambda argument: self.new[argument])
        self.new[node].meta = {"path": _module_path(node), "val": node.meta.get("val")}

    def _copy_output(self, node: fx.Node) -> None:
        """The one tensor that the model returns."""
        outputs = node.args[0]
        assert isinstance(outputs, (tuple, list))
        if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
            hint = "wrap the model so that it returns its logits alone"
            raise UnsupportedLayerError(
                "the model must return one tensor", [Fault("output", f"{len(outputs)} values", hint)]
            )
        self.graph.output(self.new[outputs[0]])

    def _lifted(self, node: fx.Node) -> bool:
        """Replace ``node`` by a module call if it is a layer; say whether it was."""
        target = node.target
        if target in CONVOLUTIONS or target is aten.linear.default:
            return self._lift_weighted(node)
        if target in BATCH_NORMS:
            return self._lift_norm(node)
        if target in DROPOUTS:
            return self._call(node, "dropout", nn.Dropout(float(node.args[1])))  # type: ignore[arg-type]
        if target in RELUS:
            return self._call(node, "relu", nn.ReLU())
        if target in CLAMPS:
            bounds = _clamp_bounds(node)
            return bounds is not None and self._call(node, "clamp", _clamp_module(*bounds))
        if target is operator.getitem and node.args[1] == 0 and node.args[0] in self.new:
            producer = self.new[node.args[0]]  # type: ignore[index]
            if producer.op == "call_module":  # the output of a lifted batch norm
                self.new[node] = producer
                return True
        return False

    def _lift_weighted(self, node: fx.Node) -> bool:
        """A convolution or linear whose weight is a parameter; one module per parameter."""
        arguments = _bind(node)
        weight, bias = arguments["weight"], arguments.get("bias")
        if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            return False
        owner = self.weight_owner.get(weight.target)
        if owner is None:
            tensors = [attribute(self.source, item.target) for item in (weight, bias) if item is not None]
            owner = self._free_name(str(weight.target).removesuffix(".weight").replace("weight", "layer"))
            self.weight_owner[weight.target] = owner
            self.modules[owner] = _weighted_module(node.target, arguments, tensors)
        self._insert(node, owner, arguments["input"])
        return True

    def _lift_norm(self, node: fx.Node) -> bool:
        """A batch norm in eval form, back as a module that can be trained or folded."""
        arguments = _bind(node)
        names = ("weight", "bias", "running_mean", "running_var")
        sources = [arguments.get(name) for name in names]
        if any(item is not None and item.op != "get_attr" for item in sources) or sources[2] is None:
            return False
        mean = attribute(self.source, sources[2].target)
        dimensions = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dimensions]
        norm = kind(mean.numel(), arguments["eps"], affine=sources[0] is not None)
        for name, item in zip(names, sources, strict=True):
            if item is not None:
                getattr(norm, name).data.copy_(attribute(self.source, item.target).detach())
        path = str(sources[2].target).removesuffix(".running_mean")
        plain = "batchnorm.BatchNorm" in _module_kind(node)  # else timm's BatchNormAct2d and its like
        name = self._free_name(path if plain else f"{path}.bn")
        self.modules[name] = norm.to(mean.device)
        self._insert(node, name, arguments["input"])
        return True

    def _call(self, node: fx.Node, role: str, module: nn.Module) -> bool:
        """Insert a module without parameters; its name is the layer's own, or its block's and role."""
        path, kind = _module_path(node), _module_kind(node)
        leaf = kind.rsplit(".", 1)[-1] if kind else ""
        own = path and any(word in leaf.lower() for word in ("relu", "tanh", "dropout", "clamp"))
        name = self._free_name(path if own else f"{path}.{role}" if path else role)
        self.modules[name] = module
        self._insert(node, name, node.args[0])
        return True

    def _insert(self, node: fx.Node, name: Path, argument: Any) -> None:
        """Put a module call where ``node`` stood."""
        call = self.graph.call_module(name, (self.new[argument],))
        call.meta = {"path": name, "val": node.meta.get("val")}
        self.new[node] = call

    def _free_name(self, wanted: Path) -> Path:
        """``wanted``, or with _1, _2 … where it is taken or lies inside another module."""
        name, count = wanted, 0
        while any(
            name == taken or name.startswith(taken + ".") or taken.startswith(name + ".")
            for taken in self.modules
        ):
            count += 1
            name = f"{wanted}_{count}"
        return name


def _bind(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by the names of its operator's schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {item.name: item.default_value for item in schema.arguments if item.has_default_value()}
    bound.update(zip((item.name for item in schema.arguments), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def _weighted_module(target: Any, arguments: Mapping[str, Any], tensors: list[Tensor]) -> nn.Module:
    """An nn.Conv*d or nn.Linear that holds ``tensors`` (weight, and bias if there are two)."""
    weight, biased = tensors[0], len(tensors) == 2
    with torch.device("meta"):
        if target is aten.linear.default:
            module: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
        else:
            groups = arguments["groups"]
            module = CONVOLUTIONS[target](
                weight.shape[1] * groups,
                weight.shape[0],
                tuple(weight.shape[2:]),
                stride=_per_axis(arguments["stride"], weight),
                padding=_per_axis(arguments["padding"], weight),
                dilation=_per_axis(arguments["dilation"], weight),
                groups=groups,
                bias=biased,
            )
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.is_floating_point())
    if biased:
        module.bias = nn.Parameter(tensors[1].detach().clone())
    return module


def _per_axis(value: Any, weight: Tensor) -> Any:
    """A convolution setting for every spatial axis; ATen lets one number stand for all."""
    if isinstance(value, str):
        return value
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * (weight.dim() - 2)) if len(values) == 1 else tuple(values)


def _clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Lower and upper bound of a clamp by numbers; None where a bound is a tensor."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    arguments = _bind(node)
    low = arguments.get("min_val", arguments.get("min"))
    high = arguments.get("max_val", arguments.get("max"))
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return float(low), float(high)


def _clamp_module(low: float, high: float) -> nn.Module:
    """The plain layer that clamps to [low, high]."""
    if (low, high) == (0.0, float("inf")):
        return nn.ReLU()
    return nn.Hardtanh(low, high)


def attribute(root: nn.Module, path: str) -> Any:
    """The parameter, buffer or constant at a dotted path."""
    return operator.attrgetter(path)(root)


def _module_path(node: fx.Node) -> Path:
    """Dotted name of the innermost original module that produced ``node``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _module_kind(node: fx.Node) -> str:
    """Class name of that module."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]) if stack else ""


# ------------------------------------------------------------------------------------ reading it


def layer_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None for operators."""
    if node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def layer_nodes(
    graph_module: fx.GraphModule, kinds: type | tuple[type, ...]
) -> Iterator[tuple[fx.Node, Any]]:
    """Nodes that call a module of the given kinds, in order of execution."""
    for node in graph_module.graph.nodes:
        layer = layer_of(graph_module, node)
        if layer is not None and isinstance(layer, kinds):
            yield node, layer


def describe(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """What a node is, for messages: a layer's class or an operator's name."""
    layer = layer_of(graph_module, node)
    return type(layer).__name__ if layer is not None else str(node.target)


def check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Refuse images of another shape, and values that are not finite.

    Raises:
        DataError: what was given, what the network takes.

    Example:
        >>> check_images(torch.zeros(2, 3, 8, 8), (3, 8, 8))
    """
    if images.dim() != len(image_shape) + 1 or tuple(images.shape[1:]) != tuple(image_shape):
        raise DataError(
            f"images of shape {tuple(images.shape)} do not fit: this network was traced for "
            f"[batch, {', '.join(map(str, image_shape))}]; resize the images, or quantize the "
            "model again with calibration images of the new size"
        )
    if not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images.flatten(1))).any(1).nonzero().flatten().tolist()
        raise DataError(f"images {bad[:10]} of the batch hold NaN or infinity: remove or mend them")


# --------------------------------------------------------------------------------------- folding


def fold_batch_norm_(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear that alone feeds it, in place.

    A layer used several times is copied first, so that each use takes its own batch norm. Batch
    norms behind anything else (an addition, a concatenation) stay.
    """
    for node, norm in list(layer_nodes(graph_module, NORMS)):
        producer = node.args[0]
        layer = layer_of(graph_module, producer) if isinstance(producer, fx.Node) else None
        if not isinstance(layer, WEIGHTED) or len(producer.users) != 1:
            continue
        same = [item for item, _ in layer_nodes(graph_module, WEIGHTED) if item.target == producer.target]
        if len(same) > 1:
            producer.target = f"{producer.target}_{same.index(producer)}"
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        graph_module.add_submodule(str(producer.target), fuse(layer, norm))
        node.replace_all_uses_with(producer)
        graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


# ----------------------------------------------------------------------------------- JSON form

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "neg", "mod")
}


def graph_to_json(graph_module: fx.GraphModule) -> list[dict[str, Any]]:
    """The nodes of a graph as plain data; layers are named, not held.

    Example:
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
    graph, made = fx.Graph(), {}
    try:
        for item in nodes:
            target = _target(item["target"]) if item["op"] == "call_function" else item["target"]
            if item["op"] in ("call_module", "get_attr") and target not in modules:
                raise KeyError(target)
            args = _decode(item["args"], made)
            kwargs = {key: _decode(value, made) for key, value in item["kwargs"].items()}
            node = graph.create_node(item["op"], target, args, kwargs, name=item["name"])
            node.meta["path"] = item["path"]
            made[item["name"]] = node
        graph.lint()
        graph_module = fx.GraphModule(dict(modules), graph)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the stored graph cannot be rebuilt ({type(error).__name__}: {error}): "
            "it is damaged, or written by another version of mt_convert"
        ) from error
    graph_module.image_shape = tuple(image_shape)
    return graph_module


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
    return getattr(getattr(aten, match[1]), match[2])


_TYPES = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def _encode(value: Any) -> Any:
    """An argument as JSON: nodes, tuples and torch constants get a tag."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__ if isinstance(value, tuple) else "list": [_encode(v) for v in value]}
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
    return {"device": torch.device, "float": float}[tag](content)


# ------------------------------------------------------------------------ plain layers as data

_CONV_FIELDS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def plain_layer_to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer's class and settings; its tensors are stored apart. Subclasses count as their base.

    Example:
        >>> plain_layer_to_json(nn.Linear(2, 3))
        {'type': 'Linear', 'in_features': 2, 'out_features': 3, 'bias': True}
    """
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(layer, kind):
            fields = {name: _plain(getattr(layer, name)) for name in _CONV_FIELDS}
            return {"type": kind.__name__, **fields, "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"type": "Linear", **sizes, "bias": layer.bias is not None}
    if isinstance(layer, NORMS):
        norm = {"num_features": layer.num_features, "eps": layer.eps, "affine": layer.affine}
        return {"type": type(layer).__name__, **norm}
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
    kind = settings.pop("type")
    allowed = {item.__name__: item for item in (*WEIGHTED, *NORMS, nn.Dropout, nn.Hardtanh, nn.ReLU)}
    if kind not in allowed:
        raise CheckpointError(f"unknown layer type {kind!r}: allowed are {', '.join(allowed)}")
    return allowed[kind](**settings)


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value
