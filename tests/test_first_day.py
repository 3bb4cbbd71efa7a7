"""The public verbs as a new user calls them: what is meant is taken, the rest is one error."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images as made_up
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import detection

import mt_convert as mt
from mt_convert.quantization.spec import spec_of
from mt_convert.spiking.model import SpikingModel

X, Y = made_up(8), torch.arange(8) % 3
OVERRIDE = mt.quantization.Override("1", 8)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=4)
Means = mt.calibration.MembraneMean


def network() -> nn.Module:
    """A layer of neurons between two of weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.fixture(scope="module")
def qann() -> mt.quantization.QuantizedModel:
    return mt.quantize(network(), mt.QuantSpec(), calibration=X)


@pytest.fixture(scope="module")
def snn(qann: mt.quantization.QuantizedModel) -> SpikingModel:
    return mt.convert(qann)


def same(first: Any, second: Any) -> bool:
    """Whether two networks have the same numbers."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (3, {"weight_bits": 3, "act_bits": 3}),
        ("w4a8", {"weight_bits": 4, "act_bits": 8}),
        ("W2A3", {"weight_bits": 2, "act_bits": 3}),
        ({"act_bits": 5}, {"act_bits": 5}),
        ({"act_bits": 2, "scale": "power_of_two"}, {"act_bits": 2, "scale": "power_of_two"}),
        ({"overrides": [OVERRIDE]}, {"overrides": (OVERRIDE,)}),
        ({"overrides": [{"pattern": "1", "weight_bits": 8}]}, {"overrides": (OVERRIDE,)}),
        ({"after": ["gptq"]}, {"after": ("gptq",)}),
        ({}, {}),
    ],
)
def test_a_number_a_name_and_a_mapping_stand_for_a_specification(given: Any, meant: Any) -> None:
    assert spec_of(given) == mt.QuantSpec(**meant)


@pytest.mark.slow
def test_images_in_any_form_calibrate_alike(qann: Any, snn: SpikingModel) -> None:
    assert same(mt.quantize(nn.DataParallel(network()), 4, calibration=LOADER), qann)
    plain = mt.calibrate(snn, X, [Means()], time_steps=2)
    for images, steps in (
        (LOADER, "membrane_mean"),
        (X.numpy(), ["membrane_mean"]),
        ([*X], Means()),
        ((X, Y), [Means]),
        ({"images": X}, Means),
    ):
        done = mt.calibrate(snn, images, steps, time_steps=2)
        assert same(done.snn, plain.snn)
        assert done.report == plain.report
    energies = [mt.energy(snn, images, time_steps=1).totals for images in (X, LOADER, list(X))]
    assert energies[0] == energies[1] == energies[2]
    tables = [
        mt.layer_errors({15: snn}, batches, time_steps=1).logits
        for batches in (LOADER, (X, Y), [(X[:4], Y[:4]), (X[4:], Y[4:])])
    ]
    assert tables[0] == tables[1] == tables[2]


def test_a_number_of_thresholds_stands_for_equal_ones(qann: Any) -> None:
    for given in (3, {"1": 3}):
        assert dict(mt.convert(qann, ladder=given).neurons())["1"].spec.ladder == mt.Uniform(3)
    assert mt.convert(qann, verify=LOADER).report.verdict.images == 8
    setting = mt.Setting(3, 4, calibration="mse+membrane_mean")  # type: ignore[arg-type]
    meant = (mt.calibration.MeanSquaredError(), Means())
    assert setting == mt.Setting(mt.Uniform(3), (4,), calibration=meant)


@pytest.mark.slow
def test_an_evaluation_takes_loaders_pairs_and_one_setting(qann: Any) -> None:
    setting = mt.Setting(3, (1, 2), calibration="membrane_mean")  # type: ignore[arg-type]
    rows = [
        mt.evaluate(network(), qann, batches, settings, calibration=images)
        for batches, settings, images in (
            (LOADER, [setting], X),
            ((X, Y), setting, LOADER),
            ([(X, Y.tolist())], (setting,), X.numpy()),
        )
    ]
    assert rows[0] == rows[1] == rows[2]
    assert (rows[0][0].model, rows[0][0].images, rows[0][0].T) == ("Sequential", 8, 1)
    assert mt.evaluate(None, qann, LOADER, setting, calibration=X)[0].ann_accuracy is None


WRONG: dict[str, tuple[Callable[[Any, Any, Path], Any], str]] = {
    "a type as a spec": (
        lambda q, s, p: mt.quantize(network(), mt.QuantSpec, calibration=X),  # type: ignore[arg-type]
        "spec is QuantSpec: allowed are QuantSpec",
    ),
    "true as a spec": (lambda q, s, p: mt.quantize(network(), True, calibration=X), "spec is True"),
    "nine bits": (lambda q, s, p: mt.quantize(network(), 9, calibration=X), "allowed: 2 to 8"),
    "a misspelt field": (
        lambda q, s, p: mt.quantize(network(), {"act_bit": 4}, calibration=X),
        "act_bit .*did you mean act_bits",
    ),
    "a mapping of overrides": (
        lambda q, s, p: mt.quantize(network(), {"overrides": {"1": 8}}, calibration=X),
        r"overrides .*allowed: a list of Override",
    ),
    "a name as an override": (
        lambda q, s, p: mt.quantize(network(), {"overrides": ["1"]}, calibration=X),
        r"overrides\[0\]  '1'  allowed: an Override, or a mapping of pattern",
    ),
    "a misspelt field of an override": (
        lambda q, s, p: mt.quantize(network(), {"overrides": [{"patern": "1"}]}, calibration=X),
        r"1 value out of range\s+overrides\[0\]",
    ),
    "a correction that is no list": (
        lambda q, s, p: mt.quantize(network(), {"after": "gptq"}, calibration=X),
        r"1 value out of range\s+after  'gptq'  allowed: a list",
    ),
    "no images": (lambda q, s, p: mt.quantize(network(), 4, calibration=None), "from NoneType"),
    "a spiking network to quantize": (
        lambda q, s, p: mt.quantize(s, 4, calibration=X),
        "takes a float network, not a SpikingModel",
    ),
    "a float network to convert": (lambda q, s, p: mt.convert(network()), "not a quantized"),  # type: ignore[arg-type]
    "a spiking network to convert": (lambda q, s, p: mt.convert(s), "it is converted already"),
    "a name as a ladder": (lambda q, s, p: mt.convert(q, ladder="binary"), r"Binary\(2\)"),
    "true as a ladder": (lambda q, s, p: mt.convert(q, ladder=True), "ladder is True"),
    "a type as a ladder": (lambda q, s, p: mt.convert(q, ladder=mt.Uniform), "ladder is Uniform"),
    "0 thresholds": (lambda q, s, p: mt.convert(q, ladder=0), "n=0; allowed"),
    "a number to verify on": (lambda q, s, p: mt.convert(q, verify=5), "verify on cannot be read"),
    "a quantized network to simulate": (
        lambda q, s, p: mt.simulate(q, X, time_steps=1),
        r"simulate takes a converted network, not a QuantizedModel: convert\(qann\)",
    ),
    "a float network to simulate": (
        lambda q, s, p: mt.simulate(network(), X, time_steps=1),  # type: ignore[arg-type]
        "not a Sequential: quantize",
    ),
    "a calibration to simulate": (
        lambda q, s, p: mt.simulate(mt.calibrate(s, X, "mse", time_steps=1), X, time_steps=1),  # type: ignore[arg-type]
        "pass its network, .snn of the Calibrated",
    ),
    "true steps": (lambda q, s, p: mt.simulate(s, X, time_steps=True), "time_steps is True"),
    "half a step": (lambda q, s, p: mt.simulate(s, X, time_steps=0.5), "time_steps is 0.5"),  # type: ignore[arg-type]
    "true steps of a training": (lambda q, s, p: mt.FinetuneSpec(True), "time_steps is True"),
    "no steps of a training": (lambda q, s, p: mt.FinetuneSpec(0), "time_steps is 0"),
    "an unknown algorithm": (
        lambda q, s, p: mt.FinetuneSpec(2, "sgd"),
        "algorithm .*allowed: bptt, ",
    ),
    "steps in words": (lambda q, s, p: mt.Setting(3, "4"), "whole numbers from 1"),  # type: ignore[arg-type]
    "an array to simulate": (
        lambda q, s, p: mt.simulate(s, X.numpy(), time_steps=1),  # type: ignore[arg-type]
        "images are a ndarray",
    ),
    "a quantized network to calibrate": (
        lambda q, s, p: mt.calibrate(q, X, "mse", time_steps=1),
        "calibrate takes a converted network",
    ),
    "a misspelt calibration": (
        lambda q, s, p: mt.calibrate(s, X, "membrane_meen", time_steps=1),
        "1 step is no calibration\n  membrane_meen .*did you mean membrane_mean",
    ),
    "no calibration": (lambda q, s, p: mt.calibrate(s, X, None, time_steps=1), "None .*allowed: "),  # type: ignore[arg-type]
    "a quantized network to compile": (lambda q, s, p: mt.integer(q), "integer takes a converted"),
    "energy of a quantized network": (
        lambda q, s, p: mt.energy(q, X, time_steps=1),
        "energy takes a converted",
    ),
    "errors of one network": (
        lambda q, s, p: mt.layer_errors(s, [X], time_steps=1),  # type: ignore[arg-type]
        "pass {n: snn}",
    ),
    "errors of a quantized network": (
        lambda q, s, p: mt.layer_errors({3: q}, [X], time_steps=1),
        "layer_errors takes a converted",
    ),
    "a spiking network to evaluate": (
        lambda q, s, p: mt.evaluate(None, s, LOADER, []),  # type: ignore[arg-type]
        "evaluate takes a quantized network, not a SpikingModel",
    ),
    "images without labels": (
        lambda q, s, p: mt.evaluate(None, q, X, []),
        "images without labels: pass pairs",
    ),
    "a float network to save": (
        lambda q, s, p: mt.save(network(), p),  # type: ignore[arg-type]
        "save: Sequential is no network of ours",
    ),
    "an integer network to save": (
        lambda q, s, p: mt.save(mt.integer(s, backend="torch"), p),  # type: ignore[arg-type]
        "save: IntegerModel is no network of ours",
    ),
    "a quantized network to fine-tune": (
        lambda q, s, p: mt.finetune(q, None, mt.FinetuneSpec(1), None, p, classes=3),  # type: ignore[arg-type]
        "finetune takes a converted network",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_cannot_be_meant_is_one_error_with_what_to_pass(
    name: str, qann: Any, snn: SpikingModel, tmp_path: Path
) -> None:
    call, message = WRONG[name]
    before = copy.deepcopy(qann.state_dict())
    with pytest.raises(mt.MTConvertError, match=message):
        call(qann, snn, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in qann.state_dict().items())


def test_a_detection_network_is_refused_in_a_few_lines(
    capfd: pytest.CaptureFixture[str],
) -> None:
    build = detection.ssdlite320_mobilenet_v3_large
    boxes = build(weights=None, weights_backbone=None)
    with pytest.raises(mt.MTConvertError, match="a list of 2 values, where one tensor") as refused:
        mt.quantize(boxes, 4, calibration=torch.randn(2, 3, 64, 64))
    assert len(str(refused.value).splitlines()) == 2
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_nothing_is_printed_by_the_first_use() -> None:
    first = "import mt_convert as mt; mt.quantize, mt.convert"
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
