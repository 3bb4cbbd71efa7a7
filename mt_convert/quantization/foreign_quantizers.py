"""Quantizers of others, read off their modules: by what they are called, and then by trial.

Nothing of Brevitas is imported here: a layer of it is known by its parts, as any other is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST_LEVELS = 255
_TOPS = ("up", "thresh", "threshold", "alpha", "act_alpha", "clip_val", "clip_value", "upper_bound")
_COUNTS = ("L", "levels", "n_levels", "num_levels", "level")
_BITS = ("bits", "bit", "k", "a_bits", "a_bit", "num_bits", "n_bits", "act_bits", "bit_width")
_ULPS = 8.0


class NoQuantizer(Exception):
    """What is wrong with a module that looks like a quantizer."""


@dataclass(frozen=True)
class Staircase:
    """step * clamp(round(x / step), low, high); ``half_up``: of ties, the upper one, not the even.

    Shapes: step has no dimensions, float32.
    """

    step: Tensor
    low: int
    high: int
    half_up: bool = False

    @property
    def clip(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return float(self.low * self.step), float(self.high * self.step)

    def levels(self, x: Tensor) -> Tensor:
        """Levels of numbers that are no ties."""
        return torch.round(x / self.step).clamp(self.low, self.high)


@dataclass(frozen=True)
class GridWeight:
    """A weight on its grid, and the bias as it counts. ``bits`` hold its levels, with a sign.

    Shapes: value as the layer's weight; step [out, 1, …].
    """

    value: Tensor
    step: Tensor
    bits: int
    bias: Tensor | None


def is_of_brevitas(module: nn.Module) -> bool:
    """Whether a module's class is one of Brevitas.

    Example:
        >>> is_of_brevitas(nn.ReLU())
        False
    """
    return type(module).__module__.startswith("brevitas.")


@torch.no_grad()
def staircase_of(module: nn.Module) -> Staircase | None:
    """What an activation does, if it is a quantizer; None if nothing of it says so.

    Raises:
        NoQuantizer: it looks like one and does something else.

    Example:
        >>> class QCFS(nn.Module):
        ...     L, up = 4, torch.tensor([2.0])
        ...     def forward(self, x):
        ...         return torch.floor(torch.clamp(x / self.up, 0, 1) * 4 + 0.5) / 4 * self.up
        >>> staircase_of(QCFS())
        Staircase(step=tensor(0.5000), low=0, high=4, half_up=True)
    """
    if is_of_brevitas(module):
        if not hasattr(module, "act_quant") or hasattr(module, "weight_quant"):
            return None
        return _try(module, _of_proxy(module.act_quant))
    candidate = _by_name(module)
    return None if candidate is None else _try(module, candidate)


def staircase_in_front(layer: nn.Module) -> Staircase | None:
    """The quantizer that a layer of Brevitas puts in front of itself.

    Raises:
        NoQuantizer: it is of another kind.
    """
    proxy: Any = layer.input_quant
    return _of_proxy(proxy) if proxy.is_quant_enabled else None


def _of_proxy(proxy: Any) -> Staircase:
    """A proxy of Brevitas for activations."""
    if not proxy.is_quant_enabled:
        raise NoQuantizer("quantizes nothing: take it out")
    scale, zero, bits = proxy.scale(), proxy.zero_point(), proxy.bit_width()
    if scale is None or bits is None or zero is None:
        raise NoQuantizer("has no step of whole levels")
    if scale.numel() != 1:
        raise NoQuantizer("has a step for each channel: neurons of a layer share theirs")
    if bool((zero != 0).any()):
        raise NoQuantizer("has a zero point: quantize symmetrically")
    width, signed = int(bits), bool(proxy.is_signed)
    high = 2 ** (width - 1) - 1 if signed else 2**width - 1
    low = -high - (not proxy.is_narrow_range) if signed else 0
    return Staircase(scale.detach().float().reshape(()), low, high)


def _by_name(module: nn.Module) -> Staircase | None:
    """A candidate, from the names of attributes: the largest value, and levels or bits."""
    if type(module).__module__.startswith("torch.") or next(module.children(), None) is not None:
        return None
    top = _first(module, _TOPS)
    count, bits = _first(module, _COUNTS), _first(module, _BITS)
    if top is None or (count is None and bits is None):
        return None
    number = float(count) if count is not None else 2.0 ** float(bits or 0) - 1
    if number != int(number) or not 1 <= number <= MOST_LEVELS or not float(top) > 0:
        raise NoQuantizer(f"has {number:g} levels up to {float(top):g}: allowed are 1 to 255")
    return Staircase(top / number, 0, int(number))


def _first(module: nn.Module, names: tuple[str, ...]) -> Tensor | None:
    """The first of some attributes that is one number."""
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.detach().float().reshape(())
        if isinstance(value, int | float) and not isinstance(value, bool):
            return torch.tensor(float(value))
    return None


def _try(module: nn.Module, stairs: Staircase) -> Staircase:
    """The candidate, if the module does that: between the thresholds, and on them."""
    if stairs.high - stairs.low > MOST_LEVELS:
        raise NoQuantizer(f"has {stairs.high - stairs.low + 1} levels: allowed are 256")
    step = stairs.step
    places = torch.arange(stairs.low - 2, stairs.high + 3)
    inner = torch.cat([(places + part) * step for part in (-0.49, -0.2, 0.0, 0.3, 0.49)])
    want = stairs.levels(inner) * step
    have = _values(module, inner)
    near = _ULPS * torch.finfo(torch.float32).eps * want.abs()
    if have.shape != want.shape or bool(((have - want).abs() > near).any()):
        raise NoQuantizer("does not round to equal steps from its lowest to its highest level")
    ties = (torch.arange(stairs.low, stairs.high) + 0.5) * step
    levels = torch.round(_values(module, ties) / step)
    upper = torch.arange(stairs.low, stairs.high) + 1.0
    even = torch.round(torch.arange(stairs.low, stairs.high) + 0.5)
    half_up = bool((levels == upper).float().mean() > (levels == even).float().mean())
    return Staircase(step, stairs.low, stairs.high, half_up)


def _values(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of numbers, each an image of its own."""
    owner = next((one for one in (*module.parameters(), *module.buffers())), x)
    try:
        made = module(x.to(owner.device).reshape(-1, 1, 1, 1))
    except Exception as error:
        raise NoQuantizer(f"does not take single numbers ({type(error).__name__})") from error
    plain = made if isinstance(made, Tensor) else getattr(made, "value", made)
    if not isinstance(plain, Tensor):
        raise NoQuantizer("gives no tensor")
    return plain.detach().float().cpu().flatten()


@torch.no_grad()
def weight_of(layer: nn.Module) -> GridWeight | None:
    """The weight of a layer of Brevitas on its grid; None where it is a float.

    Raises:
        NoQuantizer: it is quantized in a way that whole levels do not describe.
    """
    made: Any = layer
    bias = _bias_of(made)
    if not made.weight_quant.is_quant_enabled:
        return None
    if made.output_quant.is_quant_enabled:
        raise NoQuantizer("quantizes its own output: put a quantizer behind it")
    weight = made.quant_weight()
    value, scale = weight.value.detach().float(), getattr(weight, "scale", None)
    if scale is None or bool((weight.zero_point != 0).any()):
        raise NoQuantizer("has weights with a zero point, or without whole levels")
    axes = (-1, *[1] * (value.dim() - 1))
    scale = scale.detach().float()
    if scale.numel() not in (1, len(value)):
        raise NoQuantizer("has steps of weights that are not one for each output")
    step = scale.reshape(axes).expand(len(value), *axes[1:]).contiguous()
    levels = torch.round(value / step)
    if not torch.equal(levels * step, value):
        raise NoQuantizer("has weights beside their grid")
    low, high = (int(end) for end in levels.aminmax())
    bits = max(2, 1 + max(max(-low - 1, 0).bit_length(), max(high, 0).bit_length()))
    if bits > 8:
        raise NoQuantizer(f"has weights of {bits} bits: allowed are up to 8")
    return GridWeight(value, step, bits, bias)


def _bias_of(layer: Any) -> Tensor | None:
    """The bias as it counts, of a layer that has run with ``keep_biases_``."""
    if layer.bias is None:
        return None
    if layer.bias_quant.is_quant_enabled:
        quantized = layer.quant_bias()
        if quantized is not None:
            bias: Tensor = quantized.value.detach().float()
            return bias
        raise NoQuantizer("has a bias whose quantizer never ran")
    plain: Tensor = layer.bias.detach().float()
    return plain


def keep_biases_(model: nn.Module) -> None:
    """Let layers of Brevitas remember their quantized bias in their next run."""
    for _, layer in weighted_of_brevitas(model):
        layer.cache_inference_quant_bias = True  # type: ignore[assignment]


def weighted_of_brevitas(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of all convolutions and linear layers of Brevitas."""
    for name, layer in model.named_modules():
        if is_of_brevitas(layer) and hasattr(layer, "weight_quant"):
            yield name, layer
