"""Thresholds per layer under a budget: it is kept, and no choice is worse than the uniform one."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from networks import images, network
from torch import Tensor

from mt_convert.calibration.samples import Samples
from mt_convert.calibration.spec import ThresholdBudget
from mt_convert.calibration.threshold_budget import transform
from mt_convert.errors import SpecError
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import levels, quantized_activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

T = 3


@cache
def qann_of(seed: int) -> QuantizedModel:
    """A small quantized network; shared, so not to be changed."""
    return quantize(network("residual", seed), QuantSpec(), calibration=images(8, seed=2))


def converted(
    ladder: Ladder | None = None,
    signed: bool = False,
    presentation: str = "every_step",
    seed: int = 0,
) -> SpikingModel:
    ladder = ladder or Uniform(1)
    return convert(qann_of(seed), ladder=ladder, signed=signed, presentation=presentation)


def samples_of(snn: SpikingModel, seed: int = 5) -> Samples:
    return Samples.split(snn, images(16, seed=seed), T)


def reaches(snn: SpikingModel) -> list[float]:
    return [float(item.spec.ladder.reach) for _, item in snn.neurons()]


def spikes(snn: SpikingModel, batch: Tensor) -> float:
    """Spikes per neuron and image."""
    run = simulate(snn, batch, time_steps=T)
    events = sum(float(count.sum()) for count in run.spike_counts.values())
    return events / sum(run.neurons.values()) / len(batch)


def loss_of(snn: SpikingModel, reference: SpikingModel, batch: Tensor) -> float:
    """Relative squared difference of the logits to the quantized network's."""
    with torch.no_grad():
        wanted = forward_with(
            reference, batch, lambda name, layer, x: quantized_activation(layer, x)
        )
    found = simulate(snn, batch, time_steps=T).logits[-1]
    return float((found - wanted).square().sum() / wanted.square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_budget_of_levels_is_kept_and_the_loss_is_not_above_the_uniform_choices(
    seed: int, presentation: str, signed: bool
) -> None:
    snn = converted(None, signed, presentation, seed)
    samples = samples_of(snn, seed)
    found, rows = transform(ThresholdBudget(levels=3.4), snn, samples, True)
    assert sum(reaches(found)) / 5 <= 3.4
    losses = [
        loss_of(
            convert(qann_of(seed), ladder=Uniform(n), signed=signed, presentation=presentation),
            snn,
            samples.held_out,
        )
        for n in (1, 2, 3)
    ]
    assert rows[-1].before in [pytest.approx(loss, rel=1e-4) for loss in losses]
    assert rows[-1].loss_now <= rows[-1].before
    assert [row.layer for row in rows] == [*dict(snn.neurons()), "all layers"]
    assert [row.loss_now for row in rows[:-1]] == reaches(found)
    assert rows[-1].loss_now == pytest.approx(loss_of(found, snn, samples.held_out), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_a_budget_of_spikes_is_kept_on_the_images_to_fit(presentation: str) -> None:
    snn = converted(None, True, presentation)
    samples = samples_of(snn)
    spent = [
        spikes(
            convert(qann_of(0), ladder=Uniform(n), signed=True, presentation=presentation),
            samples.fit,
        )
        for n in (1, 3)
    ]
    budget = 1.1 * max(spent)
    found, rows = transform(ThresholdBudget(spikes=budget), snn, samples, True)
    assert spikes(found, samples.fit) <= budget
    assert rows[-1].loss_now <= rows[-1].before
    assert len(set(reaches(found))) > 1 or max(reaches(found)) > 1


@pytest.mark.slow
def test_a_layer_without_effect_gives_its_levels_to_the_others() -> None:
    snn = converted()
    snn.layers.d.weight.data.zero_()  # the inner layer of the last block, relu_3, reads c, feeds d
    found, rows = transform(ThresholdBudget(levels=3.0), snn, samples_of(snn), False)
    chosen = dict(zip([name for name, _ in snn.neurons()], reaches(found), strict=True))
    assert rows[-1].kept
    assert chosen["relu_3"] < 3 < max(chosen.values())
    assert sum(chosen.values()) <= 15


@pytest.mark.slow
def test_a_budget_for_all_levels_takes_them_all_and_is_exact() -> None:
    snn = converted(Uniform(3), True, "once")
    samples = samples_of(snn)
    found, rows = transform(ThresholdBudget(levels=15.0), snn, samples, True)
    assert loss_of(found, snn, samples.held_out) == 0.0
    assert rows[-1].loss_now == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [Binary(2), PowerOfTwo(3)])
def test_ladders_keep_their_kind(ladder: Ladder) -> None:
    snn = converted(ladder)
    found, _ = transform(ThresholdBudget(levels=4.0), snn, samples_of(snn), True)
    assert {type(item.spec.ladder) for _, item in found.neurons()} == {type(ladder)}
    assert all(item.spec.ladder.reach <= levels(item.spec) for _, item in found.neurons())
    assert sum(reaches(found)) / 5 <= 4.0


@pytest.mark.slow
def test_learned_gaps_are_left_alone_and_said_so() -> None:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)
    snn = convert(quantize(network("residual"), spec, calibration=images(8, seed=2)))
    found, rows = transform(ThresholdBudget(levels=3.0), snn, samples_of(snn), True)
    assert {row.loss for row in rows[:-1]} == {"learned gaps"}
    assert not any(row.kept for row in rows)
    assert reaches(found) == reaches(snn)


@pytest.mark.sampled
@pytest.mark.parametrize("step", [ThresholdBudget(levels=0.5), ThresholdBudget(spikes=1e-6)])
def test_a_budget_that_nothing_meets_is_refused_and_the_advice_helps(step: ThresholdBudget) -> None:
    snn = converted()
    samples = samples_of(snn)
    with pytest.raises(SpecError, match="budget is too small") as error:
        transform(step, snn, samples, True)
    need = float(error.value.faults[0].hint.split("needs ")[1].split(":")[0]) * 1.01
    wide = ThresholdBudget(levels=need) if step.levels else ThresholdBudget(spikes=need)
    found, _ = transform(wide, snn, samples, True)
    assert reaches(found) == [1.0] * 5


@pytest.mark.slow
def test_the_network_handed_in_is_unchanged_and_two_calls_agree(tmp_path: Path) -> None:
    snn = converted()
    before = deepcopy(snn.state_dict())
    found, rows = transform(ThresholdBudget(levels=3.0), snn, samples_of(snn), True)
    again, rows_again = transform(ThresholdBudget(levels=3.0), snn, samples_of(snn), True)
    assert reaches(snn) == [1.0] * 5
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
    assert rows == rows_again
    assert reaches(found) == reaches(again)
    save(found, tmp_path)
    x = images(3, seed=8)
    runs = [simulate(item, x, time_steps=T) for item in (found, load(tmp_path), snn)]
    assert torch.equal(runs[0].logits, runs[1].logits)
    assert not torch.equal(runs[0].logits, runs[2].logits)
