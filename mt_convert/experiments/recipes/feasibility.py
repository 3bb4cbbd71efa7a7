"""Whether a network takes the images of its recipe, from shapes alone: no numbers are computed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...errors import Fault, MTConvertError
from ...training.optimizer import make_optimizer
from ...training.spec import StepGroup, TrainSpec
from ..models.build import ModelSpec, build


def network_faults(model: ModelSpec, channels: int, image_size: int) -> list[Fault]:
    """What keeps a network from being built, or from taking an image and telling the classes.

    The network is made on meta tensors, which take no memory, and one image's shape goes through.

    Example:
        >>> network_faults(ModelSpec("digits_cnn", classes=10, channels=1), 1, 8)
        []
        >>> str(network_faults(ModelSpec("vit_tiny_patch16_224", classes=10), 3, 8)[0])[:51]
        'model.architecture  vit_tiny_patch16_224 takes no i'
    """
    if model.code_files or ":" in model.architecture:  # nothing is run or fetched to look
        return []
    key = repr((model, channels, image_size))
    if key not in _known:
        _known[key] = _network_faults(model, channels, image_size)
    return _known[key]


_known: dict[str, list[Fault]] = {}


def _network_faults(model: ModelSpec, channels: int, image_size: int) -> list[Fault]:
    what = f"{model.architecture} takes no images of {channels}x{image_size}x{image_size}"
    try:
        shape = _read_out(model.without_weights(), channels, image_size)
    except MTConvertError as error:
        return [Fault("model.kwargs", error.headline[:300], "")]
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # whatever a constructor or an operator makes of such a size
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return [Fault("model.architecture", what, f"give another data.image_size ({said})")]
    if shape is not None and tuple(shape) != (2, model.classes):
        said = f"its answers have the shape {list(shape)}"
        return [Fault("model.architecture", said, f"expected [images, {model.classes}]")]
    return []


def training_faults(block: str, spec: TrainSpec | None) -> list[Fault]:
    """What the optimizer of a training does not take."""
    if spec is None:
        return []
    try:
        make_optimizer(nn.Linear(1, 1), replace(spec, steps=StepGroup()), 1)
    except Exception as error:  # timm's optimizers raise what they like
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        what = f"{spec.optimizer} does not take these values"
        return [Fault(f"{block}.optimizer", what, said)]
    return []


def _read_out(model: ModelSpec, channels: int, image_size: int) -> Any:
    """The shape of the answers to two images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialisations that have nothing to fill
        try:
            with torch.device("meta"):
                network = build(model, image_size=image_size)
        except NotImplementedError:  # it looks at its own numbers while it is made
            network = build(model, image_size=image_size).to("meta")
        images = torch.empty(2, channels, image_size, image_size, device="meta")
        try:
            with torch.no_grad(), torch.device("meta"):
                answers = network.eval()(images)
        except NotImplementedError:  # it looks at numbers on the way: only a run can tell
            return None
    return answers.shape if isinstance(answers, torch.Tensor) else (0,)
