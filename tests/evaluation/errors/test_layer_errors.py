"""Errors by cause: they add up, every number is what it says, batches and passes do not matter."""

from __future__ import annotations

import dataclasses
import math
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from networks import images, network, quantized
from torch import Tensor, nn

from mt_convert.errors import DataError, SpecError
from mt_convert.evaluation.errors.layer_errors import layer_errors
from mt_convert.evaluation.errors.rows import (
    CAUSES,
    RATE_EDGES,
    RESIDUAL_EDGES,
    VIEWS,
    WHOLE,
    ErrorRow,
    ErrorSize,
)
from mt_convert.evaluation.errors.table import ErrorTable
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.totals import count_events
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import analog, even_response, unit, worth
from mt_convert.spiking.levels import quantized_activation as quantizer
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

FLOATS = QuantSpec(weight_bits=None, first_bits=None, last_bits=None, input_bits=None, act_bits=4)


def steps_of_one(qann: QuantizedModel, ladder: Ladder, signed: bool = False) -> SpikingModel:
    """A converted network whose neurons have 15 levels, 1 apart."""
    snn = convert(qann, ladder=ladder, signed=signed)
    for _, neuron in snn.neurons():
        neuron.delta.fill_(1.0)
    return snn


@cache
def one_activation() -> QuantizedModel:
    """A network that is one quantized ReLU of two values; shared, so not to be changed."""
    return quantize(nn.Sequential(nn.ReLU()), FLOATS, calibration=images(4, (2,)))


def alone(ladder: Ladder) -> SpikingModel:
    """Two neurons, and nothing else."""
    return steps_of_one(one_activation(), ladder)


@cache
def four_bits(name: str) -> QuantizedModel:
    """A quantized network with 15 levels; shared, so not to be changed."""
    return quantize(network(name), QuantSpec(act_bits=4), calibration=images(8, seed=2))


def converted(name: str, n: int, **settings: object) -> SpikingModel:
    """In double precision, so that the order of additions hardly matters."""
    snn = convert(four_bits(name), ladder=Uniform(n), **settings)  # type: ignore[arg-type]
    return snn.double()


def pictures(batch: int, seed: int = 5) -> Tensor:
    """Images in double precision."""
    return images(batch, seed=seed).double()


def size_of(error: Tensor, power: float) -> ErrorSize:
    """Mean, RMS, largest and relative size, written out."""
    mean_square = float((error**2).mean())
    largest = float(error.abs().max())
    return ErrorSize(float(error.mean()), math.sqrt(mean_square), largest, mean_square / power)


def close(found: ErrorSize, expected: ErrorSize, tolerance: float = 1e-9) -> bool:
    """Whether all numbers are equal to within a little."""
    pairs = zip(dataclasses.astuple(found), dataclasses.astuple(expected), strict=True)
    return all(math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs)


# ------------------------------------------------------------------------------ computed by hand


def test_two_neurons_by_hand() -> None:
    """x = (2.25, 20) on 15 levels, three thresholds: (2, 3) is out at T = 1, (2, 6) at T = 2."""
    table = layer_errors({3: alone(Uniform(3))}, [torch.tensor([[2.25, 20.0]])], time_steps=(1, 2))
    power = (2.25**2 + 400) / 2
    for view in VIEWS:
        for T, missing in ((1, 12), (2, 9)):
            row = table.error("0", view, 3, T)
            assert row.power == power
            clipping = ErrorSize(2.5, math.sqrt(12.5), 5, 12.5 / power)
            assert close(row.clipping, clipping)
            assert close(row.quantization, ErrorSize(0.125, 0.25 / 2**0.5, 0.25, 0.03125 / power))
            uneven = missing**2 / 2
            size = ErrorSize(missing / 2, math.sqrt(uneven), missing, uneven / power)
            assert close(row.unevenness, size)
            whole = (0.25**2 + (5 + missing) ** 2) / 2
            size = ErrorSize((5.25 + missing) / 2, math.sqrt(whole), 5 + missing, whole / power)
            assert close(row.whole, size)
            assert dataclasses.replace(table.error(WHOLE, view, 3, T), layer="0") == row
    first, second = (table.rate("0", 3, T) for T in (1, 2))
    assert (first.neurons, first.zero, first.occasional, first.missing) == (2, 0, 0, 0)
    assert (first.firing_rate, second.firing_rate) == (5 / 2, 8 / 4)
    assert filled(first.rate_counts) == {7: 1, 10: 1}  # 2 of 3 events, 3 of 3
    assert filled(second.rate_counts) == {4: 1, 10: 1}  # 2 of 6 events, 6 of 6
    left = RESIDUAL_EDGES.index(0.75) + 1
    assert filled(first.residual_counts) == {left: 1, len(RESIDUAL_EDGES): 1}
    logits = table.logits[0]
    assert close(logits.error, ErrorSize(6, math.sqrt(72), 12, 72 / ((4 + 225) / 2)))
    assert (logits.agreement, logits.ann_agreement, logits.snn_accuracy) == (1, None, None)


def filled(counts: tuple[int, ...]) -> dict[int, int]:
    """The bins that are not empty."""
    return {place: count for place, count in enumerate(counts) if count}


@pytest.mark.parametrize(
    ("ladder", "value", "place"),
    [(Binary(4), 5.0, 5), (PowerOfTwo(4), 8.0, 10), (Uniform(10), 3.0, 3), (Uniform(15), 0.0, 0)],
)
def test_rates_are_shares_of_the_most_that_a_ladder_can_emit(
    ladder: Ladder, value: float, place: int
) -> None:
    table = layer_errors({4: alone(ladder)}, [torch.tensor([[value, value]])], time_steps=[1])
    assert filled(table.rate("0", 4, 1).rate_counts) == {place: 2}


@pytest.mark.parametrize(
    ("value", "left"),
    [(-9, -8.5), (-2.5, -2), (-0.5, 0), (0.25, 0.75), (1.5, 0), (2.5, 1), (17.5, 3), (99, 84.5)],
)
def test_a_potential_left_on_an_edge_belongs_to_the_bin_above_it(value: float, left: float) -> None:
    """v = x + ½ less what was emitted, at most 15; a tie goes to the even level."""
    table = layer_errors(
        {15: alone(Uniform(15))}, [torch.full((1, 2), float(value))], time_steps=[1]
    )
    place = sum(edge <= left for edge in RESIDUAL_EDGES)
    assert filled(table.rate("0", 15, 1).residual_counts) == {place: 2}


@pytest.mark.slow
def test_a_spike_too_early_that_is_taken_back_is_occasional_and_a_late_one_missing() -> None:
    """(1, 3) behind one threshold is (1, 1), (1, 2), (1, 3). 3 a − b fires at T = 1 and takes back
    at T = 3; b − a, which should give 2, says nothing at T = 1."""
    net = nn.Sequential(nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU())
    net[1].weight.data = torch.tensor([[3.0, -1.0], [-1.0, 1.0]])
    qann = quantize(net.eval(), FLOATS, calibration=images(4, (2,)))
    snn = steps_of_one(qann, Uniform(1), signed=True)
    table = layer_errors({1: snn}, [torch.tensor([[1.0, 3.0]])], time_steps=(1, 3, 5))
    last = table.layers[1]
    rows = [table.rate(last, 1, T) for T in (1, 3, 5)]
    assert [row.zero for row in rows] == [0.5] * 3
    assert [row.occasional for row in rows] == [1] * 3
    assert [row.missing for row in rows] == [1, 0, 0]
    assert [row.negative for row in rows] == [0, 1 / 4, 1 / 4]  # + − of one, + + of the other
    errors = [table.error(last, "propagated", 1, T).unevenness.maximum for T in (1, 3, 5)]
    assert errors == [2, 0, 0]
    assert table.error(last, "forced", 1, 3).unevenness.maximum == 0


def test_offset_and_gain_are_in_what_is_emitted_and_left() -> None:
    """Half a threshold of head start lets 2.25 reach 3, and each level carries half of Δ = 2."""
    plain = alone(Uniform(15))
    before = dict(plain.neurons())["0"]
    half = torch.tensor(0.5)
    after = MTNeuron(before.spec, torch.tensor(2.0), offset=half, gain=half, clip=before.clip)
    snn, x = plain.with_neurons({"0": after}), torch.tensor([[4.5, 4.5]])
    table = layer_errors([(15, snn)], [x], time_steps=[1], reference=plain)
    row = table.error("0", "arrived", 15, 1)
    assert row.quantization.mean == 0.5  # of the reference: 4.5 to 4
    assert row.unevenness.mean == 4 - 3 * 2 * 0.5
    assert row == dataclasses.replace(table.error("0", "forced", 15, 1), view="arrived")
    place = RESIDUAL_EDGES.index(0.25) + 1  # 2.25 + ½ + ½ − 3
    assert filled(table.rate("0", 15, 1).residual_counts) == {place: 2}
    own = layer_errors([(15, snn)], [x], time_steps=[1]).error("0", "arrived", 15, 1)
    assert own.quantization.mean == 0.5
    assert own.unevenness.mean == 4 - 3


# ----------------------------------------------------------- every number, from the tensors behind


@torch.no_grad()
def expected_rows(
    snn: SpikingModel, reference: SpikingModel, x: Tensor, T: int
) -> dict[tuple[str, str], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Analog, clipped, quantized and emitted of each layer and view, one simulation for each T."""
    given: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {"a": {}, "c": {}, "q": {}}
    functions = {"a": analog, "c": within_range, "q": quantizer}

    def neuron(key: str, name: str, layer: MTNeuron, value: Tensor) -> Tensor:
        given[name] = value
        found[key][name] = functions[key](layer, value)
        return found[key][name]

    for key in functions:
        forward_with(reference, x, partial(neuron, key))
    run = simulate(snn, x, time_steps=T, record=True)
    rows = {}
    quantizers = dict(reference.neurons())
    emitted = {
        name: run.totals[name] * worth(layer, snn.presentation, T - 1)
        for name, layer in snn.neurons()
    }
    arrived = inputs_of(snn, x, T)
    for name, layer in snn.neurons():
        own = [function(quantizers[name], given[name]) for function in functions.values()]
        late = [function(quantizers[name], arrived[name]) for function in functions.values()]
        even = even_response(layer, given[name], snn.presentation, T)
        rows[name, "forced"] = (*own, even)
        rows[name, "arrived"] = (*late, emitted[name])
        rows[name, "propagated"] = (*(kept[name] for kept in found.values()), emitted[name])
    return rows


def within_range(layer: MTNeuron, value: Tensor) -> Tensor:
    """What was quantized, cut at the quantizer's lowest and highest level."""
    assert layer.spec.bounds is not None
    low, high = (float(bound or 0) * float(layer.delta) for bound in layer.spec.bounds)
    return value.clamp(*layer.clip).clamp(low, high)


@torch.no_grad()
def inputs_of(snn: SpikingModel, x: Tensor, T: int) -> dict[str, Tensor]:
    """What has arrived at each layer by T: the graph applied to what all have emitted before.

    Synchronous layers of step T see what the layers before them emitted by T.
    """
    totals = simulate(snn, x, time_steps=T).totals
    inputs: dict[str, Tensor] = {}

    def neuron(name: str, layer: MTNeuron, value: Tensor) -> Tensor:
        inputs[name] = value
        return totals[name] * worth(layer, snn.presentation, T - 1)

    forward_with(snn, x, neuron)
    return inputs


def calibrated(snn: SpikingModel) -> SpikingModel:
    """Other thresholds, gains and initial potentials in every layer."""
    generator = torch.Generator().manual_seed(1)
    neurons = {}
    for name, layer in snn.neurons():
        step = layer.delta * 0.8
        offset = (torch.rand(1, generator=generator) - 0.3).double()
        gain = torch.tensor(1.1).double()
        neurons[name] = MTNeuron(layer.spec, step, offset=offset, gain=gain, clip=layer.clip)
    return snn.with_neurons(neurons)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["residual", "clamps"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("whole_window", [False, True])
def test_every_row_is_what_the_tensors_say_and_its_causes_add_up(
    name: str, presentation: str, changed: bool, whole_window: bool
) -> None:
    settings = {"presentation": presentation, "whole_window": whole_window}
    plain = converted(name, 3, signed=True, **settings)
    snn, x = calibrated(plain) if changed else plain, pictures(3)
    assert name != "clamps" or any(layer.spec.bounds[0] < 0 for _, layer in snn.neurons())
    table = layer_errors({3: snn}, [x[:2], x[2:]], time_steps=(1, 9), reference=plain)
    assert len(table.errors) == 2 * 3 * (len(table.layers) + 1)
    for T in (1, 9):
        for (layer, view), (a, c, q, m) in expected_rows(snn, plain, x, T).items():
            row, power = table.error(layer, view, 3, T), float((a**2).mean())
            assert row.power == pytest.approx(power, rel=1e-9)
            errors = {"clipping": a - c, "quantization": c - q, "unevenness": q - m, "whole": a - m}
            for cause, error in errors.items():
                assert close(getattr(row, cause), size_of(error, power)), (layer, view, cause)
            three = [errors[cause] for cause in ("clipping", "quantization", "unevenness")]
            assert torch.allclose(sum(three), errors["whole"], rtol=1e-6, atol=1e-12)
            means = sum(getattr(row, cause).mean for cause in list(CAUSES)[:3])
            assert means == pytest.approx(row.whole.mean, rel=1e-6, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_rates_are_what_the_spikes_say(changed: bool) -> None:
    plain = converted("clamps", 3, signed=True)
    snn, x, T = calibrated(plain) if changed else plain, pictures(3), 7
    table = layer_errors({3: snn}, [x], time_steps=(2, T), reference=plain)
    expected = expected_rows(snn, plain, x, T)
    run = simulate(snn, x, time_steps=T, record=True)
    assert run.spikes is not None
    neurons, arrived = dict(snn.neurons()), inputs_of(snn, x, T)
    for layer, spikes in run.spikes.items():
        row, q, neuron = table.rate(layer, 3, T), expected[layer, "propagated"][2], neurons[layer]
        events, down = (count_events(part, Uniform(3)) for part in (spikes, spikes.clamp(max=0)))
        fired, zero = events.sum(0) > 0, q == 0
        assert row.neurons == q[0].numel()
        assert row.zero == float(zero.double().mean())
        assert row.occasional == float(fired[zero].double().mean())
        assert row.missing == float((run.totals[layer] == 0)[~zero].double().mean())
        assert row.negative == pytest.approx(float(down.sum() / events.sum()))
        assert row.firing_rate == pytest.approx(float(events.mean()))
        rates = (events.sum(0) / (3 * T)).flatten()
        counts = [int((rates == 0).sum())]
        for low, high in pairwise(RATE_EDGES):
            counts.append(int(((rates > low + 1e-9) & (rates <= high + 1e-9)).sum()))
        assert list(row.rate_counts) == counts
        left = arrived[layer] / unit(neuron, snn.presentation, T - 1) + 0.5 - run.totals[layer]
        left = left + (0 if neuron.offset is None else neuron.offset)
        edges = [-math.inf, *RESIDUAL_EDGES, math.inf]
        bins = pairwise(edges)
        counts = [int(((left >= low) & (left < high)).sum()) for low, high in bins]
        assert list(row.residual_counts) == counts
        assert sum(counts) == q.numel()


def test_the_network_is_the_sum_over_its_layers_each_neuron_alike() -> None:
    snn, x = converted("residual", 3, signed=True), pictures(4)
    table = layer_errors({3: snn}, [x], time_steps=[2])
    layers = [table.rate(layer, 3, 2) for layer in table.layers]
    weights, whole = [row.neurons for row in layers], table.rate(WHOLE, 3, 2)
    assert whole.neurons == sum(weights)
    assert len(set(weights)) > 1
    assert whole.firing_rate == pytest.approx(weighted([r.firing_rate for r in layers], weights))
    assert whole.zero == pytest.approx(weighted([row.zero for row in layers], weights))
    zeros = [row.zero * row.neurons for row in layers]
    others = [(1 - row.zero) * row.neurons for row in layers]
    assert whole.occasional == pytest.approx(weighted([r.occasional for r in layers], zeros))
    assert whole.missing == pytest.approx(weighted([row.missing for row in layers], others))
    counts = zip(*(row.residual_counts for row in layers), strict=True)
    assert whole.residual_counts == tuple(map(sum, counts))
    for view in VIEWS:
        rows, total = (
            [table.error(la, view, 3, 2) for la in table.layers],
            table.error(WHOLE, view, 3, 2),
        )
        assert total.power == pytest.approx(weighted([row.power for row in rows], weights))
        for cause in CAUSES:
            sizes, size = [getattr(row, cause) for row in rows], getattr(total, cause)
            squares = weighted([item.rms**2 for item in sizes], weights)
            assert size.rms**2 == pytest.approx(squares)
            assert size.relative == pytest.approx(squares / total.power)
            assert size.mean == pytest.approx(weighted([item.mean for item in sizes], weights))
            assert size.maximum == max(item.maximum for item in sizes)


def weighted(values: list[float], weights: list[float]) -> float:
    """Their mean with these weights."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


# ------------------------------------------------------------------------------- what must be exact


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["residual", "clamps", "pools", "bottleneck"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_one_step_with_all_levels_has_no_unevenness_in_any_view(
    name: str, presentation: str
) -> None:
    """In single precision, as networks run: invariant 1."""
    snn = convert(four_bits(name), presentation=presentation)  # each layer has its own L
    table = layer_errors({15: snn}, [images(3, seed=8), images(2, seed=9)], time_steps=[1])
    assert {row.view for row in table.errors} == set(VIEWS)
    for row in table.errors:
        assert row.unevenness == ErrorSize(0, 0, 0, 0)
        assert row.quantization.maximum > 0
    assert all(row.occasional == row.missing == 0 for row in table.rates)
    assert all(row.zero > 0 for row in table.rates if name == "residual")
    assert table.logits[0].error == ErrorSize(0, 0, 0, 0)
    assert table.logits[0].agreement == 1


def test_what_the_layer_does_itself_is_left_out_where_steps_suffice_for_all_levels() -> None:
    """Even input, n T = L: a layer alone is its quantizer, and uneven in the network if it cannot
    take back."""
    snn = converted("residual", 3, signed=False)
    table = layer_errors({3: snn}, [pictures(4)], time_steps=[5])
    assert table.error(WHOLE, "forced", 3, 5).unevenness.maximum == 0
    assert table.error(WHOLE, "propagated", 3, 5).unevenness.maximum > 0


# ---------------------------------------------------------------------------- passes and batches


@pytest.mark.parametrize("whole_window", [False, True])
def test_one_pass_over_all_n_and_t_equals_a_run_for_each(whole_window: bool) -> None:
    settings = {"signed": True, "whole_window": whole_window}
    networks = {n: converted("residual", n, **settings) for n in (1, 4)}
    batches, steps = [pictures(3), pictures(2, seed=6)], (1, 2, 6)
    together = layer_errors(networks, batches, time_steps=steps)
    assert together.settings == [(n, T) for n in networks for T in steps]
    for n, T in together.settings:
        one = layer_errors([(n, networks[n])], batches, time_steps=[T])
        assert one.errors == tuple(row for row in together.errors if (row.n, row.T) == (n, T))
        assert one.rates == tuple(row for row in together.rates if (row.n, row.T) == (n, T))
        assert one.logits == tuple(row for row in together.logits if (row.n, row.T) == (n, T))


@pytest.mark.slow
def test_a_shared_reference_that_is_the_same_changes_nothing() -> None:
    networks = {n: converted("clamps", n, signed=True) for n in (2, 3)}
    own = layer_errors(networks, [pictures(2)], time_steps=[1, 3])
    assert own == layer_errors(networks, [pictures(2)], time_steps=[3, 1, 1], reference=networks[2])


def test_how_images_are_batched_does_not_matter() -> None:
    snn, x = converted("residual", 3, signed=True), pictures(7)
    labels = torch.arange(7) % 3
    one = layer_errors({3: snn}, [(x, labels)], time_steps=(1, 4))
    splits = [
        (x[:1], labels[:1]),
        (x[1:1], labels[1:1]),
        (x[1:5], labels[1:5]),
        (x[5:], labels[5:]),
    ]
    many = layer_errors({3: snn}, splits, time_steps=(1, 4))
    assert one.rates == many.rates
    for row, other in zip(one.errors, many.errors, strict=True):
        assert (row.layer, row.view, row.T) == (other.layer, other.view, other.T)
        for cause in CAUSES:
            assert close(getattr(row, cause), getattr(other, cause), 1e-12)
    for first, second in zip(one.logits, many.logits, strict=True):
        assert close(first.error, second.error, 1e-12)
        assert dataclasses.replace(first, error=second.error) == second


def test_the_networks_are_left_as_they_were() -> None:
    snn = converted("residual", 3, signed=True)
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    first = layer_errors({3: snn}, [pictures(2)], time_steps=[3])
    assert first == layer_errors({3: snn}, [pictures(2)], time_steps=[3])
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


# ------------------------------------------------------------------------------ logits and classes


def test_agreement_and_accuracies_are_those_of_the_predictions() -> None:
    net, qann = network("residual"), four_bits("residual")
    snn, x = convert(qann, ladder=Uniform(1), signed=True), images(24, seed=11)
    labels = torch.randint(3, (24,), generator=torch.Generator().manual_seed(3))
    table = layer_errors(
        {1: snn}, [(x[:9], labels[:9]), (x[9:], labels[9:])], time_steps=(1, 3), ann=net
    )
    with torch.no_grad():
        said, wanted = net(x).argmax(1), qann(x)
    for row in table.logits:
        logits = simulate(snn, x, time_steps=row.T).logits[-1]
        predicted = logits.argmax(1)
        assert row.agreement == float((predicted == wanted.argmax(1)).double().mean())
        assert row.ann_agreement == float((predicted == said).double().mean())
        assert row.snn_accuracy == pytest.approx(100 * float((predicted == labels).double().mean()))
        assert row.ann_accuracy == pytest.approx(100 * float((said == labels).double().mean()))
        right = (wanted.argmax(1) == labels).double().mean()
        assert row.qann_accuracy == pytest.approx(100 * float(right))
        power = float((wanted.double() ** 2).mean())
        assert close(row.error, size_of(wanted.double() - logits.double(), power), 1e-6)
    assert table.logits[0].agreement < 1


@pytest.mark.parametrize("first", [0, 1])
def test_accuracies_need_labels_with_all_batches(first: int) -> None:
    snn, x = converted("residual", 3), pictures(2)
    batches = [(x, torch.zeros(2)), x]
    (row,) = layer_errors({3: snn}, [batches[first], batches[1 - first]], time_steps=[1]).logits
    assert row.snn_accuracy is row.qann_accuracy is row.ann_accuracy is row.ann_agreement is None


def test_a_layer_that_is_always_silent_has_no_relative_error() -> None:
    table = layer_errors({3: alone(Uniform(3))}, [-torch.rand(4, 2)], time_steps=[1])
    assert table.error("0", "forced", 3, 1).whole == ErrorSize(0, 0, 0, None)
    assert table.rate("0", 3, 1).zero == 1
    assert ErrorTable.from_json(table.to_json()) == table


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("steps", [(), (0,), (1, -2), (1.0,), (True,)])
def test_steps_must_be_whole_numbers_from_one(steps: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"time_steps is .*: allowed are whole numbers from 1"):
        layer_errors({3: alone(Uniform(3))}, [torch.zeros(1, 2)], time_steps=steps)


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 2)]])
def test_no_images_are_refused(batches: list[Tensor]) -> None:
    with pytest.raises(SpecError, match="no images to measure errors on"):
        layer_errors({3: alone(Uniform(3))}, batches, time_steps=[1])


def test_networks_must_be_there_each_n_once() -> None:
    snn = alone(Uniform(3))
    for networks in ([], [(3, snn), (3, snn)]):
        with pytest.raises(SpecError, match="allowed are one or more, each n once"):
            layer_errors(networks, [torch.zeros(1, 2)], time_steps=[1])


@pytest.mark.slow
def test_a_reference_of_another_network_is_refused_and_the_layers_named() -> None:
    other = convert(quantized("one_relu"))
    with pytest.raises(SpecError, match=r"(?s)another network.*n = 3  layers \['0'.*relu"):
        layer_errors({3: alone(Uniform(3))}, [torch.zeros(1, 2)], time_steps=[1], reference=other)


def test_images_with_nan_are_refused() -> None:
    with pytest.raises(DataError, match="hold NaN"):
        layer_errors({3: alone(Uniform(3))}, [torch.full((1, 2), math.nan)], time_steps=[1])


def test_a_row_is_a_value() -> None:
    row = layer_errors({3: alone(Uniform(3))}, [torch.ones(1, 2)], time_steps=[1]).errors[0]
    assert isinstance(row, ErrorRow)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.power = 0  # type: ignore[misc]


def test_a_network_that_overflows_without_its_quantizers_is_refused_by_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mt_convert.evaluation.errors.sums import CauseSums

    measured = CauseSums.row

    def overflowing(self: CauseSums, *place: object) -> object:
        return dataclasses.replace(measured(self, *place), power=math.inf)  # type: ignore[arg-type]

    monkeypatch.setattr(CauseSums, "row", overflowing)
    with pytest.raises(SpecError, match=r"(?s)overflows.*here and in"):
        layer_errors({15: convert(quantized("residual"))}, [images(2)], time_steps=[1])
