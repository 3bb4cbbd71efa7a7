"""Images without files: scikit-learn's handwritten digits, and synthetic ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, Fault
from .image_spec import DataSpec
from .randomness import generator

SYNTHETIC_TRAIN = 1024
SYNTHETIC_TEST = 256
_CHUNK = 64


def digits(spec: DataSpec) -> tuple[Tensor, Tensor]:
    """All 1,797 handwritten digits, in the order of scikit-learn.

    Shapes: [1797, channels, image_size, image_size] floats in [0, 1], and labels.

    Raises:
        DataError: scikit-learn is not installed, ``classes`` is not 10, or ``image_size`` is not
            8 and ``resize`` is off.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "dataset 'digits' needs scikit-learn, which is not installed: "
            "pip install mt-convert[demo], or choose another dataset"
        ) from error
    if spec.classes != 10:
        fault = Fault("classes", str(spec.classes), "the digits have 10: set classes: 10")
        raise DataError("the dataset 'digits' does not fit the spec", [fault])
    if spec.image_size != 8 and not spec.resize:
        hint = "set image_size: 8, or resize: true"
        fault = Fault("image_size", f"{spec.image_size}; the digits are 8x8", hint)
        raise DataError("the dataset 'digits' does not fit the spec", [fault])
    raw = load_digits()
    pixels = torch.tensor(raw.images, dtype=torch.float32).div_(16)[:, None]
    if spec.image_size != 8:
        size = [spec.image_size, spec.image_size]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return pixels.repeat(1, spec.channels, 1, 1), torch.tensor(raw.target)


def synthetic(spec: DataSpec, part: str) -> tuple[Tensor, Tensor]:
    """Synthetic images for smoke runs: a coarse pattern per class, and noise.

    ``part`` is "train" (``limit`` images, else 1024) or "test" (``test_images``, else 256); the
    patterns are the same in both, the noise is not.

    Shapes: uint8 [images, channels, image_size, image_size], and labels 0, 1, 2, … in turn.
    """
    train, test = (spec.limit, SYNTHETIC_TRAIN), (spec.test_images, SYNTHETIC_TEST)
    asked, default = train if part == "train" else test
    count = default if asked is None else asked
    labels = torch.arange(count) % spec.classes
    random = generator(spec.seed, "pattern")
    patterns = torch.rand(spec.classes, spec.channels, 4, 4, generator=random)
    random = generator(spec.seed, "noise", part)
    size = [spec.image_size, spec.image_size]
    pixels = torch.empty(count, spec.channels, *size, dtype=torch.uint8)
    for start in range(0, count, _CHUNK):
        chosen = patterns[labels[start : start + _CHUNK]]
        smooth = F.interpolate(chosen, size, mode="bilinear", align_corners=False)
        noise = torch.randn(smooth.shape, generator=random)
        pixels[start : start + _CHUNK] = (
            (smooth * 180 + 38 + 20 * noise).clamp_(0, 255).to(torch.uint8)
        )
    return pixels, labels
