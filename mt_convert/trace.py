"""`trace`: any model that `torch.export` can follow, as a graph of layers and ATen operators.

Export resolves control flow; functional activations and re-used modules are no special cases, and
the batch size stays free. What carries parameters or becomes a neuron is lifted back into modules
under its own name: convolutions, linears, batch norms, activations, dropouts. Everything else stays
an ATen operator.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import Fault, UnsupportedLayerError
from .graph import attribute, set_image_shape

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
Path = str


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


def _module_path(node: fx.Node) -> Path:
    """Dotted name of the innermost original module that produced ``node``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def _module_kind(node: fx.Node) -> str:
    """Class name of that module."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]) if stack else ""
