"""Functions in the kernels: every neuron next to a threshold, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from function_networks import EACH, images, network

from mt_convert.integer_engine import torch_backend
from mt_convert.integer_engine.exactness import LAYERS, next_to_thresholds
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native import build
from mt_convert.integer_engine.native.backend import NativeBackend
from mt_convert.integer_engine.native.step_tables import FEW, fits
from mt_convert.integer_engine.program import Fire, Program
from mt_convert.neurons.ladder import Radix, Uniform
from mt_convert.neurons.step_table import LARGEST, StepTable
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert

SETS = (*build.instruction_sets(), "emulated_vnni")
if (_lacking := build.missing()) is not None:
    pytest.skip(_lacking, allow_module_level=True)

CHANNELS, SIDE = 20, 4
COUNTS = (1, 15, FEW, FEW + 1, 255)


def random_table(count: int, rows: int, axis: int) -> StepTable:
    """Thresholds up and down, some at one place, fewer in some channels."""
    random = torch.Generator().manual_seed(count + rows)
    thresholds = (torch.rand(rows, count, generator=random) * 16 - 8).sort(1).values
    thresholds[:, count // 2] = thresholds[:, (count - 1) // 2]  # a jump
    weights = torch.where(torch.rand(rows, count, generator=random) < 0.3, -1, 1)
    if rows > 1 and count > 3:
        thresholds[1, -2:], weights[1, -2:] = LARGEST, 0
    return StepTable(thresholds, weights, torch.arange(rows) % 3 - 1, axis)


def difference(layer: str, table: StepTable, name: str, **neurons: object) -> int:
    """How many neurons of a layer differ from the torch backend's."""
    size = {"channels": CHANNELS, "side": SIDE}
    program, image = next_to_thresholds(layer, table=table, **size)
    steps = [
        replace(item, **neurons) if isinstance(item, Fire) else item
        for item in program.instructions
    ]
    program = Program(tuple(steps), program.values, ())
    _, expected = torch_backend.step(program, image, {})
    backend = NativeBackend([program], name)
    assert not backend.outside
    _, totals = backend.run(image, 1, True)
    assert expected["neurons"].unique().numel() > 1
    return int((totals["neurons"] != expected["neurons"]).sum())


@pytest.mark.parametrize("rows", [1, CHANNELS])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SETS)
def test_levels_of_functions_are_those_of_torch_next_to_every_threshold(
    name: str, layer: str, rows: int
) -> None:
    axis = -1 if layer == "linear" else -3
    for count in COUNTS if layer == "convolution 1x1" else COUNTS[1::3]:
        assert difference(layer, random_table(count, rows, axis), name) == 0, count


@pytest.mark.parametrize("name", SETS)
def test_an_offset_is_added_behind_the_level(name: str) -> None:
    offset = (torch.arange(CHANNELS) % 5 - 2).float().reshape(CHANNELS, 1, 1) / 2
    table = random_table(15, CHANNELS, -3)
    assert difference("convolution 1x1", table, name, offset=offset) == 0


def test_channels_along_another_axis_are_left_to_torch() -> None:
    table = random_table(15, SIDE, -2)
    assert not fits(table, (CHANNELS, SIDE, SIDE))
    assert not fits(table, (SIDE, SIDE))
    assert fits(random_table(15, 1, -2), (CHANNELS, SIDE, SIDE))


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_networks_of_functions_run_in_the_kernels(name: str) -> None:
    qann = quantize(network(name), QuantSpec(4, 4), calibration=images())
    for settings, steps in (
        ({}, 1),
        ({"ladder": 3, "signed": True}, 3),
        ({"ladder": Radix(1), "whole_window": True}, 4),
        ({"ladder": Uniform(2), "signed": True, "presentation": "every_step"}, 3),
    ):
        snn = convert(qann, **settings)
        expected = integer(snn, backend="torch").run(images(), steps, totals=True)
        native = integer(snn, backend="native")
        ran = native.run(images(), steps, totals=True)
        assert torch.equal(ran.logits, expected.logits)
        for layer, total in expected.totals.items():
            assert torch.equal(ran.totals[layer], total.float()), layer
