"""`lift`: an exported program's graph with its layers back as modules.

What carries parameters or becomes a neuron is lifted into modules under its own name:
convolutions, linears, batch norms, activations, dropouts. What depends on parameters alone (a
standardised weight, a table of relative positions) is computed once and stands as a tensor, to be
trained as it is. Everything else stays an ATen operator.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import Fault, UnsupportedLayerError
from .exported_nodes import (
    CONVOLUTIONS,
    MATRICES,
    Path,
    bind,
    clamp_bounds,
    clamp_layer,
    module_kind,
    module_path,
    weighted_layer,
)
from .nodes import attribute

aten = torch.ops.aten

BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
RELUS = (aten.relu.default, aten.relu_.default)
CLAMPS = (
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.relu6.default,
    aten.clamp_min.default,
)
EXTREMES = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}
INDEXED = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}
ADAPTIVE = (
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)


def lift(source: fx.GraphModule) -> fx.GraphModule:
    """The graph of layers and ATen operators of an exported, functional graph module.

    Raises:
        UnsupportedLayerError: the model returns anything but one tensor.
    """
    lifted = _Lift(source)
    return fx.GraphModule({**lifted.tensors, **lifted.modules}, lifted.graph)


class _Lift:
    """Copies an exported graph and turns layers back into modules, one name per use of a neuron."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.graph = fx.Graph()
        self.modules: dict[Path, Any] = {}
        self.tensors: dict[Path, Tensor] = {}
        self.new: dict[fx.Node, Any] = {}
        self.constants: dict[fx.Node, Any] = {}  # what does not depend on the image
        self.trained: set[fx.Node] = set()  # those of them that depend on parameters
        self.weight_owner: dict[str, Path] = {}  # by parameter and settings
        for node in source.graph.nodes:
            self._copy(node)
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()

    def _copy(self, node: fx.Node) -> None:
        """Compute, lift or copy one node; order is the exported program's own."""
        if self._compute_constant(node) or (node.op == "call_function" and self._lift(node)):
            return
        if node.op == "output":
            self._copy_output(node)
            return
        self.new[node] = self.graph.node_copy(node, self._new)
        self.new[node].meta = {"path": module_path(node), "val": node.meta.get("val")}

    def _compute_constant(self, node: fx.Node) -> bool:
        """Compute a node that depends on parameters and numbers alone; say whether it does."""
        if node.op == "get_attr":
            value = attribute(self.source, str(node.target))
            trained = isinstance(value, nn.Parameter)
        elif node.op == "call_function" and all(i in self.constants for i in node.all_input_nodes):
            args: Any
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.constants.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)  # type: ignore[operator]
            trained = any(item in self.trained for item in node.all_input_nodes)
        else:
            return False
        self.constants[node] = value
        if trained:
            self.trained.add(node)
        return True

    def _new(self, node: fx.Node) -> Any:
        """The value of an old node in the new graph; a constant enters it on its first use."""
        if node in self.new:
            return self.new[node]
        value = self.constants[node]
        if not isinstance(value, Tensor):
            return value
        path = f"{module_path(node)}.{node.name}".lstrip(".")
        name = self._free_name(str(node.target) if node.op == "get_attr" else path)
        self.tensors[name] = self._tensor(node)
        self.new[node] = self.graph.get_attr(name)
        self.new[node].meta = {"path": name, "val": node.meta.get("val")}
        return self.new[node]

    def _tensor(self, node: fx.Node) -> Tensor:
        """A constant as it is stored: trained on if it comes from parameters."""
        value = self.constants[node].detach().clone(memory_format=torch.contiguous_format)
        trained = node in self.trained and value.is_floating_point()
        return nn.Parameter(value) if trained else value

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
        self.graph.output(self._new(outputs[0]))

    def _lift(self, node: fx.Node) -> bool:
        """Replace ``node`` by a module call if it is a layer; say whether it was."""
        target = node.target
        if target in CONVOLUTIONS or target in (aten.linear.default, *MATRICES):
            return self._lift_weighted(node)
        if target in BATCH_NORMS:
            return self._lift_norm(node)
        if target is aten.native_dropout.default:
            return self._call(node, "dropout", nn.Dropout(float(node.args[1])))  # type: ignore[arg-type]
        if target in RELUS:
            return self._call(node, "relu", nn.ReLU())
        if target in CLAMPS:
            bounds = clamp_bounds(node)
            if bounds is None or not bounds[0] <= 0 < bounds[1]:  # a neuron at rest emits 0
                return False
            return self._call(node, "clamp", clamp_layer(*bounds))
        if target is operator.getitem and node.args[1] == 0:
            return self._lift_first(node)
        return False

    def _lift_first(self, node: fx.Node) -> bool:
        """The first output of a lifted layer, or the maximum of a pair of maximum and index."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.target in EXTREMES:
            value, axis, *keep = source.args
            arguments = (self._new(value), [axis], *keep)  # type: ignore[arg-type]
            self._operate(node, EXTREMES[source.target], arguments)
            return True
        if source.target in INDEXED:
            arguments = (self._new(source.args[0]), *source.args[1:])  # type: ignore[arg-type]
            self._operate(node, INDEXED[source.target], arguments)
            return True
        if source.target in ADAPTIVE:
            self._lift_adaptive(node, source)
            return True
        if source in self.new:
            producer = self.new[source]
            if producer.op == "call_module":  # the output of a lifted batch norm or dropout
                self.new[node] = producer
                return True
        return False

    def _operate(self, node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> fx.Node:
        """Put an operator where ``node`` stood."""
        call = self.graph.call_function(target, arguments)
        call.meta = {"path": module_path(node), "val": node.meta.get("val")}
        self.new[node] = call
        return call

    def _lift_adaptive(self, node: fx.Node, source: fx.Node) -> None:
        """The maxima of an adaptive max pool, axis by axis: one slice and maximum per cell."""
        image: Any = source.args[0]
        sizes: Any = source.args[1]
        value = self._new(image)
        for axis, cells in zip(range(-len(sizes), 0), sizes, strict=True):
            size = int(image.meta["val"].shape[axis])
            pieces = []
            for cell in range(cells):
                ends = cell * size // cells, -(-(cell + 1) * size // cells)
                part = value
                if ends != (0, size):
                    part = self._operate(node, aten.slice.Tensor, (value, axis, *ends))
                pieces.append(self._operate(node, aten.amax.default, (part, [axis], True)))
            value = pieces[0]
            if cells > 1:
                value = self._operate(node, aten.cat.default, (pieces, axis))

    def _lift_weighted(self, node: fx.Node) -> bool:
        """A convolution or linear whose weight is constant; one module per weight and settings."""
        arguments = bind(node)
        matrix = node.target in MATRICES  # x @ W is a linear layer of W transposed
        operands = [item.name for item in node.target._schema.arguments[:2]]  # type: ignore[union-attr]
        source, weight = (arguments[name] for name in operands)
        bias = arguments.get("bias")
        if any(item is not None and item not in self.constants for item in (weight, bias)):
            return False
        batch = (1,) if node.target is aten.bmm.default else ()
        shape = self.constants[weight].shape
        if matrix and (len(shape) < 2 or shape[:-2] != batch):
            return False
        settings = {key: value for key, value in arguments.items() if key not in operands}
        use = f"{weight.name} {settings}"
        if use not in self.weight_owner:
            tensors = [self._tensor(item) for item in (weight, bias) if item is not None]
            if matrix:
                tensors[0] = tensors[0].detach().flatten(0, -2).t().contiguous()
            owner = self._free_name(self._weight_path(node, weight))
            self.weight_owner[use] = owner
            self.modules[owner] = weighted_layer(node.target, arguments, tensors)
        self._insert(node, self.weight_owner[use], source)
        return True

    def _weight_path(self, node: fx.Node, weight: fx.Node) -> Path:
        """The name of a layer: its parameter's module, or the module that computed the weight."""
        if weight.op == "get_attr":
            return str(weight.target).removesuffix(".weight").replace("weight", "layer")
        path = module_path(node)
        role = "linear" if "linear" in str(node.target) else "matmul"
        return path if "conv" in str(node.target) and path else f"{path}.{role}".lstrip(".")

    def _lift_norm(self, node: fx.Node) -> bool:
        """A batch norm in eval form, back as a module that can be trained or folded."""
        arguments = bind(node)
        names = ("weight", "bias", "running_mean", "running_var")
        sources = [arguments.get(name) for name in names]
        held = [item is None or item in self.constants for item in sources]
        if not all(held) or sources[2] is None or sources[2].op != "get_attr":
            return False
        mean = self.constants[sources[2]]
        dimensions = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[
            dimensions
        ]
        momentum = arguments["momentum"] or None  # 0 stands for a cumulative average
        norm = kind(mean.numel(), arguments["eps"], momentum, affine=sources[0] is not None)
        for name, item in zip(names, sources, strict=True):
            if item is not None:
                getattr(norm, name).data.copy_(self.constants[item].detach())
        path = str(sources[2].target).removesuffix(".running_mean")
        plain = "batchnorm.BatchNorm" in module_kind(
            node
        )  # else timm's BatchNormAct2d and its like
        name = self._free_name(path if plain else f"{path}.bn")
        self.modules[name] = norm.to(mean.device)
        self._insert(node, name, arguments["input"])
        return True

    def _call(self, node: fx.Node, role: str, module: nn.Module) -> bool:
        """Insert a module without parameters, named as the layer, or as its block and role."""
        path, kind = module_path(node), module_kind(node)
        leaf = kind.rsplit(".", 1)[-1] if kind else ""
        own = path and any(word in leaf.lower() for word in ("relu", "tanh", "dropout", "clamp"))
        name = self._free_name(path if own else f"{path}.{role}" if path else role)
        self.modules[name] = module
        self._insert(node, name, node.args[0])
        return True

    def _insert(self, node: fx.Node, name: Path, argument: Any) -> None:
        """Put a module call where ``node`` stood."""
        call = self.graph.call_module(name, (self._new(argument),))
        call.meta = {"path": name, "val": node.meta.get("val")}
        self.new[node] = call

    def _free_name(self, path: Path) -> Path:
        """``path``, or with _1, _2 … where it is taken; beside a module rather than in it."""
        taken = {*self.modules, *self.tensors}
        parts = path.split(".")
        for depth in range(1, len(parts)):
            if ".".join(parts[:depth]) in taken:
                path = ".".join([*parts[: depth - 1], "_".join(parts[depth - 1 :])])
                break
        name, count = path, 0
        while any(name == item or item.startswith(name + ".") for item in taken):
            count += 1
            name = f"{path}_{count}"
        return name
