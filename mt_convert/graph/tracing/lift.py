"""`lift`: an exported program's graph with its layers back as modules.

What carries parameters or becomes a neuron is lifted into modules under its own name:
convolutions, linears, batch norms, activations, dropouts. What depends on parameters alone (a
standardised weight, a table of relative positions) is computed once and stands as a tensor, to be
trained as it is. Everything else stays an ATen operator. A parameter that several layers share is
one parameter still, and one that was frozen is frozen.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, UnsupportedLayerError, many
from ..nodes import attribute, note_warning
from .exported_nodes import (
    CONVOLUTIONS,
    MATRICES,
    Path,
    as_parameter,
    bind,
    clamp_bounds,
    clamp_layer,
    module_kind,
    module_path,
    weighted_layer,
)

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
    graph_module = fx.GraphModule({**lifted.tensors, **lifted.modules}, lifted.graph)
    for name, forms in lifted.forms.items():
        if len(forms) > 1:
            places = ", ".join(list(forms.values())[:4])
            note_warning(
                graph_module, f"{name} is used in {len(forms)} forms, which train apart: {places}"
            )
    return graph_module


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
        self.sources: dict[fx.Node, frozenset[str]] = {}  # parameters to be trained, by constant
        self.keys: dict[fx.Node, int] = {}  # equal for constants computed alike from the same
        self.known_keys: dict[str, int] = {}
        self.stored: dict[Any, Tensor] = {}  # constants in the new graph, by key
        self.forms: dict[str, dict[Any, Path]] = {}  # of a parameter to be trained: where, by key
        self.weights: set[Any] = set()  # keys of the weights of layers
        self.weight_owner: dict[str, Path] = {}  # by parameter and settings
        self.norm_owner: dict[str, Path] = {}
        self.matrices: dict[Any, tuple[frozenset[str], Tensor]] = {}  # to be trained, by key
        for node in source.graph.nodes:
            self._copy(node)
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        self._refuse_parameters_that_come_apart()

    def _refuse_parameters_that_come_apart(self) -> None:
        """A parameter that enters two layers in two forms would be trained as two weights."""
        hint = (
            "its forms would train apart: freeze it, parameter.requires_grad_(False), or use it "
            "in one form"
        )
        faults = [
            Fault(name, f"in {len(owners)} forms: {', '.join(owners[:4])}", hint)
            for name, forms in self.forms.items()
            if len(owners := [path for key, path in forms.items() if key in self.weights]) > 1
        ]
        if faults:
            raise UnsupportedLayerError(
                f"{many(faults, 'parameter is', 'parameters are')} shared by layers that need it "
                "in different forms",
                faults,
            )

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
            learns = trained and value.requires_grad
            self.sources[node] = frozenset([str(node.target)] if learns else [])
            key = f"tensor {id(value)}" if isinstance(value, Tensor) else f"name {node.target}"
        elif node.op == "call_function" and all(i in self.constants for i in node.all_input_nodes):
            args: Any
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.constants.__getitem__)
            if node.target is aten.native_dropout.default:
                args = (*args[:2], False)  # of a constant it is idle, as in eval form
            with torch.no_grad():
                value = node.target(*args, **kwargs)  # type: ignore[operator]
            inputs = node.all_input_nodes
            trained = any(item in self.trained for item in inputs)
            self.sources[node] = frozenset().union(*(self.sources[item] for item in inputs))
            key = str((node.target, self._by_key(node.args), self._by_key(node.kwargs)))
        else:
            return False
        self.constants[node] = value
        self.keys[node] = self.known_keys.setdefault(key, len(self.known_keys))
        if trained:
            self.trained.add(node)
        return True

    def _by_key(self, arguments: Any) -> Any:
        """Arguments with the keys of constants in their places."""
        return fx.map_arg(arguments, lambda item: f"constant {self.keys[item]}")

    def _new(self, node: fx.Node) -> Any:
        """The value of an old node in the new graph; a constant enters it on its first use."""
        if node in self.new:
            return self.new[node]
        value = self.constants[node]
        if not isinstance(value, Tensor):
            return value
        path = f"{module_path(node)}.{node.name}".lstrip(".")
        name = self._free_name(str(node.target) if node.op == "get_attr" else path)
        self.tensors[name] = self._tensor(node, name)
        self.new[node] = self.graph.get_attr(name)
        self.new[node].meta = {"path": name, "val": node.meta.get("val")}
        return self.new[node]

    def _tensor(self, node: fx.Node, owner: Path, matrix: bool = False) -> Tensor:
        """A constant as it is stored, once: trained on if it comes from parameters that are.

        ``matrix``: turned, as a linear layer holds what multiplies from the right.
        """
        key = self._key(node, matrix)
        for name in self.sources[node]:
            self.forms.setdefault(name, {}).setdefault(key, owner)
        if key not in self.stored:
            value = self._value(node, matrix).clone(memory_format=torch.contiguous_format)
            trained = node in self.trained and value.is_floating_point()
            learns = trained and bool(self.sources[node])
            self.stored[key] = nn.Parameter(value, requires_grad=learns) if trained else value
        return self.stored[key]

    def _value(self, node: fx.Node, matrix: bool) -> Tensor:
        """The numbers of a constant, turned where they are to multiply from the right."""
        value = self.constants[node].detach()
        return value.flatten(0, -2).t() if matrix else value

    def _key(self, node: fx.Node, matrix: bool) -> Any:
        """What a constant is stored under: one key for matrices of the same parameters that are
        equal, however they were reshaped."""
        if not matrix or not self.sources[node]:
            return self.keys[node], matrix
        value = self._value(node, matrix)
        for known, (sources, other) in self.matrices.items():
            if sources == self.sources[node] and torch.equal(other, value):
                return known
        self.matrices[self.keys[node], matrix] = self.sources[node], value
        return self.keys[node], matrix

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
        use = f"{self._key(weight, matrix)} {node.target} {self._by_key(settings)}"
        if use not in self.weight_owner:
            owner = self._free_name(self._weight_path(node, weight))
            self.weights.add(self._key(weight, matrix))
            tensors = [self._tensor(weight, owner, matrix)]
            if bias is not None:
                tensors.append(self._tensor(bias, owner))
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
        settings = {key: item for key, item in arguments.items() if key != "input"}
        use = str(self._by_key(settings))
        if use in self.norm_owner:
            self._insert(node, self.norm_owner[use], arguments["input"])
            return True
        mean = self.constants[sources[2]]
        dimensions = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[
            dimensions
        ]
        momentum = arguments["momentum"] or None  # 0 stands for a cumulative average
        norm = kind(mean.numel(), arguments["eps"], momentum, affine=sources[0] is not None)
        path = str(sources[2].target).removesuffix(".running_mean")
        for name, item in zip(names, sources, strict=True):
            if item is not None:
                tensor = self._tensor(item, path)
                setattr(norm, name, as_parameter(tensor) if name in names[:2] else tensor.detach())
        if f"{path}.num_batches_tracked" in self.source.state_dict():
            seen = attribute(self.source, f"{path}.num_batches_tracked")
            norm.num_batches_tracked.copy_(seen)  # type: ignore[union-attr]
        plain = "batchnorm.BatchNorm" in module_kind(
            node
        )  # else timm's BatchNormAct2d and its like
        name = self._free_name(path if plain else f"{path}.bn")
        self.modules[name] = norm.to(mean.device)
        self.norm_owner[use] = name
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
