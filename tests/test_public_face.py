"""The names that others script against, used as the documentation writes them."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import images as made_up
from networks import network
from paths import ROOT
from torch import nn

import mt_convert as mt

ROOMS = mt._ROOMS


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    return network("residual")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return made_up(8, seed=2)


@pytest.mark.slow
def test_the_documented_lines_run_as_written(
    ann: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "snn"
    before = deepcopy(ann.state_dict())

    qann = mt.quantize(ann, mt.QuantSpec(weight_bits=4, act_bits=4), calibration=images)
    snn = mt.convert(qann)
    exact = mt.simulate(snn, images, time_steps=1)
    assert torch.equal(exact.logits[0], qann(images))
    assert "layers of multi-threshold neurons" in str(snn.report)

    snn = mt.convert(qann, ladder=mt.Uniform(3), signed=True)
    run = mt.simulate(snn, images, time_steps=8)
    assert run.logits.shape == (8, len(images), 3)

    mt.save(snn, folder)
    snn = mt.load(folder)
    assert torch.equal(mt.simulate(snn, images, time_steps=8).logits, run.logits)

    assert isinstance(qann, nn.Module)
    assert qann is not ann
    after = ann.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not ann.training


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [mt.Binary(2), mt.PowerOfTwo(4), mt.Uniform(3)])
def test_every_ladder_of_the_documentation_reaches_the_quantized_network(
    ann: nn.Module, images: torch.Tensor, ladder: Any
) -> None:
    qann = mt.quantize(ann, mt.QuantSpec(), calibration=images)
    run = mt.simulate(mt.convert(qann, ladder=ladder, signed=True), images, time_steps=32)
    assert torch.equal(run.logits[-1], qann(images))


@pytest.mark.slow
def test_save_and_load_take_a_quantized_network_too(
    ann: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    qann = mt.quantize(ann, mt.QuantSpec(), calibration=images)
    mt.save(qann, str(tmp_path))
    loaded = mt.load(str(tmp_path))
    assert isinstance(loaded, mt.quantization.QuantizedModel)
    assert torch.equal(loaded(images), qann(images))


@pytest.mark.slow
def test_a_quantized_network_is_an_ordinary_module(ann: nn.Module, images: torch.Tensor) -> None:
    qann = mt.quantize(ann, mt.QuantSpec(), calibration=images)
    assert not qann.training
    assert qann.train().training
    qann(images).sum().backward()
    trained = [name for name, item in qann.named_parameters() if item.grad is not None]
    assert len(trained) == len(list(qann.parameters()))
    assert qann.eval()(images[:1]).shape == (1, 3)


def test_every_name_of_the_face_is_there_and_documented() -> None:
    assert sorted(mt.__all__) == sorted(set(mt.__all__))
    for name in mt.__all__:
        value = getattr(mt, name)
        assert not inspect.ismodule(value), name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
    assert set(mt.__all__) <= set(dir(mt))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        mt.quantise  # noqa: B018
    assert not hasattr(mt, "quantise")


def test_the_face_is_about_twenty_names_and_the_rest_is_reached_through_the_rooms() -> None:
    assert len(mt.__all__) == 21
    assert mt.neurons.PLIF(tau=2.0).tau == 2.0
    assert mt.calibration.parse("mse") == (mt.calibration.MeanSquaredError(),)
    assert mt.training.BPTT() != mt.training.DSR()
    assert mt.integer_engine.IntegerModel.__name__ == "IntegerModel"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_is_a_module_and_its_face_hides_none_of_its_files(room: str) -> None:
    module = getattr(mt, room)
    assert module is importlib.import_module(f"mt_convert.{room}")
    files = {path.stem for path in (ROOT / "mt_convert" / room).iterdir()}
    names = getattr(module, "__all__", [])
    assert not files & {*names}
    assert all(hasattr(module, name) for name in names)


FRESH = """
import sys
import mt_convert as mt
assert "torch" not in sys.modules, "importing the package imports torch"
import mt_convert.experiments.conversion_run
assert callable(mt.quantize) and callable(mt.convert) and callable(mt.simulate)
from mt_convert import QuantSpec, convert, quantize
assert mt.convert is convert and mt.quantize is quantize and mt.QuantSpec is QuantSpec
from mt_convert import *
assert simulate is mt.simulate
"""


@pytest.mark.slow
def test_in_a_fresh_process_the_package_is_light_and_its_verbs_stay_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_errors_of_all_kinds_have_one_base() -> None:
    errors = importlib.import_module("mt_convert.errors")
    kinds = [item for item in vars(errors).values() if inspect.isclass(item)]
    ours = [item for item in kinds if issubclass(item, Exception)]
    assert len(ours) == 7
    assert all(issubclass(item, mt.MTConvertError) for item in ours)


@pytest.mark.parametrize("name", mt.__all__)
def test_help_of_every_public_name_is_short(name: str) -> None:
    text = pydoc.render_doc(getattr(mt, name))
    assert len(text) < 8000
    assert max(map(len, text.splitlines())) < 800
