"""Exact is said with what it is exact to; what spoils a network is refused or in its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from brevitas import nn as qnn
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, lived_in, network, quantized
from torch import Tensor, nn

from mt_convert.calibration.calibrate import calibrate
from mt_convert.calibration.spec import MembraneMean
from mt_convert.errors import DataError, MTConvertError
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.quantization.suspicions import far_pixels
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.conversion_report import ConversionReport
from mt_convert.spiking.convert import convert


class Levels(nn.Module):
    """A quantized activation, by one of torch's roundings."""

    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        return self.rounding(x.clamp(0, 1) * 4 + 0.25) / 4


def net(*between: nn.Module) -> nn.Sequential:
    """A network with modules behind its first layer."""
    layers = (nn.Conv2d(2, 4, 3), *between, nn.Flatten(), nn.Linear(144, 3))
    return lived_in(nn.Sequential(*layers))  # type: ignore[return-value]


ROUNDING = {
    "floor": torch.floor,
    "round": torch.round,
    "sign": torch.sign,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDING)
def test_a_network_that_rounds_already_says_so(name: str) -> None:
    qann = quantize(net(Levels(ROUNDING[name])), QuantSpec(), calibration=images(16))
    assert f"the network quantizes already: 1 ({name})" in qann.warnings[0]


@pytest.mark.slow
def test_layers_of_brevitas_are_named() -> None:
    own = net(qnn.QuantReLU(bit_width=4), qnn.QuantIdentity(bit_width=4))
    x = images(16)
    own.train()(x)
    qann = quantize(own.eval(), QuantSpec(), calibration=x)
    assert "quantizes already: 1 (QuantReLU)" in qann.warnings[0]
    text = str(convert(qann, verify=x[:2]).report)
    assert "warning: the network quantizes already: 1 (QuantReLU)" in text
    assert "exact means equal to that, not to its own levels" in text


@pytest.mark.slow
def test_the_report_says_exact_to_what_and_how_far_that_is(tmp_path: Path) -> None:
    ann, x = network("residual"), images(40, seed=2)
    qann = quantize(ann, QuantSpec(), calibration=x)
    with torch.no_grad():
        share = float((ann(x).argmax(1) == qann(x).argmax(1)).double().mean())
    assert (qann.float_agreement, qann.float_images) == (share, 40)
    snn = convert(qann, verify=x[:2])
    assert f"the float network's class to {100 * share:.1f} % of 40" in str(snn.report)
    save(qann, tmp_path / "q")
    save(snn, tmp_path / "s")
    for other in (convert(load(tmp_path / "q")), load(tmp_path / "s"), snn.with_neurons({})):
        assert (other.report.float_agreement, other.report.float_images) == (share, 40)
    stored = json.loads(json.dumps(snn.report.to_json()))
    assert ConversionReport.from_json(stored) == snn.report
    for key in ("warnings", "float_agreement", "float_images"):
        del stored[key]
    assert ConversionReport.from_json(stored).verdict == snn.report.verdict


@pytest.mark.slow
def test_verify_on_no_images_is_refused() -> None:
    qann = quantized("residual")
    with pytest.raises(DataError, match="no images to verify on"):
        convert(qann, verify=images(2)[:0])


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    place=st.sampled_from(["0.weight", "0.bias", "3.weight", "3.bias"]),
    stage=st.sampled_from(["quantize", "convert", "save"]),
)
def test_numbers_that_are_not_finite_are_refused_by_name(
    value: float, place: str, stage: str
) -> None:
    ann = net(nn.ReLU())
    if stage == "quantize":
        ann.get_parameter(place).data.view(-1)[0] = value
        with pytest.raises(MTConvertError, match=rf"(?s){place} +holds NaN or infinity"):
            quantize(ann, QuantSpec(), calibration=images(8))
        return
    qann = quantize(ann, QuantSpec(), calibration=images(8))
    snn = convert(qann)
    target: nn.Module = qann.layers if stage == "convert" else snn.layers
    target.get_parameter(place).data.view(-1)[0] = value
    with pytest.raises(MTConvertError, match=rf"(?s){place} +holds NaN or infinity"):
        convert(qann) if stage == "convert" else save(snn, "never")
    assert not Path("never").exists()


@pytest.mark.slow
def test_statistics_that_are_not_finite_and_logits_that_overflow_are_refused() -> None:
    ann = network("one_relu")
    ann.bn1.running_mean[0] = float("nan")
    with pytest.raises(MTConvertError, match=r"bn1\.running_mean +holds NaN or infinity"):
        quantize(ann, QuantSpec(batch_norm="keep"), calibration=images(8))
    huge = net(nn.ReLU())
    huge[3].weight.data *= 3e38
    with pytest.raises(MTConvertError, match=r"logits are not finite|holds NaN or infinity"):
        quantize(huge, QuantSpec(weight_bits=None, last_bits=None), calibration=images(8) * 1e3)


@pytest.mark.slow
def test_a_mask_of_minus_infinity_is_taken() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.b((x @ x.mT + self.mask).softmax(-1) @ self.a(x)).mean(1)

    qann = quantize(Masked(), QuantSpec(), calibration=images(8, (8, 8)))
    assert convert(qann, verify=images(2, (8, 8))).report.verdict.exact_t1  # type: ignore[union-attr]


@pytest.mark.parametrize(("hot", "warned"), [(4.0, False), (100.0, True), (1e4, True)])
def test_a_few_pixels_that_set_the_step_of_all_images_are_told(hot: float, warned: bool) -> None:
    x = images(64, (3, 8, 8))
    x[5, 0, 0, 0] = hot
    text = "".join(far_pixels(x))
    assert (f"the largest pixel is {hot:.4g}" in text) is warned
    assert not list(far_pixels((x * 0)[:4]))
    assert not list(far_pixels((images(64) > 2).float()))  # sparse, as events are


@pytest.mark.slow
def test_a_read_out_of_few_values_is_told() -> None:
    for last, told in ((nn.ReLU6(), True), (nn.Hardtanh(-3, 3), True), (nn.Identity(), False)):
        ann = nn.Sequential(*net(nn.ReLU()), last).eval()
        warnings = quantize(ann, QuantSpec(), calibration=images(8)).warnings
        assert any("the read-out is quantized to 15 levels: 4" in item for item in warnings) is told


@pytest.fixture(scope="module")
def plain() -> QuantizedModel:
    return quantized("residual")


def test_a_plain_network_has_no_warnings(plain: QuantizedModel) -> None:
    assert plain.warnings == convert(plain).report.warnings == ()


@pytest.mark.slow
def test_a_calibration_says_for_which_steps_it_is(plain: QuantizedModel, tmp_path: Path) -> None:
    snn = convert(plain, ladder=Uniform(3), signed=True)
    tuned = calibrate(snn, images(8), [MembraneMean()], time_steps=2).snn
    assert "calibrated for T = 2" in tuned.report.warnings[0]
    save(tuned, tmp_path)
    assert load(tmp_path).report.warnings == tuned.report.warnings
    assert snn.report.warnings == ()
