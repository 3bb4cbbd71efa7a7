"""Every family of operators: traced as it computes, converted exactly, reported without a gap."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from networks import images
from networks_of_operators import FAMILIES, Do, maps, network, tokens
from settling import check_settling
from torch import Tensor, fx, nn

from mt_convert.graph.nodes import WEIGHTED, layer_nodes
from mt_convert.graph.rules import DEFAULT_RULES, OperatorKind, Rule, Sign
from mt_convert.graph.signals import nonnegative
from mt_convert.graph.tracing.trace import trace
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.conversion_report import NeuronRow
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

aten = torch.ops.aten
FIRST = ("0", "Conv2d")  # each network starts with a convolution of the image
LONGEST = ("lstm", "gru", "split_attention", "shifted_windows", "smooth", "shrinking", "rotary")
SPIKE_BY_SPIKE = (
    *("silu", "gelu", "smooth", "attention_explicit", "causal", "layer_norm", "group_norm"),
    *("gate", "squeeze_excite", "max_pool", "prefix_tokens", "leaky_by_hand", "written_to"),
    *("routed", "transposed", "einsum"),
)
STORED = (
    *("attention_fused", "causal", "relative_position", "prefix_tokens", "gate", "standardised"),
    *("lstm", "moves", "written_to"),
)


@dataclass(frozen=True)
class Made:
    """A family's network at each stage."""

    model: nn.Module
    traced: fx.GraphModule
    qann: QuantizedModel


@cache
def made(name: str) -> Made:
    """A family's network, traced once: what `quantize` traced is kept before it is changed. Its
    functions stay analog, so that each operator runs as its rule says."""
    model, kept = network(name), []

    def keeping(*words: object) -> fx.GraphModule:
        graph = trace(*words)  # type: ignore[arg-type]
        kept.append(copy.deepcopy(graph))
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("mt_convert.quantization.quantize"), "trace", keeping)
        qann = quantize(model, QuantSpec(functions="analog"), calibration=images(16, seed=2))
    return Made(model, kept[0], qann)


def short(operator: str) -> str:
    """An operator's name without namespace and overload."""
    return operator.split(".")[1] if operator.startswith("aten.") else operator


def check_the_traced_network_is_the_model(name: str) -> None:
    """At several sizes of the batch, none of them the traced one."""
    for batch in (1, 3, 5):
        x = images(batch, seed=batch)
        with torch.no_grad():
            found, wanted = made(name).traced(x), made(name).model(x)
        if FAMILIES[name].exact:
            assert torch.equal(found, wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
        assert found.std() > 0.01, "a dead network is equal to anything"


def check_the_verdict(snn: SpikingModel) -> None:
    """Exact at one step, next to thresholds too, and at rest in time."""
    verdict = snn.report.verdict
    assert verdict is not None
    assert verdict.exact_t1, verdict.differs
    assert verdict.adversarial > 0
    assert verdict.thresholds == 4  # of 15
    check_settling(verdict, snn)


def check_the_report(snn: SpikingModel, name: str) -> None:
    """All weighted layers and products are spike-fed but the first; analog is what is analog."""
    family, report = FAMILIES[name], snn.report
    unfed = [(row.name, row.layer) for row in report.weighted if not row.spike_fed]
    assert unfed == [FIRST, *([(family.idle, "Linear")] if family.idle else [])]
    assert (report.analog[0].name, report.analog[0].operator) == FIRST
    assert sorted(short(row.operator) for row in report.analog[1:]) == family.analog.split()
    products = [short(row.layer) for row in report.weighted if row.layer.startswith("aten.")]
    assert sorted(products) == sorted(family.products.split())
    assert all(row.reason for row in report.analog)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONGEST else ()) for n in FAMILIES],
)
def test_a_family_is_traced_as_it_computes_converted_exactly_and_fully_reported(name: str) -> None:
    check_the_traced_network_is_the_model(name)
    snn = convert(made(name).qann, verify=images(4, seed=5))
    check_the_verdict(snn)
    check_the_report(snn, name)


WITH_FUNCTIONS = {  # families, and what of them stays analog where functions are neurons
    **{"silu": "", "star_relu": "", "quick_gelu": "", "leaky_by_hand": "", "glu": "", "gate": ""},
    **{"smooth": "", "shrinking": "", "squeeze_excite": ""},
    "channel_attention": "layer_norm softmax",
    **{"mixer": "layer_norm layer_norm", "routed": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        n if n in ("quick_gelu", "mixer") else pytest.param(n, marks=pytest.mark.long)
        for n in WITH_FUNCTIONS
    ],
)
def test_where_functions_are_neurons_only_what_mixes_values_is_analog(name: str) -> None:
    qann = quantize(network(name), QuantSpec(), calibration=images(16, seed=2))
    snn = convert(qann, verify=images(4, seed=5))
    check_the_verdict(snn)
    analog = [short(row.operator) for row in snn.report.analog[1:]]
    assert sorted(analog) == WITH_FUNCTIONS[name].split()


@pytest.mark.sampled
@pytest.mark.parametrize("name", SPIKE_BY_SPIKE)
def test_spikes_alone_give_the_same_totals_as_running_totals(name: str) -> None:
    """Three thresholds, so that corrections of either sign travel. Charges are summed in another
    order, so one that lies within a rounding of a threshold may fall on its other side."""
    snn = convert(made(name).qann, ladder=Uniform(3), signed=True)
    x = images(3, seed=6)
    run, wanted = (call(snn, x, time_steps=3) for call in (spike_by_spike, simulate))
    assert list(run.totals) == list(wanted.totals)
    differs, count = 0, 0
    for layer, total in wanted.totals.items():
        differs += int((run.totals[layer] != total).sum())
        count += total.numel()
    assert differs <= 2 < count / 200
    if not differs:
        torch.testing.assert_close(run.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(wanted.logits[0], wanted.logits[2]), "nothing arrived after step 1"


@pytest.mark.slow
def test_a_non_linear_operator_taken_for_a_linear_one_is_found_out_spike_by_spike() -> None:
    """The control of the test above: f(a + b) is not f(a) + f(b)."""
    snn = convert(made("mixer").qann, ladder=Uniform(3), signed=True)
    snn.rules = {**snn.rules, aten.gelu.default: Rule(OperatorKind.LINEAR)}
    x = images(3, seed=6)
    run, wanted = (call(snn, x, time_steps=3) for call in (spike_by_spike, simulate))
    last = "2.mlp_channels.fc2_input"
    assert (run.totals[last] != wanted.totals[last]).float().mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_explicit", "layer_norm", "gate", "gelu"])
def test_few_thresholds_come_to_rest_on_the_quantized_network(name: str) -> None:
    x = images(3, seed=6)
    run = simulate(convert(made(name).qann, ladder=Uniform(2), signed=True), x, time_steps=24)
    assert torch.equal(run.logits[-1], made(name).qann(x))
    assert not torch.equal(run.logits[0], run.logits[-1])


# ------------------------------------------------------------------------- the sign of the neurons


def levels(name: str, neuron: str) -> tuple[int, int]:
    """The levels of one layer of neurons."""
    rows: dict[str, NeuronRow] = {row.name: row for row in convert(made(name).qann).report.neurons}
    return rows[neuron].levels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "neuron"),
    [
        ("gate", "2.mul_input_1"),  # behind a sigmoid
        ("attention_explicit", "2.matmul_input_2"),  # behind a softmax
        ("squeeze_excite", "2.mul_input"),  # behind a sigmoid and a ReLU
        ("squeeze_excite", "3_input"),  # a product of the two
        ("blur", "3_input"),  # a blurred ReLU
        ("max_pool", "1"),
        ("star_relu", "1.relu"),
    ],
)
def test_neurons_behind_what_cannot_fall_below_0_are_unsigned(name: str, neuron: str) -> None:
    assert levels(name, neuron) == (0, 15)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "neuron"), [("silu", "2_input"), ("mixer", "2.mlp_channels.fc2_input")]
)
def test_neurons_behind_silu_and_gelu_have_more_levels_above_0(name: str, neuron: str) -> None:
    low, high = levels(name, neuron)
    assert low < 0 < -low < high
    assert high - low == 15


@pytest.mark.slow
def test_a_sign_that_only_data_would_show_is_not_assumed() -> None:
    """x² + 1 cannot fall below 0, x² - 1 can, x² + w cannot be known; each rule of sign is used."""
    functions = {
        "shifted up": (lambda x: x * x + 1, True),
        "shifted down": (lambda x: x * x - 1, False),
        "halved": (lambda x: x.abs() * 0.5, True),
        "turned": (lambda x: x.abs() * -0.5, False),
        "difference": (lambda x: x.abs() - torch.relu(x), False),
        "sum": (lambda x: x.abs() + torch.relu(x), True),
        "joined": (lambda x: torch.cat([x.abs(), x], 1), False),
    }
    for what, (function, expected) in functions.items():
        graph = trace(nn.Sequential(Do(function)), images(2))
        assert nonnegative(graph, list(graph.graph.nodes)[-2]) is expected, what
    graph = trace(nn.Sequential(Do(lambda x, w: x * x + w, 8)), images(2))
    assert not nonnegative(graph, list(graph.graph.nodes)[-2])


@pytest.mark.slow
def test_a_wrong_rule_of_sign_is_found_out_by_the_data() -> None:
    """The control: with SiLU declared never negative, its neurons lose what lies below 0."""
    wrong = Rule(OperatorKind.DIFFERENCE, "wrong", Sign.NONNEGATIVE)
    rules = {**DEFAULT_RULES, aten.silu.default: wrong}
    x = images(16, seed=2)
    qann = quantize(network("silu"), QuantSpec(), calibration=x, rules=rules)
    assert qann.layers.get_submodule("2_input").level_bounds == (0, 15)  # type: ignore[operator]
    right = made("silu")
    with torch.no_grad():
        errors = [(model(x) - right.model(x)).square().mean() for model in (qann, right.qann)]
    assert errors[0] > errors[1]


# ----------------------------------------------------------------------- weights and what is folded


@pytest.mark.slow
def test_a_standardised_weight_is_folded_into_one_that_is_trained() -> None:
    qann = copy.deepcopy(made("standardised").qann)
    names = [str(node.target) for node, _ in layer_nodes(qann.layers, WEIGHTED)]
    assert names == ["0", "1", "3", "5", "7"]
    operators = {str(node.target) for node in qann.layers.graph.nodes if node.op == "call_function"}
    assert not any("norm" in name or "mean" in name or "std" in name for name in operators)
    folded = qann.layers.get_submodule("1").weight
    assert isinstance(folded, nn.Parameter)
    before = folded.detach().clone()
    optimizer = torch.optim.SGD(qann.parameters(), lr=0.1)
    qann.train()(images(8)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(folded, before)
    check_the_verdict(convert(qann, verify=images(4, seed=5)))


@pytest.mark.slow
def test_a_table_of_relative_positions_is_folded_into_one_bias_that_is_trained() -> None:
    loose = dict(made("relative_position").qann.layers.named_parameters())
    tables = [item for item in loose.values() if item.shape[-3:] == (2, 16, 16)]
    assert len(tables) == 1
    assert tables[0].requires_grad


@pytest.mark.slow
def test_a_product_with_a_matrix_is_a_linear_layer_with_quantized_weights() -> None:
    class Multiplies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: Tensor) -> Tensor:
            a = torch.einsum("bnc,cd->bnd", x, self.w)
            return a + torch.tensordot(x, self.w, ([2], [0])) + x @ self.w

    model = tokens(Multiplies()).eval()
    model(images(2))  # fills in lazy layers
    qann = quantize(model, QuantSpec(), calibration=images(8))
    report = convert(qann, verify=images(3)).report
    assert report.verdict is not None
    assert report.verdict.exact_t1
    assert [row.layer for row in report.weighted] == ["Conv2d"] + ["Linear"] * 5
    assert all(row.spike_fed for row in report.weighted[1:])


@pytest.mark.slow
def test_a_parameter_that_is_a_weight_and_a_summand_keeps_both_names() -> None:
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return nn.functional.linear(x, w) + w[0]

    model = nn.Sequential(Do(twice, 8, 8)).eval()
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(1))
    graph, x = trace(model, images(2)), images(3)
    torch.testing.assert_close(graph(x), model(x))
    assert [str(node.target) for node, _ in layer_nodes(graph, nn.Linear)] == ["0"]


@pytest.mark.slow
def test_an_operator_that_only_looks_at_a_shape_is_a_constant() -> None:
    functions = (
        lambda x: torch.cat([torch.ones_like(x), x], 1),
        lambda x: torch.cat([x.new_zeros(x.shape[0], 1, 8, 8), x], 1),
        lambda x: x + torch.full_like(x, 0.5),
        lambda x: x + x.new_full((8,), 0.5),
    )
    for function in functions:
        model = maps(Do(function), nn.Conv2d(8, 8, 1) if function is functions[2] else nn.ReLU())
        model.eval()(images(2))
        snn = convert(quantize(model, QuantSpec(), calibration=images(8)), verify=images(3))
        check_the_verdict(snn)
        assert len(snn.report.analog) == 1


# --------------------------------------------------------------------------------------- storage


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_a_stored_network_runs_to_the_same_bits(name: str, tmp_path: Path) -> None:
    qann, x = made(name).qann, images(3, seed=7)
    save(qann, tmp_path / "qann")
    assert torch.equal(load(tmp_path / "qann")(x), qann(x))
    snn = convert(qann, ladder=Uniform(3), signed=True)
    save(snn, tmp_path / "snn")
    again = load(tmp_path / "snn")
    run, wanted = (simulate(network, x, time_steps=3) for network in (again, snn))
    assert torch.equal(run.logits, wanted.logits)
    assert again.report == snn.report


def test_the_families_are_many_and_their_names_in_these_lists_exist() -> None:
    assert len(FAMILIES) >= 55
    assert {*LONGEST, *SPIKE_BY_SPIKE, *STORED} <= set(FAMILIES)
    used = {key for family in FAMILIES.values() for key in family.analog.split()}
    assert len(used) >= 39
    assert any(isinstance(layer, QuantAct) for layer in made("silu").qann.layers.modules())
