"""3×3 convolutions as trainable tensor trains, merged back to dense ones before conversion.

With I inputs, O outputs and one rank r a train has r(I + 6r + O) weights instead of 9IO,
fewer only where r is small enough. Conversion never sees a train: decompose, train, ``merge``.

Source: TT-SNN (DATE 2024, arXiv 2401.08001), whose forms these are. Ours to place: the stride, and
the trains start from trained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ....errors import Fault, SpecError
from .tensor_train_start import Form, full_rank, layer_rank, starting_cores


@dataclass(frozen=True)
class TensorTrain:
    """Which train, and its rank: one number for all layers, or "evbmf".

    "evbmf" takes for each layer `evb_rank` of its weights as [O, 9I], of [I, 9O] where that is 0,
    and at least 1: untrained weights give 1, as nothing in them stands out.

    Raises:
        SpecError: an unknown form, or a rank that is neither.

    Example:
        >>> TensorTrain("ptt", 8).form
        <Form.PTT: 'ptt'>
    """

    form: Form | str
    rank: int | str

    def __post_init__(self) -> None:
        if self.form not in list(Form):
            raise SpecError(f"TensorTrain: form={self.form!r}; allowed: {', '.join(Form)}")
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        if not whole and self.rank != "evbmf":
            allowed = 'a whole number from 1 to the full rank of every layer, or "evbmf"'
            raise SpecError(f"TensorTrain: rank={self.rank!r}; allowed is {allowed}")
        object.__setattr__(self, "form", Form(self.form))


@dataclass(frozen=True)
class Decomposed:
    """The network with its trains; the rank of each, and why other convolutions stayed, by name."""

    model: nn.Module
    ranks: Mapping[str, int]
    skipped: Mapping[str, str]


class _ByStep(nn.Module):
    """A layer that may depend on the time step, and keeps no state between steps."""

    by_step: bool
    early: Callable[[Tensor], Tensor]
    late: Callable[[Tensor], Tensor]

    def in_step(self, t: int, time_steps: int) -> Callable[[Tensor], Tensor]:
        """The layer in step t of T, from 0; the first half are the ⌈T/2⌉ steps t < T/2.

        Raises:
            SpecError: t is not one of the steps.
        """
        if not 0 <= t < time_steps:
            raise SpecError(
                f"{type(self).__name__}: t={t} of {time_steps} time steps; allowed: 0 <= t < T"
            )
        return self.late if self.by_step and 2 * t >= time_steps else self.early

    def forward(self, x: Tensor) -> Tensor:
        if self.by_step:
            raise SpecError(
                f"{type(self).__name__}: form htt has other weights in late time steps, and "
                "forward does not know the step; call in_step(t, time_steps)(x)"
            )
        return self.early(x)


class ConvByStep(_ByStep):
    """A merged HTT: the convolution ``early`` in the first half of the steps, then ``late``.

    ``early`` is 3×3 with corners of 0; ``late`` is its own centre, 1×1 with the same stride.
    """

    def __init__(self, early: nn.Conv2d, late: nn.Conv2d) -> None:
        super().__init__()
        self.by_step = True
        self.early = early
        self.late = late


class TTConv2d(_ByStep):
    """A 3×3 convolution of stride 1 or 2 as a train, started from a dense one's weights.

    With G1 1×1 (I → r), G2 3×1 and G3 1×3 (r → r), G4 1×1 (r → O, it holds the bias)::

        STT   W = G4 G3 G2 G1                stride (s, 1) in G2, (1, s) in G3
        PTT   W = G4 ½(G2 + G3) G1           stride (s, s) in both arms; corners of W are 0
        HTT   PTT, then G4 G1 in late steps  there every s-th row and column of the input

    STT starts from the TT-SVD of W as [I, 3, 3, O], PTT from that of the five taps it can hold,
    [I, 5, O]. HTT is PTT's start in the gauge in which G4 G1 is nearest to W's centre tap.

    Shapes:
        as nn.Conv2d with padding 1.
    Raises:
        SpecError: a convolution that `decompose` would skip; ``forward`` of an HTT.

    Example:
        >>> dense = nn.Conv2d(4, 4, 3, padding=1)
        >>> train = TTConv2d(dense, Form.STT, rank=12)
        >>> x = torch.ones(1, 4, 5, 5)
        >>> torch.allclose(train(x), dense(x), atol=1e-5)
        True
    """

    def __init__(self, dense: nn.Conv2d, form: Form, rank: int) -> None:
        super().__init__()
        if reason := _why_not(dense, first=False):
            raise SpecError(f"TTConv2d: {reason}; allowed is what decompose takes: keep this layer")
        self.form = form
        self.by_step = form is Form.HTT
        self.stride = s = dense.stride[0]
        down, across = ((s, 1), (1, s)) if form is Form.STT else ((s, s), (s, s))
        cores = starting_cores(dense.weight.detach().double(), form, rank)
        self.reduce = _conv(cores[0], like=dense)
        self.vertical = _conv(cores[1], like=dense, stride=down, padding=(1, 0))
        self.horizontal = _conv(cores[2], like=dense, stride=across, padding=(0, 1))
        self.expand = _conv(cores[3], like=dense, bias=dense.bias)
        self.train(dense.training)

    def early(self, x: Tensor) -> Tensor:
        """The layer in the first half of the steps, for STT and PTT in all."""
        x = self.reduce(x)
        if self.form is Form.STT:
            y = self.horizontal(self.vertical(x))
        else:
            y = (self.vertical(x) + self.horizontal(x)) / 2
        merged: Tensor = self.expand(y)
        return merged

    def late(self, x: Tensor) -> Tensor:
        """HTT in the rest of the steps."""
        merged: Tensor = self.expand(self.reduce(x[..., :: self.stride, :: self.stride]))
        return merged

    def dense(self) -> nn.Conv2d | ConvByStep:
        """The same numbers as one convolution, for HTT as one for each half of the steps."""
        layers = (self.reduce, self.vertical, self.horizontal, self.expand)
        g1, g2, g3, g4 = (layer.weight.detach().double() for layer in layers)
        g1, g2, g3, g4 = g1[..., 0, 0], g2[..., 0], g3[..., 0, :], g4[..., 0, 0]
        if self.form is Form.STT:
            weight = torch.einsum("os,sqb,qpa,pi->oiab", g4, g3, g2, g1)
        else:
            weight = g1.new_zeros(len(g4), g1.shape[1], 3, 3)
            weight[..., 1] += torch.einsum("os,spa,pi->oia", g4, g2, g1) / 2
            weight[..., 1, :] += torch.einsum("os,spb,pi->oib", g4, g3, g1) / 2
        at: dict[str, Any] = {"like": self.expand, "bias": self.expand.bias, "stride": self.stride}
        early = _conv(weight, padding=1, **at)
        if not self.by_step:
            return early.train(self.training)
        return ConvByStep(early, _conv((g4 @ g1)[..., None, None], **at)).train(self.training)


def decompose(model: nn.Module, spec: TensorTrain) -> Decomposed:
    """A copy in which every plain 3×3 convolution but the network's first is a `TTConv2d`.

    Plain is no groups, no dilation, padding 1 with zeros and a stride of 1 or 2. First is the
    first in the order in which the model holds its layers.

    Raises:
        SpecError: nothing can be decomposed, or, for all layers at once, the rank is above the
            full rank, or weights hold NaN or infinity.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        >>> result = decompose(model, TensorTrain(Form.STT, 2))
        >>> result.ranks, result.skipped
        ({'2': 2}, {'0': 'the first convolution of the network'})
    """
    copied = deepcopy(model)
    convs = {name: layer for name, layer in copied.named_modules() if isinstance(layer, _ConvNd)}
    reasons = {name: _why_not(conv, first=i == 0) for i, (name, conv) in enumerate(convs.items())}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    chosen = {
        name: conv
        for name, conv in convs.items()
        if type(conv) is nn.Conv2d and name not in skipped
    }
    if not chosen:
        faults = [Fault(name or "the model", "stays", reason) for name, reason in skipped.items()]
        raise SpecError("decompose: the model holds no 3x3 convolution to decompose", faults)
    faults = [fault for name, conv in chosen.items() for fault in _faults(name, conv, spec)]
    if faults:
        raise SpecError(
            f"decompose: {len(faults)} of {len(chosen)} 3x3 convolutions cannot be decomposed",
            faults,
        )
    form = Form(spec.form)
    ranks = {
        name: spec.rank if isinstance(spec.rank, int) else layer_rank(conv.weight, form)
        for name, conv in chosen.items()
    }
    trains = {conv: TTConv2d(conv, form, ranks[name]) for name, conv in chosen.items()}
    return Decomposed(_replace_layers(copied, trains), ranks, skipped)


def merge(model: nn.Module) -> nn.Module:
    """A copy in which every `TTConv2d` is dense again: nn.Conv2d, or `ConvByStep` for HTT.

    Example:
        >>> train = TTConv2d(nn.Conv2d(2, 3, 3, padding=1), Form.PTT, rank=1)
        >>> merge(nn.Sequential(train))[0].weight[:, :, 0, 0].abs().max().item()
        0.0
    """
    copied = deepcopy(model)
    trains = [layer for layer in copied.modules() if isinstance(layer, TTConv2d)]
    return _replace_layers(copied, {layer: layer.dense() for layer in trains})


def _conv(
    weight: Tensor,
    *,
    like: nn.Conv2d,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> nn.Conv2d:
    """A convolution with these numbers, on the other's device and in its precision."""
    outputs, inputs, height, width = weight.shape
    at: dict[str, Any] = {"stride": stride, "padding": padding, "bias": bias is not None}
    conv = nn.Conv2d(inputs, outputs, (height, width), **at, device="meta")  # draws no numbers
    conv.weight = nn.Parameter(weight.to(like.weight).clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _why_not(conv: _ConvNd, *, first: bool) -> str:
    """Why the convolution stays as it is, empty where it need not."""
    checks = (
        (first, "the first convolution of the network"),
        (type(conv) is not nn.Conv2d, f"{type(conv).__name__}, not nn.Conv2d itself"),
        (conv.kernel_size != (3, 3), f"kernel {conv.kernel_size}, not (3, 3)"),
        (conv.groups != 1, f"{conv.groups} groups, not 1"),
        (conv.dilation != (1, 1), f"dilation {conv.dilation}, not (1, 1)"),
        (conv.stride not in ((1, 1), (2, 2)), f"stride {conv.stride}, not (1, 1) or (2, 2)"),
        (conv.padding not in ((1, 1), "same"), f"padding {conv.padding}, not (1, 1)"),
        (conv.padding_mode != "zeros", f"padding with {conv.padding_mode}, not zeros"),
        (
            bool(conv._forward_hooks or conv._forward_pre_hooks),
            "carries hooks, which a train would lose",
        ),
    )
    return next((reason for holds, reason in checks if holds), "")


def _faults(name: str, conv: _ConvNd, spec: TensorTrain) -> list[Fault]:
    """What keeps one layer from being decomposed as asked."""
    if not conv.weight.isfinite().all():
        return [Fault(name, "weight holds NaN or infinity", "train or load it again")]
    full = full_rank(conv.weight, Form(spec.form))
    if isinstance(spec.rank, int) and spec.rank > full:
        return [Fault(name, f"rank {spec.rank}", f"allowed: 1 to {full}, its full rank")]
    return []


def _replace_layers(model: nn.Module, layers: Mapping[Any, nn.Module]) -> nn.Module:
    """The model with these layers in the place of those, wherever and however often they stand."""
    if model in layers:
        return layers[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in layers:
                setattr(parent, name, layers[child])
    return model
