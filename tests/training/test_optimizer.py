"""Quantizers' steps are a parameter group of their own: its rate, its decay, its schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import quantized
from small_training import quantized_net
from torch import nn

from mt_convert.errors import SpecError
from mt_convert.quantization.brevitas_layers import step_parameters, step_sizes
from mt_convert.quantization.spec import BatchNorm, QuantSpec, Scale
from mt_convert.training.optimizer import make_optimizer, reading_workers
from mt_convert.training.spec import StepGroup, TrainSpec

SPEC = TrainSpec(epochs=4, lr=0.1, weight_decay=0.5, optimizer="adamw", warmup_epochs=1)


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    own = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


@pytest.mark.slow
def test_steps_are_those_of_activations_the_image_and_trained_weights() -> None:
    qann = quantized("residual", BatchNorm.KEEP)
    found = names_of(qann, step_parameters(qann))
    assert found == {name for name, _ in qann.named_parameters() if name.endswith(".value")}
    assert len(found) == 6 + 4  # stem and head have 8 bits: their steps follow the largest weight
    assert step_parameters(nn.Conv2d(1, 1, 1)) == []


@pytest.mark.slow
def test_steps_are_never_decayed_and_all_else_is_as_timm_says() -> None:
    qann = quantized("residual", BatchNorm.KEEP)
    optimizer, _ = make_optimizer(qann, SPEC, steps=10)
    decay = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in names_of(qann, group["params"])
    }
    for name, parameter in qann.named_parameters():
        plain = 0.5 if parameter.ndim > 1 else 0.0
        assert decay[name] == (0.0 if name.endswith(".value") else plain), name
    steps = step_parameters(qann)
    assert any(step.ndim == 4 for step in steps), "timm alone would decay these"
    scaled = replace(SPEC, steps=StepGroup(weight_decay=0.25))
    optimizer, _ = make_optimizer(qann, scaled, steps=10)
    assert optimizer.param_groups[-1]["weight_decay"] == 0.25
    assert optimizer.param_groups[-1]["params"] == steps


@pytest.mark.parametrize("scheduler", ["cosine", "tanh", "constant"])
def test_steps_have_their_share_of_the_rate_in_warm_up_and_behind_it(scheduler: str) -> None:
    spec = replace(SPEC, scheduler=scheduler, steps=StepGroup(lr_scale=0.02))
    optimizer, schedule = make_optimizer(quantized("residual"), spec, steps=10)
    rates = []
    for update in range(1, 41):
        main, *_, own = (group["lr"] for group in optimizer.param_groups)
        assert own == pytest.approx(0.02 * main)
        rates.append(main)
        schedule.step_update(update)
    assert 0 < rates[0] < rates[9] <= 0.1


def test_a_step_of_the_optimizer_moves_steps_by_their_rate() -> None:
    qann = quantized("residual")
    before = [step.detach().clone() for step in step_parameters(qann)]
    spec = replace(SPEC, warmup_epochs=0, scheduler="constant", steps=StepGroup(lr_scale=0.01))
    optimizer, _ = make_optimizer(qann, spec, steps=1)
    for parameter in qann.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for old, new in zip(before, step_parameters(qann), strict=True):
        torch.testing.assert_close(old - new, torch.full_like(new, 0.001))  # Adam's first step


def test_relative_rates_move_every_step_by_about_the_same_share() -> None:
    qann = quantized("residual")
    before = [step.detach().clone() for step in step_parameters(qann)]
    assert max(step.mean() for step in before) > 8 * min(step.mean() for step in before)
    steps = StepGroup(lr_scale=0.1, relative=True)
    spec = replace(SPEC, warmup_epochs=0, scheduler="constant", steps=steps)
    optimizer, _ = make_optimizer(qann, spec, steps=1)
    for parameter in qann.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for old, new in zip(before, step_parameters(qann), strict=True):
        share = ((old - new).mean() / old.mean()).item()
        assert 0.01 / 1.42 < share < 0.01 * 1.42, "0.1 of the rate of 0.1, to a power of two"


def test_steps_that_are_logarithms_move_by_a_share_as_they_are() -> None:
    qann = quantized_net(QuantSpec(weight_bits=4, act_bits=4, scale=Scale.POWER_OF_TWO))
    assert set(step_sizes(qann).values()) == {1 / math.log(2)}


def test_relative_steps_of_like_size_share_a_group() -> None:
    qann = quantized("residual")
    optimizer, _ = make_optimizer(qann, replace(SPEC, steps=StepGroup(relative=True)), steps=1)
    groups = [group for group in optimizer.param_groups if "lr_scale" in group]
    assert len({group["lr_scale"] for group in groups}) == len(groups)
    assert sum(len(group["params"]) for group in groups) == len(step_parameters(qann))


def test_a_float_network_has_timms_groups_alone() -> None:
    optimizer, _ = make_optimizer(nn.Conv2d(1, 1, 1), SPEC, steps=1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    with pytest.raises(SpecError, match=r"no learned steps[\s\S]*where nothing is quantized"):
        make_optimizer(nn.Conv2d(1, 1, 1), replace(SPEC, steps=StepGroup(0.1)), steps=1)


def test_values_of_the_group_outside_are_listed() -> None:
    with pytest.raises(SpecError, match="2 values") as caught:
        StepGroup(lr_scale=1.5, weight_decay=-1.0)
    assert {fault.where: fault.hint for fault in caught.value.faults} == {
        "lr_scale": "allowed: 0 to 1",
        "weight_decay": "allowed: 0 or more",
    }


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (64, 8)])
def test_as_many_processes_read_as_there_are_cores_for_this_one(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt_convert.training.optimizer.cores", lambda: list(range(cores)))
    streamed: Any = SimpleNamespace(in_memory=False)
    held: Any = SimpleNamespace(in_memory=True)
    assert reading_workers(SPEC, streamed) == workers
    assert reading_workers(SPEC, held) == 0
    assert reading_workers(replace(SPEC, workers=2), held) == 2
