"""Random functions of one number as thresholds: float64, neurons and integers say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from function_networks import CHANNELS, EACH, images, network, random_functions
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mt_convert.errors import SpecError
from mt_convert.integer_engine import torch_backend
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native import build
from mt_convert.integer_engine.program import Fire, Program, Sum, Term, Whole
from mt_convert.integer_engine.shift_add import shift_add
from mt_convert.integer_engine.threshold_tables import ThresholdTable
from mt_convert.neurons.bisection import numbers_at, places_of
from mt_convert.neurons.ladder import Firing, Radix, Uniform
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.step_table import StepTable
from mt_convert.neurons.totals import totals_step, totals_step_literal
from mt_convert.quantization.activations.formula import Formula, NotAFunction
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

LIMIT = 600


def near(table: StepTable, ulps: int = 4) -> Tensor:
    """Inputs around each threshold and far away, [N, C, 1, 1]."""
    places = places_of(table.thresholds).T[:, None] + torch.arange(-ulps, ulps + 1)[None, :, None]
    places = places.flatten(0, 1).clamp(-0x7F7FFFFF, 0x7F7FFFFF)
    x = torch.cat(
        [numbers_at(places), torch.linspace(-40, 40, 81)[:, None].expand(-1, places.shape[1])]
    )
    return x.expand(-1, CHANNELS)[..., None, None].contiguous()


def fire_of(table: StepTable, spec: NeuronSpec, multiplier: Tensor, bias: Tensor) -> Fire:
    """Neurons behind one accumulator."""
    return Fire(2, "neurons", Sum((Term(1, multiplier),), bias), None, spec, table=table)


DRAWS = (random_functions(), st.integers(1, 30), st.integers(-7, 0), st.integers(2, 15), st.data())


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(*DRAWS)
def test_float64_neurons_and_integers_say_the_same_of_random_functions(
    drawn: tuple[fx.GraphModule, int], step: int, low: int, high: int, data: st.DataObject
) -> None:
    say_the_same(drawn, step, low, high, data)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(*DRAWS)
def test_float64_neurons_and_integers_say_the_same_of_many_random_functions(
    drawn: tuple[fx.GraphModule, int], step: int, low: int, high: int, data: st.DataObject
) -> None:
    say_the_same(drawn, step, low, high, data)


class OneFunction(nn.Module):
    """A convolution with steps of powers of two, a function, and a classifier."""

    def __init__(self, function: fx.GraphModule) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, CHANNELS, 1), function
        self.head = nn.Conv2d(CHANNELS, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x))).flatten(1)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_functions(), st.integers(0, 99))
def test_networks_of_random_functions_are_exact_in_spikes_and_whole_numbers(
    drawn: tuple[fx.GraphModule, int], seed: int
) -> None:
    torch.manual_seed(seed)
    net = OneFunction(drawn[0]).eval()
    shown = torch.randn(16, 2, 2, 2)
    try:
        qann = quantize(net, QuantSpec(4, 4), calibration=shown)
        snn = convert(qann, verify=shown[:2], literal="all")  # each neuron next to its thresholds
    except SpecError:  # two roundings of float64 side by side, on a tie
        assume(False)
        raise
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    assert torch.equal(simulate(snn, shown, time_steps=1).logits[0], qann(shown))
    expected = simulate(snn, shown, time_steps=1, arithmetic=IntegerArithmetic(snn))
    for backend in ("torch", "native") if build.missing() is None else ("torch",):
        ran = integer(snn, backend=backend).run(shown, 1, totals=True)
        assert torch.equal(ran.logits, expected.logits)
        assert all(torch.equal(ran.totals[name], total) for name, total in expected.totals.items())


def say_the_same(
    drawn: tuple[fx.GraphModule, int], step: int, low: int, high: int, data: st.DataObject
) -> None:
    """Float64, neurons threshold by threshold and few at a time, and integers, of one function."""
    graph, channels = drawn
    formula, bounds = Formula(graph, "random", channels, -3 if channels > 1 else -1), (low, high)
    try:
        table = formula.table(step / 32, bounds)
    except (NotAFunction, SpecError):  # two roundings of float64 side by side, on a tie
        assume(False)
        raise
    x = near(table)
    level = formula.levels(x, step / 32, bounds).float()
    spec = NeuronSpec(Uniform(max(-low, high)), signed=True, bounds=bounds)
    cascade = replace(spec, firing=Firing.CASCADE)
    zero = torch.zeros_like(x)
    assert torch.equal(table(x), level)
    assert torch.equal(totals_step(table(x), zero, spec), level)
    for one in (spec, cascade):
        assert torch.equal(totals_step_literal(table.literal(x), zero, one), level)
    few = replace(spec, ladder=Uniform(3))
    total = zero
    for _ in range(5):
        total = totals_step_literal(table.literal(x), total, few)
    assert torch.equal(total, level)

    factors = [data.draw(st.integers(-40, 40)) / 256 for _ in range(CHANNELS)]
    multiplier = torch.tensor(factors).reshape(1, CHANNELS, 1, 1)
    bias = torch.tensor([0.3, -1.7, 2.25]).reshape(1, CHANNELS, 1, 1)
    item = fire_of(table, spec, multiplier, bias)
    values = {1: Whole((CHANNELS, 1, 1), -LIMIT, LIMIT), 2: Whole((CHANNELS, 1, 1), low, high)}
    accumulator = torch.arange(-LIMIT, LIMIT + 1).float()[:, None, None, None]
    accumulator = accumulator.expand(-1, CHANNELS, 1, 1)
    expected = torch_backend.fire(item, {1: accumulator}, None)
    u = accumulator * multiplier + bias
    assert torch.equal(expected, formula.levels(u, step / 32, bounds).float())
    integers = ThresholdTable(item, Program((), values, ()))
    rows = integers.places.flatten()[:, None]
    thresholds, falling = integers.thresholds(rows)
    weights, start = integers.weights(rows)
    number = accumulator[..., 0, 0, None]
    reached = torch.where(falling[:, None], number <= thresholds, number >= thresholds)
    found = start + (reached * weights).sum(-1)
    assert torch.equal(found.float(), expected[..., 0, 0])


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", EACH)
def test_networks_of_functions_are_whole_numbers_in_every_backend(name: str) -> None:
    qann = quantize(network(name), QuantSpec(4, 4), calibration=images())
    for snn, steps in (
        (convert(qann), 1),
        (convert(qann, ladder=3, signed=True), 3),
        (convert(qann, ladder=Radix(1), whole_window=True), 4),
    ):
        run = simulate(snn, images(), time_steps=steps, arithmetic=IntegerArithmetic(snn))
        model = integer(snn, backend="torch")
        assert not model.real
        ran = model.run(images(), steps, totals=True)
        assert torch.equal(ran.logits, run.logits)
        assert all(torch.equal(run.totals[layer], total) for layer, total in ran.totals.items())
        if name == "gate":
            with pytest.raises(SpecError, match="mul"):
                shift_add(model, images(), time_steps=steps)
            continue
        added = shift_add(model, images(), time_steps=steps)
        assert torch.equal(added.logits, ran.logits)
        assert all(torch.equal(added.totals[layer].float(), t) for layer, t in ran.totals.items())


@pytest.mark.long
@pytest.mark.parametrize("name", ["silu", "gate by a batch norm", "gate"])
def test_torch_compile_gives_the_same_numbers(name: str) -> None:
    snn = convert(quantize(network(name), QuantSpec(4, 4), calibration=images()))
    expected = integer(snn, backend="torch").run(images(), totals=True)
    ran = integer(snn, backend="compile").run(images(), totals=True)
    assert torch.equal(ran.logits, expected.logits)
    assert all(torch.equal(ran.totals[layer], total) for layer, total in expected.totals.items())


@pytest.mark.slow
def test_the_native_backend_hands_products_of_values_to_torch() -> None:
    snn = convert(quantize(network("gate"), QuantSpec(4, 4), calibration=images()))
    try:
        native = integer(snn, backend="native")
    except SpecError as error:
        pytest.skip(str(error))
    expected = integer(snn, backend="torch").run(images(), totals=True)
    ran = native.run(images(), totals=True)
    assert torch.equal(ran.logits, expected.logits)
    assert all(torch.equal(ran.totals[layer], t.float()) for layer, t in expected.totals.items())
