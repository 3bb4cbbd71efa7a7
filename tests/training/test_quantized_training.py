"""Quantization-aware training with its parts: killed and resumed, averaged, watched, compiled."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import conv, images, lived_in
from small_training import IMAGES, SPEC, normed, quantized_net, same_weights, splits
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mt_convert.data import DataSpec, Splits, tensor_set
from mt_convert.errors import CheckpointError, DataError, SpecError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.quantization.activations.quant_act import (
    QuantAct,
    take_mean_level,
    watching_levels,
)
from mt_convert.quantization.brevitas_layers import step_parameters
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.training.loop import fit
from mt_convert.training.session import Session
from mt_convert.training.spec import FreezeOscillating, StepGroup, TrainSpec

PARTS = replace(
    SPEC,
    optimizer="adamw",
    warmup_epochs=1,
    ema_decay=0.8,
    reestimate_bn=24,
    spike_weight=0.01,
    distillation_weight=0.9,
    distillation_temperature=4.0,
    steps=StepGroup(lr_scale=0.1),
    freeze_oscillating=FreezeOscillating(0.3, 0.2, 0.1),
)


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours catches it."""


def stop_at(patch: pytest.MonkeyPatch, nth: int) -> None:
    """Make the n-th step of training the last thing the process does."""
    original: Callable[..., Any] = Session._update
    calls = 0

    def wrapped(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return original(*args)

    patch.setattr(Session, "_update", wrapped)


def train(folder: Path, spec: TrainSpec = PARTS) -> tuple[QuantizedModel, list[Any]]:
    qann = quantized_net()
    history = fit(qann, splits(), spec, folder, classes=3, teacher=normed())
    rows = [{**vars(row), "seconds": None} for row in history.rows]
    return qann, rows


@pytest.mark.slow
def test_killed_and_resumed_with_all_parts_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, rows = train(tmp_path / "whole")
    for nth in (3, 3):  # steps 2 and, resumed behind an epoch, 6 of 8
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, nth + 1)
            with pytest.raises(Killed):
                train(tmp_path / "cut")
    again, rows_again = train(tmp_path / "cut")
    assert same_weights(whole, again)
    assert rows == rows_again
    assert rows[-1]["frozen"] > 0


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in its fifth step; nothing may change it."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Killed):
            train(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"steps": StepGroup(lr_scale=0.2)},
        {"reestimate_bn": 12},
        {"spike_weight": 0.0},
        {"freeze_oscillating": None},
        {"freeze_oscillating": FreezeOscillating(0.3, 0.2, 0.05)},
    ],
    ids=str,
)
def test_a_run_is_not_resumed_with_other_parts(
    killed: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        train(folder, replace(PARTS, **change))


@pytest.mark.slow
def test_averages_are_of_weights_steps_and_batch_norms_and_are_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    average = Session._average

    def look(self: Session, ema: Any, done: int) -> None:
        average(self, ema, done)
        seen.append({name: item.clone() for name, item in self.model.state_dict().items()})

    monkeypatch.setattr(Session, "_average", look)
    qann = quantized_net()
    fit(qann, splits(), replace(SPEC, epochs=1, ema_decay=0.75), tmp_path, classes=3)
    kept = qann.state_dict()
    assert len(seen) == 4
    for name, value in kept.items():
        if not value.is_floating_point():
            assert torch.equal(value, seen[-1][name])
            continue
        expected = seen[0][name]  # timm copies behind the first step
        for state in seen[1:]:
            expected = 0.75 * expected + 0.25 * state[name]
        torch.testing.assert_close(value, expected)
    names = [name for name in kept if name.endswith(".value")]
    assert names
    assert any(not torch.equal(kept[name], seen[-1][name]) for name in names)


# ---------------------------------------------------------------------------------- spike weight


def mean_level(qann: QuantizedModel) -> float:
    """Of all activations, in evaluation mode."""
    sums: list[Tensor] = []
    counts: list[int] = []

    def hook(layer: QuantAct, inputs: Any, output: Tensor) -> None:
        sums.append((output / layer.scale).abs().sum())
        counts.append(output.numel())

    acts = [layer for _, layer in layer_nodes(qann.layers, QuantAct) if not layer.encodes_input]
    handles = [layer.register_forward_hook(hook) for layer in acts]
    with torch.no_grad():
        qann(IMAGES)
    for handle in handles:
        handle.remove()
    return float(sum(sums)) / sum(counts)


@pytest.mark.long
def test_the_mean_level_is_that_of_all_activations_and_has_their_gradient() -> None:
    qann = quantized_net()
    expected = mean_level(qann)
    for module in qann.modules():
        if isinstance(module, QuantAct):
            module.train()  # the batch norms stay as they are
    with watching_levels(qann):
        qann(IMAGES)
        level = take_mean_level(qann)
        assert float(level.detach()) == pytest.approx(expected, 1e-5)
        level.backward()
        with pytest.raises(AssertionError, match="no pass was watched"):
            take_mean_level(qann)
    last = qann.layers.get_submodule("8")
    assert isinstance(last, QuantAct)
    assert not last.watched
    (step,) = step_parameters(last)
    assert step.grad is not None
    assert step.grad < 0, "a longer step has fewer levels"
    compiled = torch.compile(quantized_net().train(), fullgraph=True, backend="aot_eager")
    with watching_levels(compiled):
        compiled(IMAGES)
        take_mean_level(compiled).backward()
    assert step_parameters(compiled)[1].grad is not None


@pytest.mark.slow
def test_spikes_fall_with_their_weight(tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 2.0):
        qann = quantized_net()
        spec = replace(SPEC, epochs=4, spike_weight=weight)
        fit(qann, splits(), spec, tmp_path / str(weight), classes=3)
        found.append(mean_level(qann))
    assert found[1] < 0.7 * found[0]


def test_a_network_without_quantized_activations_has_no_spikes_to_lower(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no quantized activations  set it to 0"):
        fit(normed(), splits(), replace(SPEC, spike_weight=0.1), tmp_path, classes=3)


# -------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
def test_images_are_looked_at_outside_the_compiled_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: QuantizedModel, images: Tensor) -> None:
        raise DataError(f"looked at {len(images)} images")

    monkeypatch.setattr(QuantizedModel, "check", refuse)
    qann = quantized_net_unchecked()
    with pytest.raises(DataError, match="looked at 12 images"):  # before anything is compiled
        fit(qann, splits(), replace(SPEC, compile=True), tmp_path, classes=3)


@pytest.mark.long
def test_a_compiled_training_with_all_parts_is_one_graph(tmp_path: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    spec = replace(PARTS, compile=True, mixed_precision="bf16")
    qann, rows = train(tmp_path, spec)
    assert len(rows) == 2
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    assert not qann.training


class Residual(nn.Module):
    """A residual sum of 64 channels, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = conv(3, 64, bias=False), conv(64, 64, bias=False)
        self.norm0, self.norm1 = nn.BatchNorm2d(64), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.conv0(x)))
        logits: Tensor = self.head(torch.relu(self.norm1(self.conv1(x)) + x).mean((2, 3)))
        return logits


@pytest.mark.long
def test_compiled_bfloat16_learns_what_eager_learns(tmp_path: Path) -> None:
    """64 channels of 8x8 pixels: the layout in which torch's compiled gradients were NaN."""
    data = DataSpec("mine", image_size=8, channels=3, classes=3)
    pixels = images(128, (3, 8, 8)).sigmoid()
    train = tensor_set(pixels, (pixels.mean((1, 2, 3)).argsort().argsort() * 3) // 128, data)
    net = Residual()
    torch._dynamo.reset()
    moved = []
    for compiled in (False, True):
        spec = QuantSpec(weight_bits=4, act_bits=4)
        qann = quantize(lived_in(copy.deepcopy(net)), spec, calibration=pixels[:16])
        start = torch.cat([value.detach().flatten() for value in qann.parameters()])
        training = TrainSpec(epochs=1, batch_size=128, mixed_precision="bf16", compile=compiled)
        fit(qann, Splits(train, train, train, train), training, tmp_path / str(compiled), classes=3)
        moved.append(torch.cat([value.detach().flatten() for value in qann.parameters()]) - start)
    assert moved[0].norm() > 0
    assert (moved[1] - moved[0]).norm() < 0.1 * moved[0].norm()


def quantized_net_unchecked() -> QuantizedModel:
    """A quantized network around a layer, not calibrated: nothing looks at images here."""
    qann = object.__new__(QuantizedModel)
    nn.Module.__init__(qann)
    qann.add_module("layers", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    qann.spec, qann.image_shape = QuantSpec(), (1, 8, 8)
    return qann
