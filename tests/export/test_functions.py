"""Layers that stand for a function leave by the thresholds where they rise and where they fall."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import function_networks
import pytest
import torch
from torch import nn

import mt_convert as mt
from mt_convert.errors import UnsupportedLayerError
from mt_convert.export import targets
from mt_convert.export.integer_form import integer_form
from mt_convert.spiking.model import SpikingModel

TARGETS = ("tables", "c", "onnx", "qonnx", "torch", "nir", "spikingjelly")
QUICK = ("tables", "onnx", "qonnx")
EACH = [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in TARGETS]
IMAGES = function_networks.images(24)


@cache
def converted(name: str, bits: int = 4) -> SpikingModel:
    spec = mt.QuantSpec(act_bits=bits)
    net = function_networks.network(name)
    return mt.convert(mt.quantize(net, spec, calibration=function_networks.images()))


@pytest.mark.parametrize("target", EACH)
def test_a_function_that_dips_leaves_exactly(target: str, tmp_path: Path) -> None:
    found = targets.export(converted("silu"), target, tmp_path / "out", images=IMAGES)
    assert found.exact
    assert sum(row.next_to for row in found.by_node) > 1000
    form = integer_form(converted("silu"))
    (fire,) = [node for node in form.nodes if node.op == "fire"]
    assert fire.arrays["falls"].shape[1] > 0
    levels = [row for row in found.on_images if row.op == "fire"]
    assert levels or target == "nir"


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["gelu", "prelu", "square of relu", "tanh", "mish spelled out"])
def test_every_kind_of_function_leaves_exactly(name: str, target: str, tmp_path: Path) -> None:
    for bits in (2, 6):
        path = tmp_path / f"out_{bits}"
        assert targets.export(converted(name, bits), target, path, images=IMAGES).exact


def test_rows_that_begin_at_several_levels_are_filled_up(tmp_path: Path) -> None:
    """A function that begins high in one channel and low in another."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
            self.slope = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, -0.5]).reshape(4, 1, 1))
            self.shift = nn.Parameter(torch.tensor([0.0, 0.5, 0.25, 0.0]).reshape(4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.sigmoid(self.conv(x)) * self.slope + self.shift
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    spec = mt.QuantSpec(act_bits=3)
    snn = mt.convert(mt.quantize(Two().eval(), spec, calibration=function_networks.images()))
    form = integer_form(snn)
    (fire,) = [node for node in form.nodes if node.op == "fire"]
    ends = form.values[fire.inputs[0]]
    assert bool((fire.arrays["thresholds"][:, 0] == -max(-ends.low, ends.high)).any())
    assert bool((fire.arrays["thresholds"][:, -1] > ends.high).any())
    for target in ("tables", "onnx", "qonnx"):
        assert targets.export(snn, target, tmp_path / target, images=IMAGES).exact


@pytest.mark.slow
def test_a_function_step_by_step_is_refused(tmp_path: Path) -> None:
    qann = mt.quantize(
        function_networks.network("silu"), mt.QuantSpec(), calibration=function_networks.images()
    )
    snn = mt.convert(qann, ladder=mt.Uniform(3))
    with pytest.raises(UnsupportedLayerError, match="a function in several steps"):
        mt.export.tables(snn, tmp_path / "out")
