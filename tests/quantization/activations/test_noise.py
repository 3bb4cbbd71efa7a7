"""Noise disturbs quantizers while they train, keeps their gradients, and leaves eval mode alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import conv, dense, images, lived_in
from torch import Tensor, nn

from mt_convert.data.randomness import borrow_random
from mt_convert.errors import CheckpointError, SpecError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.activations.noise import Noise
from mt_convert.quantization.activations.quant_act import QuantAct, calibrating
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import ActNoise, QuantSpec, Scale
from mt_convert.spiking.archive import load, load_quantized, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

NOISES = [noise for noise in ActNoise if noise is not ActNoise.NONE]
INFINITY = float("inf")
CLIPS = {"relu": (0.0, INFINITY), "relu6": (0.0, 6.0), "signed": (-INFINITY, INFINITY)}


def act(clip: str, noise: Noise, step: float = 0.25, image: bool = False) -> QuantAct:
    """A calibrated 3-bit quantizer of the given step, in training mode."""
    layer = QuantAct(3, CLIPS[clip], Scale.LEARNED, encodes_input=image)
    with calibrating(layer):
        layer(torch.linspace(-1, 1, 999))
    for parameter in layer.parameters():
        parameter.data.mul_(step / layer.scale)
    layer.noise = noise
    return layer.train()


def ends(layer: QuantAct) -> tuple[float, float]:
    """Smallest and largest value that a quantizer gives."""
    low, high = layer.level_bounds
    return low * float(layer.scale), high * float(layer.scale)


def slopes(layer: QuantAct, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient at the input and gradient at the step's parameter."""
    x = x.clone().requires_grad_()
    (parameter,) = layer.parameters()
    with borrow_random(seed):
        y = layer(x)
    weights = torch.linspace(0.5, 1.5, x.numel()).reshape(x.shape)
    grads = torch.autograd.grad((y * weights).sum(), [x, parameter])
    return y.detach(), *grads


def drawn(count: int) -> Tensor:
    """Seeded inputs."""
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


def epsilon(x: Tensor, seed: int = 0) -> Tensor:
    """The draws of a pass under ``seed``."""
    with borrow_random(seed):
        return torch.rand_like(x) - 0.5


# ------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("clip", CLIPS)
def test_stochastic_noise_rounds_the_value_plus_the_draw(clip: str) -> None:
    layer, x = act(clip, Noise(ActNoise.STOCHASTIC)), drawn(4000)
    low, high = layer.level_bounds
    y, x_slope, _ = slopes(layer, x)
    step, levels = layer.scale, ((x + layer.scale * epsilon(x)) / layer.scale).round()
    expected = levels.clamp(low, high) * step
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    assert (y - layer.eval()(x)).abs().max() > step / 2, "nothing was drawn"
    weights = torch.linspace(0.5, 1.5, 4000)
    outside = (levels < low) | (levels > high)
    assert outside.any()
    assert (x_slope[outside] == 0).all()
    inside = (levels > low) & (levels < high)
    assert torch.equal(x_slope[inside], weights[inside])


@pytest.mark.parametrize("clip", CLIPS)
def test_additive_noise_is_clipped_and_not_rounded(clip: str) -> None:
    layer, x = act(clip, Noise(ActNoise.ADDITIVE)), drawn(4000)
    low, high = ends(layer)
    y, x_slope, _ = slopes(layer, x)
    moved = x + layer.scale * epsilon(x)
    torch.testing.assert_close(y, moved.clamp(low, high), rtol=0, atol=1e-6)
    inside = (moved > low + 1e-5) & (moved < high - 1e-5)
    assert (x_slope[inside] == torch.linspace(0.5, 1.5, 4000)[inside]).all()
    outside = (moved < low - 1e-5) | (moved > high + 1e-5)
    assert outside.any()
    assert (x_slope[outside] == 0).all()


@pytest.mark.parametrize("kind", [ActNoise.STOCHASTIC, ActNoise.ADDITIVE])
@pytest.mark.parametrize("clip", CLIPS)
def test_the_mean_over_draws_is_the_clipped_value(clip: str, kind: ActNoise) -> None:
    layer, draws = act(clip, Noise(kind)), 20_000
    low, high = ends(layer)
    x = torch.linspace(-3, 3, 61)
    step = float(layer.scale)
    away = ((x - low).abs() > step / 2) & ((x - high).abs() > step / 2)
    with borrow_random(1), torch.no_grad():
        mean = layer(x[away].repeat(draws, 1)).double().mean(0)
    bound = 4 * step / 2 / draws**0.5  # neither noise deviates by more than s/2
    error = (mean - x[away].clamp(low, high).double()).abs()
    assert (error <= bound + 1e-6).all()
    assert ((x[away] < low).any(), (x[away] > high).any()) == (True, True)


@pytest.mark.parametrize("clip", CLIPS)
def test_drop_leaves_its_share_of_elements_unquantized(clip: str) -> None:
    layer, x = act(clip, Noise(ActNoise.DROP, 0.3)), drawn(20_000)
    low, high = ends(layer)
    y, x_slope, _ = slopes(layer, x)
    plain, clamped = layer.eval()(x).detach(), x.clamp(low, high)
    dropped = y == clamped
    assert (y[~dropped] == plain[~dropped]).all()
    telling = plain != clamped
    share = dropped[telling].float().mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / telling.sum()) ** 0.5
    beyond = (x < low - layer.scale) | (x > high + layer.scale)
    assert beyond.any()
    assert (x_slope[beyond] == 0).all()
    assert (x_slope[(x > low) & (x < high)] != 0).all()


@pytest.mark.parametrize("clip", CLIPS)
def test_drop_of_nothing_is_plain_and_of_everything_only_clips(clip: str) -> None:
    x = drawn(4000)
    found = slopes(act(clip, Noise(ActNoise.DROP, 0.0)), x)
    for one, other in zip(found, slopes(act(clip, Noise()), x), strict=True):
        assert torch.equal(one, other)
    layer = act(clip, Noise(ActNoise.DROP, 1.0))
    torch.testing.assert_close(slopes(layer, x)[0], x.clamp(*ends(layer)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("clip", ["relu", "signed"])
def test_the_step_gets_the_gradient_of_its_formula(clip: str, kind: ActNoise) -> None:
    layer, x = act(clip, Noise(kind, 0.4)), drawn(3000)
    low, high = layer.level_bounds
    _, _, found = slopes(layer, x)
    step, draws = layer.scale.clone().requires_grad_(), epsilon(x)
    ratio = x / step if kind is ActNoise.DROP else x / step + draws
    clipped = ratio.clamp(low, high)
    # as the plain quantizer has it: half a level above the last is not outside
    ratio = ratio.relu() if clip == "relu" else clipped
    straight = ratio + (ratio.round() - ratio).detach()
    inside = (ratio.round() >= low) & (ratio.round() <= high)
    rounded = torch.where(inside, straight, ratio.round().clamp(low, high).detach())
    levels = {
        ActNoise.STOCHASTIC: rounded,
        ActNoise.ADDITIVE: clipped,
        ActNoise.DROP: torch.where(draws + 0.5 < 0.4, clipped, rounded),
    }[kind]
    (levels * step * torch.linspace(0.5, 1.5, 3000)).sum().backward()
    (parameter,) = layer.parameters()
    assert step.grad is not None
    expected = step.grad * layer.scale / parameter.detach()  # the parameter is the range
    torch.testing.assert_close(found.reshape(()), expected.reshape(()), rtol=1e-3, atol=1e-2)


# -------------------------------------------------------------------------------------- when


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("clip", CLIPS)
def test_eval_mode_is_plain_and_deterministic(clip: str, kind: ActNoise) -> None:
    x = drawn(500)
    layer, plain = act(clip, Noise(kind, 0.5)), act(clip, Noise())
    before = torch.get_rng_state()
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(layer.train()(x), plain(x))


@pytest.mark.parametrize("clip", CLIPS)
def test_without_noise_training_is_the_plain_quantizer_bit_for_bit(clip: str) -> None:
    x = drawn(500)
    layer = act(clip, Noise())
    before = torch.get_rng_state()
    y, x_slope, step_slope = slopes(layer, x)
    parts = [slopes(layer.eval(), x)]
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip((y, x_slope, step_slope), parts[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", NOISES)
def test_the_encoded_image_gets_no_noise(kind: ActNoise) -> None:
    x = drawn(500)
    layer = act("signed", Noise(kind, 0.5), image=True)
    assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("kind", NOISES)
def test_there_is_no_noise_before_and_while_a_quantizer_is_calibrated(kind: ActNoise) -> None:
    x = drawn(500)
    layer = QuantAct(3, CLIPS["relu"], Scale.LEARNED, encodes_input=False)
    layer.noise = Noise(kind, 0.5)
    layer.train()
    before = torch.get_rng_state()
    with calibrating(layer):
        assert torch.equal(layer(x), x.relu())
    with calibrating(layer):  # once more: the quantizer has steps, and passes values on
        assert torch.equal(layer.train()(x), x.relu())
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------------- the network


def noisy_network(kind: ActNoise) -> QuantizedModel:
    """A small quantized network with noise."""
    spec = QuantSpec(act_bits=2, act_noise=kind, drop_share=0.5)
    return quantize(dense(), spec, calibration=images(32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOISES)
def test_a_network_trains_with_noise_that_a_seed_repeats(kind: ActNoise) -> None:
    qann, x = noisy_network(kind), images(8)
    expected = quantize(dense(), QuantSpec(act_bits=2), calibration=images(32))(x)
    assert torch.equal(qann(x), expected)
    qann.train()
    found = []
    for seed in (1, 1, 2):
        with borrow_random(seed):
            found.append(qann(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    found[0].square().mean().backward()
    for name in ("1", "3"):
        (step,) = qann.layers.get_submodule(name).parameters()
        assert step.grad is not None
        assert step.grad != 0


@pytest.mark.slow
def test_the_noise_of_a_loaded_network_is_the_one_asked_for(tmp_path: Path) -> None:
    qann = noisy_network(ActNoise.DROP)
    save(qann, tmp_path / "net")
    again = load(tmp_path / "net")
    assert again.spec == qann.spec
    for wanted in (ActNoise.NONE, ActNoise.STOCHASTIC):
        spec = replace(qann.spec, act_noise=wanted, drop_share=0.25)
        other = load_quantized(tmp_path / "net", spec)
        assert other.spec == spec
        assert not other.training
        for network, noise in ((again, Noise(ActNoise.DROP, 0.5)), (other, Noise(wanted, 0.25))):
            layers = [layer for _, layer in layer_nodes(network.layers, QuantAct)]
            assert [layer.noise for layer in layers] == [noise] * 3
        assert torch.equal(other(images(4)), qann(images(4)))
    with pytest.raises(CheckpointError, match="another QuantSpec"):
        load_quantized(tmp_path / "net", replace(qann.spec, act_bits=3))


def test_a_spec_stored_before_there_was_noise_has_none() -> None:
    stored = json.loads(json.dumps(QuantSpec(act_bits=3).to_json()))
    for name in ("act_noise", "drop_share"):
        del stored[name]
    assert QuantSpec.from_json(stored) == QuantSpec(act_bits=3)
    spec = QuantSpec(act_noise=ActNoise.DROP, drop_share=0.3)
    assert QuantSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "0.1", float("nan")])
def test_a_share_that_is_none_is_refused(share: object) -> None:
    with pytest.raises(SpecError, match="1 value out of range") as caught:
        QuantSpec(drop_share=share)  # type: ignore[arg-type]
    assert caught.value.faults[0].hint == "allowed: 0 to 1"


# ------------------------------------------------------------------------------------ conversion


def made_up(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of 6 classes: one of 6 patterns, buried in noise; and which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=generator)
    drawn = torch.randn(count, 2, 8, 8, generator=generator)
    return images(6, seed=99)[labels] + 1.5 * drawn, labels


def trained(network: nn.Module, seed: int, lr: float) -> nn.Module:
    """The network after 120 steps on made-up images, in place."""
    x, labels = made_up(512, seed)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=lr)
    with borrow_random(seed):
        for _ in range(120):
            chosen = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network.eval()


@pytest.mark.long
def test_networks_trained_with_noise_lose_no_more_by_conversion() -> None:
    """The mean over 3 seeds of the squared logit error behind 2 steps, next to that without."""
    gaps = dict.fromkeys(ActNoise, 0.0)
    for seed in range(3):
        layers = [conv(2, 12), nn.ReLU(), conv(12, 12), nn.ReLU(), conv(12, 12), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 6)]
        ann = trained(lived_in(nn.Sequential(*layers, *head), seed), seed, 3e-3)
        x, labels = made_up(512, 100 + seed)
        for kind in ActNoise:
            spec = QuantSpec(act_bits=3, act_noise=kind)
            qann = quantize(ann, spec, calibration=made_up(128, seed)[0])
            trained(qann, seed, 1e-3)
            snn = convert(qann, ladder=Uniform(2), presentation="every_step")
            with torch.no_grad():
                logits = qann(x)
                found = simulate(snn, x, time_steps=2).logits[-1]
            assert (logits.argmax(1) == labels).float().mean() > 0.85
            gaps[kind] += float((found - logits).square().mean() / logits.var()) / 3
    for kind in NOISES:
        assert 0 < gaps[kind] <= 1.02 * gaps[ActNoise.NONE], gaps
