"""Balanced thresholds, Poisson spikes, standardised weights, neurons that fire early, modes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import mt_convert as mt
from mt_convert.errors import SpecError
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import IF, LIF, NeuronSpec
from mt_convert.neurons.surrogate import ATan
from mt_convert.training.from_scratch import archive
from mt_convert.training.from_scratch.balance import balance_thresholds_
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.norm_by_step import NormByStep
from mt_convert.training.from_scratch.poisson import Coding
from mt_convert.training.from_scratch.spec import SpikingSpec, build_spiking
from mt_convert.training.from_scratch.standardized import FLOOR, GAIN, Standardized


def small() -> nn.Module:
    """Two layers of neurons, the first behind a batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )


def built(
    model: nn.Module | None = None, *, time_steps: int = 3, **settings: object
) -> ScratchNetwork:
    spec = NeuronSpec(Uniform(2), charge=IF(), initial=0.0, surrogate=ATan())
    example = torch.zeros(2, 1, 4, 4)
    model = small() if model is None else model
    return build_from_scratch(model, spec, example=example, time_steps=time_steps, **settings)  # type: ignore[arg-type]


IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------- balance


@pytest.mark.slow
def test_balanced_thresholds_emit_the_range_of_the_float_layer() -> None:
    model = small().eval()
    network = built(model)
    balance_thresholds_(network, IMAGES)
    with torch.no_grad():
        first = model[2](model[1](model[0](IMAGES)))
        second = model[4](model[3](first))
    for (_, layer), value in zip(network.neurons(), (first, second), strict=True):
        top = float(torch.quantile(value, 0.999))
        assert float(layer.delta) * layer.spec.ladder.reach == pytest.approx(top)


@pytest.mark.slow
def test_a_balanced_network_tends_to_the_float_one_and_an_unbalanced_one_does_not() -> None:
    model = small().eval()
    with torch.no_grad():
        model[0].weight.mul_(8)
        due = model(IMAGES)
        far = (built(model, time_steps=64).eval()(IMAGES) - due).abs().max()
        network = built(model, time_steps=64).eval()
        balance_thresholds_(network, IMAGES)
        near = (network(IMAGES) - due).abs().max()
    assert float(near) < 0.15 * float(due.abs().max())
    assert float(near) < 0.3 * float(far)


# ---------------------------------------------------------------------------------------- Poisson


@pytest.mark.slow
def test_spikes_of_an_image_are_its_own_in_evaluation_and_fresh_in_training(tmp_path: Path) -> None:
    network = built(coding=Coding.POISSON).eval()
    both = network(IMAGES)
    assert torch.equal(network(IMAGES), both)
    assert torch.allclose(network(IMAGES[2:4]), both[2:4], atol=1e-6)
    frames = network.frames(IMAGES, range(3))
    assert set(frames.unique().tolist()) <= {-1.0, 0.0, 1.0}
    network.train()
    assert not torch.equal(network.frames(IMAGES, range(3)), frames)
    network.eval()
    archive.save(network, tmp_path)
    assert torch.equal(archive.load(tmp_path)(IMAGES), both)


@pytest.mark.slow
def test_a_network_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    network = built()
    next(network.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(SpecError, match="1 tensor is not finite: nothing was written"):
        mt.save(network, tmp_path / "network")
    assert not (tmp_path / "network").exists()


@pytest.mark.slow
def test_the_mean_of_many_spikes_is_the_image() -> None:
    network = built(coding=Coding.POISSON, time_steps=2000).eval()
    mean = network.frames(IMAGES[:1], range(2000)).mean(0, keepdim=True)
    assert torch.allclose(mean, IMAGES[:1].clamp(-1, 1), atol=4 / 2000**0.5)


# ----------------------------------------------------------------------------------- standardised


def test_standardised_weights_are_those_of_the_formula_and_learn_so() -> None:
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    layer = Standardized(weight, 1.0)
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    variance = centred.square().sum((1, 2, 3), keepdim=True) / 17
    assert torch.allclose(layer(weight), centred / torch.sqrt(variance * 18 + FLOOR))


@pytest.mark.slow
def test_a_standardised_network_trains_standardised_and_is_stored_with_what_counts(
    tmp_path: Path,
) -> None:
    network = built(standardized=True)
    layers = [layer for layer in network.modules() if parametrize.is_parametrized(layer)]
    assert len(layers) == 2, "the read-out learns as it is"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        network(IMAGES).square().sum().backward()
        optimizer.step()
    for layer in layers:
        assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
        assert (layer.parametrizations.weight[0].gain != GAIN).any()
    network.eval()
    merged = network.merge_tensor_trains()
    assert not any(parametrize.is_parametrized(layer) for layer in merged.modules())
    assert torch.equal(merged(IMAGES), network(IMAGES))
    archive.save(merged, tmp_path)
    assert torch.equal(archive.load(tmp_path)(IMAGES), network(IMAGES))
    assert network.settings["standardized"]
    assert not merged.settings["standardized"]


@pytest.mark.slow
def test_thresholds_learn_stay_positive_and_are_stored(tmp_path: Path) -> None:
    network = built(learns_thresholds=True)
    steps = [layer.delta.detach().clone() for _, layer in network.neurons()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        network(IMAGES).square().sum().backward()
        optimizer.step()
    for start, (_, layer) in zip(steps, network.neurons(), strict=True):
        assert layer.delta.item() > 0
        assert layer.delta.item() != float(start)
    network.eval()
    archive.save(network.merge_tensor_trains(), tmp_path)
    assert torch.equal(archive.load(tmp_path)(IMAGES), network(IMAGES))
    with pytest.raises(SpecError, match="passes nothing to them"):
        SpikingSpec("lif", learn_thresholds=True, algorithm="ottt_a")


# ---------------------------------------------------------------------------- batch norm per step


@pytest.mark.slow
def test_each_step_has_its_own_batch_norm_which_does_not_fold(tmp_path: Path) -> None:
    network = built(norm_by_step=True)
    layer = next(item for item in network.modules() if isinstance(item, NormByStep))
    frames = torch.stack([IMAGES, 3 * IMAGES + 1, IMAGES - 2], 1)
    network(frames)
    means = torch.stack([norm.running_mean for norm in layer.norms])
    assert (means.std(0) > 0).all(), "statistics of three steps are three"
    with torch.no_grad():
        conv = network.layers.get_submodule("0")
        for t, norm in enumerate(layer.norms):
            due = conv(frames[:, t]).mean((0, 2, 3)) * norm.momentum
            assert torch.allclose(norm.running_mean, due, atol=1e-5)
    network.eval()
    archive.save(network, tmp_path)
    assert torch.equal(archive.load(tmp_path)(frames), network(frames))
    with pytest.raises(SpecError, match="cannot take up the batch norms of several steps"):
        network.fold()
    with pytest.raises(SpecError, match="weigh steps alike"):
        SpikingSpec("if", algorithm="dsr", norm_by_step=True)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(SpecError, match="nothing is normalised"):
        built(plain, norm_by_step=True)


# ------------------------------------------------------------------------------------- fires early


def test_a_neuron_fires_at_a_share_of_its_threshold_and_loses_the_whole() -> None:
    spec = SpikingSpec("lif", tau=4.0, n=2, fires_at=0.25, algorithm="dsr", read_out_tau=4.0)
    neuron = MTNeuron(spec.neuron_spec(), 0.5)
    spikes, state = neuron(torch.tensor([0.4, 0.5, 2.4, 2.5]))  # a quarter of it is charged
    assert spikes.tolist() == [0.0, 0.5, 0.5, 1.0]
    assert state.v.tolist() == pytest.approx([0.1, -0.375, 0.1, -0.375])
    with pytest.raises(SpecError, match="above 0 up to 1"):
        SpikingSpec(fires_at=0.0)
    with pytest.raises(SpecError, match="equal steps"):
        SpikingSpec(fires_at=0.5, ladder="power_of_two")


# --------------------------------------------------------------------------------- delayed, modes


@pytest.mark.slow
def test_a_delayed_network_answers_as_many_steps_late_as_it_has_layers() -> None:
    spec = SpikingSpec("if", time_steps=4, delayed=True)
    network = build_spiking(small().eval(), spec, torch.zeros(2, 1, 4, 4)).eval()
    silent = network(torch.zeros(1, 1, 4, 4), range(4))[0]
    shown = network(20 * IMAGES[:1], range(4))[0]
    assert torch.equal(shown[:2], silent[:2]), "two layers of neurons stand before the read-out"
    assert not torch.equal(shown[2:], silent[2:])
    with pytest.raises(SpecError, match="no gradient of a step reaches"):
        SpikingSpec("if", delayed=True, algorithm="ottt_a")


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_in_the_mode_of_what_it_was_built_from(training: bool) -> None:
    network = built(small().train(training))
    assert {layer.training for layer in network.modules()} == {training}


@pytest.mark.slow
def test_another_default_type_changes_nothing() -> None:
    due = built().eval()(IMAGES)
    torch.set_default_dtype(torch.float64)
    try:
        spec = NeuronSpec(Uniform(2), charge=LIF(2.0), initial=0.0, surrogate=ATan())
        model = small().float()
        example = torch.zeros(2, 1, 4, 4, dtype=torch.float32)
        network = build_from_scratch(model, spec, example=example, time_steps=3)
        network(IMAGES).sum().backward()
        assert {item.dtype for item in network.state_dict().values()} <= {
            torch.float32,
            torch.int64,
        }
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(built().eval()(IMAGES), due)
