"""A vision transformer that recognises digits, from training to spikes: attention on a network that
works, not on random weights alone."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks import levels_of
from settling import check_settling, rests_by
from torch import Tensor, nn

from mt_convert.data import DataSpec, Draw, images, open_data
from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

pytestmark = pytest.mark.slow  # one training, shared by all tests here

DATA = DataSpec("digits", image_size=8, channels=1, mean=(0.305,), std=(0.376,))
DEPTH = 2
SIZE = {"depth": DEPTH, "class_token": True, "global_pool": "token"}
FLOAT = TrainSpec(
    epochs=10,
    batch_size=64,
    optimizer="adamw",
    lr=0.005,
    weight_decay=0.3,
    warmup_epochs=2,
    label_smoothing=0.1,
)
QUANTIZED = TrainSpec(epochs=2, batch_size=64, optimizer="adamw", lr=0.001, weight_decay=0.05)


@dataclass(frozen=True)
class Trained:
    """The float network, the quantized one, and the test images that neither has seen."""

    ann: nn.Module
    qann: QuantizedModel
    calibration: Tensor
    test: Tensor
    labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        """Percent of the test images."""
        return 100 * float((logits.argmax(1) == self.labels).double().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder: Path = tmp_path_factory.mktemp("transformer")
    splits = open_data(DATA)
    calibration = images(splits.calibration, 256)
    ann = build(ModelSpec("digits_vit", classes=10, channels=1, kwargs=SIZE), image_size=8)
    fit(ann, splits, FLOAT, folder / "ann", classes=10)
    qann = quantize(ann, QuantSpec(), calibration=calibration)
    fit(qann, splits, QUANTIZED, folder / "train", classes=10)
    test, labels = splits.test[Draw(range(len(splits.test)))]
    return Trained(ann.eval(), qann.eval(), calibration, test, labels)


@torch.no_grad()
def test_the_trained_transformer_recognises_digits_in_float_and_in_4_bits(trained: Trained) -> None:
    assert len(trained.test) == 359
    assert trained.accuracy(trained.ann(trained.test)) > 92
    assert trained.accuracy(trained.qann(trained.test)) > 90


@torch.no_grad()
def test_what_it_recognises_reaches_the_class_token_through_attention_alone(
    trained: Trained,
) -> None:
    deaf = copy.deepcopy(trained.ann)
    for block in deaf.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.attn.proj.weight)  # type: ignore[union-attr]
    assert trained.accuracy(deaf(trained.test)) < 20


def test_one_step_is_the_quantized_transformer_for_every_neuron_of_every_test_image(
    trained: Trained,
) -> None:
    levels, logits = levels_of(trained.qann, trained.test)
    run = simulate(convert(trained.qann), trained.test, time_steps=1)
    assert levels.keys() == run.totals.keys()
    assert len(levels) == 17, "8 in front of each block's layers and products, 1 of the head"
    for name, expected in levels.items():
        assert torch.equal(run.totals[name], expected), name
    assert torch.equal(run.logits[0], logits)


def test_the_verdict_of_the_conversion_says_so_and_when_fewer_thresholds_settle(
    trained: Trained,
) -> None:
    snn = convert(trained.qann, verify=trained.calibration[:8])
    verdict = snn.report.verdict
    assert verdict is not None
    assert verdict.exact_t1
    assert verdict.differs == ()
    assert verdict.images == 8
    assert verdict.thresholds < trained.qann.spec.levels
    check_settling(verdict, snn)
    assert verdict.settling_t != 1


def test_both_products_of_attention_are_fed_by_spikes_on_both_sides(trained: Trained) -> None:
    report = convert(trained.qann).report
    neurons = {row.name for row in report.neurons}
    products = [row for row in report.weighted if "matmul" in row.layer]
    assert len(products) == 2 * DEPTH
    for row in products:
        assert row.spike_fed
        assert len(row.fed_by) == 2, "query and key, attention and value"
        assert set(row.fed_by) <= neurons
    assert [row.name for row in report.weighted if not row.spike_fed] == ["patch_embed.proj"]
    analog = Counter(row.operator for row in report.analog)
    assert analog == {
        "Conv2d": 1,
        "aten.layer_norm.default": 2 * DEPTH + 1,
        "aten.softmax.int": DEPTH,
    }


@pytest.mark.parametrize("thresholds", [3, 7])
def test_fewer_thresholds_settle_on_the_same_numbers_for_every_test_image(
    trained: Trained, thresholds: int
) -> None:
    levels, logits = levels_of(trained.qann, trained.test)
    snn = convert(trained.qann, ladder=Uniform(thresholds), signed=True)
    run = simulate(snn, trained.test, time_steps=rests_by(snn, thresholds))
    assert not torch.equal(run.logits[0], logits), "a single step is not enough"
    for name, expected in levels.items():
        assert torch.equal(run.totals[name], expected), name
    assert torch.equal(run.logits[-1], logits)


def test_spike_by_spike_the_transformer_gives_the_same_classes(trained: Trained) -> None:
    few = trained.test[:32]
    snn = convert(trained.qann, ladder=Uniform(7), signed=True)
    run = simulate(snn, few, time_steps=10, literal=True)
    expected = levels_of(trained.qann, few)[1]
    assert torch.equal(run.logits[-1].argmax(1), expected.argmax(1))
