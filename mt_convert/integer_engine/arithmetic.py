"""The exact integers of a converted network: the reference that no machine setting moves.

With weights w = s_w k_w and inputs x = s_x k_x a layer's accumulator is a whole number, and so is
every sum, move, average and maximum of what neurons emit. `IntegerArithmetic` carries those whole
numbers through `simulate`, each with the real number that one unit is worth, and turns them into a
neuron's input in one written order of float32 operations, entry by entry::

    y = acc_1 * M_1 + B + acc_2 * M_2 + ...      M_i = multiplier_i / step,  B = bias / step

M_i and B are computed in float64 and rounded once; an accumulator of 2^24 or more is rounded once;
multiplication and addition are separate (no fused operation). So the result does not depend on
batch size, memory layout, number of threads, or the order of layers and steps, which float
convolutions do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Fault, UnsupportedLayerError
from ..graph.by_values import call
from ..graph.nodes import NORMS, WEIGHTED, layer_nodes
from ..graph.operations import Operation
from ..neurons.layer import MTNeuron
from ..spiking.model import SpikingModel
from ..spiking.presentation import Encoder
from ..spiking.simulate import simulate
from ..spiking.weight_grid import weight_step
from ..system.devices import device_of
from .term_operators import OPERATIONS
from .terms import (
    FLOAT32_WHOLE,
    NoIntegers,
    Part,
    Terms,
    along_axes,
    as_terms,
    holds_terms,
    on_axis,
    real_numbers,
    whole_numbers,
)


@dataclass(frozen=True)
class _Kernel:
    """Whole-number weights, the step of each output channel, and the largest sum of |weights|."""

    weight: Tensor
    step: Tensor
    gain: float


class IntegerArithmetic:
    """`simulate.Arithmetic` on exact integers, for one network as it is now.

    ``bounds`` collects, per weighted layer, the largest accumulator that its input could cause.
    ``real_segments`` lets operators without integer form run on real numbers; the neurons behind
    them emit whole numbers again. ``real`` names those that did, with the reason.

    Raises:
        UnsupportedLayerError: weights off their grid; while running, without ``real_segments``: an
            operator or a value without integer form (softmax, layer norm, bilinear upsampling, a
            weighted layer on an image that is not quantized).

    Example:
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> run = simulate(snn, images, time_steps=1, arithmetic=IntegerArithmetic(snn))
        >>> one = simulate(snn, images[:1], time_steps=1, arithmetic=IntegerArithmetic(snn))
        >>> torch.equal(run.logits[:, :1], one.logits)
        True
    """

    def __init__(self, snn: SpikingModel, *, real_segments: bool = False) -> None:
        self.bounds: dict[str, float] = {}
        self.real_segments = real_segments
        self.real: dict[str, str] = {}
        layers = {str(node.target): layer for node, layer in layer_nodes(snn.layers, WEIGHTED)}
        self.kernels = {
            name: _kernel(name, layer)
            for name, layer in layers.items()
            if weight_step(layer) is not None
        }

    def encode(self, encoder: Encoder, images: Tensor) -> Terms:
        numbers = encoder.levels(images).contiguous()
        limit = max(map(abs, encoder.level_bounds))
        return Terms((Part(numbers, along_axes(encoder.scale, numbers), limit),))

    def operate(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        name, layer, operator = operation.name, operation.layer, operation.call
        try:
            if isinstance(layer, WEIGHTED):
                return self._run_weighted(name, layer, args[0])
            if isinstance(layer, NORMS):
                return _norm(layer, as_terms(args[0]))
            if not holds_terms(args):
                return call(operator, args, kwargs)
            if operator not in OPERATIONS:
                raise NoIntegers("no integer form; simulate without IntegerArithmetic")
            return OPERATIONS[operator](operator, *args, **kwargs)
        except NoIntegers as fact:
            if self.real_segments:
                self.real[name] = str(fact)
                value = call(operator, real_numbers(args), real_numbers(kwargs))
                return _as_values(value)
            raise UnsupportedLayerError(
                "this network has no exact integer form",
                [Fault(name, operation.operator, str(fact))],
            ) from fact

    def drive(self, value: Terms, step: Tensor) -> Tensor:
        return as_terms(value).real(step)

    def emit(self, total: Tensor, step: Tensor, neuron: MTNeuron) -> Terms:
        # presented in every step, levels get smaller and their range larger by the same factor
        gain = 1.0 if neuron.gain is None else float(neuron.gain)
        spread = float((neuron.delta.detach().double() * gain / step.double()).max())
        limit = math.floor(max(map(abs, neuron.spec.limits)) * spread + 0.5)
        return Terms((Part(total, along_axes(step, total), limit),))

    def read_out(self, value: Terms) -> Tensor:
        value = as_terms(value)
        return value.real(torch.ones((), device=value.parts[0].numbers.device))

    def _run_weighted(self, name: str, layer: Any, value: Any) -> Terms:
        """Convolution or linear, one accumulator for each part and multiplier of the input."""
        if not isinstance(value, Terms):
            raise NoIntegers("reads an image that is not quantized: give QuantSpec input_bits")
        if name not in self.kernels:
            raise NoIntegers("has weights that are not quantized")
        if value.bias is not None:
            raise NoIntegers("reads a value with a bias: put an activation in front of it")
        kernel, axis = self.kernels[name], -1 if isinstance(layer, nn.Linear) else 1
        parts = []
        for part in [piece for whole in value.parts for piece in _one_multiplier(whole, axis)]:
            limit = kernel.gain * part.limit
            self.bounds[name] = max(self.bounds.get(name, 0), limit)
            numbers = self.accumulate(name, layer, part, kernel.weight, limit)
            shape = on_axis(numbers, axis)
            parts.append(Part(numbers, part.multiplier * kernel.step.reshape(shape), limit))
        bias = None if layer.bias is None else layer.bias.detach().double().reshape(shape)
        return Terms(tuple(parts), bias)

    def accumulate(self, name: str, layer: Any, part: Part, weight: Tensor, limit: float) -> Tensor:
        """The whole-number sums of one layer on one part; they never pass ``limit``."""
        numbers = whole_numbers(part, limit)
        return weighted_sums(numbers, weight, geometry_of(layer))


def overflow_bounds(snn: SpikingModel, time_steps: int = 1) -> dict[str, float]:
    """The largest accumulator that any image could cause, per weighted layer.

    Below 2^24 a layer is exact in float32; a chip needs log2(bound) + 1 bits. Levels grow with
    ``time_steps`` where the image is presented in every step, and only there.

    Example:
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 2, 2)))
        >>> {name: bound <= 127 * 4 * 127 for name, bound in overflow_bounds(snn).items()}
        {'1': True, '3': True}
    """
    arithmetic = IntegerArithmetic(snn)
    image = torch.zeros(1, *snn.image_shape, device=device_of(snn))
    simulate(snn, image, time_steps=time_steps, arithmetic=arithmetic, layer_by_layer=True)
    return arithmetic.bounds


# -------------------------------------------------------------------------------------- thresholds


def integer_thresholds(
    multiplier: Tensor, bias: Tensor, levels: int, limit: int = FLOAT32_WHOLE
) -> Tensor:
    """Integer thresholds of a neuron that one weighted layer feeds, batch norm included.

    For every accumulator in [-limit, limit] the level clamp(round(acc * M + B), 0, levels) of the
    written float32 formula is the number of thresholds reached: acc >= threshold where M >= 0, acc
    <= threshold where M < 0. Found by bisection on the formula itself, which never falls as acc * M
    rises, so equal by construction. A threshold out of reach lies one beyond the limit.

    Shapes: multiplier [C], bias [C], both divided by the neuron's step; returns int64 [C, levels].

    Example:
        >>> integer_thresholds(torch.tensor([0.5, -0.5]), torch.zeros(2), 2, limit=100).tolist()
        [[2, 3], [-2, -3]]
    """
    factor, offset = multiplier.float()[:, None], bias.float()[:, None]
    sign = torch.where(factor < 0, -1, 1)
    targets = torch.arange(1, levels + 1, device=factor.device)
    low = torch.full((len(multiplier), levels), -limit, device=factor.device)
    high = torch.full_like(low, limit + 1)  # the answer, as sign * acc, lies in [low, high]
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        accumulator = (sign * middle).float()
        reached = (accumulator * factor + offset).round() >= targets
        high = torch.where(reached & (low < high), middle, high)
        low = torch.where(~reached & (low < high), middle + 1, low)
    return sign * low


# ------------------------------------------------------------------------------------------ layers


def _kernel(name: str, layer: Any) -> _Kernel:
    """The whole-number weights of a layer of a converted network."""
    weight, step = layer.weight.detach().double(), layer.weight_scale.double()
    whole = torch.round(weight / step)
    if bool(((weight / step - whole).abs() > 1e-3).any()):
        hint = "train the quantized network, then convert it"
        fault = Fault(name, "weights off their grid", hint)
        raise UnsupportedLayerError("this network has no exact integer form", [fault])
    gain = float(whole.abs().flatten(1).sum(1).max())
    return _Kernel(whole.contiguous(), step.expand(len(whole), *step.shape[1:]).flatten(), gain)


def _as_values(value: Any) -> Any:
    """What an operator on real numbers gave: numbers as terms, masks and sizes as they are."""
    if isinstance(value, (list, tuple)):
        return [_as_values(item) for item in value]
    real = isinstance(value, Tensor) and value.is_floating_point()
    return as_terms(value) if real else value


def geometry_of(layer: Any) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of a convolution; nothing for a linear layer."""
    if isinstance(layer, nn.Linear):
        return ()
    return layer.stride, layer.padding, layer.dilation, layer.groups


def weighted_sums(numbers: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    """A layer's products and sums, exact in the type of ``numbers``."""
    weight = weight.to(numbers.dtype)
    if not geometry:
        total = F.linear(numbers, weight)
    else:
        convolve: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
        total = convolve(numbers, weight, None, *geometry)
    return total if numbers.dtype == torch.float32 else total.round()


def _one_multiplier(part: Part, axis: int) -> list[Part]:
    """A part cut into parts of one multiplier each, zero elsewhere: what a concatenation joined."""
    axis %= part.numbers.dim()
    if part.constant_along(range(1, part.numbers.dim())):
        return [part]
    rest = [other for other in range(1, part.numbers.dim()) if other != axis]
    if not part.constant_along(rest):
        raise NoIntegers("reads a value whose steps vary in space: put an activation in front")
    channels = part.multiplier.movedim(axis, 0).flatten(1)
    _, group = torch.unique(channels, dim=0, return_inverse=True)
    pieces = []
    for index in dict.fromkeys(group.tolist()):  # in the order of channels
        chosen = group == index
        multiplier = part.multiplier.narrow(axis, int(chosen.nonzero()[0]), 1)
        numbers = part.numbers * chosen.reshape(on_axis(part.numbers, axis))
        pieces.append(Part(numbers, multiplier, part.limit))
    return [piece for piece in pieces if bool(piece.multiplier.any())] or pieces[:1]


def _norm(layer: Any, value: Terms) -> Terms:
    """Batch norm in eval form: a multiplier and a bias per channel."""
    shape = on_axis(value.parts[0].numbers, 1)
    factor = 1 / torch.sqrt(layer.running_var.double() + layer.eps)
    if layer.affine:
        factor = factor * layer.weight.detach().double()
    shift = -layer.running_mean.double() * factor
    if layer.affine:
        shift = shift + layer.bias.detach().double()
    scaled = value.scale_by(factor.reshape(shape))
    bias = shift.reshape(shape)
    return Terms(scaled.parts, bias if scaled.bias is None else scaled.bias + bias)
