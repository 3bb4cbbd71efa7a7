"""`calibrate`: never worse by its own loss, on every kind of network; what it makes is stored."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from networks import IMAGE, dense, images, network
from torch import Tensor

from mt_convert.calibration.calibrate import TRANSFORMS, calibrate
from mt_convert.calibration.search import Window
from mt_convert.calibration.spec import (
    NAMES,
    Calibration,
    Gaussian,
    InitialPotential,
    Maximum,
    MeanSquaredError,
    MembraneMean,
    Percentile,
    PercentileAlphaBeta,
    ThresholdBudget,
)
from mt_convert.calibration.text import name_of
from mt_convert.errors import DataError, SpecError
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Radix, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import even_response
from mt_convert.spiking.levels import quantized_activation as activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Presentation
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

FLOAT = QuantSpec(weight_bits=None, first_bits=None, last_bits=None, input_bits=None, act_bits=8)
SPECS = {"w4a4": QuantSpec(), "float": FLOAT}
STEPS: tuple[Calibration, ...] = (
    InitialPotential(0.25),
    Percentile(99.0),
    Maximum(0.7),
    MeanSquaredError(20),
    PercentileAlphaBeta(),
    Gaussian(),
)
T = 4


@cache
def qann_of(spec: str, name: str = "residual") -> QuantizedModel:
    """A small network with weights of 4 bits or floats."""
    return quantize(network(name), SPECS[spec], calibration=images(8, seed=2))


def losses(reference: SpikingModel, snn: SpikingModel, batch: Tensor) -> dict[str, float]:
    """The mean square that each layer misses of its quantized activation, on even input."""
    here = dict(snn.neurons())
    found: dict[str, float] = {}

    def measure(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        wanted = activation(layer, x)
        emitted = even_response(here[name], x, snn.presentation, T)
        found[name] = float((wanted - emitted).square().mean())
        return wanted

    with torch.no_grad():
        forward_with(reference, batch, measure)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize(
    ("ladder", "signed"),
    [
        (Uniform(1), False),
        (Uniform(1), True),
        (Uniform(3), False),
        (Uniform(3), True),
        (Binary(2), False),
        (PowerOfTwo(2), True),
    ],
    ids=str,
)
def test_no_calibration_makes_its_own_loss_worse(
    spec: str, presentation: str, ladder: Ladder, signed: bool
) -> None:
    snn = convert(qann_of(spec), ladder=ladder, signed=signed, presentation=presentation)
    batch, better = images(16), 0
    at_start = losses(snn, snn, batch[12:])
    for step in STEPS:
        found = calibrate(snn, batch, [step], time_steps=T)
        now = losses(snn, found.snn, batch[12:])
        assert [row.layer for row in found.report.rows] == list(at_start)
        for row in found.report.rows:
            assert row.calibration == name_of([step])
            assert row.before == pytest.approx(at_start[row.layer], rel=1e-4)
            assert row.loss_now == pytest.approx(now[row.layer], rel=1e-4)
            assert now[row.layer] <= at_start[row.layer]
            better += now[row.layer] < at_start[row.layer]
        assert (found.report.images, found.report.held_out, found.report.time_steps) == (12, 4, T)
    assert better > 0


@pytest.mark.slow
def test_a_calibration_that_is_worse_is_applied_where_that_is_asked_for() -> None:
    snn, batch = convert(qann_of("w4a4"), ladder=Uniform(15), presentation="every_step"), images(16)
    kept = calibrate(snn, batch, [Percentile(60.0)], time_steps=T)
    forced = calibrate(snn, batch, [Percentile(60.0)], time_steps=T, keep_better=False)
    worse = [row for row in kept.report.rows if not row.kept and row.loss == "mean square"]
    assert worse
    assert all(row.after >= row.before for row in worse)
    applied = [row for row in forced.report.rows if row.loss == "mean square"]
    assert all(row.kept for row in applied)
    for row in worse:
        old, new = (dict(item.neurons())[row.layer] for item in (kept.snn, forced.snn))
        assert float(new.delta) != float(old.delta) == float(dict(snn.neurons())[row.layer].delta)
    now = losses(snn, forced.snn, batch[12:])
    assert any(now[row.layer] > row.before for row in applied)


@pytest.mark.slow
def test_calibrations_come_one_after_the_other() -> None:
    snn, batch = convert(qann_of("float"), ladder=Uniform(1), presentation="every_step"), images(16)
    steps = [Percentile(95.0), MeanSquaredError(7)]
    both = calibrate(snn, batch, steps, time_steps=T, keep_better=False)
    first = calibrate(snn, batch, steps[:1], time_steps=T, keep_better=False)
    assert both.report.rows[: len(first.report.rows)] == first.report.rows
    last = both.report.rows[len(first.report.rows) :]
    for row, before in zip(last, first.report.rows, strict=True):
        assert row.before == pytest.approx(before.after)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=lambda step: name_of([step]))
def test_the_network_that_is_calibrated_stays_as_it_is(step: Calibration) -> None:
    snn, batch = convert(qann_of("float"), ladder=Uniform(3), presentation="every_step"), images(16)
    before = {name: tensor.clone() for name, tensor in snn.state_dict().items()}
    found = calibrate(snn, batch, [step], time_steps=T, keep_better=False).snn
    after = snn.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    differs = [
        name
        for name, tensor in found.state_dict().items()
        if name not in before or not torch.equal(tensor, before[name])
    ]
    assert differs


def test_no_calibration_is_a_copy() -> None:
    snn = convert(qann_of("w4a4"), ladder=Uniform(3), signed=True)
    found = calibrate(snn, images(2), [], time_steps=1)
    assert found.report.rows == ()
    assert found.snn is not snn
    batch = images(4)
    expected = simulate(snn, batch, time_steps=T).logits
    assert torch.equal(simulate(found.snn, batch, time_steps=T).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_a_calibrated_network_is_stored_and_loaded(
    spec: str, presentation: str, tmp_path: Path
) -> None:
    snn = convert(qann_of(spec), ladder=Uniform(3), presentation=presentation)
    steps = [PercentileAlphaBeta(), MembraneMean(rounds=2)]
    snn = calibrate(snn, images(16), steps, time_steps=T, keep_better=False).snn
    assert all(layer.gain is not None for _, layer in snn.neurons())
    assert any(layer.offset is not None for _, layer in snn.neurons())
    save(snn, tmp_path / "snn")
    loaded = load(tmp_path / "snn")
    batch = images(4, seed=6)
    expected = simulate(snn, batch, time_steps=T).logits
    assert torch.equal(simulate(loaded, batch, time_steps=T).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_calibrated_network_runs_spike_by_spike(presentation: str, signed: bool) -> None:
    qann = quantize(dense(), FLOAT, calibration=images(8, seed=2))
    snn = convert(qann, ladder=Uniform(3), signed=signed, presentation=presentation)
    steps = [PercentileAlphaBeta(), InitialPotential(0.375)]
    snn = calibrate(snn, images(16), steps, time_steps=T, keep_better=False).snn
    batch = images(4, seed=7)
    run, literal = (verb(snn, batch, time_steps=T) for verb in (simulate, spike_by_spike))
    for name, total in run.totals.items():
        assert torch.equal(literal.totals[name], total), name
    torch.testing.assert_close(literal.logits, run.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_a_float_network_of_few_steps_gets_closer_to_its_analog_self(presentation: str) -> None:
    qann = qann_of("float")
    snn = convert(qann, ladder=Uniform(1), signed=True, presentation=presentation)
    found = calibrate(snn, images(16), [MeanSquaredError()], time_steps=T).snn
    batch = images(32, seed=8)
    with torch.no_grad():
        wanted = qann(batch)
    before, after = (
        float((simulate(item, batch, time_steps=T).logits[-1] - wanted).square().mean())
        for item in (snn, found)
    )
    assert after < before


@pytest.mark.slow
def test_layers_with_learned_gaps_are_left_alone() -> None:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)
    snn = convert(quantize(dense(), spec, calibration=images(8)))
    for step in STEPS:
        found = calibrate(snn, images(8), [step], time_steps=2, keep_better=False)
        assert [(row.loss, row.kept) for row in found.report.rows] == [("learned gaps", False)] * 2
        batch = images(4)
        expected = simulate(snn, batch, time_steps=2).logits
        assert torch.equal(simulate(found.snn, batch, time_steps=2).logits, expected)


@pytest.mark.slow
def test_a_dead_layer_is_left_alone() -> None:
    net = dense()
    net[0].weight.data.zero_()
    net[0].bias.data.fill_(-1.0)
    snn = convert(quantize(net, QuantSpec(), calibration=images(8)), presentation="every_step")
    for step in (Percentile(), Maximum(), MeanSquaredError(), PercentileAlphaBeta(), Gaussian()):
        found = calibrate(snn, images(8), [step], time_steps=2, keep_better=False)
        first = found.report.rows[0]
        old, new = (dict(item.neurons())[first.layer] for item in (snn, found.snn))
        assert first.before == first.after == 0, name_of([step])
        assert bool(torch.isfinite(simulate(found.snn, images(2), time_steps=2).logits).all())
        if not first.kept:
            assert torch.equal(old.delta, new.delta)


def test_the_first_step_that_is_no_calibration_is_named_with_what_is_allowed() -> None:
    snn = convert(qann_of("w4a4"))
    with pytest.raises(SpecError) as raised:
        calibrate(snn, images(4), [torch.ones, "msee", 3], time_steps=1)  # type: ignore[list-item]
    assert [fault.where for fault in raised.value.faults][1:] == ["msee", "3"]
    assert "alpha_beta" in str(raised.value)


@pytest.mark.parametrize("count", [0, 1, 1025])
def test_too_few_and_too_many_images_are_refused(count: int) -> None:
    with pytest.raises(SpecError, match=f"{count} images to calibrate on: allowed are 2 to 1024"):
        calibrate(convert(qann_of("w4a4")), torch.zeros(count, *IMAGE), [], time_steps=1)


def test_other_wrong_inputs_are_refused() -> None:
    snn = convert(qann_of("w4a4"))
    with pytest.raises(SpecError, match="time_steps is 0"):
        calibrate(snn, images(4), [], time_steps=0)
    with pytest.raises(DataError, match="do not fit"):
        calibrate(snn, torch.zeros(4, 3, 8, 8), [], time_steps=1)
    with pytest.raises(DataError, match="NaN"):
        calibrate(snn, images(4) * float("nan"), [], time_steps=1)


def test_every_calibration_that_has_a_name_can_be_run() -> None:
    assert set(TRANSFORMS) == set(NAMES.values())


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_windows_of_digits_are_calibrated_and_fire_by_the_literal_rule(step: Calibration) -> None:
    snn = convert(_digits(), ladder=Radix(1), whole_window=True)
    done = calibrate(snn, images(8), [step], time_steps=4, keep_better=False)
    run, literal = (
        simulate(done.snn, images(4), time_steps=4, literal=way) for way in (False, True)
    )
    assert torch.equal(run.logits, literal.logits)
    assert all(neuron.spec.ladder == Radix(1, steps=4) for _, neuron in done.snn.neurons())
    if isinstance(step, (Maximum, Percentile)):
        before = simulate(snn, images(4), time_steps=4).logits
        assert not torch.equal(run.logits, before)


def test_a_budget_of_thresholds_refuses_digits_and_a_short_window_has_its_own_range() -> None:
    snn = convert(_digits(), ladder=Radix(1), whole_window=True)
    with pytest.raises(SpecError, match="layer by layer, and these are digits"):
        calibrate(snn, images(8), [ThresholdBudget(levels=3.0)], time_steps=4)
    spec = next(neuron.spec for _, neuron in snn.neurons())
    tops = [Window(Presentation.ONCE, T).bounds(spec)[1] for T in (1, 2, 3, 4, 9)]
    assert tops == [8, 12, 14, 15, 15]


@cache
def _digits() -> QuantizedModel:
    return quantize(dense(), QuantSpec(), calibration=images(8))


@pytest.mark.slow
def test_a_run_for_other_steps_than_those_of_the_calibration_is_warned_of(tmp_path: Path) -> None:
    snn = calibrate(convert(qann_of("w4a4")), images(8), "membrane_mean", time_steps=2).snn
    save(snn, tmp_path)
    for item in (snn, load(tmp_path), snn.with_neurons({})):
        with pytest.warns(UserWarning, match="calibrated for T = 2 and runs for T = 4"):
            simulate(item, images(2), time_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(snn, images(2), time_steps=2)
        again = calibrate(snn, images(8), "mse", time_steps=4).snn
        simulate(again, images(2), time_steps=4)
    assert sum("calibrated for T = 4:" in text for text in again.report.warnings) == 1
    assert not any("calibrated for T = 2:" in text for text in again.report.warnings)
