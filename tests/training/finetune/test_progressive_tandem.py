"""Tandem learning: counts forward, the analog network back, one layer after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.data import DataSpec, Splits, images, open_data
from mt_convert.errors import SpecError
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import QuantizedModel
from mt_convert.spiking.levels import analog, levels, quantized_activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.training.accuracy import accuracy
from mt_convert.training.algorithm import Derivative
from mt_convert.training.finetune import progressive_tandem
from mt_convert.training.finetune.learner import TrainableSpikingModel
from mt_convert.training.finetune.neuron import TrainableParts
from mt_convert.training.finetune.progressive_tandem import freeze_, set_range_, tandem
from mt_convert.training.loop import fit
from mt_convert.training.spec import EpochRow, History, TrainSpec

SPEC = TrainSpec(epochs=2, batch_size=32, lr=0.01, weight_decay=0.0, patience=1)


@pytest.fixture(scope="module")
def digits() -> Splits:
    spec = DataSpec("digits", image_size=8, channels=1, classes=10, validation_share=0.2)
    return open_data(replace(spec, limit=400, test_images=100, calibration_images=64))


@pytest.fixture(scope="module")
def qann(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )
    how = TrainSpec(epochs=12, batch_size=32, lr=0.1)
    fit(net, digits, how, tmp_path_factory.mktemp("ann"), classes=10)
    spec = mt.QuantSpec(weight_bits=8, act_bits=3)
    return mt.quantize(net.eval(), spec, calibration=images(digits.calibration, 64))


def _even(qann: QuantizedModel, n: int) -> SpikingModel:
    return mt.convert(qann, ladder=Uniform(n), presentation="every_step")


@pytest.mark.slow
def test_gradients_are_those_of_the_analog_path_fed_with_counts(
    digits: Splits, qann: QuantizedModel
) -> None:
    snn = _even(qann, 2)
    learner = TrainableSpikingModel(snn, 3, learns=TrainableParts(thresholds=False))
    shown = images(digits.test, 8)
    run = simulate(snn, shown, time_steps=3)
    with torch.no_grad():
        _, states = learner(shown, range(2))
    read_outs, states = learner(shown, (2,), states, Derivative.ANALOG)
    for name, total in run.totals.items():  # tandem counts are those of the simulation
        assert torch.equal(states[name].total, total)
    weights = torch.randn(read_outs[0].shape)
    (read_outs[0] * weights).sum().backward()

    def layer(x: Tensor, name: str) -> Tensor:
        return learner.grids[name].call()(x)

    counts = {name: state.total for name, state in states.items()}
    worths = {name: learner.learner(name).delta * 7 / (2 * 3) for name in counts}
    for parameter in learner.parameters():
        parameter.grad, found = None, parameter.grad
        if found is not None:
            parameter.found = found  # type: ignore[attr-defined]
    first, second = counts
    encoder = learner.snn.layers.get_submodule("input_quant")
    a = analog(learner.snn.layers.get_submodule(first), layer(encoder(shown), "0"))  # type: ignore[arg-type]
    a = a + (counts[first] * worths[first] - a).detach()
    b = analog(learner.snn.layers.get_submodule(second), layer(nn.MaxPool2d(2)(a), "3"))  # type: ignore[arg-type]
    b = b + (counts[second] * worths[second] - b).detach()
    (layer(b.flatten(1), "6") * weights).sum().backward()
    compared = 0
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            found = parameter.found  # type: ignore[attr-defined]
            assert torch.allclose(found, parameter.grad, rtol=1e-4, atol=1e-5), name
            compared += 1
    assert compared == 6


@pytest.mark.slow
def test_with_enough_thresholds_a_layer_counts_what_the_quantized_network_has(
    digits: Splits, qann: QuantizedModel
) -> None:
    snn = _even(qann, 1)
    names = [name for name, _ in snn.neurons()]
    learner = TrainableSpikingModel(snn, 7)  # n T = L = 7
    learner.analog = frozenset(names[1:])
    shown = images(digits.test, 20)
    read = learner.reading(shown, names[0])
    with torch.no_grad():
        _, states = learner(shown, range(7))
    layer = learner.snn.layers.get_submodule(names[0])
    wanted = quantized_activation(layer, read)  # type: ignore[arg-type]
    assert torch.allclose(states[names[0]].total * learner.learner(names[0]).delta, wanted)
    assert list(states) == names[:1]


@pytest.mark.slow
def test_a_range_is_the_percentile_of_what_the_layer_reads(
    digits: Splits, qann: QuantizedModel
) -> None:
    snn = _even(qann, 2)
    names = [name for name, _ in snn.neurons()]
    learner = TrainableSpikingModel(snn, 3)
    learner.analog = frozenset(names[1:])
    shown = images(digits.calibration, 32)
    wanted = torch.quantile(learner.reading(shown, names[1]).flatten(), 0.999)
    set_range_(learner, names[1], shown)
    layer = learner.learner(names[1])
    assert float(layer.start) * levels(layer.spec) == pytest.approx(float(wanted), rel=1e-5)


def test_what_stands_behind_the_last_spiking_layer_learns_alone(qann: QuantizedModel) -> None:
    learner = TrainableSpikingModel(_even(qann, 2), 2, learns=TrainableParts(thresholds=False))
    names = [name for name, _ in learner.snn.neurons()]
    for spiking, wanted in ((1, {"3", "6"}), (2, {"6"})):
        freeze_(learner, names[:spiking])
        learns = {
            name.split(".")[2] for name, item in learner.named_parameters() if item.requires_grad
        }
        assert learns == wanted


def test_stages_follow_each_other_and_what_they_leave_behind_stands_still(
    digits: Splits, qann: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float, frozenset[str], int]] = []
    weights: list[dict[str, Tensor]] = []
    scripted = iter([3, 2, 1])

    def scripted_fit(
        model: TrainableSpikingModel, splits: Splits, spec: TrainSpec, folder: Path, **more: Any
    ) -> History:
        seen.append((folder.name, spec.lr, model.analog, more["classes"]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.01
        weights.append({k: v.clone() for k, v in model.state_dict().items() if "weight" in k})
        epochs = next(scripted)
        rows = tuple(EpochRow(k + 1, 1.0, 50.0 + k, spec.lr, 1.0) for k in range(epochs))
        return History(rows, epochs - 1, 40.0)

    monkeypatch.setattr(progressive_tandem, "fit", scripted_fit)
    snn = _even(qann, 2)
    names = [name for name, _ in snn.neurons()]
    done = tandem(snn, digits, SPEC, tmp_path, classes=10, time_steps=2)
    assert seen == [
        ("stage_0", 0.01, frozenset(names[1:]), 10),
        ("stage_1", 0.01, frozenset(), 10),
        ("stage_2", 0.001, frozenset(), 10),
    ]
    assert [row.epoch for row in done.history.rows] == [1, 2, 3, 4, 5, 6]
    assert done.history.start_accuracy is not None
    assert done.history.best_epoch == 0
    first = "snn.layers.0.weight"
    assert torch.equal(weights[0][first], weights[2][first])
    shown = images(digits.test, 5)
    kept = simulate(done.snn, shown, time_steps=2).logits
    assert torch.equal(kept, simulate(snn, shown, time_steps=2).logits)
    second, last = "snn.layers.3.weight", "snn.layers.6.weight"
    started = snn.layers.get_submodule("3").get_parameter("weight")
    assert not torch.equal(weights[0][second], started)
    assert torch.equal(weights[0][second], weights[2][second])
    assert not torch.equal(weights[1][last], weights[2][last])


@pytest.mark.slow
def test_it_learns_layer_by_layer(digits: Splits, qann: QuantizedModel, tmp_path: Path) -> None:
    done = tandem(_even(qann, 2), digits, SPEC, tmp_path, classes=10, time_steps=2)
    assert done.history.best_accuracy is not None
    converted = TrainableSpikingModel(_even(qann, 2), 2)
    before = accuracy(converted, digits.validation, 40)
    assert done.history.best_accuracy >= before > 70
    shown = images(digits.test, 10)
    assert simulate(done.snn, shown, time_steps=2).logits.shape == (2, 10, 10)
    with pytest.raises(SpecError, match="the original has 6"):
        tandem(
            _even(qann, 2), digits, replace(SPEC, patience=None), tmp_path, classes=10, time_steps=2
        )
