"""Whole windows in whole numbers: the same bits as `simulate`, by every backend and by shifts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from networks import conv, images, lived_in, quantized
from torch import nn

import mt_convert as mt
from mt_convert.errors import SpecError
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.integer_engine.backends import BACKENDS
from mt_convert.integer_engine.program import Fire
from mt_convert.integer_engine.shift_add import shift_add
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Radix, Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking.simulate import Run, simulate

WINDOWS: list[tuple[Ladder, int, dict[str, Any]]] = [
    (Radix(1), 4, {}),
    (Radix(3), 2, {}),
    (Radix(2), 2, {}),
    (Radix(1), 6, {}),
    (Uniform(3), 4, {"signed": True}),
    (Uniform(3), 2, {}),
    (Binary(2), 3, {}),
    (PowerOfTwo(3), 3, {"signed": True}),
    (PowerOfTwo(3), 3, {"presentation": "every_step"}),
    (Uniform(3), 3, {"signed": True, "presentation": "every_step"}),
]
IDS = [f"{ladder.kind}-{ladder.n}-{T}-{len(settings)}" for ladder, T, settings in WINDOWS]


def in_windows(qann: QuantizedModel, ladder: Ladder, **settings: Any) -> mt.spiking.SpikingModel:
    return mt.convert(qann, ladder=ladder, whole_window=True, **settings)


def reference(snn: Any, batch: torch.Tensor, steps: int) -> Run:
    """The whole numbers that `simulate` says."""
    return simulate(snn, batch, time_steps=steps, arithmetic=IntegerArithmetic(snn))


def assert_same(logits: torch.Tensor, totals: dict[str, torch.Tensor], expected: Run) -> None:
    assert torch.equal(logits, expected.logits)
    for name, total in expected.totals.items():
        assert torch.equal(totals[name].float(), total.float()), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(("ladder", "steps", "settings"), WINDOWS, ids=IDS)
def test_windows_are_the_same_bits_behind_every_step(
    ladder: Ladder, steps: int, settings: dict[str, Any], backend: str
) -> None:
    if (lacking := BACKENDS[backend].missing()) is not None:
        pytest.skip(lacking)
    for name in ("clamps", "residual")[: 1 + (ladder == Radix(1))]:
        snn, batch = in_windows(quantized(name), ladder, **settings), images(3)
        expected, model = reference(snn, batch, steps), mt.integer(snn, backend=backend)
        run = model.run(batch, steps, totals=True)
        assert_same(run.logits, run.totals, expected)
        assert torch.equal(model(batch, steps), expected.logits[-1])
        assert not torch.equal(run.logits[0], run.logits[-1])


@pytest.mark.long
def test_compiled_windows_are_the_same_bits() -> None:
    snn, batch = in_windows(quantized("residual"), Radix(1)), images(2)
    model = mt.integer(snn, backend="compile")
    for steps in (2, 4):
        assert torch.equal(model(batch, steps), reference(snn, batch, steps).logits[-1])


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(("ladder", "steps", "settings"), WINDOWS, ids=IDS)
def test_shifts_and_additions_are_the_same_bits(
    ladder: Ladder, steps: int, settings: dict[str, Any]
) -> None:
    snn, batch = in_windows(quantized("clamps"), ladder, **settings), images(2)
    run = shift_add(mt.integer(snn, backend="torch"), batch, steps)
    assert_same(run.logits, run.totals, reference(snn, batch, steps))
    ways = {name: 1 + neuron.spec.signed for name, neuron in snn.neurons()}
    each = {name: total.numel() * ladder.n for name, total in run.totals.items()}
    assert run.comparisons == {name: [each[name] * ways[name]] * steps for name in each}


@pytest.mark.slow
def test_a_digit_costs_as_many_additions_as_it_is_large_in_its_own_step() -> None:
    net = nn.Sequential(conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    qann = quantize(lived_in(net), QuantSpec(), calibration=images(8))
    for n, steps in ((1, 4), (3, 2)):
        snn = in_windows(qann, Radix(n))
        run = shift_add(mt.integer(snn, backend="torch"), images(2), steps)
        counts = simulate(snn, images(2), time_steps=steps).spike_counts["1"]
        assert run.additions["3"] == (5 * counts).tolist()
        assert min(run.additions["3"]) > 0


def test_a_window_costs_what_one_step_costs() -> None:
    snn = in_windows(quantized("residual"), Radix(1))
    plain = mt.integer(mt.convert(quantized("residual")), backend="torch").program()
    program = mt.integer(snn, backend="torch").program(3, 4)
    assert [type(item) for item in program.instructions] == [
        type(item) for item in plain.instructions
    ]
    fires = [item for item in program.instructions if isinstance(item, Fire)]
    assert all(item.together and item.spec.ladder == Uniform(15) for item in fires)


@cache
def _learned() -> QuantizedModel:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)
    net = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten())
    return quantize(lived_in(nn.Sequential(*net, nn.Linear(256, 3))), spec, calibration=images(8))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_learned_gaps_are_looked_up_in_windows_too(steps: int) -> None:
    snn = in_windows(_learned(), Radix(1))
    model = mt.integer(snn, backend="auto")
    run = model.run(images(2), steps, totals=True)
    assert_same(run.logits, run.totals, reference(snn, images(2), steps))
    with pytest.raises(SpecError, match="thresholds are real numbers"):
        shift_add(model, images(2), steps)
