"""Learned gaps are thresholds: exact by construction, uniform where equal, and they train."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from networks import Clamps, dense, images, levels_of, lived_in, network
from torch import Tensor, nn

from mt_convert.errors import MTConvertError, SpecError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.neurons.ladder import Learned
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import totals_step, totals_step_literal
from mt_convert.quantization.activations.learned_gaps import LearnedGaps
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
)
from mt_convert.quantization.quantize import QuantizedModel, calibrate_, quantize
from mt_convert.quantization.spec import ActNoise, Override, QuantSpec, Spacing
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

LEARNED = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)


def uneven(levels: int, seed: int = 0) -> LearnedGaps:
    """A layer whose gaps differ."""
    layer = LearnedGaps(levels)
    generator = torch.Generator().manual_seed(seed)
    layer.log_gaps.data.normal_(0, 0.5, generator=generator)
    return layer


def unevenly_quantized(model: nn.Module, spec: QuantSpec = LEARNED) -> QuantizedModel:
    """A quantized network whose gaps differ as if trained."""
    qann = quantize(model, spec, calibration=images(32))
    for index, (_, layer) in enumerate(layer_nodes(qann.layers, QuantAct)):
        if layer.gaps is not None:
            layer.gaps.log_gaps.data.copy_(uneven(layer.gaps.levels, index).log_gaps.data)
    return qann


def published(y: Tensor, alpha: Tensor) -> Tensor:
    """Σ round(clamp(α_k (y − c_k), 0, 1)), rounding passed straight through."""
    total, start = torch.zeros_like(y), torch.zeros(())
    for slope in alpha:
        part = (slope * (y - start)).clamp(0, 1)
        total = total + part + ((part >= 0.5).float() - part).detach()
        start = start + 1 / slope
    return total


# --------------------------------------------------------------------------------- the quantizer


@pytest.mark.parametrize("levels", [1, 2, 3, 15])
def test_values_and_gradients_are_those_of_rounded_clamped_segments(levels: int) -> None:
    layer = uneven(levels)
    x = (torch.rand(2000, generator=torch.Generator().manual_seed(1)) - 0.1) * levels
    step, weights = torch.tensor(0.75), torch.linspace(-1, 2, 2000)
    found, expected = [], []
    for results, ours in ((found, True), (expected, False)):
        leaf, s = x.clone().requires_grad_(), step.clone().requires_grad_()
        value = layer(leaf, s) if ours else published(leaf / s, layer.alpha) * s
        results.append(value.detach())
        results += torch.autograd.grad((value * weights).sum(), [leaf, s, layer.log_gaps])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert (found[3] != 0).all(), "a gap has no gradient"
    outside = (x < 0) | (x / step > layer.gaps.sum() + 1e-4)
    assert outside.any()
    assert (found[1][outside] == 0).all()


@pytest.mark.parametrize("levels", [2, 3, 15])
def test_unrounded_is_the_sum_of_the_clamped_segments(levels: int) -> None:
    layer, y = uneven(levels), torch.linspace(-1, levels + 2, 997)
    starts = layer.gaps.cumsum(0) - layer.gaps
    parts = [(a * (y - c)).clamp(0, 1) for a, c in zip(layer.alpha, starts, strict=True)]
    found = layer.without_rounding(y * 0.5, torch.tensor(0.5))
    torch.testing.assert_close(found, 0.5 * torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5)
    assert ((layer(y * 0.5, torch.tensor(0.5)) - found).abs() <= 0.25 + 1e-5).all()


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_thresholds_read_from_alpha_are_where_the_output_switches(levels: int) -> None:
    layer, step = uneven(levels, 5), 0.37
    gaps = (1 / layer.alpha).tolist()
    for k in range(levels):
        expected = sum(gaps[:k]) + gaps[k] / 2
        low, high = 0.0, 100.0
        while high - low > 1e-7 * high:
            middle = (low + high) / 2
            reached = layer(torch.tensor([middle]), torch.tensor(step)).item() >= (k + 0.5) * step
            low, high = (low, middle) if reached else (middle, high)
        assert high / step == pytest.approx(expected, abs=1e-5)
        assert layer.ladder.thresholds[k] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("levels", [1, 3, 15])
def test_equal_gaps_are_the_uniform_quantizer_with_ties_rounded_up(levels: int) -> None:
    layer, one = LearnedGaps(levels), torch.tensor(1.0)
    ties = torch.arange(0, levels + 3) + 0.5
    inside = torch.arange(-8 * levels, 16 * levels) / 8  # in eighths, so ties occur
    expected = torch.floor(inside + 0.5).clamp(0, levels)
    assert torch.equal(layer(inside, one), expected)
    others = inside[inside.remainder(1) != 0.5]
    assert torch.equal(layer(others, one), others.round().clamp(0, levels))
    odd = ties[(ties + 0.5).remainder(2) == 1].clamp(max=levels)
    at_ties = odd[odd.remainder(1) == 0.5]
    assert torch.equal(layer(at_ties, one), at_ties.round().clamp(0, levels) + 1)


@pytest.mark.parametrize("levels", [2, 3, 15])
def test_the_ladder_has_the_thresholds_to_the_last_bit(levels: int) -> None:
    for seed in range(20):
        layer = uneven(levels, seed)
        assert layer.ladder.thresholds == tuple(layer.thresholds.tolist())
        assert set(layer.ladder.weights) == {1.0}


def test_gaps_stay_positive_and_thresholds_sorted_whatever_training_does() -> None:
    layer = LearnedGaps(15)
    layer.log_gaps.data.uniform_(-500, 500, generator=torch.Generator().manual_seed(0))
    assert (layer.thresholds.diff() > 0).all()
    assert layer.gaps.min() > 0
    assert len(layer.ladder.gaps) == 15


# ------------------------------------------------------------------------------------ the neuron


@pytest.mark.parametrize("levels", [1, 2, 3, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_one_step_of_the_neuron_is_the_level_ties_and_their_neighbours_included(
    levels: int, signed: bool
) -> None:
    layer, step = uneven(levels, 2), torch.tensor(0.3)
    ties = layer.thresholds
    values, up, down = [ties, torch.linspace(-2, 2 * levels, 501)], ties, ties
    for _ in range(4):
        up = up.nextafter(torch.tensor(math.inf))
        down = down.nextafter(torch.tensor(-math.inf))
        values += [up, down]
    y = torch.cat(values)
    spec = NeuronSpec(layer.ladder, signed=signed, initial=0.0, bounds=(0, levels))
    expected = layer(y, torch.tensor(1.0))
    for advance in (totals_step, totals_step_literal):
        assert torch.equal(advance(y, torch.zeros_like(y), spec), expected)
    x = torch.cat([y * step, torch.randn(500, generator=torch.Generator().manual_seed(3))])
    total = totals_step(x / step, torch.zeros_like(x), spec)
    assert torch.equal(total * step, layer(x, step))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_converted_network_is_exact_in_one_step(bits: int) -> None:
    spec = QuantSpec(act_bits=bits, spacing=Spacing.LEARNED)
    qann, x = unevenly_quantized(dense(), spec), 2 * images(16, seed=4)
    snn = convert(qann)
    ladders = [neuron.spec.ladder for _, neuron in snn.neurons()]
    assert all(isinstance(ladder, Learned) for ladder in ladders)
    assert len({ladder.thresholds for ladder in ladders}) == 2
    assert torch.equal(simulate(snn, x, time_steps=1).logits[-1], qann(x))


@pytest.mark.slow
def test_levels_end_where_relu6_does() -> None:
    spec = QuantSpec(act_bits=4, spacing=Spacing.LEARNED)
    qann = unevenly_quantized(lived_in(Clamps()), spec)
    layer = qann.layers.get_submodule("act6")
    assert isinstance(layer, QuantAct)
    for parameter in layer.quant.parameters():
        parameter.data.mul_(0.9 / layer.scale)
    assert layer.learned_ladder is not None
    expected = sum(threshold <= 6 / 0.9 for threshold in layer.learned_ladder.thresholds)
    assert 0 < expected < 15
    assert layer.level_bounds == (0, expected)
    wide = layer(torch.linspace(-100, 100, 4001)) / layer.scale
    assert (wide.round().min(), wide.round().max()) == (0, expected)
    x = images(8, seed=4)
    assert torch.equal(simulate(convert(qann), x, time_steps=1).logits[-1], qann(x))


# ----------------------------------------------------------------------------------- the network


@pytest.mark.slow
def test_calibration_starts_from_the_uniform_quantizer() -> None:
    learned = quantize(dense(), LEARNED, calibration=images(32))
    equal = quantize(dense(), QuantSpec(act_bits=2), calibration=images(32))
    for name in ("1", "3"):
        ours, plain = (model.layers.get_submodule(name) for model in (learned, equal))
        assert torch.equal(ours.scale, plain.scale)
        assert ours.learned_ladder.thresholds == (0.5, 1.5, 2.5)
        assert plain.learned_ladder is None
        assert ours.level_bounds == plain.level_bounds == (0, 3)
    assert torch.equal(learned(images(8, seed=1)), equal(images(8, seed=1)))
    moved = unevenly_quantized(dense())
    calibrate_(moved, images(32))
    assert moved.layers.get_submodule("1").learned_ladder.thresholds == (0.5, 1.5, 2.5)


@pytest.mark.slow
def test_signed_layers_the_image_and_many_bits_keep_equal_steps() -> None:
    spec = QuantSpec(act_bits=3, spacing=Spacing.LEARNED, overrides=(Override("act", act_bits=5),))
    qann = quantize(network("bottleneck"), spec, calibration=images(8))
    found = {
        str(node.target): layer.learned_ladder is not None
        for node, layer in layer_nodes(qann.layers, QuantAct)
    }
    assert found == {
        **{"input_quant": False, "act": False, "act_1": True, "act_2": True},
        "expand2_input": False,
    }
    assert "spacing=learned" in repr(qann.layers.get_submodule("act_1"))
    assert "spacing" not in repr(qann.layers.get_submodule("act"))
    with pytest.raises(SpecError) as caught:
        QuantSpec(act_bits=5, spacing=Spacing.LEARNED)
    assert "learned spacing goes up to 4" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ActNoise)
def test_training_moves_every_gap(noise: ActNoise) -> None:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED, act_noise=noise)
    qann, x = quantize(dense(), spec, calibration=images(32)), images(32)
    qann.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = qann(x)
    assert torch.equal(logits, qann(x)) == (noise is ActNoise.NONE)
    logits.square().mean().backward()
    for name in ("1", "3"):
        slope = qann.layers.get_submodule(name).gaps.log_gaps.grad
        assert slope.shape == (3,)
        assert (slope != 0).all()


@pytest.mark.slow
def test_learned_gaps_come_back_from_json_and_from_a_file(tmp_path: Path) -> None:
    qann, x = unevenly_quantized(dense()), images(8, seed=1)
    save(qann, tmp_path / "qann")
    again = load(tmp_path / "qann")
    assert again.spec == qann.spec
    assert torch.equal(again(x), qann(x))
    layer = qann.layers.get_submodule("1")
    config = json.loads(json.dumps(quant_layer_to_json(layer)))
    assert config["spacing"] == "learned"
    copied = quant_layer_from_json(config)
    assert isinstance(copied, QuantAct)
    copied.load_state_dict(layer.state_dict())
    assert copied.learned_ladder == layer.learned_ladder
    del config["spacing"]  # as stored before there were gaps
    old = quant_layer_from_json(config)
    assert isinstance(old, QuantAct)
    assert old.learned_ladder is None


@pytest.mark.slow
def test_a_spiking_network_with_learned_gaps_comes_back_from_a_file(tmp_path: Path) -> None:
    qann, x = unevenly_quantized(dense()), images(8, seed=1)
    save(convert(qann), tmp_path / "snn")
    again = load(tmp_path / "snn")
    assert torch.equal(simulate(again, x, time_steps=1).logits[-1], qann(x))
    found, _ = levels_of(qann, x)
    assert all(level.max() == 3 for level in found.values())


@pytest.mark.slow
def test_a_conversion_of_learned_gaps_is_verified_next_to_its_own_thresholds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qann = unevenly_quantized(lived_in(dense()))
    verdict = convert(qann, verify=images(4)).report.verdict
    assert verdict is not None
    assert verdict.exact_t1, verdict
    layers = [layer for _, layer in layer_nodes(qann.layers, QuantAct) if layer.gaps is not None]
    assert layers
    assert verdict.adversarial >= len(layers) * 3 * 9
    exact = QuantAct.learned_ladder.fget
    assert exact is not None

    def longer(layer: QuantAct) -> Learned | None:
        ladder = exact(layer)
        return ladder and Learned(tuple(gap * (1 + 1e-6) for gap in ladder.gaps))

    monkeypatch.setattr(QuantAct, "learned_ladder", property(longer))
    spoilt = convert(qann, verify=images(4)).report.verdict
    assert spoilt is not None
    assert not spoilt.exact_t1


@pytest.mark.slow
def test_learned_gaps_fire_in_parallel_alone() -> None:
    with pytest.raises(MTConvertError, match=r"in a cascade\s+each threshold emits one level"):
        convert(unevenly_quantized(dense()), firing="cascade")
