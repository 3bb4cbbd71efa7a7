"""Weights normalised before they are quantized: where, how they learn, and exact conversion."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import images, network
from small_training import IMAGES, quantized_net
from torch import Tensor, nn

from mt_convert.errors import SpecError
from mt_convert.graph.nodes import WEIGHTED, layer_nodes
from mt_convert.integer_engine.model import integer
from mt_convert.quantization.brevitas_layers import is_normalized, quantized_weight
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.quantization.weight_norm import normalize
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

SPEC = QuantSpec(weight_bits=2, act_bits=2, normalize_weights=True)


def normalized(qann: QuantizedModel) -> list[str]:
    return [
        str(n.target) for n, layer in layer_nodes(qann.layers, WEIGHTED) if is_normalized(layer)
    ]


@pytest.mark.slow
def test_layers_of_few_bits_with_a_batch_norm_alone_behind_are_normalised() -> None:
    assert normalized(quantized_net(SPEC)) == ["3", "6"]  # 0 and 11 have 8 bits
    qann = quantize(network("residual"), SPEC, calibration=images(8))
    assert normalized(qann) == ["a", "b", "c", "d"]
    assert "4 of 2 bits normalised" in repr(qann)
    with pytest.raises(SpecError, match="no layer of 4 bits or fewer has a batch norm alone"):
        quantize(network("functional"), SPEC, calibration=images(8))
    with pytest.raises(SpecError, match="batch norms are folded"):
        QuantSpec(normalize_weights=True, batch_norm="fold")  # type: ignore[arg-type]


@pytest.mark.slow
def test_size_and_offset_of_the_weights_no_longer_matter() -> None:
    qann = quantized_net(SPEC)
    layer = qann.layers.get_submodule("3")
    value, _ = quantized_weight(layer)
    with torch.no_grad():
        layer.weight.mul_(4).add_(0.5)
    again, _ = quantized_weight(layer)
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-5)
    assert float(normalize(layer.weight.detach()).mean().abs()) < 1e-6
    assert float(normalize(layer.weight.detach()).std()) == pytest.approx(1, 1e-5)
    layer.quant_weight().value.sum().backward()
    slope = 1 / float(layer.weight.detach().std())
    inside = (layer.weight.grad != 0) & (layer.weight.grad - slope).abs().lt(1e-4)
    assert inside.float().mean() > 0.5, "straight through, divided by the deviation"


@pytest.mark.slow
def test_the_batch_norms_take_the_scale_up_from_the_start() -> None:
    logits = quantized_net(QuantSpec(weight_bits=8, act_bits=8))(IMAGES).detach()
    errors = []
    for normalize_weights in (True, False):
        spec = QuantSpec(weight_bits=4, act_bits=8, normalize_weights=normalize_weights)
        error = (
            quantized_net(spec)(IMAGES).detach() - logits
        ).square().mean().sqrt() / logits.std()
        errors.append(float(error))
    assert errors[0] < 2 * errors[1] < 1


@pytest.mark.slow
def test_the_converted_network_is_exact_and_comes_back_from_a_file(tmp_path: Path) -> None:
    qann = quantize(network("residual"), SPEC, calibration=images(8))
    x = images(8, seed=4)
    snn = convert(qann, verify=x)
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    run = simulate(snn, x, time_steps=1)
    assert torch.equal(run.logits[-1], qann(x))
    save(qann, tmp_path / "net")
    again = load(tmp_path / "net")
    assert normalized(again) == normalized(qann)
    assert torch.equal(again(x), qann(x))
    torch.testing.assert_close(integer(snn, backend="torch")(x), run.logits[-1])


@pytest.mark.long
def test_it_learns_as_one_graph_and_a_copy_learns_the_same() -> None:
    qann = quantized_net(SPEC).train()
    twin = copy.deepcopy(qann)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    losses: list[list[Tensor]] = [[], []]
    for model, run, seen in ((qann, qann, losses[0]), (twin, compiled, losses[1])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(4):
            loss = nn.functional.cross_entropy(run(IMAGES), (IMAGES.mean((1, 2, 3)) > 0.5).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
