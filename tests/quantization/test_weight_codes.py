"""Ternary and sub-bit weights: what they hold, how they learn, and that they convert exactly."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from networks import dense, images, network
from torch import Tensor, nn

from mt_convert.errors import SpecError
from mt_convert.graph.nodes import WEIGHTED, layer_nodes
from mt_convert.quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
    quantized_weight,
)
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import BatchNorm, Override, QuantSpec, Scale, WeightCode
from mt_convert.quantization.weight_codes import (
    EVERY,
    START,
    SubBit,
    Ternary,
    encode_layer,
    weight_code,
)
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

CODES = [WeightCode.TERNARY, WeightCode.SUBBIT]


def weights(*shape: int, seed: int = 0) -> Tensor:
    """Float weights, some of them 0 and some beyond 1."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    drawn.view(-1)[::17] = 0
    return drawn


def subbit(weight: Tensor, codeword_bits: int) -> SubBit:
    """A code started from a weight, in eval mode."""
    code = SubBit(codeword_bits, Scale.LEARNED)
    code.start_(weight)
    return code.eval()


def distinct(levels: Tensor) -> int:
    """How many different 3x3 kernels there are."""
    return len(levels.reshape(-1, 9).unique(dim=0))


# --------------------------------------------------------------------------------------- sub-bit


@pytest.mark.parametrize("codeword_bits", [1, 3, 5, 9])
def test_a_layer_has_no_more_kernels_than_its_codebook(codeword_bits: int) -> None:
    weight = weights(32, 16, 3, 3)
    levels, step = subbit(weight, codeword_bits).encode(weight)
    assert set(levels.unique().tolist()) == {-1.0, 1.0}
    most = 2**codeword_bits
    assert most / 2 < distinct(levels) <= most
    torch.testing.assert_close(step.flatten(), weight.abs().mean((1, 2, 3)))


def test_all_patterns_are_the_signs_times_the_scale_exactly() -> None:
    sizes = torch.arange(16 * 72).remainder(23).reshape(16, 8, 3, 3) - 20
    weight = weights(16, 8, 3, 3) * 10.0**sizes
    code = subbit(weight, 9)
    expected = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean((1, 2, 3), keepdim=True)
    assert torch.equal(code(weight), expected)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    code.signs.copy_(code.signs[order])
    assert torch.equal(code(weight), expected)


@pytest.mark.parametrize("codeword_bits", [2, 5, 8])
def test_projecting_twice_changes_nothing(codeword_bits: int) -> None:
    weight = weights(8, 8, 3, 3)
    code = subbit(weight, codeword_bits)
    once = code(weight).detach()
    again = code(once).detach()
    assert torch.equal(once.sign(), again.sign())
    torch.testing.assert_close(once, again, rtol=1e-6, atol=0)
    assert not torch.equal(once, weight)


@pytest.mark.parametrize("codeword_bits", [1, 4, 9])
def test_each_kernel_takes_the_nearest_codeword(codeword_bits: int) -> None:
    weight = weights(16, 8, 3, 3)
    code = subbit(weight, codeword_bits)
    book = code.signs.double()
    away = torch.cdist(weight.reshape(-1, 9).double(), book)
    taken = away.gather(1, code.nearest(weight)[:, None])[:, 0]
    torch.testing.assert_close(taken, away.min(1).values)


def test_gradients_pass_where_weights_lie_within_one() -> None:
    weight = weights(8, 4, 3, 3).requires_grad_()
    factors = torch.linspace(-1, 2, weight.numel()).reshape(weight.shape)
    (slope,) = torch.autograd.grad((subbit(weight.detach(), 4)(weight) * factors).sum(), weight)
    inside = weight.abs() <= 1
    assert inside.any()
    assert not inside.all()
    assert torch.equal(slope[inside], factors[inside])
    assert (slope[~inside] == 0).all()


def test_codewords_learn_every_so_many_passes_from_the_kernels_that_took_them() -> None:
    weight = weights(16, 8, 3, 3)
    code = subbit(weight, 3).train()
    for number in range(1, 2 * EVERY + 1):
        code.codewords.grad = None
        code(weight.clone().requires_grad_()).sum().backward()
        if number % EVERY:
            assert code.codewords.grad is None
        else:
            counts = torch.bincount(code.nearest(weight), minlength=8).float()
            assert torch.equal(code.codewords.grad, counts[:, None].expand(8, 9))


def test_signs_change_only_beyond_the_hysteresis() -> None:
    weight = weights(16, 8, 3, 3)
    code = subbit(weight, 3).train()
    before = code.signs.clone()
    code.codewords.data.copy_(-0.0009 * before)
    code(weight)
    assert torch.equal(code.signs, before)
    code.codewords.data[2, 4] = 0.0011 * -before[2, 4]
    code(weight)
    changed = (code.signs != before).nonzero().tolist()
    assert changed == [[2, 4]]
    code.codewords.data[0, 0] = 99.0
    code(weight)
    assert code.codewords[0, 0] == 3


def test_codewords_that_have_become_the_same_are_replaced() -> None:
    weight = weights(32, 16, 3, 3)
    code = subbit(weight, 4).train()
    code.codewords.data[5:9] = code.codewords.data[1]
    other = copy.deepcopy(code)
    code(weight)
    assert distinct(code.signs) == 16
    assert torch.equal(code.codewords[5:9], START * code.signs[5:9])
    other(weight)
    assert torch.equal(code.signs, other.signs), "it must not depend on chance"
    full = subbit(weight, 9).train()
    full.codewords.data[7] = full.codewords.data[500]
    full(weight)
    assert distinct(full.signs) == 512


def test_eval_mode_changes_nothing() -> None:
    weight = weights(8, 8, 3, 3)
    code = subbit(weight, 4)
    code.codewords.data.neg_()
    before = copy.deepcopy(code.state_dict())
    code(weight)
    assert all(torch.equal(value, before[key]) for key, value in code.state_dict().items())


# --------------------------------------------------------------------------------------- ternary


def test_ternary_levels_switch_where_the_slopes_say() -> None:
    weight = weights(16, 8, 3, 3)
    code = Ternary(Scale.LEARNED)
    code.log_alpha.data.copy_(torch.tensor([0.7, 2.5]).log())
    levels, _ = code.encode(weight)
    u = (weight - weight.mean()) / weight.std(correction=0)
    expected = (u > 0.5 / 2.5).float() - (u < -0.5 / 0.7).float()
    assert torch.equal(levels, expected)
    assert all((levels == level).any() for level in (-1, 0, 1))


def test_the_ternary_step_is_the_least_squares_of_its_channel() -> None:
    weight = weights(6, 5, 3, 3)
    weight[3] = weight.mean()  # a channel whose levels are all 0
    levels, step = Ternary(Scale.LEARNED).encode(weight)
    assert step.shape == (6, 1, 1, 1)
    assert (step > 0).all()
    centred = weight - weight.mean()
    for factor in (0.9, 1.1):
        better = (centred - levels * step).square().sum((1, 2, 3))
        worse = (centred - levels * step * factor).square().sum((1, 2, 3))
        changed = levels.abs().sum((1, 2, 3)) > 0
        assert (better < worse)[changed].all()
    assert changed.sum() >= 5


def test_ternary_gradients_are_those_of_clamped_slopes() -> None:
    weight = weights(8, 4, 3, 3)
    code = Ternary(Scale.LEARNED)
    code.log_alpha.data.copy_(torch.tensor([0.8, 1.7]).log())
    _, step = code.encode(weight)
    factors = torch.linspace(-1, 2, weight.numel()).reshape(weight.shape)
    results = []
    for published in (False, True):
        leaf, alpha = weight.clone().requires_grad_(), code.alpha
        value = code(leaf)
        if published:
            u = (leaf - leaf.mean()) / leaf.std(correction=0)
            value = ((alpha[0] * u).clamp(-1, 0) + (alpha[1] * u).clamp(0, 1)) * step
        results.append(torch.autograd.grad((value * factors).sum(), [leaf, code.log_alpha]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (results[0][1] != 0).all()


# ----------------------------------------------------------------------------------- the network


def kinds(model: nn.Module) -> dict[str, str]:
    """The type of every weighted layer."""
    return {
        str(node.target): type(layer).__name__
        for node, layer in layer_nodes(model.layers, WEIGHTED)  # type: ignore[arg-type]
    }


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_layers_with_bits_of_their_own_keep_them(code: WeightCode) -> None:
    spec = QuantSpec(weights=code, overrides=(Override("a", weight_bits=3),))
    qann = quantize(network("residual"), spec, calibration=images(8))
    found = kinds(qann)
    assert (found["stem"], found["a"], found["head"]) == (
        "QuantConv2d",
        "QuantConv2d",
        "QuantLinear",
    )
    assert [found[name] for name in "bcd"] == ["CodedConv2d"] * 3
    name = "sub-bit" if code is WeightCode.SUBBIT else "ternary"
    assert f"weights: 1 of 3 bits, 2 of 8 bits, 3 {name}" in repr(qann)


@pytest.mark.slow
def test_subbit_leaves_other_kernels_uniform_and_ternary_takes_them_all() -> None:
    model = network("bottleneck")
    found = {}
    for code in CODES:
        spec = QuantSpec(weights=code, first_bits=None, last_bits=None)
        found[code] = kinds(quantize(model, spec, calibration=images(8)))
    plain, coded = "QuantConv2d", "CodedConv2d"
    assert found[WeightCode.SUBBIT] == {
        **{"expand": plain, "depth": coded, "project": plain, "expand2": plain},
        "head": "QuantLinear",
    }
    assert set(found[WeightCode.TERNARY].values()) == {coded, "CodedLinear"}
    line = quantize(
        network("line"),
        QuantSpec(weights=WeightCode.TERNARY, first_bits=None),
        calibration=images(8, (2, 8)),
    )
    assert kinds(line)["0"] == "CodedConv1d"


@pytest.mark.slow
def test_codes_that_no_layer_takes_are_refused() -> None:
    with pytest.raises(SpecError, match="no weights to code") as caught:
        quantize(
            network("line"), QuantSpec(weights=WeightCode.SUBBIT), calibration=images(8, (2, 8))
        )
    assert "3x3" in str(caught.value)
    with pytest.raises(SpecError) as caught:
        QuantSpec(codeword_bits=10, weights="nibble")  # type: ignore[arg-type]
    hints = {fault.where: fault.hint for fault in caught.value.faults}
    assert hints == {
        "codeword_bits": "allowed: 1 to 9",
        "weights": "allowed: uniform, ternary, subbit",
    }


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", ["residual", "bottleneck", "kinds_of_convolution"])
def test_a_converted_network_is_exact_in_one_step(name: str, code: WeightCode) -> None:
    spec = QuantSpec(weights=code, codeword_bits=3, first_bits=None, batch_norm=BatchNorm.FOLD)
    qann = quantize(network(name), spec, calibration=images(16))
    assert any(kind.startswith("Coded") for kind in kinds(qann).values())
    x = images(8, seed=4)
    assert torch.equal(simulate(convert(qann), x, time_steps=1).logits[-1], qann(x))


@pytest.mark.parametrize("code", CODES)
def test_value_and_step_are_those_the_layer_uses(code: WeightCode) -> None:
    plain = nn.Conv2d(4, 6, 3, groups=2)
    made = encode_layer(plain, weight_code(code, 4, Scale.LEARNED)).eval()
    value, step = quantized_weight(made)
    assert step.shape == (6, 1, 1, 1)
    assert torch.equal((value / step).round() * step, value)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.conv2d(x, value, plain.bias, groups=2)
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize("code", CODES)
def test_steps_are_powers_of_two_where_asked_for(code: WeightCode) -> None:
    layer = encode_layer(nn.Conv2d(4, 6, 3), weight_code(code, 4, Scale.POWER_OF_TWO))
    exponents = quantized_weight(layer)[1].log2()
    assert torch.equal(exponents, exponents.round())


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_training_lowers_the_loss(code: WeightCode) -> None:
    spec = QuantSpec(weights=code, codeword_bits=4, act_bits=3)
    qann, x = quantize(dense(), spec, calibration=images(32)), images(32)
    labels = torch.arange(32) % 3
    qann.train()
    optimizer = torch.optim.Adam(qann.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(qann(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    qann.eval()
    assert torch.equal(simulate(convert(qann), x, time_steps=1).logits[-1], qann(x))


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_coded_layers_come_back_from_json_and_from_a_file(code: WeightCode, tmp_path: Path) -> None:
    spec = QuantSpec(weights=code, codeword_bits=4, scale=Scale.POWER_OF_TWO)
    qann, x = quantize(dense(), spec, calibration=images(32)), images(8, seed=1)
    save(qann, tmp_path / "qann")
    again = load(tmp_path / "qann")
    assert again.spec == spec
    assert torch.equal(again(x), qann(x))
    layer = qann.layers.get_submodule("2")
    config = json.loads(json.dumps(quant_layer_to_json(layer)))
    copied = quant_layer_from_json(config)
    assert quant_layer_to_json(copied) == config
    copied.load_state_dict(layer.state_dict())
    for one, other in zip(quantized_weight(copied), quantized_weight(layer), strict=True):
        assert torch.equal(one, other)
