"""Quantizers that stand at a function: what is specified, trained, made again, and refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from function_networks import EACH, Net, images, network
from torch import Tensor, nn

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.quantization.activations.formula import Formula
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.activations.signed_range import fit_dip
from mt_convert.quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
)
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec


def quantized(name: str, **settings: Any) -> QuantizedModel:
    """One of the networks of functions, at W4A4."""
    return quantize(network(name), QuantSpec(4, 4, **settings), calibration=images())


def act_of(qann: QuantizedModel) -> QuantAct:
    """The first quantizer with a function."""
    return next(act for _, act in layer_nodes(qann.layers, QuantAct) if act.formula is not None)


@pytest.mark.sampled
@pytest.mark.parametrize("name", EACH)
def test_in_eval_form_the_level_is_that_of_float64(name: str) -> None:
    act = act_of(quantized(name))
    assert act.formula is not None
    x = torch.randn(64, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3
    low, high = act.level_bounds
    expected = act.formula.levels(x, float(act.scale), (low, high)).float()
    assert torch.equal(torch.round(act(x) / act.scale), expected)
    with_more = ("elu", "tanh", "softsign", "prelu", "square of relu", "gelu and a batch norm")
    assert -3 <= low <= 0 or name in with_more


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gate by a batch norm", "gelu and a batch norm"])
def test_a_batch_norm_is_defined_as_torch_computes_it(name: str) -> None:
    formula = act_of(quantized(name)).formula
    assert formula is not None
    x = torch.randn(64, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3
    expected = copy.deepcopy(formula.graph).double()(x.double()) * 2**20
    found = formula.levels(x, 2.0**-20, (-(2**40), 2**40))
    assert (found - expected).abs().max() < 0.51


@pytest.mark.slow
def test_functions_that_dip_have_few_levels_below_0_and_positive_ones_none() -> None:
    assert {act_of(quantized(name)).below for name in ("gelu", "silu")} <= {1, 2, 3}
    gate = [act for _, act in layer_nodes(quantized("gate").layers, QuantAct) if act.formula]
    assert [act.signed for act in gate] == [True, False]


def test_the_range_of_a_dip_has_the_least_squared_error() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2
    y = F.silu(x)
    step, below = fit_dip(y, (float(y.min()), float(y.max())), 15, power=False)

    def error(step: float, below: int) -> float:
        return float((y - (y / step).round().clamp(-below, 15 - below) * step).square().mean())

    assert below in (1, 2)
    assert all(error(step, below) <= error(step * factor, below) for factor in (0.7, 1.3))
    assert all(error(step, below) <= error(step, other) for other in range(6))


@pytest.mark.slow
def test_the_table_is_made_again_after_training_moved_the_step_and_only_then() -> None:
    qann = quantized("silu")
    act = act_of(qann)
    first, before = act.table(), qann(images())
    assert act.table() is first
    qann.train()
    optimizer = torch.optim.SGD(qann.parameters(), lr=0.1)
    qann(images()).square().sum().backward()
    step = next(item for name, item in act.quant.named_parameters())
    assert step.grad is not None
    optimizer.step()
    qann.eval()
    assert not torch.equal(qann(images()), before)
    assert act.table() is not first
    low, high = act.level_bounds
    x = torch.linspace(-4, 4, 999)
    assert act.formula is not None
    expected = act.formula.levels(x, float(act.scale), (low, high)).float()
    assert torch.equal(act.table()(x), expected)


@pytest.mark.slow
def test_a_constant_of_the_function_is_trained_and_makes_the_table_again() -> None:
    qann = quantized("square of relu")
    act = act_of(qann)
    first = act.table()
    assert act.formula is not None
    scale = next(act.formula.parameters())
    qann.train()
    qann(images()).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0
    qann.eval()
    assert act.table() is first
    scale.data *= 1.5
    assert act.table() is not first


@pytest.mark.slow
def test_a_loaded_table_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    act = act_of(quantized("silu"))
    table = act.table()
    x = torch.linspace(-4, 4, 99)
    expected = act(x)
    loaded = quant_layer_from_json(quant_layer_to_json(act))
    assert isinstance(loaded, QuantAct)
    loaded.load_state_dict(act.state_dict(), strict=False)
    assert loaded.stored_table is not None
    loaded.stored_table.load_state_dict(table.state_dict())
    loaded.keep_table_()
    monkeypatch.setattr(Formula, "table", None)
    assert torch.equal(loaded.eval()(x), expected)


@pytest.mark.slow
def test_training_runs_the_function_and_passes_its_gradient() -> None:
    act = act_of(quantized("silu"))
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    act.train()
    act(x).sum().backward()
    assert x.grad is not None
    trained = x.grad.clone()
    y = x.detach().clone().requires_grad_()
    F.silu(y).sum().backward()
    low, high = act.level_bounds
    inside = (F.silu(x) > low * act.scale) & (F.silu(x) < high * act.scale)
    assert y.grad is not None
    assert torch.allclose(trained[inside], y.grad[inside], atol=1e-5)
    x.grad = None
    act.eval()
    value = act(x)
    value.sum().backward()
    assert torch.equal(value, act.table()(x.detach()) * act.scale)
    assert torch.allclose(x.grad[inside], y.grad[inside], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("functions", "taken"),
    [
        ("analog", {"as asked"}),
        ({"*": "analog"}, {"as asked"}),
        ({"silu": "analog"}, {"as asked", "ladder"}),
        ({"*": "analog", "sig*": "ladder"}, {"as asked", "ladder"}),
        ({}, {"ladder"}),
    ],
)
def test_a_function_can_stay_analog_by_name(functions: Any, taken: set[str]) -> None:
    qann = quantized("gate", functions=functions)
    assert {row.taken for row in qann.functions} == taken
    assert QuantSpec.from_json(qann.spec.to_json()) == qann.spec


@pytest.mark.slow
def test_words_and_names_that_are_none_are_refused() -> None:
    with pytest.raises(SpecError, match="allowed: ladder, analog"):
        QuantSpec(functions={"act": "digital"})
    with pytest.raises(SpecError, match="ladder or analog"):
        QuantSpec(functions=3)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="nothing") as caught:
        quantized("silu", functions={"nothing": "analog"})
    assert "silu" in str(caught.value)


@pytest.mark.slow
def test_what_is_no_ladder_stays_analog_and_says_why() -> None:
    def odd(net: Net, x: Tensor) -> Tensor:
        return torch.sin(x) + torch.log(x.abs().mean(1, keepdim=True))

    qann = quantize(Net(odd).eval(), QuantSpec(4, 4), calibration=images())
    reasons = {row.function: row.taken for row in qann.functions}
    assert "turns" in reasons["sin"]
    assert "not a number at" in reasons["log"]


@pytest.mark.slow
def test_the_read_out_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 5), nn.SiLU(), nn.Flatten(), nn.Linear(3, 2), nn.Sigmoid())
    qann = quantize(net, QuantSpec(4, 4), calibration=images())
    assert [row.taken for row in qann.functions] == ["ladder", "it is the read-out"]


@pytest.mark.slow
def test_agreement_with_the_float_network_is_said_both_ways() -> None:
    qann = quantized("silu")
    assert qann.float_agreement is not None
    assert qann.unrounded_agreement is not None
    assert quantized("silu", functions="analog").unrounded_agreement is None


@pytest.mark.slow
def test_a_stored_function_holds_operators_of_single_numbers_alone() -> None:
    stored = quant_layer_to_json(act_of(quantized("silu")))["function"]
    for node in stored["graph"]:
        if node["op"] == "call_function":
            node["target"] = "aten.repeat.default"
            node["args"] = {"tuple": [{"node": "x"}, {"list": [10**9]}]}
    with pytest.raises(CheckpointError, match="no function of each number"):
        Formula.from_json(stored)
