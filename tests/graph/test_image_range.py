"""Images that nobody normalised are told, wherever a network takes them; others pass in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.calibration import MeanSquaredError
from mt_convert.errors import DataError
from mt_convert.graph.nodes import looks_like_bytes
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.spec import QuantSpec

NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
BYTES = torch.randint(0, 256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
IMAGES = BYTES / 255
QANN = mt.quantize(NET, QuantSpec(), calibration=IMAGES)
SNN = mt.convert(QANN, ladder=Uniform(3))
STEPS = [MeanSquaredError()]

USES: dict[str, Callable[[Tensor], object]] = {
    "the quantized network": QANN,
    "simulate": lambda images: mt.simulate(SNN, images, time_steps=1),
    "calibrate": lambda images: mt.calibrate(SNN, images, STEPS, time_steps=2),
    "convert": lambda images: mt.convert(QANN, verify=images),
    "integer": lambda images: mt.integer(SNN).run(images, time_steps=1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_images_far_beyond_those_of_the_calibration_are_told(
    use: Callable[[Tensor], object],
) -> None:
    for images in (BYTES, (IMAGES - 0.5) / 0.2 * 255):
        with pytest.warns(UserWarning, match="calibrated on images within about .*: normalise"):
            use(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(IMAGES)
        use(2 * IMAGES - 1)  # somewhat beyond is nobody's fault
    with pytest.raises(DataError, match="convert them to float and normalise"):
        use(BYTES.to(torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("input_bits", [None, 8])
def test_quantize_tells_of_images_from_0_to_255(input_bits: int | None) -> None:
    with pytest.warns(UserWarning, match=r"whole numbers up to 25\d: divide them by 255"):
        mt.quantize(NET, QuantSpec(input_bits=input_bits), calibration=BYTES)


@pytest.mark.slow
def test_without_a_quantizer_of_images_bytes_are_told_all_the_same() -> None:
    qann = mt.quantize(NET, QuantSpec(input_bits=None), calibration=IMAGES)
    with pytest.warns(UserWarning, match="whole numbers"):
        qann(BYTES)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(0), torch.arange(-20.0, 20), torch.arange(9.0), torch.arange(300.0), BYTES + 0.5],
)
def test_what_is_no_picture_in_bytes(images: Tensor) -> None:
    assert not looks_like_bytes(images)
