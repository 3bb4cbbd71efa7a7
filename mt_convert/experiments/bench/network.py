"""A network to be timed: its float original, its quantized form, its spiking forms, its size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ...errors import CheckpointError, SpecError
from ...evaluation.energy.macs import count_macs
from ...neurons.ladder import Binary, Radix, Uniform
from ...quantization.quantize import QuantizedModel, quantize
from ...quantization.spec import QuantSpec
from ...spiking import archive
from ...spiking.convert import convert
from ...spiking.model import SpikingModel
from ...system.network_files import holds_network
from ...system.storage import digest
from ..models.build import architecture_fault
from ..models.lived_in import build
from ..recipes.conversion import load_stored
from ..subjects import load_trained

BITS = 4
PIXELS = 64 * 64 * 32  # of all calibration images together: 32 of 64 x 64 pixels
LEAST_IMAGES = 8


@dataclass(frozen=True)
class Network:
    """A float network and its quantized form, both in eval mode and on one device.

    ``calibration``: synthetic images for what has to see some before it can run.
    """

    name: str
    ann: nn.Module
    qann: QuantizedModel
    calibration: Tensor

    def on(self, device: torch.device) -> Network:
        """The same network on another device (moved, not copied)."""
        moved = (self.ann.to(device), self.qann.to(device), self.calibration.to(device))
        return replace(self, ann=moved[0], qann=moved[1], calibration=moved[2])

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.calibration.device

    @property
    def levels(self) -> int:
        """Levels of its activations other than 0: with as many thresholds one step is exact."""
        return self.qann.spec.levels

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        """Fresh synthetic images, normally distributed as normalised ones are."""
        drawn = torch.randn(count, *self.qann.image_shape, generator=generator)
        return drawn.to(self.device)

    def spiking(self, n: int) -> SpikingModel:
        """Converted, n thresholds in every layer; signed neurons if these take several steps."""
        if n >= self.levels:
            return convert(self.qann)
        return convert(self.qann, ladder=Uniform(n), signed=True)

    def binary(self, bits: int) -> SpikingModel:
        """Converted, ``bits`` thresholds in every layer, one for each bit of a level."""
        return convert(self.qann, ladder=Binary(bits))

    def radix(self, n: int) -> SpikingModel:
        """Converted, the digits of a level one a step, layers waiting for all of them."""
        return convert(self.qann, ladder=Radix(n), whole_window=True)

    @cached_property
    def size(self) -> dict[str, Any]:
        """What it takes at least: multiply-adds of an image, weights, numbers of an image."""
        return {
            "macs": sum(row.macs for row in count_macs(self.spiking(self.levels)).values()),
            "weights": sum(value.numel() for value in self.ann.parameters()),
            "image": list(self.qann.image_shape),
            "levels": self.levels,
        }


def thresholds_for(levels: int, time_steps: int) -> int:
    """The fewest thresholds with which so many steps can emit all levels.

    Example:
        >>> [thresholds_for(15, T) for T in (1, 2, 4, 8, 16)]
        [15, 8, 4, 2, 1]
    """
    return math.ceil(levels / time_steps)


def open_network(word: str, store: Path, *, seed: int = 0) -> Network:
    """The networks of a run folder, or of an architecture of timm with random lived-in weights,
    quantized to 4 bits on synthetic images at its own image size, and kept in ``store``.

    Raises:
        CheckpointError: a folder that holds no run with a trained network.
        SpecError: timm knows no such architecture.
        UnsupportedLayerError: it cannot be quantized.
    """
    if Path(word).is_dir():
        return _from_run(Path(word), seed)
    if "/" in word:
        raise CheckpointError(f"there is no folder {word}: name a run, or an architecture of timm")
    if (fault := architecture_fault(word)) is not None:
        raise SpecError("neither a folder of a run nor an architecture", [fault])
    return _of_architecture(word, store, seed)


def _from_run(folder: Path, seed: int) -> Network:
    """What a run trained."""
    for place, what in (("spiking", "trained from scratch"), ("network", "fine-tuned")):
        if holds_network(folder / place):
            raise CheckpointError(
                f"{folder} holds a network that was {what}: bench times a quantized network and "
                "its conversions, name the folder of a run that converts"
            )
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} is not the folder of a run: it holds no recipe.yaml")
    ann, qann = load_trained(folder, load_stored(folder))
    return Network(folder.name, ann, qann.eval(), _random_images(qann.image_shape, seed))


def _of_architecture(name: str, store: Path, seed: int) -> Network:
    """Weights as training leaves them, from a seed; quantized once and kept."""
    shape = tuple((timm.get_pretrained_cfg(name, allow_unregistered=False) or _UNKNOWN).input_size)
    images = _random_images(shape, seed)
    built = build(name, size=shape[-1], images=len(images), seed=seed)
    spec = QuantSpec(weight_bits=BITS, act_bits=BITS)
    inputs = [name, seed, spec.to_json(), len(images), timm.__version__]
    folder = store / f"{name}_{digest(inputs)[:12]}"
    if not holds_network(folder):
        archive.save(quantize(built.model, spec, calibration=built.images), folder)
    return Network(name, built.model.eval(), archive.load_quantized(folder, spec), images)


class _UNKNOWN:
    """What is assumed of a network that timm tells nothing of."""

    input_size = (3, 224, 224)


def _random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images to calibrate on, fewer where they are large."""
    count = min(64, max(LEAST_IMAGES, PIXELS // (shape[-1] * shape[-2])))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
