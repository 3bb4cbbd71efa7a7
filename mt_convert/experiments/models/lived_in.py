"""Networks of timm with random weights that behave like trained ones: every branch carries weight.

Fresh networks hide what a converter must get right: batch norms that do nothing, layer scales of
1e-6 and skip gains of 0 that switch whole blocks off, heads of zeros. So whatever is constant or
next to nothing is drawn anew, and batch norms take their statistics from random images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...errors import MTConvertError, error_line

SIZES = (64, 96, 128, 160, 192, 224, 256)
TINY = 1e-3


class TrialError(MTConvertError):
    """An architecture cannot be tried at all: it does not run, or what it computes is no number."""


@dataclass(frozen=True)
class TrialNetwork:
    """A network in eval mode and the images it is tried on, [batch, channels, size, size]."""

    model: nn.Module
    images: Tensor


def build(architecture: str, *, size: int | None, images: int, seed: int) -> TrialNetwork:
    """A network of timm with weights drawn from ``seed``, at ``size`` or the smallest that runs.

    Raises:
        TrialError: no size runs, or outputs are not finite.

    Example:
        >>> built = build("test_resnet", size=None, images=2, seed=0)
        >>> tuple(built.images.shape), built.model.training
        ((2, 3, 64, 64), False)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        reasons: list[str] = []
        for model, side in _candidates(architecture, size, reasons):
            batch = torch.randn(images, _channels(model), side, side, generator=generator)
            reason = _fault(model, batch)
            if reason is None:
                live_in_(model, batch, generator)
                reason = _fault(model, batch)
                if reason is not None:
                    raise TrialError(f"with weights as after training, {reason}")
                return TrialNetwork(model, batch)
            reasons.append(f"{side}: {reason}")
    tried = str(size) if size else f"{SIZES[0]} to {SIZES[-1]}, or its default"
    raise TrialError(f"runs at no size of {tried}: {reasons[-1] if reasons else 'not built'}")


def _candidates(
    architecture: str, size: int | None, reasons: list[str]
) -> Iterator[tuple[nn.Module, int]]:
    """The network at each size, smallest first; ``img_size`` is passed to those that take it."""
    plain: nn.Module | None = None
    for side in (size,) if size else (*SIZES, None):
        if side is not None:
            try:
                yield timm.create_model(architecture, img_size=side).eval(), side
                continue
            except TypeError:  # no such argument
                pass
            except Exception as error:  # a size that the constructor refuses
                reasons.append(f"{side}: {error_line(error)}")
        if plain is None:
            plain = timm.create_model(architecture).eval()
        yield plain, side or int(_settings(plain).get("input_size", (3, 224, 224))[-1])


def _settings(model: nn.Module) -> dict[str, Any]:
    """What timm knows about the network's images."""
    return dict(getattr(model, "pretrained_cfg", None) or {})


def _channels(model: nn.Module) -> int:
    """Of the images."""
    return int((_settings(model).get("input_size") or (3,))[0])


def _fault(model: nn.Module, batch: Tensor) -> str | None:
    """Why a forward pass on two images is not what a classifier gives; None where it is."""
    try:
        with torch.no_grad():
            output = model(batch[:2])
    except Exception as error:  # anything, where the size does not fit
        return error_line(error)
    if not isinstance(output, Tensor):
        return f"it returns a {type(output).__name__}, not one tensor"
    return None if bool(output.isfinite().all()) else "its output holds NaN or infinity"


# ------------------------------------------------------------------------------- weights and norms


def live_in_(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Draw anew what hides a branch, then give batch norms the statistics of ``images``, in place.

    A parameter all of one value, or nowhere above 0.001, is drawn anew: weights of layers from
    N(0, 1/inputs), other values near 0 from N(0, 0.01) if called bias, else from [0.2, 0.8];
    constants away from 0 (a norm's weight of 1) are multiplied by numbers from [0.75, 1.25].

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> live_in_(norm, torch.randn(4, 2, 3, 3) + 5, torch.Generator().manual_seed(0))
        >>> norm.running_mean.round().tolist(), bool((norm.weight == 1).any()), norm.training
        ([5.0, 5.0], False, False)
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and parameter.numel():
                _redraw_(module, name, parameter.data, generator)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.training = norm.track_running_stats
    try:
        with torch.no_grad():
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False


def _redraw_(module: nn.Module, name: str, values: Tensor, generator: torch.Generator) -> None:
    """Draw one parameter anew, if it is constant or next to nothing."""
    low, high = (float(bound) for bound in values.aminmax())
    near_zero = max(-low, high) <= TINY
    if not near_zero and (low != high or values.numel() == 1):
        return
    if isinstance(module, (nn.Linear, _ConvNd)) and name == "weight":
        drawn = torch.randn(values.shape, generator=generator)
        values.copy_(drawn / values[0].numel() ** 0.5)
    elif near_zero and name.endswith("bias"):
        values.copy_(torch.randn(values.shape, generator=generator) * 0.1)
    else:
        share = torch.rand(values.shape, generator=generator)
        values.copy_(0.2 + 0.6 * share if near_zero else values * (0.75 + 0.5 * share))
