"""One form of a model through all stages: a `torch.fx.GraphModule` of layers and ATen operators.

`trace` exports the model with `torch.export` (control flow resolved, functional activations and
re-used modules are no special cases, batch size free) and lifts what carries parameters or becomes
a neuron back into modules under their own names: convolutions, linears, batch norms, activations,
dropouts. Everything else stays an ATen operator. Quantizing and converting swap modules in that
graph; the rules table (`rules`) says what each operator does over time.
"""

from __future__ import annotations

import copy
import keyword
import operator
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
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
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVS, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLAIN = (*WEIGHTED, *NORMS, nn.Dropout, nn.Hardtanh, nn.ReLU)
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
    set_image_shape(graph_module, example.shape[1:])
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
            _keep_dropouts_(exported.graph)
            return exported.run_decompositions({})
    except Exception as error:  # torch.export raises many unrelated types
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be traced on an input of shape "
            f"{tuple(example.shape[1:])}",
            [Fault(_user_line(error), type(error).__name__, _useful_lines(error))],
        ) from error


def _keep_dropouts_(graph: fx.Graph) -> None:
    """Dropouts in a form that survives decomposition, in which one that is idle would vanish."""
    for node in [node for node in graph.nodes if node.target in DROPOUTS and node.args[1]]:
        with graph.inserting_before(node):
            pair = graph.call_function(aten.native_dropout.default, (*node.args[:2], True))
            kept = graph.call_function(operator.getitem, (pair, 0))
        value = node.meta["val"]
        pair.meta, kept.meta = {**node.meta, "val": (value, value)}, dict(node.meta)
        name = node.name
        node.replace_all_uses_with(kept)
        graph.erase_node(node)
        kept._rename(name)


def _user_line(error: Exception) -> str:
    """File, line and code of the innermost frame outside torch: where the model failed."""
    inside = (str(FilePath(torch.__file__).parent), __file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(inside)
        and "_dispatch" not in frame.filename
        and FilePath(frame.filename).is_file()
    ]
    if not frames:
        return "torch.export"
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


def _useful_lines(error: Exception) -> str:
    """The first line of an export error, and the way out."""
    first = (str(error).strip().splitlines() or [""])[0]
    if "data-dependent" in first:
        hint = "rewrite that line without control flow or numbers that depend on the data"
    else:
        hint = "check the image size, or mend that line; the model itself must run on such images"
    return f"{first[:200]}; {hint}"


class _Lift:
    """Copies an exported graph and turns layers back into modules, one name per use of a neuron."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.graph = fx.Graph()
        self.modules: dict[Path, Any] = {}
        self.tensors: dict[Path, Tensor] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.weight_owner: dict[str, Path] = {}  # by parameter and settings
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
                "the model must return one tensor",
                [Fault("output", f"{len(outputs)} values", hint)],
            )
        self.graph.output(self.new[outputs[0]])

    def _lifted(self, node: fx.Node) -> bool:
        """Replace ``node`` by a module call if it is a layer; say whether it was."""
        target = node.target
        if target in CONVOLUTIONS or target is aten.linear.default:
            return self._lift_weighted(node)
        if target in BATCH_NORMS:
            return self._lift_norm(node)
        if target is aten.native_dropout.default:
            return self._call(node, "dropout", nn.Dropout(float(node.args[1])))  # type: ignore[arg-type]
        if target in RELUS:
            return self._call(node, "relu", nn.ReLU())
        if target in CLAMPS:
            bounds = _clamp_bounds(node)
            return bounds is not None and self._call(node, "clamp", _clamp_module(*bounds))
        if target is operator.getitem and node.args[1] == 0 and node.args[0] in self.new:
            producer = self.new[node.args[0]]  # type: ignore[index]
            if producer.op == "call_module":  # the output of a lifted batch norm or dropout
                self.new[node] = producer
                return True
        return False

    def _lift_weighted(self, node: fx.Node) -> bool:
        """A convolution or linear whose weight is a parameter; one module per parameter."""
        arguments = _bind(node)
        weight, bias = arguments["weight"], arguments.get("bias")
        if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            return False
        settings = {
            key: value for key, value in arguments.items() if key not in ("input", "weight")
        }
        use = f"{weight.target} {settings}"
        owner = self.weight_owner.get(use)
        if owner is None:
            tensors = [
                attribute(self.source, item.target) for item in (weight, bias) if item is not None
            ]
            owner = self._free_name(
                str(weight.target).removesuffix(".weight").replace("weight", "layer")
            )
            self.weight_owner[use] = owner
            self.modules[owner] = _weighted_module(node.target, arguments, tensors)
        self._insert(node, owner, arguments["input"])
        return True

    def _lift_norm(self, node: fx.Node) -> bool:
        """A batch norm in eval form, back as a module that can be trained or folded."""
        arguments = _bind(node)
        names = ("weight", "bias", "running_mean", "running_var")
        sources = [arguments.get(name) for name in names]
        if (
            any(item is not None and item.op != "get_attr" for item in sources)
            or sources[2] is None
        ):
            return False
        mean = attribute(self.source, sources[2].target)
        dimensions = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[
            dimensions
        ]
        momentum = arguments["momentum"] or None  # 0 stands for a cumulative average
        norm = kind(mean.numel(), arguments["eps"], momentum, affine=sources[0] is not None)
        for name, item in zip(names, sources, strict=True):
            if item is not None:
                getattr(norm, name).data.copy_(attribute(self.source, item.target).detach())
        path = str(sources[2].target).removesuffix(".running_mean")
        plain = "batchnorm.BatchNorm" in _module_kind(
            node
        )  # else timm's BatchNormAct2d and its like
        name = self._free_name(path if plain else f"{path}.bn")
        self.modules[name] = norm.to(mean.device)
        self._insert(node, name, arguments["input"])
        return True

    def _call(self, node: fx.Node, role: str, module: nn.Module) -> bool:
        """Insert a module without parameters, named as the layer, or as its block and role."""
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
    path = str(stack[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def _module_kind(node: fx.Node) -> str:
    """Class name of that module."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]) if stack else ""


# ------------------------------------------------------------------------------------ reading it


def set_image_shape(graph_module: fx.GraphModule, shape: Sequence[int]) -> None:
    """Note on the graph module what images it was traced for."""
    graph_module.image_shape = tuple(shape)  # type: ignore[assignment]


def layer_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None for operators."""
    if node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def source_of(node: fx.Node) -> fx.Node:
    """The node whose value a layer's call takes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


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
    """Refuse images of another shape, of whole numbers, and values that are not finite.

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
    if not images.is_floating_point():
        raise DataError(
            f"images hold {images.dtype}: convert them to float and normalise them as in training"
        )
    if not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images.flatten(1))).any(1).nonzero().flatten().tolist()
        raise DataError(f"images {bad[:10]} of the batch hold NaN or infinity: remove or mend them")


def unused_name(graph_module: fx.GraphModule, wanted: str) -> str:
    """``wanted``, or with _1, _2 … where the graph module holds something of that name."""
    taken = {name for name, _ in graph_module.named_modules()}
    taken |= {name for name, _ in graph_module.named_parameters()}
    taken |= {name for name, _ in graph_module.named_buffers()}
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


# --------------------------------------------------------------------------------------- folding


def fold_batch_norm_(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear that alone feeds it, in place.

    A layer used several times is copied first, so that each use takes its own batch norm. Batch
    norms behind anything else (an addition, a concatenation) stay.
    """
    for node, norm in list(layer_nodes(graph_module, NORMS)):
        producer = source_of(node)
        layer = layer_of(graph_module, producer)
        if not isinstance(layer, WEIGHTED) or len(producer.users) != 1:
            continue
        uses = [item for item, _ in layer_nodes(graph_module, WEIGHTED)]
        if sum(item.target == producer.target for item in uses) > 1:
            producer.target = unused_name(graph_module, str(producer.target))
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        fused = fuse(layer, norm)
        fused.bias.requires_grad_(layer.weight.requires_grad)
        graph_module.add_submodule(str(producer.target), fused)
        node.replace_all_uses_with(producer)
        graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


# ----------------------------------------------------------------------------------- JSON form

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "neg", "mod")
}


_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")


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
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    try:
        for item in nodes:
            made[item["name"]] = _node_from_json(graph, item, modules, made)
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
    made: Mapping[str, fx.Node],
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
    args = _decode(item["args"], made)
    kwargs = {key: _decode(value, made) for key, value in item["kwargs"].items()}
    node = graph.create_node(op, target, args, kwargs, name=item["name"])
    node.meta["path"] = str(item["path"])
    return node


def _is_path(text: str) -> bool:
    """Whether a text is names or numbers with dots between, as modules' paths are."""
    return all(part.isalnum() or part.isidentifier() for part in text.split("."))


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
    found = getattr(getattr(aten, match[1]), match[2])
    if not isinstance(found, torch._ops.OpOverload):
        raise KeyError(name)
    if any(argument.name == "filename" for argument in found._schema.arguments):
        raise ValueError(f"{name} touches files")
    return found


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
    return {"device": torch.device, "float": float}[tag](content)


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
