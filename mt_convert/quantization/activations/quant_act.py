"""A quantized activation on Brevitas, its calibration, and what is counted of its levels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...graph.given_network import without_torch_log

with warnings.catch_warnings(), without_torch_log():  # that there is no CUDA
    warnings.simplefilter("ignore")  # Brevitas warns about torch's own renamings on import
    from brevitas import nn as qnn
    from brevitas.function.ops_ste import floor_ste
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.quant import (
        Int8ActPerTensorFixedPoint,
        Int8ActPerTensorFloat,
        Int8ActPerTensorFloatMSE,
        Uint8ActPerTensorFixedPoint,
        Uint8ActPerTensorFloat,
        Uint8ActPerTensorFloatMSE,
    )

from ...errors import Fault, SpecError
from ...neurons.ladder import Learned
from ...neurons.step_table import StepTable
from ..spec import ActNoise, Scale, Spacing
from .formula import Formula, NotAFunction
from .learned_gaps import MOST_BITS, LearnedGaps
from .noise import Noise, add_noise
from .signed_range import fit_dip, fit_range

FEW_BITS = 3
SAMPLE = 2**14  # values of each batch that a signed quantizer's range is fitted to


class HalfUp(nn.Module):
    """Rounding in training where half-way values go up; gradients go straight through."""

    def forward(self, x: Tensor) -> Tensor:
        """The whole number of the interval [k - 1/2, k + 1/2) that a number lies in."""
        rounded: Tensor = floor_ste(x + 0.5)
        return rounded


class QuantAct(nn.Module):
    """A quantized activation: s * clamp(round(x / s), lo, hi), half to even (DESIGN, section 2).

    ``clip`` holds the bounds of the function it replaces (0 and 6 for ReLU6), applied first. Where
    values fall below 0, ``below`` of the 2^bits - 1 levels other than 0 lie there, as calibration
    chose; None stands for as many levels on either side (an image, or not yet calibrated).
    ``noise`` disturbs it in training mode once it is calibrated, but never an image; it is not
    stored. With learned ``spacing``, no levels below 0 and few bits, `LearnedGaps` rounds instead.

    With a ``formula`` it is the function that the quantizer stands behind: training runs it in
    float32, and in eval form thresholds of its input say the level (`table`), which are made again
    when the step, the levels or constants of the function have changed. Half-way values go up
    where the formula says so; a ReLU or clip that rounds so has one too.
    """

    def __init__(
        self,
        bits: int,
        clip: tuple[float, float],
        scale: Scale,
        encodes_input: bool,
        below: int | None = None,
        spacing: Spacing = Spacing.EQUAL,
        formula: Formula | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.clip, self.kind, self.encodes_input = bits, clip, scale, encodes_input
        self.below = below
        self.noise = Noise()
        both = not encodes_input or below is not None
        self.fitted = self.signed and both  # its range is fitted to both sides
        quantizer = _act_quantizer(bits, self.signed, scale, self.fitted)
        self.quant = qnn.QuantIdentity(act_quant=quantizer)
        if formula is not None and formula.half_up:
            proxy = self.quant.act_quant.fused_activation_quant_proxy
            proxy.tensor_quant.int_quant.float_to_int_impl = HalfUp()
        unequal = spacing is Spacing.LEARNED and not self.signed and bits <= MOST_BITS
        unequal = unequal and formula is None
        self.formula, self.rounds = formula, True
        self._made: list[Any] = []  # a table and what it was made for; no part of the state
        self.gaps = LearnedGaps(2**bits - 1) if unequal and not encodes_input else None
        self.watched = False
        self.level_sum: tuple[Tensor, int] | None = None

    @property
    def signed(self) -> bool:
        """Whether levels below 0 exist."""
        return self.clip[0] < 0

    @property
    def scale(self) -> Tensor:
        """The step s, a tensor of no dimensions."""
        return self.quant.act_quant.scale().detach().reshape(())

    @property
    def level_bounds(self) -> tuple[int, int]:
        """Smallest and largest level that can occur, the clip of ReLU6 or Hardtanh included."""
        low, high = self._levels()
        step = self.scale
        if self.gaps is not None:
            return low, self.gaps.level(torch.tensor(self.clip[1]).to(step) / step)
        half_up = self.formula is not None and self.formula.half_up
        clipped = [torch.tensor(bound, dtype=step.dtype) / step for bound in self.clip]
        clipped = [torch.floor(end + 0.5) if half_up else torch.round(end) for end in clipped]
        return max(low, int(clipped[0].clamp(min=low))), min(high, int(clipped[1].clamp(max=high)))

    @property
    def learned_ladder(self) -> Learned | None:
        """The thresholds where they are learned, in units of the step: level k from the k-th on."""
        return None if self.gaps is None else self.gaps.ladder

    def table(self) -> StepTable:
        """The thresholds of the function in front, for the step and levels as they are now.

        Raises:
            SpecError: a threshold is not clean, or the function is no ladder.
        """
        assert self.formula is not None
        if self._made and torch.compiler.is_compiling():
            return self._made[0]
        step, made_for = self.scale, self._now()
        if not self._made or self._made[1] != made_for:
            try:
                bounds = self._levels()
                self._made = [self.formula.table(float(step), bounds, self.formula.text), made_for]
            except NotAFunction as fact:
                hint = "functions={'NAME': 'analog'} keeps it as it is"
                fault = Fault(self.formula.text, str(fact), hint)
                raise SpecError("a function is no ladder", [fault]) from fact
        if self._made[0].thresholds.device != step.device:
            self._made[0] = self._made[0].to(step.device)
        return self._made[0]

    @property
    def stored_table(self) -> StepTable | None:
        """The thresholds of the function as they were made last, or loaded."""
        return self._made[0] if self._made else None

    def take_table_(self, table: StepTable | None) -> None:
        """Take a stored table, which is good for the step that `keep_table_` finds."""
        self._made = [] if table is None else [table, None]

    def keep_table_(self) -> None:
        """From here on the stored table is that of the present step: it is not made again before
        the step changes."""
        if self._made:
            self._made[1] = self._now()

    def _now(self) -> tuple[Any, ...]:
        """What a table hangs on, as it is now."""
        assert self.formula is not None
        return float(self.scale), self._levels(), self.formula.constants()

    def _by_table(self, x: Tensor) -> Tensor:
        """The level by thresholds, times the step; gradients are those of the function."""
        value = self.table()(x) * self.scale
        if torch.is_grad_enabled() and x.requires_grad:
            through = self._clip(x)
            value = value + (through - through.detach())
        return value

    def _levels(self) -> tuple[int, int]:
        """Smallest and largest level of the quantizer."""
        if self.below is not None:
            return -self.below, 2**self.bits - 1 - self.below
        high = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        return (-high if self.signed else 0), high

    def forward(self, x: Tensor) -> Tensor:
        if self.formula is not None and not self.training and self._is_calibrated():
            if not self.rounds:
                return self.formula(x)
            if not self.formula.watches:  # statistics: the function itself must see its numbers
                return self._by_table(x)
        if self._is_noisy():
            out = add_noise(x, self._step(), self.noise, self._quantize, self._clip)
        else:
            out = self._quantize(x)
        if self.watched and self.training:
            levels = out.float() / self._step()
            self.level_sum = levels.abs().sum(), out.numel()
        return out

    def _is_noisy(self) -> bool:
        """Whether this pass is a noisy one."""
        quiet = self.noise.kind is ActNoise.NONE or not self.training or self.encodes_input
        return not quiet and self._is_calibrated()

    def _is_calibrated(self) -> bool:
        """Whether the step is set, and not just being set."""
        tensor_quant = self.quant.act_quant.fused_activation_quant_proxy.tensor_quant
        scaling = tensor_quant.scaling_impl
        return not tensor_quant.observer_only and scaling.counter > scaling.collect_stats_steps

    def _step(self) -> Tensor:
        """The step s, which a gradient reaches."""
        step: Tensor = self.quant.act_quant.scale().reshape(())
        return step

    def _quantize(self, x: Tensor) -> Tensor:
        """s * clamp(round(x / s), lo, hi) of the function it replaces."""
        x = self.function(x)
        if self.gaps is not None and self._is_calibrated():
            return self.gaps(x, self._step())
        if not self.signed and not self.quant.act_quant.export_mode and self._is_calibrated():
            return self._quantize_positive(x)
        return self.quant(x if self.below is None else self._within_levels(x))

    def _quantize_positive(self, x: Tensor) -> Tensor:
        """What Brevitas does with numbers that are not negative, bit for bit, gradients too.

        Its zero point of 0 is not added and taken off, and nothing is compared with the level 0:
        the passes over the activations that this leaves out are a tenth of a training step.
        """
        tensor_quant = self.quant.act_quant.fused_activation_quant_proxy.tensor_quant
        threshold = tensor_quant.int_scaling_impl(tensor_quant.msb_clamp_bit_width_impl())
        step = tensor_quant.scaling_impl(x, threshold)
        levels = tensor_quant.int_quant.float_to_int_impl(x / step)
        high = 2**self.bits - 1
        value: Tensor = torch.where(levels > high, high, levels) * step
        return value

    def _clip(self, x: Tensor) -> Tensor:
        """The same without rounding."""
        if self.gaps is not None:
            return self.gaps.without_rounding(self.function(x), self._step())
        return self._within_levels(self.function(x))

    def function(self, x: Tensor) -> Tensor:
        """The activation that the quantizer replaces."""
        if self.formula is not None:
            return self.formula(x)
        low, high = self.clip
        if low == 0 and high == float("inf"):
            return F.relu(x)
        return x if (low, high) == (float("-inf"), float("inf")) else F.hardtanh(x, low, high)

    def _within_levels(self, x: Tensor) -> Tensor:
        """x between the smallest and the largest level; the gradient reaches the step through
        them."""
        step, (low, high) = self._step(), self._levels()
        if not self.signed:  # nothing lies below, and a third of the time
            return torch.where(x > high * step, high * step, x)
        return torch.clamp(x, low * step, high * step)

    def fit_(self, sample: Tensor, low: float, high: float) -> None:
        """Set step and levels to the least squared error on ``sample``, whose values lie between
        ``low`` and ``high``."""
        top, power = 2**self.bits - 1, self.kind is Scale.POWER_OF_TWO
        fit = fit_range if self.formula is None or self.formula.only_clips else fit_dip
        step, self.below = fit(sample, (low, high), top, power)
        proxy = self.quant.act_quant.fused_activation_quant_proxy
        value = proxy.tensor_quant.scaling_impl.value  # the range, or its logarithm
        value.data.fill_(math.log2(step) + self.bits if power else step * top)

    def extra_repr(self) -> str:
        below = "" if self.below is None else f", below={self.below}"
        spacing = "" if self.gaps is None else ", spacing=learned"
        text = "" if self.formula is None else f", of {self.formula.text}"
        return f"bits={self.bits}, clip={self.clip}, scale={self.kind}{below}{spacing}{text}"

    def take_step_(self, step: Tensor, below: int | None) -> bool:
        """Set the step itself, and how many levels lie below 0; whether it is that to the last
        bit, which not every width can hold.
        """
        self.below = below
        top = 2**self.bits - 1
        scaling = self.quant.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
        scaling.counter = scaling.collect_stats_steps + 1  # a step that is set is not looked for
        step = step.detach().float().reshape(())
        for value in _beside(step * top):
            scaling.value.data.fill_(value)
            if torch.equal(self.scale.float(), step):
                return True
        scaling.value.data.fill_(step * top)
        return False


def _beside(value: Tensor) -> Iterator[float]:
    """A number and those a few units in the last place beside it, the nearest first."""
    up = down = value
    yield float(value)
    for _ in range(3):
        up = up.nextafter(torch.tensor(math.inf))
        down = down.nextafter(torch.tensor(-math.inf))
        yield from (float(up), float(down))


def _act_quantizer(bits: int, signed: bool, scale: Scale, fitted: bool) -> type:
    """Per tensor. The step starts from a high percentile, and where levels are few (3 bits and
    below) from the least squared error; training moves it. A fitted one has all its levels on
    either side: `QuantAct` says which of them it uses."""
    few = bits <= FEW_BITS and not fitted
    if scale is Scale.POWER_OF_TWO:
        base: type = Int8ActPerTensorFixedPoint if signed else Uint8ActPerTensorFixedPoint
    elif signed:
        base = Int8ActPerTensorFloatMSE if few else Int8ActPerTensorFloat
    else:
        base = Uint8ActPerTensorFloatMSE if few else Uint8ActPerTensorFloat
    width = bits + 1 if fitted else bits
    settings = {"bit_width": width, "narrow_range": True} if signed else {"bit_width": width}
    return type("Quantizer", (base,), settings)


@contextmanager
def watching_levels(model: nn.Module) -> Iterator[None]:
    """While it lasts, activations in training mode sum up their levels for `take_mean_level`.

    Raises:
        SpecError: there are no quantized activations.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantAct)]
    layers = [layer for layer in layers if not layer.encodes_input]
    if not layers:
        fault = Fault("spike_weight", "no quantized activations", "set it to 0")
        raise SpecError("there is no level that could fall", [fault])
    for layer in layers:
        layer.watched = True
    try:
        yield
    finally:
        for layer in layers:
            layer.watched, layer.level_sum = False, None


def take_mean_level(model: nn.Module) -> Tensor:
    """The mean |level| over all activations of the pass before, with its gradient; once.

    With as many thresholds as levels it is the number of spikes of a neuron at T = 1.
    """
    total, count = torch.zeros(()), 0
    for layer in model.modules():
        if isinstance(layer, QuantAct) and layer.level_sum is not None:
            levels, neurons = layer.level_sum
            total, count = total.to(levels.device) + levels, count + neurons
            layer.level_sum = None
    assert count, "no pass was watched"
    return total / count


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """While it lasts, quantizers pass values on and watch them; afterwards all steps are set.

    Leaves the model in eval mode, its steps trainable (uncalibrated, Brevitas would use 1/L).
    """
    samples: dict[QuantAct, list[Tensor]] = {}

    def watch(layer: QuantAct, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach()
        values = values.clamp(*layer.clip) if layer.formula is None else layer.function(values)
        values = values.flatten()
        edges = torch.stack([values.min(), values.max()])
        picked = values[:: max(1, values.numel() // SAMPLE)]
        samples.setdefault(layer, []).append(torch.cat([edges, picked]))

    handles = []
    for layer in model.modules():
        if isinstance(layer, QuantAct) and layer.gaps is not None:
            layer.gaps.equal_()
        if isinstance(layer, QuantAct) and layer.fitted:
            layer.below = None
            handles.append(layer.register_forward_pre_hook(watch))
    try:
        with torch.no_grad(), calibration_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
    for layer, values in samples.items():
        low, high = (float(torch.stack([item[k] for item in values]).aminmax()[k]) for k in (0, 1))
        layer.fit_(torch.cat([item[2:] for item in values]), low, high)
    model.eval()
