"""`quantize`: any network that can be traced, quantized where multi-threshold neurons will stand.

Convolutions and linears become Brevitas layers; a quantizer replaces each ReLU-like
activation, and is put in front of every weighted layer and of both sides of every product of two
activations that no spikes would feed otherwise. The result trains like any module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import DataError, Fault, SpecError, UnsupportedLayerError, many
from ..graph.by_values import ByValues
from ..graph.copies import NotPickled
from ..graph.float32 import in_float32, network_dtype
from ..graph.functions import Function, extract, find_functions, replace_
from ..graph.given_network import idle_parts, plain_network
from ..graph.image_batches import collect
from ..graph.leftovers import forget_leftovers
from ..graph.nodes import (
    WEIGHTED,
    check_images,
    fold_batch_norm_,
    image_shape_of,
    input_reach,
    is_constant,
    layer_nodes,
    node_name,
    unused_name,
    warnings_of,
)
from ..graph.operations import Operation, operation, operations, reaching_output, unknown_operators
from ..graph.rules import DEFAULT_RULES, OperatorKind, Rule
from ..graph.signals import Signal, nonnegative
from ..graph.tracing.trace import trace
from ..system.devices import device_of
from .brevitas_layers import (
    LEARNED_BITS,
    QuantAct,
    calibrating,
    has_quantized_weight,
    is_normalized,
    quantize_weighted,
    quantized_weight,
)
from .chain import float_tensors, take_
from .corrections import correct_, equalize_
from .formula import Formula, NotAFunction
from .noise import Noise
from .spec import ANALOG, EQUALIZE, LADDER, BatchNorm, QuantSpec, WeightCode, spec_of
from .suspicions import (
    far_pixels,
    not_finite,
    quantized_read_out,
    quantizers_of,
    same_class,
)
from .weight_codes import CODED, encode_layer, takes_code, weight_code
from .weight_norm import follow_, in_front_of_norms, normalize_

CALIBRATION_BATCH = 128
UNBOUNDED = (float("-inf"), float("inf"))
POSITIVE = (0.0, float("inf"))


@dataclass(frozen=True)
class FunctionRow:
    """What became of a function: its place, its operators, and "ladder" or why it stays analog."""

    name: str
    function: str
    taken: str


class QuantizedModel(NotPickled):
    """A quantized network: ``layers`` is its graph, ``spec`` says how it was quantized.

    ``image_shape`` is the (channels, height, width) that it was traced for. Its quantizers get the
    noise that the spec asks for, which acts in training mode alone. ``warnings`` are what the user
    should know of it; ``float_agreement`` is the share of ``float_images`` calibration images that
    got the float network's class when it was quantized, before any training; with functions that
    became ladders computed as they are, ``unrounded_agreement`` did. ``functions`` says of each
    what it became, ``data_settings`` what timm's ``pretrained_cfg`` said of its images. All of it
    is stored, and stands in the report of its conversion. Under torch.compile, torch.export and
    the exporters of ONNX the images are not looked at, since a look at their values would cut the
    graph in two: `check` does it.

    Shapes:
        forward takes images [batch, channels, height, width], returns logits [batch, classes].
    Raises:
        DataError: images of another shape, or with NaN.
    """

    def __init__(self, layers: fx.GraphModule, spec: QuantSpec) -> None:
        super().__init__()
        self.layers, self.spec = layers, spec
        self.warnings: tuple[str, ...] = ()
        self.float_agreement: float | None = None
        self.float_images = 0
        self.functions: tuple[FunctionRow, ...] = ()
        self.unrounded_agreement: float | None = None
        self.data_settings: Mapping[str, Any] | None = None
        self.image_shape: tuple[int, ...] = image_shape_of(layers)
        for _, layer in layer_nodes(layers, QuantAct):
            layer.noise = Noise(spec.act_noise, spec.drop_share)

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.layers(images)
        images = self.check(images)
        if self.training:
            return self.layers(images)
        with in_float32():
            logits: Tensor = ByValues(self.layers).run(images)
        return logits

    def check(self, images: Tensor) -> Tensor:
        """The images in the network's type; images of another shape or with NaN are refused, and
        images that nobody normalised get a warning."""
        reach = None if self.training else input_reach(self.layers)
        return check_images(images, self.image_shape, next(self.parameters(), None), reach)

    def __repr__(self) -> str:
        layers = dict(layer_nodes(self.layers, WEIGHTED)).values()
        kinds = Counter(_weights_of(layer) for layer in dict.fromkeys(layers))
        weights = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        activations = sum(1 for _ in layer_nodes(self.layers, QuantAct))
        shape = "x".join(map(str, self.image_shape))
        return (
            f"QuantizedModel(weights: {weights}; {activations} quantizers of activations, "
            f"L = {self.spec.levels}; images {shape}; print(qann.layers) shows all)"
        )


@forget_leftovers()
@in_float32()
def quantize(
    ann: nn.Module,
    spec: QuantSpec | int | str | Mapping[str, Any],
    *,
    calibration: Any,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
    start: QuantizedModel | None = None,
) -> QuantizedModel:
    """A calibrated, trainable quantized copy of ``ann``, in eval mode; ``ann`` is untouched.

    Every ReLU, ReLU6 or Hardtanh (module, functional or re-used) gets a quantizer of its own, and
    so does every other function of each number by itself (GELU, SiLU, x * tanh(softplus(x))): its
    quantizer stands at the function, and its levels are found by thresholds of its input. A
    weighted layer, and each side of a product of two activations, that no activation feeds gets one
    in front: signed, with as many levels below 0 as fit the data, or unsigned where values cannot
    fall below 0 (softmax, sigmoid). With ``start``, a quantized network of the same architecture,
    weights and batch norms are its own instead of those of ``ann``, and steps are fitted to them:
    so a chain of widths goes from many bits to few.

    ``spec`` may be a number of bits for weights and activations, a name such as "w4a8", or a
    mapping of fields. ``ann`` may be wrapped in DataParallel, torch.compile or weight averaging.
    ``calibration`` may be a tensor, an array, a list of images or batches, a pair (images, labels),
    or a DataLoader, data set or generator, of which the first 1,024 images are taken.

    Shapes:
        calibration: [images, channels, height, width], normalised as in training.
    Raises:
        UnsupportedLayerError: every operator that cannot be quantized, with what to do; a network
            with several inputs or results, or with layers named as parts of a graph are.
        SpecError: no network, or no spec; an override that matches no layer; a network in another
            type than float32, or with numbers that are not finite.
        DataError: calibration images with NaN.
        CheckpointError: ``start`` has another architecture.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(act_bits=2), calibration=torch.randn(8, 1, 4, 4))
        >>> [type(layer).__name__ for _, layer in layer_nodes(qann.layers, nn.Module)]
        ['QuantAct', 'QuantConv2d', 'QuantAct', 'QuantLinear']
    """
    ann, spec = plain_network(ann), spec_of(spec)
    if hasattr(ann, "presentation"):
        hint = "pass the one that this was converted from"
        raise SpecError(f"quantize takes a float network, not a {type(ann).__name__}: {hint}")
    network_dtype(ann, (torch.float32,))
    calibration = collect(calibration, name="calibration images")
    calibration = check_images(calibration, tuple(calibration.shape[1:]))
    if not len(calibration):
        raise DataError("no calibration images: pass some tens of the training images")
    layers = trace(ann, calibration)
    faults = unknown_operators(operations(layers, rules))
    if faults:
        raise UnsupportedLayerError(
            f"{many(faults, 'operator', 'operators')} of {type(ann).__name__} cannot be quantized",
            faults,
        )
    if faults := not_finite(layers):
        raise SpecError(
            f"{many(faults, 'tensor', 'tensors')} of {type(ann).__name__} not finite", faults
        )
    suspicions = [
        *quantizers_of(ann, layers),
        *idle_parts(ann),
        *far_pixels(calibration),
    ]
    if spec.batch_norm is BatchNorm.FOLD:
        fold_batch_norm_(layers)
    if start is not None:
        take_(layers, float_tensors(start.layers))
    if EQUALIZE in spec.after:
        equalize_(layers, calibration[:CALIBRATION_BATCH])
    functions = _quantize_functions_(layers, spec, rules)
    _check_function_names(functions, spec)
    _quantize_activations_(layers, spec)
    _quantize_inputs_(layers, spec, rules)
    _quantize_weights_(layers, spec, rules, calibration[:CALIBRATION_BATCH])
    _check_overrides(layers, spec)
    layers.graph.lint()
    layers.recompile()
    qann = QuantizedModel(layers, spec)
    qann.functions = functions
    calibrate_(qann, calibration)
    correct_(layers, spec.after, calibration)
    qann.warnings = (*warnings_of(layers), *suspicions, *quantized_read_out(layers))
    qann.data_settings = data_settings_of(ann)
    compared = calibration[:CALIBRATION_BATCH]
    if (agreement := same_class(ann, qann, compared)) is not None:
        qann.float_agreement, qann.float_images = agreement[0], len(compared)
        if any(row.taken == LADDER for row in functions):
            with _without_rounding(layers):
                other = same_class(ann, qann, compared)
            qann.unrounded_agreement = None if other is None else other[0]
        if not bool(torch.isfinite(agreement[1]).all()):
            hint = "its sums overflow on the calibration images: normalise them as in training"
            raise SpecError(f"{type(ann).__name__}: logits are not finite; {hint}")
    return qann


_OF_IMAGES = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")


def data_settings_of(ann: nn.Module) -> dict[str, Any] | None:
    """What timm says of a network's images; None for networks of others.

    Example:
        >>> net = nn.Sequential()
        >>> net.pretrained_cfg = {"mean": (0.5,), "url": "https://example.org"}
        >>> data_settings_of(net)
        {'mean': [0.5]}
    """
    said = getattr(ann, "pretrained_cfg", None)
    if not isinstance(said, Mapping):
        return None
    plain = {key: said[key] for key in _OF_IMAGES if said.get(key) is not None}
    lists = {key: list(item) if isinstance(item, tuple) else item for key, item in plain.items()}
    return lists or None


def calibrate_(qann: QuantizedModel, images: Tensor) -> None:
    """Set the steps of all activation quantizers from the activations of ``images``, in place.

    Leaves the model in eval mode, its steps trainable (uncalibrated, Brevitas would use 1/L).
    """
    with calibrating(qann):
        for batch in images.split(CALIBRATION_BATCH):
            qann(batch)
    for _, layer in layer_nodes(qann.layers, WEIGHTED):
        if has_quantized_weight(layer):
            quantized_weight(layer)  # a trained weight step takes its start on first use


def _quantize_functions_(
    layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]
) -> tuple[FunctionRow, ...]:
    """Each function of one input becomes a quantizer that knows it, or stays; what became of it."""
    names: dict[fx.Node, str] = {}

    def decide(function: Function) -> str:
        """Why a function stays analog; empty where it does not."""
        root = next(node for node in reversed(function.nodes) if node.op == "call_function")
        path = str(root.meta.get("path") or str(root.target).split(".")[1])
        name = unused_name(layers, path)
        if name != path:
            name = unused_name(layers, f"{path}.{str(root.target).split('.')[1]}")
        names[function.root] = name
        if spec.function_word(name) == ANALOG:
            return "as asked"
        if _only_moved_to_output(function.root, rules):
            return "it is the read-out"
        try:
            _formula(layers, function).samples()
        except NotAFunction as fact:
            return str(fact)
        return ""

    functions, analog = find_functions(layers, decide, rules)
    rows = [
        FunctionRow(names.get(node, node_name(node)), str(item), reason)
        for node, (item, reason) in analog.items()
    ]
    for function in functions:  # the last first: names were given in this order
        name = unused_name(layers, names[function.root])
        formula = _formula(layers, function)
        positive = _nonnegative_function(layers, function, rules)
        bits = _act_bits(spec, name, spec.act_bits if positive else max(spec.act_bits, 2))
        clip = POSITIVE if positive else UNBOUNDED
        act = _quant_act(layers, bits, clip, spec, name, formula=formula)
        rows.append(FunctionRow(name, str(function), LADDER))
        replace_(layers, function, name, act)
    return tuple(reversed(rows))


def _formula(layers: fx.GraphModule, function: Function) -> Formula:
    """A function with the network's constants."""
    graph = extract(layers, function)
    return Formula(graph, str(function), function.channels, function.axis)


def _nonnegative_function(
    layers: fx.GraphModule, function: Function, rules: Mapping[Any, Rule]
) -> bool:
    """Whether a function never falls below 0: by its rules, or in all its samples."""
    if nonnegative(layers, function.root, rules):
        return True
    return bool((_formula(layers, function).samples().values >= 0).all())


def _only_moved_to_output(root: fx.Node, rules: Mapping[Any, Rule]) -> bool:
    """Whether a value is the read-out itself, moved at most."""
    stack = list(root.users)
    while stack:
        user = stack.pop()
        if user.op == "output":
            continue
        rule = rules.get(user.target) if user.op == "call_function" else None
        if rule is None or rule.kind is not OperatorKind.MOVE:
            return False
        stack.extend(user.users)
    return True


@contextmanager
def _without_rounding(layers: fx.GraphModule) -> Iterator[None]:
    """While it lasts, functions that are ladders are computed as they are."""
    acts = [act for _, act in layer_nodes(layers, QuantAct) if act.formula is not None]
    for act in acts:
        act.rounds = False
    try:
        yield
    finally:
        for act in acts:
            act.rounds = True


def _quantize_activations_(layers: fx.GraphModule, spec: QuantSpec) -> None:
    """Each activation becomes a quantizer of the same name."""
    for node, layer in list(layer_nodes(layers, (nn.ReLU, nn.Hardtanh))):
        if is_constant(node):
            continue
        clip = POSITIVE if isinstance(layer, nn.ReLU) else (layer.min_val, layer.max_val)
        name = str(node.target)
        bits = _act_bits(spec, name, spec.act_bits)
        layers.add_submodule(name, _quant_act(layers, bits, clip, spec, name))


def _quant_act(
    layers: fx.GraphModule,
    bits: int,
    clip: tuple[float, float],
    spec: QuantSpec,
    name: str,
    encodes_input: bool = False,
    formula: Formula | None = None,
) -> QuantAct:
    """A quantizer on the device of the network; 1 bit cannot be signed."""
    if clip[0] < 0 and bits < 2:
        hint = "raise act_bits to 2, or give the layer its own bits under overrides"
        raise SpecError("1-bit activations cannot be signed", [Fault(name, "1 bit, signed", hint)])
    act = QuantAct(bits, clip, spec.scale, encodes_input, spacing=spec.spacing, formula=formula)
    return act.to(device_of(layers))


def _quantize_inputs_(layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule]) -> None:
    """A quantizer on the image, and on each current that a weighted layer or a product reads."""
    rules = {**rules, QuantAct: Rule(OperatorKind.NEURON)}
    nodes = list(layers.graph.nodes)
    rows: dict[fx.Node, Operation] = {}
    if spec.input_bits is not None:
        place = next(place for place, node in enumerate(nodes) if node.op == "placeholder")
        image = _quant_act(layers, spec.input_bits, UNBOUNDED, spec, "input_quant", True)
        name = unused_name(layers, "input_quant")
        nodes.insert(place + 1, _insert_(layers, nodes[place], name, image))
    for node in nodes:
        row = rows[node] = operation(layers, node, rows, rules)
        if row.kind not in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
            continue
        for source in row.inputs:
            if rows[source].signal is Signal.CURRENT:
                call = _quantize_current_(layers, source, row, spec, rules)
                rows[call] = operation(layers, call, rows, rules)


def _quantize_current_(
    layers: fx.GraphModule,
    source: fx.Node,
    reader: Operation,
    spec: QuantSpec,
    rules: Mapping[Any, Rule],
) -> fx.Node:
    """Put a quantizer on a current, named after the first layer or product that reads it."""
    owner = reader.name
    if reader.layer is None:
        path, operator = reader.node.meta.get("path") or "", reader.operator.split(".")[1]
        owner = f"{path}.{operator}".lstrip(".")
    name = unused_name(layers, f"{owner}_input")
    positive = nonnegative(layers, source, rules)
    bits = _act_bits(spec, name, spec.act_bits if positive else max(spec.act_bits, 2))
    quantizer = _quant_act(layers, bits, POSITIVE if positive else UNBOUNDED, spec, name)
    return _insert_(layers, source, name, quantizer)


def _insert_(layers: fx.GraphModule, source: fx.Node, name: str, quantizer: QuantAct) -> fx.Node:
    """Put a quantizer behind ``source``; all that read ``source`` then read the quantizer."""
    layers.add_submodule(name, quantizer)
    users = [user for user in source.users if not is_constant(user)]
    with layers.graph.inserting_after(source):
        call = layers.graph.call_module(name, (source,))
    call.meta = {"path": name}
    for user in users:
        user.replace_input_with(source, call)
    return call


def _quantize_weights_(
    layers: fx.GraphModule, spec: QuantSpec, rules: Mapping[Any, Rule], images: Tensor
) -> None:
    """Each convolution and linear becomes a Brevitas layer of its bits, or a coded one.

    Those that get neither keep float weights. ``images`` show what normalised weights leave out.
    """
    rules = {**rules, QuantAct: Rule(OperatorKind.NEURON)}
    rows = operations(layers, rules)
    last = reaching_output(rows)
    done: dict[str, tuple[nn.Module, int | None]] = {}
    for node, row in rows.items():
        if not isinstance(row.layer, WEIGHTED) or row.constant:
            continue
        bits = spec.first_bits if row.fed_by is Signal.IMAGE else None
        if spec.last_bits is not None and node in last:
            bits = spec.last_bits
        named = _override(spec, row.name, "weight_bits")
        done.setdefault(row.name, (row.layer, bits if named is None else named))
    coded, norms = 0, in_front_of_norms(layers) if spec.normalize_weights else {}
    normed = {
        name: norms[name]
        for name, (_, own_bits) in done.items()
        if name in norms and (spec.weight_bits if own_bits is None else own_bits) in LEARNED_BITS
    }
    _normalize_weights_(layers, normed, images)
    for name, (layer, own_bits) in done.items():
        bits = spec.weight_bits if own_bits is None else own_bits
        if own_bits is None and takes_code(layer, spec.weights):
            coded += 1
            code = weight_code(spec.weights, spec.codeword_bits, spec.scale)
            layers.add_submodule(name, encode_layer(layer, code))
        elif bits is not None:
            ranges = spec.narrow_range, name in normed
            layers.add_submodule(name, quantize_weighted(layer, bits, spec.scale, *ranges))
    if spec.weights is not WeightCode.UNIFORM and not coded:
        hint = "no layer without bits of its own" + (
            " is a 3x3 convolution" if spec.weights is WeightCode.SUBBIT else ""
        )
        raise SpecError("no weights to code", [Fault("weights", str(spec.weights), hint)])
    if spec.normalize_weights and not normed:
        hint = f"no layer of {LEARNED_BITS[-1]} bits or fewer has a batch norm alone behind it"
        raise SpecError("no weights to normalise", [Fault("normalize_weights", "True", hint)])


def _normalize_weights_(
    layers: fx.GraphModule, norms: Mapping[str, list[nn.Module]], images: Tensor
) -> None:
    """Normalise the weights of these layers, and move the batch norms behind them by as much."""
    if norms:
        with torch.no_grad():
            _WithoutQuantizers(layers, norms).run(images)


class _WithoutQuantizers(fx.Interpreter):
    """The float network, each of whose named layers is normalised when the images reach it."""

    def __init__(self, layers: fx.GraphModule, norms: Mapping[str, list[nn.Module]]) -> None:
        super().__init__(layers)
        self.norms = {name: iter(behind) for name, behind in norms.items()}
        self.removed: dict[str, tuple[Tensor, Tensor]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(layer, QuantAct):
            return layer.function(*args)
        if target in self.norms:
            if target not in self.removed:
                self.removed[target] = normalize_(layer)
            follow_(next(self.norms[target]), layer, args[0], *self.removed[target])
        return super().call_module(target, args, kwargs)


def _weights_of(layer: nn.Module) -> str:
    """How a layer's weights are quantized, in words."""
    if isinstance(layer, CODED):
        return layer.code.extra_repr().split(",")[0]
    if not has_quantized_weight(layer):
        return "float"
    return f"of {layer.weight_bits} bits" + (" normalised" if is_normalized(layer) else "")


def _act_bits(spec: QuantSpec, name: str, default: int) -> int:
    """The bits of an activation: the last override that matches and names them, or the default."""
    named = _override(spec, name, "act_bits")
    return default if named is None else named


def _override(spec: QuantSpec, name: str, kind: str) -> int | None:
    """The bits of the last override that matches and names ``kind``."""
    for item in reversed(spec.overrides):
        value: int | None = getattr(item, kind)
        if value is not None and fnmatchcase(name, item.pattern):
            return value
    return None


def _check_overrides(layers: fx.GraphModule, spec: QuantSpec) -> None:
    """An override that matches nothing is a misspelt name."""
    names = [str(node.target) for node, _ in layer_nodes(layers, (*WEIGHTED, QuantAct))]
    faults = [
        Fault(
            item.pattern,
            "matches no layer",
            "layers: " + ", ".join(names[:12]) + (" …" if len(names) > 12 else ""),
        )
        for item in spec.overrides
        if not any(fnmatchcase(name, item.pattern) for name in names)
    ]
    if faults:
        raise SpecError(f"{many(faults, 'override matches', 'overrides match')} no layer", faults)


def _check_function_names(functions: Sequence[FunctionRow], spec: QuantSpec) -> None:
    """A pattern that matches no function is a misspelt name; the one for all may match none."""
    assert isinstance(spec.functions, Mapping)
    names = [row.name for row in functions]
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    faults = [
        Fault(pattern, "matches no function", f"functions: {shown or 'none'}")
        for pattern in spec.functions
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names)
    ]
    if faults:
        raise SpecError(f"{many(faults, 'name', 'names')} under functions", faults)


@contextmanager
def levels_of(qann: QuantizedModel) -> Iterator[dict[str, Tensor]]:
    """Collect the levels of every activation while the quantized network runs."""
    levels: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(layer: QuantAct, inputs: Any, output: Tensor) -> None:
            levels[name] = torch.round(output / layer.scale)

        return keep

    handles = [
        layer.register_forward_hook(hook(str(node.target)))
        for node, layer in layer_nodes(qann.layers, QuantAct)
        if not layer.encodes_input
    ]
    try:
        yield levels
    finally:
        for handle in handles:
            handle.remove()
