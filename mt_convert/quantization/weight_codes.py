"""Weights that need fewer bits than a uniform quantizer has: ternary, and sub-bit 3×3 kernels.

A code turns a float weight into levels times a step per output channel, both plain
tensors, so that a converted network sums the same numbers; a coded layer is a convolution or linear
whose weight passes through its code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph.serialization import plain_layer_to_json
from .spec import Scale, WeightCode

AREA = 9  # of a 3×3 kernel
HYSTERESIS = 1e-3  # a codeword's entry below it keeps its last sign
FARTHEST = 3.0  # of a codeword's entries from 0
START = 0.1  # of a codeword's entries at first
EVERY = 25  # training passes from one gradient of the codewords to the next
STEEPEST = 3.0  # the slopes α of a ternary code lie between e^-3 and e^3
_CHUNK = 2**14  # kernels compared with the codebook at a time


class Ternary(nn.Module):
    """Levels −1, 0 and 1, with a learned slope on either side of 0.

    With u = (w − mean w)/std w over the layer, the level is round(clamp(α0 u, −1, 0)) +
    round(clamp(α1 u, 0, 1)), rounding passed straight through; ``log_alpha`` is trained. So that a
    layer stands without a batch norm behind it, a step per output channel multiplies the levels:
    the mean |w − mean w| over the weights whose level is not 0, which is their least squares; no
    gradient passes through it. What is coded is w − mean w: the layer's mean weight is dropped.

    Source:
        FATNN (arXiv 2008.05101), which leaves the scale to batch norm.

    Example:
        >>> levels, step = Ternary(Scale.LEARNED).encode(torch.tensor([[-2.0, 0.1, 2.0, -0.1]]))
        >>> levels.tolist(), step.tolist()
        ([[-1.0, 0.0, 1.0, 0.0]], [[2.0]])
    """

    weight_bits, kind = 2, WeightCode.TERNARY

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale, self.codeword_bits = scale, 0
        self.log_alpha = nn.Parameter(torch.zeros(2))

    def start_(self, weight: Tensor) -> None:
        """Slopes of 1: whatever is farther than half a standard deviation from the mean counts."""
        self.log_alpha.data.zero_()

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels, and the step of each output channel [out, 1, …]."""
        with torch.no_grad():
            levels = self._levels(weight)
            centred = (weight - weight.mean()).abs()
            count = _per_channel(levels.abs(), torch.sum)
            step = _per_channel(centred * levels.abs(), torch.sum) / count.clamp(min=1)
            step = torch.where(count > 0, step, weight.std(correction=0))
            return levels, _step(step, self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        return self._levels(weight) * self.encode(weight)[1]

    @property
    def alpha(self) -> Tensor:
        """α0 and α1, the slopes below and above 0."""
        return self.log_alpha.clamp(-STEEPEST, STEEPEST).exp()

    def _levels(self, weight: Tensor) -> Tensor:
        """Levels, with the gradients of the slopes."""
        spread = weight.std(correction=0).clamp(min=torch.finfo(weight.dtype).tiny)
        centred, (below, above) = (weight - weight.mean()) / spread, self.alpha
        return _round((below * centred).clamp(-1, 0)) + _round((above * centred).clamp(0, 1))

    def extra_repr(self) -> str:
        return "ternary"


class SubBit(nn.Module):
    """Each 3×3 kernel is one of 2^τ sign patterns, so that a weight costs τ/9 bits.

    A kernel takes the codeword nearest to it; the step is the mean |w| of the output channel, and
    no gradient passes through it. A weight's gradient is that of clip(w, −1, 1). Codewords are
    numbers whose signs count: a sign changes only where the number is `HYSTERESIS` or more from 0,
    and every `EVERY` th training pass they get the gradients of the kernels that took them. A
    codebook starts from the layer's most frequent sign patterns, and a codeword that has become the
    same as one before it is replaced by the most frequent pattern not in the book: nothing is drawn
    (the source draws both at random).

    Raises:
        AssertionError: a weight that is not of 3×3 kernels.
    Source:
        Sub-bit Neural Networks (ICCV 2021).

    Example:
        >>> code, weight = SubBit(9, Scale.LEARNED), torch.linspace(-1, 1.5, 18).reshape(1, 2, 3, 3)
        >>> code.start_(weight)
        >>> levels, step = code.encode(weight)
        >>> bool((levels == weight.sign()).all()), round(float(step), 4)
        (True, 0.6846)
    """

    weight_bits, kind = 1, WeightCode.SUBBIT

    def __init__(self, codeword_bits: int, scale: Scale) -> None:
        super().__init__()
        self.codeword_bits, self.scale = codeword_bits, scale
        self.codewords = nn.Parameter(torch.zeros(2**codeword_bits, AREA))
        self.register_buffer("signs", torch.ones(2**codeword_bits, AREA, dtype=torch.int8))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.signs: Tensor
        self.passes: Tensor

    def start_(self, weight: Tensor) -> None:
        """A codebook of the weight's most frequent sign patterns."""
        chosen = _frequent(weight)[: len(self.codewords)]
        self.signs.copy_(_patterns(chosen.sort().values))
        self.codewords.data.copy_(START * self.signs)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels −1 and 1, and the step of each output channel [out, 1, 1, 1]."""
        with torch.no_grad():
            levels = self.signs[self.nearest(weight)].to(weight.dtype).reshape(weight.shape)
            return levels, _step(_per_channel(weight.abs(), torch.mean), self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        learns = False
        if self.training:
            self._remember_(weight)
            self.passes += 1
            learns = int(self.passes) % EVERY == 0
        levels, step = self.encode(weight)
        value = levels * step + _gradient_of(weight.clamp(-1, 1))
        if learns:
            value = value + _gradient_of(self.codewords[self.nearest(weight)]).reshape(value.shape)
        return value

    @torch.no_grad()
    def nearest(self, weight: Tensor) -> Tensor:
        """The codeword of each kernel: the one that fewest |w| disagree with, the first of equals.

        That is the nearest, ‖w − p‖² = const + 4 Σ |w| where signs differ, and no rounding can make
        a codeword that agrees everywhere lose. A weight of 0 counts as a positive one.
        """
        assert weight.shape[2:] == (3, 3), weight.shape
        kernels = weight.reshape(-1, AREA)
        kernels = torch.where(kernels == 0, torch.finfo(kernels.dtype).tiny, kernels)
        sides = torch.cat([kernels.clamp(min=0), -kernels.clamp(max=0)], 1)
        wrong = torch.cat([self.signs < 0, self.signs > 0], 1).to(kernels.dtype).T
        return torch.cat([(part @ wrong).argmin(1) for part in sides.split(_CHUNK)])

    @torch.no_grad()
    def _remember_(self, weight: Tensor) -> None:
        """Signs follow codewords that have moved far enough; no two codewords stay the same."""
        self.codewords.clamp_(-FARTHEST, FARTHEST)
        firm = self.codewords.abs() >= HYSTERESIS
        signs = torch.where(firm, self.codewords.sign().to(torch.int8), self.signs)
        if torch.equal(signs, self.signs):
            return
        self.signs.copy_(signs)
        numbers = _numbers(signs).tolist()
        twice = [k for k, number in enumerate(numbers) if number in numbers[:k]]
        unused = [number for number in _frequent(weight).tolist() if number not in numbers]
        for k, number in zip(twice, unused, strict=False):
            self.signs[k] = _patterns(torch.tensor([number], device=signs.device))[0]
            self.codewords[k] = START * self.signs[k]

    def extra_repr(self) -> str:
        return f"sub-bit, {2**self.codeword_bits} kernels of 3x3: {self.codeword_bits}/9 bits"


Code = Ternary | SubBit


class _CodedConv:
    """The forward pass of coded convolutions."""

    code: Code
    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self._conv_forward(x, self.code(self.weight), self.bias)  # type: ignore[attr-defined]
        return value


class CodedConv1d(_CodedConv, nn.Conv1d):
    """A convolution with a coded weight."""


class CodedConv2d(_CodedConv, nn.Conv2d):
    """A convolution with a coded weight."""


class CodedConv3d(_CodedConv, nn.Conv3d):
    """A convolution with a coded weight."""


class CodedLinear(nn.Linear):
    """A linear layer with a coded weight."""

    code: Code

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.code(self.weight), self.bias)


CODED = (CodedConv1d, CodedConv2d, CodedConv3d, CodedLinear)
_KINDS: dict[str, type[nn.Module]] = {
    "Conv1d": CodedConv1d,
    "Conv2d": CodedConv2d,
    "Conv3d": CodedConv3d,
    "Linear": CodedLinear,
}


def weight_code(kind: WeightCode, codeword_bits: int, scale: Scale) -> Code:
    """The code of a kind, not yet started."""
    return Ternary(scale) if kind is WeightCode.TERNARY else SubBit(codeword_bits, scale)


def takes_code(layer: nn.Module, kind: WeightCode) -> bool:
    """Whether a layer can have a code: sub-bit is for 3×3 convolutions of images alone.

    Example:
        >>> [takes_code(nn.Conv2d(1, 1, size), WeightCode.SUBBIT) for size in (1, 3)]
        [False, True]
    """
    if kind is WeightCode.SUBBIT:
        return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) == (3, 3)
    return kind is WeightCode.TERNARY


def encode_layer(layer: nn.Module, code: Code) -> nn.Module:
    """The layer with the same parameters, weights passed through a code that starts from them."""
    config = plain_layer_to_json(layer)
    coded_layer: Any = _KINDS[config.pop("type")](**config)
    coded_layer.weight = layer.weight
    if layer.bias is not None:
        coded_layer.bias = layer.bias
    code.start_(coded_layer.weight.data)
    coded_layer.code, coded_layer.weight_bits = code, code.weight_bits
    on_device: nn.Module = coded_layer.to(layer.get_parameter("weight").device)
    return on_device


def _round(u: Tensor) -> Tensor:
    """Half to even, with the gradient passed on."""
    return u.detach().round() + _gradient_of(u)


def _gradient_of(u: Tensor) -> Tensor:
    """Zeros with the gradient of u."""
    return u - u.detach()


def _per_channel(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """A reduction over everything but the output channel, [out, 1, …]."""
    return reduce(values.flatten(1), 1).reshape(-1, *[1] * (values.dim() - 1))


def _step(step: Tensor, scale: Scale) -> Tensor:
    """A positive step; a power of two where asked for."""
    step = step.clamp(min=1e-12)
    return step.log2().round().exp2() if scale is Scale.POWER_OF_TWO else step


def _numbers(signs: Tensor) -> Tensor:
    """Sign patterns [rows, 9] as numbers from 0 to 511."""
    places = 2 ** torch.arange(AREA, device=signs.device)
    return ((signs >= 0) * places).sum(1)


def _patterns(numbers: Tensor) -> Tensor:
    """The inverse of `_numbers`."""
    places = torch.arange(AREA, device=numbers.device)
    return ((numbers[:, None] >> places) % 2 * 2 - 1).to(torch.int8)


def _frequent(weight: Tensor) -> Tensor:
    """All sign patterns, those of most kernels of a weight first."""
    counts = torch.bincount(_numbers(weight.reshape(-1, AREA)), minlength=2**AREA)
    return counts.sort(descending=True, stable=True).indices
