"""`quantize`: any network that can be traced, quantized where multi-threshold neurons will stand.

Convolutions and linears become Brevitas layers; a quantizer replaces each ReLU-like
activation, and is put in front of every weighted layer and of both sides of every product of two
activations that no spikes would feed otherwise. The result trains like any module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import DataError, Fault, SpecError, UnsupportedLayerError, many
from ..graph.by_values import ByValues
from ..graph.copies import NotPickled
from ..graph.float32 import in_float32, network_dtype
from ..graph.given_network import idle_parts, plain_network
from ..graph.image_batches import collect
from ..graph.leftovers import forget_leftovers
from ..graph.nodes import (
    WEIGHTED,
    check_images,
    fold_batch_norm_,
    image_shape_of,
    input_reach,
    layer_nodes,
    warnings_of,
)
from ..graph.operations import operations, reaching_output, unknown_operators
from ..graph.rules import DEFAULT_RULES, OperatorKind, Rule
from ..graph.signals import Signal
from ..graph.tracing.trace import trace
from .activations.noise import Noise
from .activations.placement import (
    FunctionRow,
    check_function_names,
    override,
    quantize_activations_,
    quantize_functions_,
    quantize_inputs_,
)
from .activations.quant_act import QuantAct, calibrating
from .brevitas_layers import (
    LEARNED_BITS,
    has_quantized_weight,
    is_normalized,
    quantize_weighted,
    quantized_weight,
)
from .chain import float_tensors, take_
from .corrections import correct_, equalize_
from .spec import EQUALIZE, LADDER, BatchNorm, QuantSpec, WeightCode, spec_of
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
    functions = quantize_functions_(layers, spec, rules)
    check_function_names(functions, spec)
    quantize_activations_(layers, spec)
    quantize_inputs_(layers, spec, rules)
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


@contextmanager
def _without_rounding(layers: fx.GraphModule) -> Iterator[None]:
    """While it lasts, functions that are ladders are computed as they are."""
    acts = [
        act
        for _, act in layer_nodes(layers, QuantAct)
        if act.formula is not None and not act.formula.only_clips
    ]
    for act in acts:
        act.rounds = False
    try:
        yield
    finally:
        for act in acts:
            act.rounds = True


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
        named = override(spec, row.name, "weight_bits")
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
