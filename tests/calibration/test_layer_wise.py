"""Training layer after layer: losses fall, never rise, and grids, shared layers and inputs stay."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import conv, images, lived_in, network
from torch import Tensor, nn

from mt_convert.calibration.layer_wise import transform
from mt_convert.calibration.lockstep import soft_step
from mt_convert.calibration.report import CalibrationRow
from mt_convert.calibration.samples import Samples
from mt_convert.calibration.spec import LayerWise, Loss
from mt_convert.graph.nodes import WEIGHTED
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import totals_step
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import quantized_activation, worth
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

FLOAT = QuantSpec(weight_bits=None, first_bits=None, last_bits=None, input_bits=None, act_bits=8)
SPECS = {"w4a4": QuantSpec(), "w8a4": QuantSpec(weight_bits=8), "float": FLOAT}
FAST = LayerWise(epochs=4, lr=2e-3, batch_size=8)
T = 4


@cache
def qann_of(name: str, spec: str = "w4a4", seed: int = 0) -> QuantizedModel:
    """A small quantized network; shared, so not to be changed."""
    return quantize(network(name, seed), SPECS[spec], calibration=images(8, seed=2))


def converted(
    name: str = "residual",
    spec: str = "float",
    ladder: Ladder | None = None,
    signed: bool = False,
    presentation: str = "every_step",
    seed: int = 0,
) -> SpikingModel:
    """A converted network of its own."""
    qann = qann_of(name, spec, seed)
    return convert(qann, ladder=ladder or Uniform(1), signed=signed, presentation=presentation)


def calibrated(
    snn: SpikingModel, step: LayerWise = FAST, keep_better: bool = True, seed: int = 5
) -> tuple[SpikingModel, list[CalibrationRow], Samples]:
    samples = Samples.split(snn, images(24, seed=seed), T)
    found, rows = transform(step, snn, samples, keep_better)
    return found, rows, samples


def loss_of(snn: SpikingModel, reference: SpikingModel, batch: Tensor) -> float:
    """The mean over layers of the relative mean square difference, from whole simulations."""
    wanted: dict[str, Tensor] = {}

    def note(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        return wanted.setdefault(name, quantized_activation(layer, x))

    with torch.no_grad():
        forward_with(reference, batch, note)
    totals = simulate(snn, batch, time_steps=T).totals
    losses = [
        float(
            (totals[name] * worth(item, snn.presentation, T - 1) - wanted[name]).square().sum()
            / wanted[name].square().sum()
        )
        for name, item in snn.neurons()
    ]
    return sum(losses) / len(losses)


def weighted(snn: SpikingModel) -> dict[str, nn.Module]:
    return {name: item for name, item in snn.layers.named_modules() if isinstance(item, WEIGHTED)}


# ------------------------------------------------------------------------------ the gradient


@given(
    st.lists(st.integers(-40, 200), min_size=1, max_size=6),
    st.sampled_from([Uniform(1), Uniform(3), Binary(2), PowerOfTwo(3)]),
    st.booleans(),
)
def test_the_value_of_a_soft_step_is_the_running_rules(
    eighths: list[int], ladder: Ladder, signed: bool
) -> None:
    spec = NeuronSpec(ladder, signed=signed, bounds=(0, 15))
    y = (torch.tensor(eighths) / 8).requires_grad_()
    total = (torch.arange(len(eighths)) * 3 % 16).float()
    assert torch.equal(soft_step(y, total, spec), totals_step(y.detach(), total, spec))


def test_the_gradient_goes_to_what_decided_the_total() -> None:
    y = torch.tensor([1.0, 1.25, -3.0, 1.0, 20.0], requires_grad=True)
    total = torch.tensor([0.0, 2.0, 0.0, 0.0, 15.0], requires_grad=True)
    spec = NeuronSpec(Uniform(1), bounds=(0, 15))
    out = soft_step(y, total, spec)
    by_input, by_total = torch.autograd.grad(out.sum(), (y, total))
    assert out.tolist() == [1.0, 2.0, 0.0, 1.0, 15.0]
    # reached; cannot go back; below the bounds; at the ladder's reach; above the bounds
    assert by_input.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert by_total.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------ what it achieves


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("spec", ["float", "w4a4"])
def test_losses_fall_where_few_steps_leave_unevenness(loss: Loss, spec: str) -> None:
    snn = converted(spec=spec, ladder=Uniform(1))
    step = LayerWise(epochs=6, lr=1e-3, batch_size=8, loss=loss)
    found, rows, samples = calibrated(snn, step)
    assert rows[-1].kept
    assert rows[-1].after < 0.98 * rows[-1].before
    if loss is Loss.MSE:
        before, after = (loss_of(item, snn, samples.held_out) for item in (snn, found))
        assert rows[-1].before == pytest.approx(before, rel=1e-4)
        assert rows[-1].after == pytest.approx(after, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize(("n", "signed"), [(1, False), (3, False), (1, True), (3, True)])
@pytest.mark.parametrize("loss", Loss)
def test_no_held_out_loss_rises(
    seed: int, presentation: str, n: int, signed: bool, loss: Loss
) -> None:
    snn = converted("clamps", "w4a4", Uniform(n), signed, presentation, seed)
    step = LayerWise(epochs=2, lr=3e-2, batch_size=8, loss=loss)
    found, rows, samples = calibrated(snn, step, seed=seed)
    assert all(row.loss_now <= row.before for row in rows)
    assert [row.layer for row in rows] == [*dict(snn.neurons()), "all layers"]
    if loss is Loss.MSE:
        before, after = (loss_of(item, snn, samples.held_out) for item in (snn, found))
        assert after <= before * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pre_activation", "pools", "one_relu", "kinds_of_convolution"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("whole_window", [False, True])
def test_the_losses_told_are_those_of_the_network_returned(
    name: str, presentation: str, whole_window: bool
) -> None:
    snn = convert(
        qann_of(name, "float"),
        ladder=Uniform(3),
        signed=True,
        presentation=presentation,
        whole_window=whole_window,
    )
    found, rows, samples = calibrated(snn, LayerWise(epochs=1, lr=1e-2, batch_size=8), False)
    assert rows[-1].kept
    for network_, told in ((snn, rows[-1].before), (found, rows[-1].after)):
        assert told == pytest.approx(loss_of(network_, snn, samples.held_out), rel=1e-4)


@pytest.mark.slow
def test_a_layer_whose_target_is_0_everywhere_has_a_finite_loss() -> None:
    snn = converted()
    snn.layers.stem.bias.data.fill_(-99.0)
    still = snn.with_neurons({})
    samples = Samples.split(still, images(24, seed=5), T)
    snn.layers.stem.bias.data.fill_(0.0)
    found, rows = transform(FAST, snn, samples, True)
    assert 0 < rows[0].before < 1e6  # a sum of squares, not divided by 0
    assert rows[0].after < rows[0].before
    assert all(torch.isfinite(value).all() for value in found.state_dict().values())


@pytest.mark.slow
def test_a_rate_that_is_far_too_high_changes_nothing() -> None:
    snn = converted()
    found, rows, _ = calibrated(snn, LayerWise(epochs=1, lr=1e4, batch_size=64))
    assert not any(row.kept for row in rows)
    here = snn.state_dict()
    assert all(torch.equal(value, here[key]) for key, value in found.state_dict().items())
    spoilt, rows, _ = calibrated(snn, LayerWise(epochs=1, lr=1e4, batch_size=64), False)
    assert rows[-1].kept
    assert rows[-1].after > rows[-1].before
    assert not torch.equal(spoilt.layers.a.weight, snn.layers.a.weight)


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [Binary(2), PowerOfTwo(3)])
def test_other_ladders_train_too(ladder: Ladder) -> None:
    _, rows, _ = calibrated(converted(ladder=ladder))
    assert rows[-1].after < rows[-1].before


# ------------------------------------------------------------------------------ what may change


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["w4a4", "w8a4"])
def test_quantized_weights_stay_on_their_grid(spec: str) -> None:
    snn = converted(spec=spec)
    found, _, _ = calibrated(snn, LayerWise(epochs=3, lr=0.05, batch_size=8), False)
    before, moved = weighted(snn), 0
    for name, layer in weighted(found).items():
        scale = before[name].weight_scale
        assert torch.equal(layer.weight_scale, scale)
        old, new = (item.weight.detach() / scale for item in (before[name], layer))
        assert torch.equal(layer.weight.detach(), new.round() * scale)
        assert float(new.round().abs().max()) <= float(old.round().abs().max())
        moved += int((new.round() != old.round()).sum())
    assert moved > 10


@pytest.mark.slow
def test_weights_of_one_level_a_side_stay() -> None:
    spec = QuantSpec(weight_bits=2, first_bits=2, last_bits=2)
    qann = quantize(network("residual"), spec, calibration=images(8, seed=2))
    snn = convert(qann, ladder=Uniform(1), presentation="every_step")
    found, rows, _ = calibrated(snn, LayerWise(epochs=2, lr=0.5, batch_size=8), False)
    assert rows[-1].kept
    for name, layer in weighted(found).items():
        assert torch.equal(layer.weight, weighted(snn)[name].weight)


@pytest.mark.slow
def test_a_layer_used_several_times_and_the_last_one_keep_their_weights() -> None:
    qann = quantize(network("shared_without_activation"), FLOAT, calibration=images(8, seed=2))
    snn = convert(qann, ladder=Uniform(1), presentation="every_step")
    found, _, _ = calibrated(snn, keep_better=False)
    for name in ("shared", "head"):
        assert torch.equal(weighted(found)[name].weight, weighted(snn)[name].weight)
    assert any(item.offset is not None for _, item in found.neurons())


class Forked(nn.Module):
    """One convolution that two activations read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own, self.head = conv(2, 3), conv(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.own(F.relu(x))).mean((2, 3)))


@pytest.mark.slow
def test_weights_are_trained_with_the_first_layer_that_reads_them_and_not_again() -> None:
    qann = quantize(lived_in(Forked()), FLOAT, calibration=images(8, seed=2))
    snn = convert(qann, ladder=Uniform(1), presentation="every_step")
    found, rows, samples = calibrated(snn, keep_better=False)
    assert rows[-1].after == pytest.approx(loss_of(found, snn, samples.held_out), rel=1e-4)
    assert not torch.equal(weighted(found)["stem"].weight, weighted(snn)["stem"].weight)


@pytest.mark.slow
def test_learned_gaps_are_left_alone_with_what_feeds_them() -> None:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)
    qann = quantize(network("residual"), spec, calibration=images(8, seed=2))
    found, rows, _ = calibrated(convert(qann), keep_better=False)
    assert {row.loss for row in rows} == {"learned gaps"}
    assert not any(row.kept for row in rows)
    here = convert(qann).state_dict()
    assert all(torch.equal(value, here[key]) for key, value in found.state_dict().items())


# ------------------------------------------------------------------------------------- as a value


@pytest.mark.slow
def test_the_network_handed_in_is_unchanged_and_two_calls_agree(tmp_path: Path) -> None:
    snn = converted(spec="w8a4", ladder=Uniform(3))
    before = deepcopy(snn.state_dict())
    found, rows, _ = calibrated(snn)
    again, rows_again, _ = calibrated(snn)
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
    assert all(parameter.grad is None for parameter in [*snn.parameters(), *found.parameters()])
    assert rows == rows_again
    here, there = found.state_dict(), again.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    save(found, tmp_path)
    x = images(3, seed=8)
    runs = [simulate(item, x, time_steps=T) for item in (found, load(tmp_path), snn)]
    assert torch.equal(runs[0].logits, runs[1].logits)
    assert not torch.equal(runs[0].logits, runs[2].logits)
