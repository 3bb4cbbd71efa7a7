"""Converted networks whose functions are layers of neurons (invariant 15)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from function_networks import EACH, Net, images, network

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.errors.layer_errors import layer_errors
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.integer_engine.model import integer
from mt_convert.neurons.ladder import Radix
from mt_convert.quantization.activations.formula import Formula
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.batch_norm import batch_norms, estimate_batch_norm_
from mt_convert.quantization.brevitas_layers import step_parameters
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.compiled import CompiledSimulation
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike


def quantized(name: str) -> QuantizedModel:
    """One of the networks of functions, at W4A4."""
    return quantize(network(name), QuantSpec(4, 4), calibration=images())


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", EACH)
def test_the_spiking_network_equals_the_quantized_one_in_every_way_of_firing(name: str) -> None:
    qann = quantized(name)
    snn = convert(qann, verify=images(2), literal="all")
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    assert snn.report.verdict.settling_t is not None
    expected = qann(images())
    assert torch.equal(simulate(snn, images(), time_steps=1).logits[0], expected)
    windows = convert(qann, ladder=Radix(3), whole_window=True, verify=images(2))
    assert windows.report.verdict is not None
    assert windows.report.verdict.window is not None
    assert windows.report.verdict.window.exact
    few = convert(qann, ladder=3, signed=True)
    assert torch.equal(simulate(few, images(), time_steps=24).logits[-1], expected)
    analog = {row.name for row in snn.report.analog}
    assert analog == {"conv"} if name != "gate" else analog <= {"conv", "pad", "slice_1"}


@pytest.mark.slow
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("name", ["silu", "prelu", "tanh"])
def test_single_spikes_say_the_same(name: str, presentation: str) -> None:
    qann = quantized(name)
    for settings in ({}, {"whole_window": True}):
        snn = convert(qann, ladder=4, signed=True, presentation=presentation, **settings)
        run = simulate(snn, images(), time_steps=3)
        spikes = spike_by_spike(snn, images(), time_steps=3)
        for layer, total in run.totals.items():
            assert (total != spikes.totals[layer]).float().mean() < 0.01, (layer, settings)


@pytest.mark.slow
def test_presented_in_every_step_means_come_closer_to_the_function() -> None:
    qann = quantized("silu")
    few = convert(qann, ladder=2, signed=True, presentation="every_step")
    run = simulate(few, images(), time_steps=30)
    reference = quantize(network("silu"), QuantSpec(4, 8), calibration=images())(images())
    missed = (run.logits - reference).abs().mean((1, 2))
    assert missed[-1] < 0.3 * missed[0]


@pytest.mark.slow
def test_all_steps_at_once_are_the_steps_one_by_one() -> None:
    snn = convert(quantized("gelu"), ladder=3, signed=True)
    one, two = (
        simulate(
            snn, images(), time_steps=4, layer_by_layer=flag, arithmetic=IntegerArithmetic(snn)
        )
        for flag in (False, True)
    )
    assert torch.equal(one.logits, two.logits)
    assert all(torch.equal(one.spike_counts[name], two.spike_counts[name]) for name in one.totals)
    one = simulate(snn, images(), time_steps=4)
    fast = CompiledSimulation(snn, backend="eager")(images(), time_steps=4)
    assert torch.equal(fast.logits, one.logits)
    assert all(torch.equal(one.spike_counts[name], fast.spike_counts[name]) for name in one.totals)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silu", "prelu", "square of relu", "gate by a batch norm"])
def test_saving_and_loading_change_nothing_and_compute_no_threshold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qann = quantized(name)
    snn = convert(qann)
    save(qann, tmp_path / "qann")
    save(snn, tmp_path / "snn")
    monkeypatch.setattr("mt_convert.quantization.activations.formula.step_table", None)
    stored, spiking = load(tmp_path / "qann"), load(tmp_path / "snn")
    expected = qann(images())
    assert torch.equal(stored(images()), expected)
    assert torch.equal(simulate(spiking, images(), time_steps=1).logits[0], expected)
    assert torch.equal(simulate(convert(stored), images(), time_steps=1).logits[0], expected)
    assert stored.functions == spiking.report.functions == qann.functions
    assert spiking.report.unrounded_agreement == qann.unrounded_agreement
    assert str(spiking.report) == str(snn.report)


@pytest.mark.slow
def test_a_stored_network_that_is_trained_on_gets_the_thresholds_of_its_new_steps(
    tmp_path: Path,
) -> None:
    """As a run does it: quantized, stored, loaded, trained before anybody asks for a threshold."""
    save(quantized("silu"), tmp_path / "qann")
    qann = load(tmp_path / "qann")
    assert isinstance(qann, QuantizedModel)
    acts = [act for act in qann.layers.modules() if isinstance(act, QuantAct) and act.formula]
    assert acts
    with torch.no_grad():
        for parameter in step_parameters(qann):
            parameter.mul_(1.25)
    for act in acts:
        assert act.formula is not None
        fresh = act.formula.table(float(act.scale), act._levels(), "fresh")
        assert torch.equal(act.table().thresholds, fresh.thresholds)
    assert convert(qann, verify=images(4)).report.verdict.exact_t1 is True


def function_of(qann: QuantizedModel) -> Formula:
    """The one function of a network."""
    (formula,) = [item for item in qann.layers.modules() if isinstance(item, Formula)]
    return formula


@pytest.mark.slow
def test_a_batch_norm_inside_a_function_is_trained_and_stands_still_in_its_neurons() -> None:
    qann = quantized("gate by a batch norm")
    norm = function_of(qann).graph.norm_0
    before, thresholds = norm.running_mean.clone(), convert(qann).layers.mul.table.thresholds
    qann.train()
    qann(images()).sum().backward()
    qann.eval()
    assert norm.weight.grad is not None
    assert not torch.equal(norm.running_mean, before)
    snn = convert(qann, verify=images(2)).train()
    assert snn.report.verdict.exact_t1
    assert not torch.equal(snn.layers.mul.table.thresholds, thresholds)
    held = snn.layers.mul.formula.train()
    assert not list(held.parameters())
    held(images()[:, :1].expand(-1, 4, -1, -1) + 1)
    assert torch.equal(held.graph.norm_0.running_mean, norm.running_mean)


@pytest.mark.slow
def test_statistics_of_a_batch_norm_inside_a_function_are_estimated_like_all_others() -> None:
    qann = quantized("gate by a batch norm")
    norm, seen = function_of(qann).graph.norm_0, []
    assert any(item is norm for item in batch_norms(qann))
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    estimate_batch_norm_(qann, [norm], [images()])
    hook.remove()
    (x,) = seen
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    assert convert(qann, verify=images(2)).report.verdict.exact_t1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tensor"), [("gate by a batch norm", "norm.weight"), ("prelu", "prelu.weight")]
)
def test_a_chain_takes_what_a_function_learned(name: str, tensor: str) -> None:
    first = quantized(name)
    with torch.no_grad():
        function_of(first).tensors()[tensor].mul_(1.5)
    second = quantize(network(name), QuantSpec(4, 2), calibration=images(), start=first)
    expected = network(name).get_parameter(tensor) * 1.5
    assert torch.equal(function_of(second).tensors()[tensor], expected)


@pytest.mark.slow
def test_a_function_by_a_rule_of_the_users_is_one_like_all_others(tmp_path: Path) -> None:
    rules = {**DEFAULT_RULES, torch.ops.aten.special_i0e.default: Rule(OperatorKind.FUNCTION)}
    net = Net(lambda net, x: torch.special.i0e(x) * x).eval()
    qann = quantize(net, QuantSpec(4, 4), calibration=images(), rules=rules)
    snn = convert(qann, rules=rules, verify=images(2), literal="all")
    assert [row.function for row in qann.functions] == ["mul(special_i0e)"]
    assert snn.report.verdict.exact_t1
    assert not integer(snn, backend="torch").real
    expected = qann(images())
    for each, name in ((qann, "qann"), (snn, "snn")):
        save(each, tmp_path / name)
        with pytest.raises(CheckpointError, match="load with these rules"):
            load(tmp_path / name)
    assert torch.equal(load(tmp_path / "qann", rules=rules)(images()), expected)
    stored = load(tmp_path / "snn", rules=rules)
    assert torch.equal(simulate(stored, images(), time_steps=1).logits[0], expected)


@pytest.mark.slow
def test_a_changed_threshold_or_a_missing_one_is_noticed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(quantized("silu"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["silu.table.thresholds"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load(tmp_path)


@pytest.mark.slow
def test_events_are_thresholds_crossed_and_packets_what_is_emitted() -> None:
    snn = convert(quantized("silu"))
    neuron = dict(snn.neurons())["silu"]
    seen = {}

    def observe(t: int, name: str, total: torch.Tensor, emitted: torch.Tensor) -> None:
        seen[name] = emitted

    run = simulate(snn, images(), time_steps=1, observe=observe)
    assert neuron.table is not None
    x = snn.layers.bn(snn.layers.conv(snn.layers.input_quant(images())))
    pairs = neuron.table.crossed(None, x)
    assert pairs.sum() > 0
    assert float(run.spike_counts["silu"]) == float(seen["silu"].abs().sum() + pairs.sum())
    assert float(run.packets["silu"]) == float((seen["silu"] != 0).sum())
    report = energy(snn, images(), time_steps=1)
    row = next(row for row in report.rows if row.name == "silu")
    assert row.events == float(run.spike_counts["silu"]) / len(images())
    assert row.comparisons == neuron.table.thresholds.shape[1] * row.neurons


@pytest.mark.slow
def test_the_three_errors_add_up_at_a_function() -> None:
    qann = quantized("silu")
    exact, few = convert(qann), convert(qann, ladder=2, signed=True)
    neuron = dict(exact.neurons())["silu"]
    table = layer_errors({15: exact, 2: few}, images(), time_steps=[1, 2])
    rows = [row for row in table.errors if row.layer == "silu"]
    assert {row.unevenness.maximum for row in rows if row.n == 15} == {0}
    assert all(row.unevenness.maximum > 0 for row in rows if row.n == 2)
    assert all(row.quantization.maximum <= 0.51 * float(neuron.delta) for row in rows)
    assert all(row.clipping.maximum > 0 for row in rows)


@pytest.mark.slow
def test_the_report_says_what_was_taken_and_what_it_cost() -> None:
    spec = QuantSpec(4, 4, functions={"sig*": "analog"})
    report = convert(quantize(network("gate"), spec, calibration=images())).report
    assert "1 of 2 functions became thresholds" in str(report)
    assert "with these functions not rounded" in str(report)
    assert "sigmoid  sigmoid  analog: as asked" in str(report)
    assert any(row.ladder.endswith("of silu") for row in report.neurons)


@pytest.mark.slow
def test_thresholds_of_a_function_cannot_get_another_step() -> None:
    snn: SpikingModel = convert(quantized("silu"))
    neuron = dict(snn.neurons())["silu"]
    with pytest.raises(SpecError, match="belong to its step"):
        neuron.with_(delta=torch.tensor(2.0))
    with pytest.raises(SpecError, match="use simulate"):
        neuron(torch.zeros(1, 4, 1, 1))
