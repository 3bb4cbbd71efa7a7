"""Weights of 2 to 4 bits whose lowest level has no opposite: exact through every form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import dense, images, network
from torch import nn

from mt_convert.errors import SpecError
from mt_convert.evaluation.energy.bits import weight_bits
from mt_convert.graph.nodes import WEIGHTED, layer_nodes
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.shift_add import shift_add
from mt_convert.quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
    quantize_weighted,
    quantized_weight,
    weight_range,
)
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec, Scale
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.weight_grid import OnGrid, weight_levels


def uneven(bits: int, scale: Scale = Scale.LEARNED, name: str | None = None) -> QuantizedModel:
    spec = QuantSpec(
        weight_bits=bits,
        act_bits=2,
        scale=scale,
        narrow_range=False,
        batch_norm=BatchNorm.KEEP if name else BatchNorm.FOLD,
    )
    return quantize(network(name) if name else dense(), spec, calibration=images(16))


@pytest.mark.slow
@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_bits_have_one_level_more_below_and_many_have_not(bits: int, scale: Scale) -> None:
    layers = [layer for _, layer in layer_nodes(uneven(bits, scale).layers, WEIGHTED)]
    first, inner, last = ((value / step).round() for value, step in map(quantized_weight, layers))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert (inner.min(), inner.max()) == (low, high)
    assert weight_range(layers[1]) == (low, high)
    for levels, layer in ((first, layers[0]), (last, layers[2])):
        assert levels.min() >= -127
        if scale is Scale.LEARNED:
            assert weight_range(layer) is None


def test_two_bits_fit_weights_on_one_side_better_than_three_levels() -> None:
    weight = torch.tensor([[-1.0, -0.9, -0.5, 0.0, 0.4, 0.6]])
    errors = []
    for narrow in (True, False):
        layer = nn.Linear(6, 1, bias=False)
        layer.weight.data = weight.clone()
        value, _ = quantized_weight(quantize_weighted(layer, 2, Scale.LEARNED, narrow))
        errors.append(float((value - weight).square().mean()))
    assert errors[1] < errors[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "residual"])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_converted_network_is_the_quantized_one_in_every_form(
    bits: int, name: str | None, tmp_path: Path
) -> None:
    qann, x = uneven(bits, name=name), images(8, seed=3)
    snn = convert(qann, verify=x)
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    for network_ in (qann, snn):
        save(network_, tmp_path / "net")
        again = load(tmp_path / "net")
        for (_, a), (_, b) in zip(
            layer_nodes(network_.layers, WEIGHTED), layer_nodes(again.layers, WEIGHTED), strict=True
        ):
            assert weight_range(a) == weight_range(b)
            assert weight_levels(a) == weight_levels(b)
    reference = simulate(snn, x, time_steps=1).logits[-1]
    assert torch.equal(simulate(again, x, time_steps=1).logits[-1], reference)
    assert torch.equal(reference, qann(x))
    fast = integer(snn, backend="torch")
    few = shift_add(fast, x)
    assert torch.equal(few.logits[-1], fast(x))
    torch.testing.assert_close(fast(x), reference)
    assert [layer.weight_bits for layer in fast.layers][1] == bits


@pytest.mark.slow
def test_energy_and_fine_tuning_know_the_range() -> None:
    snn = convert(uneven(2))
    layer = list(layer_nodes(snn.layers, WEIGHTED))[1][1]
    assert weight_levels(layer) == (-2, 1)
    assert weight_bits(layer) == 2
    grid = OnGrid(layer)
    assert not grid.fixed
    with torch.no_grad():
        layer.weight.copy_(100 * layer.weight)
    levels = (grid.weight() / layer.weight_scale).round()
    assert (levels.min(), levels.max()) == (-2, 1)


def test_the_range_is_stored_and_a_narrow_one_is_not_named() -> None:
    linear = nn.Linear(3, 2)
    config = quant_layer_to_json(quantize_weighted(linear, 2, Scale.LEARNED, False))
    assert config["narrow_range"] is False
    assert weight_range(quant_layer_from_json(config)) == (-2, 1)
    assert "narrow_range" not in quant_layer_to_json(quantize_weighted(linear, 2, Scale.LEARNED))
    stored = QuantSpec(narrow_range=False).to_json()
    assert QuantSpec.from_json(stored).narrow_range is False
    del stored["narrow_range"], stored["normalize_weights"]  # as earlier versions wrote it
    assert QuantSpec.from_json(stored) == QuantSpec()
    with pytest.raises(SpecError, match="allowed: True or False"):
        QuantSpec(narrow_range=1)  # type: ignore[arg-type]
