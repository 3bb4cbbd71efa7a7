"""`adopt`: a network that somebody quantized already, taken over with its own steps and levels."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import DataError, Fault, SpecError, UnsupportedLayerError, many
from ..graph.float32 import in_float32, network_dtype
from ..graph.given_network import plain_network
from ..graph.image_batches import collect
from ..graph.leftovers import forget_leftovers
from ..graph.nodes import WEIGHTED, check_images, layer_nodes, warnings_of
from ..graph.operations import operations, unknown_operators
from ..graph.rules import DEFAULT_RULES, Rule
from ..graph.tracing.trace import trace
from .activations.formula import clip_formula
from .activations.quant_act import QuantAct, calibrating
from .brevitas_layers import quantize_weighted, take_weight_
from .foreign_quantizers import (
    GridWeight,
    NoQuantizer,
    Staircase,
    is_of_brevitas,
    keep_biases_,
    staircase_in_front,
    staircase_of,
    weight_of,
)
from .quantize import CALIBRATION_BATCH, QuantizedModel, data_settings_of, levels_of
from .spec import BatchNorm, QuantSpec, Rounding, Scale
from .suspicions import not_finite, same_class

MOST_BITS = 8
MOST_DIFFERENT = 1e-3  # share of a layer's levels that may differ: float sums next to thresholds
_PLAIN = {
    "QuantConv1d": nn.Conv1d,
    "QuantConv2d": nn.Conv2d,
    "QuantConv3d": nn.Conv3d,
    "QuantLinear": nn.Linear,
}
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


@forget_leftovers()
@in_float32()
def adopt(
    model: nn.Module, *, calibration: Any, rules: Mapping[Any, Rule] = DEFAULT_RULES
) -> QuantizedModel:
    """A network with quantizers of its own as a `QuantizedModel`: the same steps, levels, weights.

    Known are layers of Brevitas, and activations that are named as QCFS's (a largest value ``up``
    or ``thresh`` and ``L`` levels) or PACT's (``alpha`` and ``bits``); each is tried at and between
    its thresholds before it is taken over. Weights that are floats stay floats. ``model`` is
    untouched. Its conversion has n = L thresholds and is exact at T = 1.

    On ``calibration`` images all levels are compared with those of ``model``; what differs, next to
    thresholds where floats are summed in another order, stands in ``warnings``. Ties go where they
    go in ``model``, to the even level or up; those of an image to the even one.

    Raises:
        UnsupportedLayerError: quantizers that no ladder of equal steps describes, by name; a
            network that cannot be traced; levels that are not the network's own.
        SpecError: no network, or nothing in it that quantizes.
        DataError: images with NaN.

    Example:
        >>> class QCFS(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.L = nn.Parameter(torch.tensor([2.0])), 4
        ...     def forward(self, x):
        ...         return torch.floor(torch.clamp(x / self.up, 0, 1) * 4 + 0.5) / 4 * self.up
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), QCFS(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = adopt(net, calibration=torch.randn(8, 1, 4, 4))
        >>> [layer.level_bounds for _, layer in layer_nodes(qann.layers, QuantAct)]
        [(0, 4)]
    """
    ann = plain_network(model)
    network_dtype(ann, (torch.float32,))
    images = collect(calibration, name="calibration images")
    images = check_images(images, tuple(images.shape[1:]))
    if not len(images):
        raise DataError("no calibration images: pass some tens of the training images")
    images = images[:CALIBRATION_BATCH]
    source = copy.deepcopy(ann).eval()
    keep_biases_(source)
    expected = _run(source, images)
    plain = _Plain()
    traced = plain.network(source)
    if plain.faults:
        raise UnsupportedLayerError(
            f"{many(plain.faults, 'layer', 'layers')} of {type(ann).__name__} cannot be taken over",
            plain.faults,
        )
    if not plain.stairs:
        hint = "quantize(model, 4, calibration=images) quantizes a float network"
        raise SpecError(f"adopt: nothing in {type(ann).__name__} quantizes activations: {hint}")
    layers = trace(traced, images)
    if faults := unknown_operators(operations(layers, rules)):
        raise UnsupportedLayerError(f"{type(ann).__name__} cannot be converted", faults)
    if faults := not_finite(layers):
        raise SpecError(f"{many(faults, 'tensor', 'tensors')} not finite", faults)
    names = _swap_(layers, plain, {name for name, _ in traced.named_modules()})
    if lost := sorted({*plain.stairs} - {*names.values()}):
        hint = "stands where the image does not pass: take it out"
        raise SpecError("quantizers without a place", [Fault(name, "idle", hint) for name in lost])
    qann = QuantizedModel(layers, _spec(plain))
    with calibrating(qann):
        qann(images)
    _take_steps_(layers, names, plain)
    qann.data_settings = data_settings_of(ann)
    qann.warnings = (*warnings_of(layers), *_compare(qann, names, plain, images, expected))
    if (agreement := same_class(source, qann, images)) is not None:
        qann.float_agreement, qann.float_images = agreement[0], len(images)
    return qann


class _Plain:
    """The network with plain layers in the places of quantizers, and what these were."""

    def __init__(self) -> None:
        self.stairs: dict[str, Staircase] = {}
        self.weights: dict[str, GridWeight] = {}
        self.faults: list[Fault] = []

    def network(self, source: nn.Module) -> nn.Module:
        """A copy that can be traced."""
        made = self._module(source, "")
        if made is not None:
            return made
        network = copy.deepcopy(source)
        self._replace_(source, network, "")
        return network

    def _replace_(self, source: nn.Module, target: nn.Module, above: str) -> None:
        for leaf, module in source.named_children():
            name = f"{above}.{leaf}" if above else leaf
            made = self._module(module, name)
            if made is not None:
                target._modules[leaf] = made
            else:
                inner = target._modules[leaf]
                assert inner is not None
                self._replace_(module, inner, name)

    def _module(self, module: nn.Module, name: str) -> nn.Module | None:
        """What stands in a module's place; None where it is none of ours to replace."""
        try:
            if is_of_brevitas(module) and hasattr(module, "weight_quant"):
                return self._weighted_layer(module, name)
            stairs = staircase_of(module)
            if stairs is None and is_of_brevitas(module):
                raise NoQuantizer("is a layer of Brevitas that has no rule")
            return None if stairs is None else self._activation(stairs, name)
        except NoQuantizer as fact:
            self.faults.append(Fault(name or "the network", type(module).__name__, str(fact)))
            return nn.Identity()

    def _activation(self, stairs: Staircase, name: str) -> nn.Module:
        self.stairs[name] = stairs
        return nn.Hardtanh(*stairs.clip)

    def _weighted_layer(self, layer: Any, name: str) -> nn.Module:
        kind = _PLAIN.get(type(layer).__name__)
        if kind is None:
            raise NoQuantizer("is a layer of Brevitas that has no rule")
        weight, front = weight_of(layer), staircase_in_front(layer)
        with torch.device("meta"):
            if kind is nn.Linear:
                plain: nn.Module = nn.Linear(layer.in_features, layer.out_features, False)
            else:
                geometry = {key: getattr(layer, key) for key in _GEOMETRY}
                sizes = layer.in_channels, layer.out_channels, layer.kernel_size
                plain = kind(*sizes, bias=False, **geometry)
        plain.weight = nn.Parameter(layer.weight.detach().clone())
        if layer.bias is not None:
            bias = layer.bias.detach() if weight is None else weight.bias
            assert bias is not None
            plain.bias = nn.Parameter(bias.clone())
        place = name if front is None else f"{name}.1"
        if weight is not None:
            self.weights[place] = weight
        if front is None:
            return plain
        self.stairs[f"{name}.0"] = front
        return nn.Sequential(nn.Hardtanh(*front.clip), plain)


def _path(node: fx.Node, known: Mapping[str, Any], modules: Collection[str]) -> str:
    """The name that a layer has in the source; a second use of one has a number behind it."""
    path = str(node.meta.get("path") or node.target)
    first = path.rpartition("_")
    again = path not in modules and first[2].isdecimal() and first[0] in known
    return first[0] if again else path


def _swap_(layers: fx.GraphModule, plain: _Plain, modules: Collection[str]) -> dict[str, str]:
    """Quantizers and quantized weights in their places; names of quantizers, and of whose."""
    names = {}
    for node, layer in list(layer_nodes(layers, nn.Hardtanh)):
        path = _path(node, plain.stairs, modules)
        stairs = plain.stairs.get(path)
        if stairs is None or (layer.min_val, layer.max_val) != stairs.clip:
            continue
        (reads,) = node.all_input_nodes
        name, names[str(node.target)] = str(node.target), path
        layers.add_submodule(
            name, _quantizer(stairs, _widths(stairs)[0], reads.op == "placeholder")
        )
    for node, layer in list(layer_nodes(layers, WEIGHTED)):
        weight = plain.weights.get(_path(node, plain.weights, modules))
        if weight is not None and not hasattr(layer, "weight_bits"):
            made = quantize_weighted(layer, weight.bits, Scale.LEARNED, False, learned=True)
            exact = take_weight_(made, weight.value, weight.step)
            assert exact, "a power of two times a step is that step's own range"
            layers.add_submodule(str(node.target), made)
    layers.recompile()
    return names


def _widths(stairs: Staircase) -> list[int]:
    """Bits that hold the levels, the fewest first."""
    fewest = max(1, (stairs.high - stairs.low).bit_length(), 2 if stairs.low else 1)
    return list(range(fewest, MOST_BITS + 1))


def _quantizer(stairs: Staircase, bits: int, encodes_input: bool) -> QuantAct:
    """A quantizer of these levels; of an image ties go to the even one."""
    below = -stairs.low if stairs.low else None
    formula = clip_formula(*stairs.clip) if stairs.half_up and not encodes_input else None
    return QuantAct(bits, stairs.clip, Scale.LEARNED, encodes_input, below, formula=formula)


def _take_steps_(layers: fx.GraphModule, names: Mapping[str, str], plain: _Plain) -> None:
    """The steps to the last bit. A width that cannot hold one gives way to the next."""
    for name, path in names.items():
        stairs = plain.stairs[path]
        below = -stairs.low if stairs.low else None
        calibrated = layers.get_submodule(name)
        assert isinstance(calibrated, QuantAct)
        for bits in _widths(stairs):
            made = _quantizer(stairs, bits, calibrated.encodes_input)
            made.to(stairs.step.device).load_state_dict(calibrated.state_dict(), strict=False)
            if made.take_step_(stairs.step, below):
                break
        assert made.level_bounds == (stairs.low, stairs.high)
        layers.add_submodule(name, made.eval())


def _spec(plain: _Plain) -> QuantSpec:
    """What the whole was quantized to, in our words: the widest of each kind."""
    stairs = plain.stairs.values()
    up = any(each.half_up for each in stairs)
    return QuantSpec(
        weight_bits=max((item.bits for item in plain.weights.values()), default=None),
        act_bits=max(_widths(each)[0] for each in stairs),
        first_bits=None,
        last_bits=None,
        input_bits=None,
        batch_norm=BatchNorm.KEEP,
        rounding=Rounding.HALF_UP if up else Rounding.HALF_EVEN,
    )


@torch.no_grad()
def _run(source: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """What each module of a network gives on images, call by call."""
    made: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else getattr(output, "value", None)
            if isinstance(value, Tensor):
                made.setdefault(name, []).append(value.detach())

        return hook

    leaves = {name: one for name, one in source.named_modules() if not is_inside(source, name)}
    handles = [one.register_forward_hook(keep(name)) for name, one in leaves.items() if name]
    try:
        source(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return made


def is_inside(source: nn.Module, name: str) -> bool:
    """Whether a module is a part of a layer of Brevitas.

    Example:
        >>> is_inside(nn.Sequential(nn.ReLU()), "0")
        False
    """
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(is_of_brevitas(source.get_submodule(one)) for one in above)


def _compare(
    qann: QuantizedModel,
    names: Mapping[str, str],
    plain: _Plain,
    images: Tensor,
    expected: Mapping[str, list[Tensor]],
) -> list[str]:
    """Levels against the network's own: refused where many differ, said where some do."""
    with torch.no_grad(), levels_of(qann) as levels:
        qann(images)
    calls = {path: iter(values) for path, values in expected.items()}
    faults, some = [], []
    for name, path in names.items():
        stairs = plain.stairs[path]
        theirs = next(calls.get(path, iter(())), None)
        if name not in levels or theirs is None:
            continue  # the image's own, and those in front of a layer of Brevitas
        different = (torch.round(theirs / stairs.step) != levels[name]).float()
        share, count = float(different.mean()), int(different.sum())
        if share > MOST_DIFFERENT:
            hint = f"{count} of {different.numel()} levels are not the network's own"
            faults.append(Fault(name, f"{100 * share:.1f} %", hint))
        elif count:
            some.append(f"{name}: {count} of {different.numel()}")
    if faults:
        raise UnsupportedLayerError("what was taken over is another network", faults)
    if not some:
        return []
    return [
        "levels next to thresholds that are not the given network's own, because it sums or rounds "
        f"otherwise: {'; '.join(some[:5])}"
    ]
