"""A verdict on a conversion: it says exact where that is so, and can say no."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from importlib import import_module

import pytest
import timm
import torch
from networks import images, levels_of, lived_in, quantized
from paths import SHARED_DATA
from safetensors.torch import load_file
from settling import rests_by
from torch import Tensor, nn

from mt_convert.errors import DataError, SpecError
from mt_convert.neurons.ladder import Digit, Radix, Uniform
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import literal_from_rest
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking import verify as verification
from mt_convert.spiking.conversion_report import ConversionReport, Verdict
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel

BATCH = images(12, seed=5)


@pytest.fixture(scope="module")
def qann() -> QuantizedModel:
    """Three layers of few neurons."""
    layers = (
        *(nn.Conv2d(2, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5), nn.ReLU()),
        nn.Linear(5, 3),
    )
    net = lived_in(nn.Sequential(*layers), seed=7)
    return quantize(net, QuantSpec(act_bits=2), calibration=images(8, seed=2))


def verdict_of(snn: SpikingModel) -> Verdict:
    """The verdict in a network's report."""
    assert snn.report.verdict is not None
    return snn.report.verdict


@pytest.mark.slow
def test_the_verdict_says_exact_and_what_it_looked_at(qann: QuantizedModel) -> None:
    verdict = verdict_of(convert(qann, verify=BATCH))
    assert verdict.exact_t1
    assert verdict.images == 12
    assert verdict.neurons == sum(layer[0].numel() for layer in levels_of(qann, BATCH)[0].values())
    around = 3 * 3 * 9  # layers, thresholds, inputs around each
    assert verdict.adversarial == around + (4 + 6 + 5) * 3  # each threshold of each channel
    assert verdict.differs == ()
    assert verdict_of(convert(copy.deepcopy(qann).train(), verify=BATCH)) == verdict


@pytest.mark.slow
def test_a_quarter_of_the_thresholds_settles_later_and_the_verdict_says_when(
    qann: QuantizedModel,
) -> None:
    snn = convert(qann, verify=BATCH)
    verdict = verdict_of(snn)
    assert verdict.thresholds == 1  # of 3
    assert max(int(levels.max()) for levels in levels_of(qann, BATCH)[0].values()) == 3
    assert rests_by(snn, 1) == 3 + 2 + 2
    assert verdict.settling_t is not None
    assert 3 <= verdict.settling_t <= 7


@pytest.mark.slow
def test_the_verdict_is_about_the_network_not_about_how_it_is_run(qann: QuantizedModel) -> None:
    few = convert(qann, ladder=Uniform(1), presentation="every_step", verify=BATCH)
    assert verdict_of(few) == verdict_of(convert(qann, verify=BATCH))
    assert [layer.spec.ladder for _, layer in few.neurons()] == [Uniform(1)] * 3


@pytest.mark.slow
def test_without_images_made_up_ones_are_probed() -> None:
    verdict = verdict_of(convert(quantized("residual"), verify=True))
    assert verdict.exact_t1
    assert verdict.images == 4
    assert convert(quantized("residual")).report.verdict is None


def test_the_report_shows_the_verdict(qann: QuantizedModel) -> None:
    text = str(convert(qann, verify=BATCH).report).splitlines()
    assert text[1].startswith("exact at T = 1 (")
    assert "with n = 1 it settles at T =" in text[1]
    assert text[2].startswith("  0  Conv2d")


def test_probe_images_that_do_not_fit_are_refused(qann: QuantizedModel) -> None:
    with pytest.raises(DataError, match="do not fit"):
        convert(qann, verify=torch.zeros(2, 3, 8, 8))


def heavier(snn: SpikingModel) -> None:
    """One weight of the second convolution, moved by the layer's largest."""
    weight = snn.layers.get_submodule("3").weight
    assert isinstance(weight, Tensor)
    weight.data[0, 0, 0, 0] += weight.abs().max()


def wider(snn: SpikingModel) -> None:
    """The steps of all neurons, larger by a millionth."""
    for _, layer in snn.neurons():
        layer.delta.data *= 1 + 1e-6


def shifted(snn: SpikingModel) -> None:
    """The bias of the read-out, moved by one unit in the last place: the logits' too, for it is
    by far the largest of what they sum."""
    bias = snn.layers.get_submodule("8").bias
    assert isinstance(bias, Tensor)
    bias.data = torch.nextafter(bias.data, torch.tensor(9e9))


@pytest.mark.parametrize(
    ("spoil", "differs"),
    [(heavier, "4"), (wider, "2 (within 4 ulp of a threshold)"), (shifted, "logits")],
)
def test_the_verdict_says_where_a_converted_network_differs(
    qann: QuantizedModel,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[SpikingModel], None],
    differs: str,
) -> None:
    module = import_module("mt_convert.spiking.convert")  # as an attribute it is the verb
    qann = copy.deepcopy(qann)
    bias = qann.layers.get_submodule("8").bias
    assert isinstance(bias, Tensor)
    bias.data += 1536  # amid the floats from 1024 to 2048

    def spoilt(*words: object) -> SpikingModel:
        snn = SpikingModel(*words)  # type: ignore[arg-type]
        spoil(snn)
        return snn

    monkeypatch.setattr(module, "SpikingModel", spoilt)
    snn = convert(qann, verify=BATCH)
    assert not verdict_of(snn).exact_t1
    assert differs in verdict_of(snn).differs
    assert str(snn.report).splitlines()[1].startswith("NOT exact at T = 1: ")
    if spoil is shifted:
        assert verdict_of(snn).differs == ("logits",)
        assert verdict_of(snn).settling_t is None


@pytest.mark.parametrize(
    ("home", "name", "literal"),
    [
        ("simulate", "totals_step", "sample"),
        ("simulate", "totals_step_literal", "all"),
        ("verify", "totals_step", "sample"),
        ("verify", "literal_from_rest", "sample"),
    ],
)
def test_the_verdict_looks_at_the_closed_form_and_at_threshold_by_threshold(
    qann: QuantizedModel, monkeypatch: pytest.MonkeyPatch, home: str, name: str, literal: str
) -> None:
    assert verdict_of(convert(qann, verify=BATCH, literal=literal)).exact_t1
    module = import_module(f"mt_convert.spiking.{home}")
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda y, *rest: right(y + 0.01, *rest))
    assert not verdict_of(convert(qann, verify=BATCH, literal=literal)).exact_t1


def test_every_neuron_of_a_layer_that_is_not_large_is_fired_threshold_by_threshold(
    qann: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: list[int] = []

    def literal(y: Tensor, spec: NeuronSpec) -> Tensor:
        fired.append(y.numel())
        return literal_from_rest(y, spec)

    monkeypatch.setattr(verification, "literal_from_rest", literal)
    convert(qann, verify=BATCH)
    sizes = [12 * layer[0].numel() for layer in levels_of(qann, BATCH)[0].values()]
    assert fired[: len(sizes)] == sizes
    monkeypatch.setattr(verification, "SAMPLE", 10)
    fired.clear()
    convert(qann, verify=BATCH)
    assert fired[: len(sizes)] == [max(10, math.ceil(0.05 * size)) for size in sizes]
    with pytest.raises(SpecError, match="allowed are sample, all"):
        convert(qann, verify=BATCH, literal="some")


def test_a_network_of_digits_has_a_verdict_on_its_windows(
    qann: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    snn = convert(qann, ladder=Radix(1), whole_window=True, verify=BATCH)
    window = verdict_of(snn).window
    assert window is not None
    assert (window.steps, window.exact, window.differs) == (2, True, ())
    assert window.membrane_share is not None
    assert 0 <= window.membrane_share < 0.1
    assert "exact in windows of T = 2; membranes that add digits differ in" in str(snn.report)
    assert ConversionReport.from_json(snn.report.to_json()) == snn.report

    def late(ladder: Radix, t: int) -> Digit:
        return right(ladder, t + 1)

    right = Radix.at
    monkeypatch.setattr(Radix, "at", late)
    wrong = verdict_of(convert(qann, ladder=Radix(1), whole_window=True, verify=BATCH))
    assert wrong.exact_t1
    assert wrong.window is not None
    assert not wrong.window.exact
    assert "NOT exact in windows of T = 2: 2, 4, 7, logits" in str(wrong)


@pytest.mark.long
def test_a_large_network_of_eight_bits_is_exact_and_a_step_off_by_a_millionth_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = SHARED_DATA / "pretrained" / "tf_efficientnet_lite0.safetensors"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here")
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    net.load_state_dict(load_file(file))
    spec, shape = QuantSpec(weight_bits=8, act_bits=8), (3, 224, 224)
    qann = quantize(net.eval(), spec, calibration=images(4, shape))
    assert verdict_of(convert(qann, verify=images(1, shape, 1))).exact_t1
    module = import_module("mt_convert.spiking.convert")

    def spoilt(*words: object) -> SpikingModel:
        snn = SpikingModel(*words)  # type: ignore[arg-type]
        wider(snn)
        return snn

    monkeypatch.setattr(module, "SpikingModel", spoilt)
    assert not verdict_of(convert(qann, verify=images(1, shape, 1))).exact_t1
