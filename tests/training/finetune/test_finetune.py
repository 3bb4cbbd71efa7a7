"""Fine-tuning of converted networks: from exactly the conversion, never below it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.data import DataSpec, Splits, batches, images, open_data
from mt_convert.errors import CheckpointError, SpecError
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.surrogate import ATan, Linear
from mt_convert.quantization.quantize import QuantizedModel
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.training.accuracy import accuracy
from mt_convert.training.finetune.finetune import FinetuneSpec, finetune
from mt_convert.training.finetune.learner import TrainableSpikingModel
from mt_convert.training.finetune.neuron import TrainableParts
from mt_convert.training.gradients import BPTT, DSR, OTTT
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

SPEC = TrainSpec(epochs=2, batch_size=32, lr=0.005, weight_decay=0.0)


@pytest.fixture(scope="module")
def digits() -> Splits:
    spec = DataSpec("digits", image_size=8, channels=1, classes=10, validation_share=0.2)
    return open_data(replace(spec, limit=700, test_images=200))


@pytest.fixture(scope="module")
def qann(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    )
    fit(
        net,
        digits,
        replace(SPEC, epochs=4, lr=0.1, weight_decay=5e-4),
        tmp_path_factory.mktemp("ann"),
        classes=10,
    )
    spec = mt.QuantSpec(weight_bits=4, act_bits=3)
    return mt.quantize(net.eval(), spec, calibration=images(digits.calibration, 128))


def _accuracy(snn: SpikingModel, splits: Splits, time_steps: int) -> float:
    right = 0
    for shown, labels in batches(splits.validation, 70):
        logits = simulate(snn, shown, time_steps=time_steps).logits[-1]
        right += int((logits.argmax(1) == labels).sum())
    return round(100 * right / len(splits.validation), 4)


WAYS: dict[str, dict[str, Any]] = {
    "once": {"ladder": Uniform(1), "signed": True},
    "every_step": {"ladder": Uniform(1), "presentation": "every_step"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", [BPTT(), BPTT(0.5), OTTT(), OTTT(True), DSR()], ids=repr)
def test_it_starts_at_the_conversion_and_never_ends_below(
    digits: Splits, qann: QuantizedModel, tmp_path: Path, way: str, algorithm: Any
) -> None:
    snn = mt.convert(qann, **WAYS[way])
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    start, quantized = _accuracy(snn, digits, 2), accuracy(qann, digits.validation, 70)
    how = FinetuneSpec(2, algorithm, TrainableParts(potentials=True))
    done = finetune(snn, digits, how, SPEC, tmp_path, classes=10)
    assert done.history.start_accuracy == pytest.approx(start, abs=1e-3)
    end = _accuracy(done.snn, digits, 2)
    assert done.history.best_accuracy == pytest.approx(end, abs=1e-3)
    assert start < quantized
    assert end >= start
    if way == "once":  # a single threshold has settled on little yet: at least half of it is back
        assert end - start > 0.5 * (quantized - start)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


@pytest.mark.slow
def test_the_start_is_kept_where_training_makes_it_worse(
    digits: Splits, qann: QuantizedModel, tmp_path: Path
) -> None:
    snn = mt.convert(qann)
    ruin = replace(SPEC, epochs=1, lr=100.0, scheduler="constant")
    how = FinetuneSpec(1, learns=TrainableParts(thresholds=False), surrogate=ATan())
    done = finetune(snn, digits, how, ruin, tmp_path, classes=10)
    assert done.history.best_epoch == 0
    assert done.history.best is None
    assert done.history.rows[0].validation_accuracy is not None
    assert done.history.best_accuracy is not None
    assert done.history.best_accuracy > done.history.rows[0].validation_accuracy
    shown = images(digits.test, 50)
    wanted = simulate(snn, shown, time_steps=1).logits
    assert torch.equal(simulate(done.snn, shown, time_steps=1).logits, wanted)


@pytest.mark.slow
def test_an_epoch_from_the_conversion_beats_the_same_from_random_weights(
    digits: Splits, qann: QuantizedModel, tmp_path: Path
) -> None:
    """METHODS 10: hybrid training."""
    converted = mt.convert(qann, **WAYS["every_step"])
    random = copy.deepcopy(converted)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in random.layers.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.copy_(
                    layer.weight.flatten()[torch.randperm(layer.weight.numel())].view_as(
                        layer.weight
                    )
                )
    how = FinetuneSpec(2, learns=TrainableParts(), surrogate=Linear())
    ends = []
    for name, snn in (("converted", converted), ("random", random)):
        spec = replace(SPEC, epochs=1)
        history = finetune(snn, digits, how, spec, tmp_path / name, classes=10).history
        ends.append(history.rows[0].validation_accuracy)
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0] > ends[1] + 10


class _Killed(Exception):
    pass


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_network(
    digits: Splits, qann: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snn = mt.convert(qann, **WAYS["once"])
    spec = replace(SPEC, epochs=1, save_every=4)
    how = FinetuneSpec(2, OTTT(True))
    whole = finetune(snn, digits, how, spec, tmp_path / "whole", classes=10)
    learn, count = OTTT.learn, 0

    def killed(self: OTTT, lesson: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == 7:
            raise _Killed
        return learn(self, lesson)

    monkeypatch.setattr(OTTT, "learn", killed)
    with pytest.raises(_Killed):
        finetune(snn, digits, how, spec, tmp_path / "cut", classes=10)
    monkeypatch.setattr(OTTT, "learn", learn)
    resumed = finetune(snn, digits, how, spec, tmp_path / "cut", classes=10)
    assert resumed.history.start_accuracy == whole.history.start_accuracy
    assert resumed.history.best_epoch == whole.history.best_epoch
    for name, value in whole.snn.state_dict().items():
        assert torch.equal(resumed.snn.state_dict()[name], value), name
    others = (replace(how, time_steps=3), replace(how, algorithm=OTTT()))
    for other in others:
        with pytest.raises(CheckpointError, match="other settings"):
            finetune(snn, digits, other, spec, tmp_path / "cut", classes=10)


@pytest.mark.slow
def test_a_fine_tuned_network_is_stored_and_loaded_whole(
    digits: Splits, qann: QuantizedModel, tmp_path: Path
) -> None:
    snn = mt.convert(qann, **WAYS["once"])
    learner = TrainableSpikingModel(snn, 3, learns=TrainableParts(potentials=True, leaks=True))
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name.endswith(("factor", "offset", "leak")):
                parameter += 0.1 * torch.rand(parameter.shape)
    found = learner.snapshot()
    mt.save(found, tmp_path / "snn")
    loaded = mt.load(tmp_path / "snn")
    shown = images(digits.test, 20)
    wanted = simulate(found, shown, time_steps=3).logits
    assert torch.equal(simulate(loaded, shown, time_steps=3).logits, wanted)
    assert not torch.equal(simulate(snn, shown, time_steps=3).logits, wanted)
    with pytest.raises(SpecError, match="leaks=False"):
        mt.integer(loaded)


def test_without_validation_images_it_is_refused(qann: QuantizedModel, tmp_path: Path) -> None:
    spec = DataSpec("digits", image_size=8, channels=1, classes=10, validation_share=0.0)
    none = open_data(replace(spec, limit=100, test_images=20, calibration_images=20))
    with pytest.raises(SpecError, match="set validation_share above 0"):
        finetune(mt.convert(qann), none, FinetuneSpec(1), SPEC, tmp_path, classes=10)
