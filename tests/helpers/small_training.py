"""A few made-up images and a small quantized network, to be trained in a second."""

from __future__ import annotations

import torch
from networks import conv, images, lived_in
from torch import nn

from mt_convert.data import DataSpec, Splits, tensor_set
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.training.spec import TrainSpec

DATA = DataSpec("mine", image_size=8, channels=1, classes=3, augmentation="crop_flip")
IMAGES = images(64, (1, 8, 8)).sigmoid()
LABELS = (IMAGES.mean((1, 2, 3)).argsort().argsort() * 3) // 64
TRAIN, VALIDATION = slice(0, 48), slice(48, 64)
SPEC = TrainSpec(epochs=2, batch_size=12, lr=0.02, save_every=3)


def splits() -> Splits:
    """48 training images and 16 others."""
    train = tensor_set(IMAGES[TRAIN], LABELS[TRAIN], DATA)
    rest = tensor_set(IMAGES[VALIDATION], LABELS[VALIDATION], DATA)
    return Splits(train, rest, rest, rest)


def normed(seed: int = 0) -> nn.Module:
    """Two convolutions with batch norms, and a linear layer."""
    return lived_in(
        nn.Sequential(
            conv(1, 4, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            conv(4, 6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            conv(6, 6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        seed,
    )


def quantized_net(spec: QuantSpec | None = None, seed: int = 0) -> QuantizedModel:
    """The same, quantized to 3 bits unless told otherwise."""
    spec = QuantSpec(weight_bits=3, act_bits=3) if spec is None else spec
    return quantize(normed(seed), spec, calibration=IMAGES[:16])


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks hold the same tensors, bit for bit."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
