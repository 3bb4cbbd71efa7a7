"""Invariant 1: at one time step and full ladder the spiking network is the quantized one; invariant
9: every weighted layer is fed by spikes or listed with the reason."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from networks import (
    PAIRS,
    conv,
    dense,
    images,
    levels_of,
    lived_in,
    network,
    quantized,
    shape_of,
)
from timm_networks import TIMM, timm_names
from torch import Tensor, nn

from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule
from mt_convert.neurons.ladder import Binary, Firing, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.spec import LIF, PLIF, NeuronSpec, Reset
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec, Scale
from mt_convert.spiking.archive.layers import (
    neuron_spec_from_json,
    neuron_spec_to_json,
    spiking_layer_from_json,
    spiking_layer_to_json,
)
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Encoder
from mt_convert.spiking.simulate import simulate

MODES = [
    ({}, False),
    ({}, True),
    ({"firing": "cascade"}, False),
    ({"firing": "cascade"}, True),
    ({"ladder": Binary(4)}, False),
    ({"ladder": Binary(4), "signed": True}, True),
    ({"presentation": "every_step"}, False),
    ({"whole_window": True}, False),
]


def assert_exact(qann: QuantizedModel, snn: SpikingModel, batch: Tensor, literal: bool) -> None:
    """Invariant 1 on one batch: the levels of every layer, and the logits, to the last bit."""
    levels, logits = levels_of(qann, batch)
    run = simulate(snn, batch, time_steps=1, literal=literal)
    assert levels.keys() == run.totals.keys()
    assert levels
    for name, expected in levels.items():
        assert torch.equal(run.totals[name], expected), name
    assert torch.equal(run.logits[0], logits)


# ----------------------------------------------------------------------------------- invariant 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_norm"), PAIRS)
def test_one_step_with_a_full_ladder_is_the_quantized_network(
    name: str, batch_norm: BatchNorm
) -> None:
    qann = quantized(name, batch_norm)
    before = copy.deepcopy(qann.state_dict())
    for seed, (settings, literal) in enumerate(MODES):
        snn = convert(qann, **settings)  # type: ignore[arg-type]
        assert_exact(qann, snn, 2 * images(3, shape_of(name), seed=seed), literal)
    assert all(torch.equal(value, before[key]) for key, value in qann.state_dict().items())


@pytest.mark.parametrize("name", timm_names())
def test_one_step_with_a_full_ladder_is_the_quantized_timm_model(name: str) -> None:
    model = lived_in(TIMM[name]())
    if name == "vgg11_bn":  # its 100 million weights take minutes to fit to 4 bits
        spec, size = QuantSpec(weight_bits=8, batch_norm=BatchNorm.FOLD), 64
    else:
        spec, size = QuantSpec(batch_norm=BatchNorm.KEEP), 32
    qann = quantize(model, spec, calibration=images(4, (3, size, size)))
    del model
    for settings, literal in MODES[:3]:
        snn = convert(qann, **settings)  # type: ignore[arg-type]
        assert_exact(qann, snn, images(2, (3, size, size), seed=7), literal)
    analog = {row.name for row in snn.report.weighted if not row.spike_fed}
    assert len(analog) == 1, "only the first layer sees the image"


def one_activation(layer: nn.Module, count: int, bits: int = 4) -> QuantizedModel:
    """A network that is one quantized activation."""
    spec = QuantSpec(act_bits=bits, input_bits=None)
    return quantize(nn.Sequential(layer), spec, calibration=torch.randn(4, count))


def set_step(qann: QuantizedModel, step: float) -> QuantAct:
    """Give the one activation another step, as training would."""
    layer = qann.layers.get_submodule("0")
    assert isinstance(layer, QuantAct)
    for _ in range(3):
        for parameter in layer.parameters():
            parameter.data.mul_(step / layer.scale)
    return layer


def around_thresholds(step: Tensor, levels: range) -> Tensor:
    """(k - 1/2) s for all levels k, and its neighbours to 4 ulp on each side."""
    middle = (torch.tensor(list(levels), dtype=torch.float32) - 0.5) * step
    values, up, down = [middle], middle, middle
    for _ in range(4):
        up = up.nextafter(torch.tensor(math.inf))
        down = down.nextafter(torch.tensor(-math.inf))
        values += [up, down]
    return torch.cat(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "bits"),
    [(nn.ReLU(), 4), (nn.ReLU(), 1), (nn.ReLU6(), 6), (nn.Hardtanh(-1.5, 2), 4), (nn.ReLU(), 8)],
    ids=str,
)
def test_one_step_is_exact_a_few_ulp_around_every_threshold(layer: nn.Module, bits: int) -> None:
    levels = range(-(2**bits) - 3, 2**bits + 4)
    count = 9 * len(levels)
    qann = one_activation(layer, count, bits)
    generator = torch.Generator().manual_seed(bits)
    broken = 0
    for _ in range(12 if bits < 8 else 3):
        act = set_step(qann, float(torch.empty(()).log_normal_(-1, 1.5, generator=generator)))
        batch = around_thresholds(act.scale, levels)[None]
        for settings, literal in MODES[:4]:
            snn = convert(qann, **settings)  # type: ignore[arg-type]
            assert_exact(qann, snn, batch, literal)
        (neuron,) = (layer for _, layer in snn.neurons())
        neuron.delta.data.mul_(1 + 1e-6)
        found = simulate(snn, batch, time_steps=1).totals["0"]
        broken += not torch.equal(found, levels_of(qann, batch)[0]["0"])
    assert broken > 1, "the check cannot tell a step that is wrong by a millionth"


@pytest.mark.slow
def test_thresholds_above_the_bound_of_relu6_do_not_exist() -> None:
    qann = one_activation(nn.ReLU6(), 5)
    set_step(qann, 0.9)  # round(6 / 0.9) = 7
    snn = convert(qann)
    (neuron,) = (layer for _, layer in snn.neurons())
    assert (neuron.spec.bounds, neuron.spec.ladder) == ((0, 7), Uniform(7))
    longer = convert(qann, ladder=Uniform(15))
    batch = torch.tensor([[5.0, 6.0, 6.4, 14.0, 1e6]])
    assert simulate(longer, batch, time_steps=1).totals["0"].tolist() == [[6, 7, 7, 7, 7]]
    assert_exact(qann, longer, batch, literal=True)


# ------------------------------------------------------------------------------------------ form


@pytest.mark.slow
def test_layers_with_levels_below_zero_are_always_signed() -> None:
    snn = convert(quantized("bottleneck"))
    rows = {row.name: row for row in snn.report.neurons}
    low, high = rows["expand2_input"].levels
    assert rows["expand2_input"].signed
    assert low < 0 < high == low + 15
    assert not rows["act_2"].signed
    assert all(row.signed for row in convert(quantized("bottleneck"), signed=True).report.neurons)


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [Uniform(3), Binary(2), PowerOfTwo(4)])
def test_every_layer_gets_the_ladder_asked_for(ladder: Uniform | Binary | PowerOfTwo) -> None:
    snn = convert(quantized("one_relu"), ladder=ladder, signed=True)
    specs = [layer.spec for _, layer in snn.neurons()]
    assert len(specs) == 3
    assert all((spec.ladder, spec.bounds, spec.signed) == (ladder, (0, 15), True) for spec in specs)


@pytest.mark.slow
def test_dropouts_are_gone_and_weights_are_the_quantized_ones() -> None:
    qann = quantized("pools")
    assert list(layer_nodes(qann.layers, nn.Dropout))
    snn = convert(qann)
    assert not list(layer_nodes(snn.layers, nn.Dropout))
    layer = snn.layers.get_submodule("c")
    levels = layer.weight / layer.weight_scale
    torch.testing.assert_close(levels, levels.round())
    assert levels.abs().max() <= 7


@pytest.mark.slow
def test_a_quantized_network_in_training_mode_converts_to_the_same() -> None:
    qann, x = quantized("shared_conv", BatchNorm.KEEP), images(3)
    expected = qann(x)
    snn = convert(qann.train())
    assert qann.training
    assert not any(module.training for module in snn.layers.modules())
    assert torch.equal(simulate(snn, x, time_steps=1).logits[0], expected)


@pytest.mark.slow
def test_a_spiking_network_is_not_called_but_simulated() -> None:
    snn = convert(quantized("one_relu"))
    with pytest.raises(TypeError, match=r"use simulate\(snn, images, time_steps=T\)"):
        snn(images(1))


def test_a_copied_spiking_network_is_whole() -> None:
    snn, x = convert(quantized("one_relu")), images(2)
    copied = copy.deepcopy(snn)
    expected = simulate(snn, x, time_steps=1).logits
    assert torch.equal(simulate(copied, x, time_steps=1).logits, expected)
    assert copied.report == snn.report


# ---------------------------------------------------------------------------------------- report


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "batch_norm"), PAIRS)
def test_every_weighted_layer_is_fed_by_spikes_or_listed_with_the_reason(
    name: str, batch_norm: BatchNorm
) -> None:
    qann = quantized(name, batch_norm)
    snn = convert(qann)
    report = snn.report
    called = [str(node.target) for node, _ in layer_nodes(qann.layers, nn.Module)]
    weighted = [key for key in called if hasattr(qann.layers.get_submodule(key), "weight_bits")]
    assert [row.name for row in report.weighted] == weighted
    listed = {row.name: row.reason for row in report.analog}
    neurons = {row.name for row in report.neurons}
    for row in report.weighted:
        assert row.fed_by, row
        assert set(row.fed_by) <= neurons | {"input_quant"}
        assert row.spike_fed == ("input_quant" not in row.fed_by)
        assert row.spike_fed or "encoded image" in listed[row.name]
    assert any(row.spike_fed for row in report.weighted)
    assert neurons == {name for name, _ in snn.neurons()}
    assert json.loads(json.dumps(report.to_json()))["weighted"][0]["name"] == weighted[0]


@pytest.mark.slow
def test_the_report_names_the_feeders_through_sums_and_pools() -> None:
    rows = {row.name: row.fed_by for row in convert(quantized("residual")).report.weighted}
    assert rows == {
        "stem": ("input_quant",),
        "a": ("relu",),
        "b": ("relu_1",),
        "c": ("relu_2",),
        "d": ("relu_3",),
        "head": ("relu_4",),
    }
    rows = {row.name: row.fed_by for row in convert(quantized("pools")).report.weighted}
    assert rows["c"] == ("relu", "relu_1")


@pytest.mark.slow
def test_pools_that_take_a_maximum_are_listed() -> None:
    report = convert(quantized("pools")).report
    reasons = [row.reason for row in report.analog if "max_pool2d" in row.operator]
    assert reasons == ["a maximum is not linear: temporal difference"]
    text = str(report)
    assert text.startswith(
        "3 layers of multi-threshold neurons; 2 of 4 weighted layers fed by spikes; 3 analog"
    )
    assert len(text.splitlines()) == 4


@pytest.mark.slow
def test_without_an_encoder_the_first_layer_is_analog_too() -> None:
    qann = quantize(dense(), QuantSpec(input_bits=None), calibration=images(8))
    snn = convert(qann)
    assert not list(layer_nodes(snn.layers, Encoder))
    assert [row.name for row in snn.report.analog] == ["0"]
    assert_exact(qann, snn, images(3), literal=True)


class Norms(nn.Module):
    """A batch norm behind a convolution, one behind a sum, and what reads that sum."""

    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.conv, self.of_conv = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.other, self.of_sum, self.then = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), then

    def forward(self, x: Tensor) -> Tensor:
        value = self.of_sum(self.of_conv(self.conv(x)) + self.other(x))
        return torch.as_tensor(self.then(value.permute(0, 2, 3, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "listed"),
    [
        (nn.LayerNorm(4), ["of_sum"]),  # neither weights before it nor neurons behind it
        (nn.Linear(4, 3), []),  # neurons behind it
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 3)), []),  # a second one
    ],
)
def test_batch_norms_that_weights_or_neurons_absorb_are_not_listed(
    then: nn.Module, listed: list[str]
) -> None:
    model = lived_in(Norms(then)).eval()
    report = convert(quantize(model, QuantSpec(), calibration=images(8))).report
    assert [row.name for row in report.analog if "BatchNorm" in row.operator] == listed


@pytest.mark.slow
def test_a_batch_norm_of_other_channels_than_its_weights_is_listed() -> None:
    """One factor for each place is none of the weights, which all places share."""
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Flatten(), nn.BatchNorm1d(128), nn.LayerNorm(128), nn.Linear(128, 3)
    )
    report = convert(quantize(lived_in(model).eval(), QuantSpec(), calibration=images(8))).report
    assert [row.operator for row in report.analog][1:2] == ["BatchNorm1d"]


# --------------------------------------------------------------------------------------- refusals


def test_a_network_that_was_not_quantized_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedLayerError, match="Sequential is not a quantized network") as e:
        convert(dense())  # type: ignore[arg-type]
    assert "quantize(model, QuantSpec(...), calibration=images)" in str(e.value)


class Running(nn.Module):
    """A running product, which has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


@pytest.mark.slow
def test_all_faults_of_a_network_come_in_one_error() -> None:
    model = nn.Sequential(
        *(conv(2, 3), Running(), conv(3, 3), nn.ReLU(), conv(3, 3), nn.ReLU(), nn.Flatten())
    )
    rules = {
        **DEFAULT_RULES,
        torch.ops.aten.cumprod.default: Rule(OperatorKind.DIFFERENCE, "running"),
    }
    qann = quantize(model, QuantSpec(), calibration=images(4), rules=rules)
    qann.layers.add_submodule("5", nn.ReLU())  # as if it had not been quantized
    with torch.no_grad():
        for parameter in qann.layers.get_submodule("3").parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UnsupportedLayerError, match="5 faults") as caught:
        convert(qann, ladder=Learned((1.0, 0.5)))
    found = [(fault.where, fault.what) for fault in caught.value.faults]
    assert found == [
        ("1", "aten.cumprod.default"),
        ("2_input", "learned gaps"),
        ("3", "scale nan"),
        ("3", "learned gaps"),
        ("5", "ReLU"),
    ]


def test_unknown_words_and_pairs_that_do_not_fit_are_spec_errors() -> None:
    qann = quantized("one_relu")
    with pytest.raises(SpecError, match="'serial': allowed are parallel, cascade"):
        convert(qann, firing="serial")
    with pytest.raises(SpecError, match="'twice': allowed are once, every_step"):
        convert(qann, presentation="twice")
    with pytest.raises(SpecError, match="PowerOfTwo"):
        convert(qann, ladder=PowerOfTwo(4), firing=Firing.CASCADE)


# ------------------------------------------------------------------------------------ stored form


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pre_activation", "line"])
def test_spiking_layers_come_back_from_json(name: str) -> None:
    snn = convert(quantized(name, BatchNorm.KEEP), ladder=Uniform(3), signed=True)
    x = images(3, shape_of(name))
    expected = simulate(snn, x, time_steps=2).logits
    for node, layer in layer_nodes(snn.layers, nn.Module):
        stored = json.loads(json.dumps(spiking_layer_to_json(layer)))
        again = spiking_layer_from_json(stored)
        again.load_state_dict(layer.state_dict())
        snn.layers.add_submodule(str(node.target), again.eval())
    assert torch.equal(simulate(snn, x, time_steps=2).logits, expected)


@pytest.mark.parametrize(
    "spec",
    [
        NeuronSpec(Uniform(3), Firing.CASCADE, signed=True, bounds=(-7, 7)),
        NeuronSpec(Binary(4), charge=LIF(2.0, decay_input=False), reset=Reset.HARD),
        NeuronSpec(PowerOfTwo(3), charge=PLIF(3.0), bounds=(0, None), initial=0.25),
        NeuronSpec(Learned((1.0, 0.5))),
    ],
)
def test_a_neuron_spec_comes_back_from_json(spec: NeuronSpec) -> None:
    assert neuron_spec_from_json(json.loads(json.dumps(neuron_spec_to_json(spec)))) == spec


@pytest.mark.slow
def test_power_of_two_steps_stay_powers_of_two() -> None:
    spec = QuantSpec(scale=Scale.POWER_OF_TWO)
    snn = convert(quantize(network("one_relu"), spec, calibration=images(8)))
    steps = [float(layer.delta) for _, layer in snn.neurons()]
    assert steps == [2.0 ** round(math.log2(step)) for step in steps]


class OfSizes(nn.Module):
    """A ReLU on numbers that depend on the number of images alone: no neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        line = torch.arange(4.0).expand(x.shape[0], 4) - 1.5
        return self.head(torch.relu(self.stem(x)).mean((2, 3)) + torch.relu(line))


@pytest.mark.slow
def test_an_activation_on_sizes_alone_stays_what_it_is() -> None:
    snn = convert(quantize(OfSizes(), QuantSpec(), calibration=images(8)), verify=images(4))
    assert [row.name for row in snn.report.neurons] == ["relu", "head_input"]
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
