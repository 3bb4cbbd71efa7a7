"""The time loop: orders agree, runs leave no state, totals settle on the quantized network's."""

from __future__ import annotations

import copy
import weakref
from functools import cache

import pytest
import torch
from networks import dense, eighths, images, levels_of, lived_in, network, quantized
from settling import rests_by
from torch import Tensor, nn

from mt_convert.errors import DataError, SpecError
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.totals import count_events
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec, Scale
from mt_convert.spiking.convert import convert
from mt_convert.spiking.levels import levels
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.shapes import image_axes, neuron_shapes
from mt_convert.spiking.simulate import simulate

_EXACT: dict[str, QuantizedModel] = {}


def exact(name: str) -> QuantizedModel:
    """A quantized network whose sums in floating point are exact: steps are powers of two and
    biases eighths. Then no order of additions or batch size can change a bit."""
    if name not in _EXACT:
        model = dense() if name == "dense" else network(name)
        spec = QuantSpec(scale=Scale.POWER_OF_TWO, input_bits=4, first_bits=4, last_bits=4)
        _EXACT[name] = quantize(eighths(model), spec, calibration=images(8))
        for module in _EXACT[name].modules():
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                bias.data = (bias.data * 64).round() / 64
    return _EXACT[name]


@cache
def one_activation(values: int) -> QuantizedModel:
    """A network that is one quantized ReLU; shared, so not to be changed."""
    spec = QuantSpec(input_bits=None)
    return quantize(nn.Sequential(nn.ReLU()), spec, calibration=images(4, (values,)))


def alone(values: int, ladder: Ladder, step: float = 1.0, **settings: object) -> SpikingModel:
    """A network that is one layer of neurons with 15 levels and the given step."""
    snn = convert(one_activation(values), ladder=ladder, **settings)  # type: ignore[arg-type]
    next(iter(snn.neurons()))[1].delta.fill_(step)
    return snn


def history(snn: SpikingModel, batch: Tensor, steps: int) -> list[dict[str, Tensor]]:
    """The totals of all layers behind each step."""
    found: list[dict[str, Tensor]] = [{} for _ in range(steps)]

    def observe(t: int, name: str, total: Tensor, _: Tensor) -> None:
        found[t][name] = total.clone()

    simulate(snn, batch, time_steps=steps, observe=observe)
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two sets of totals are equal."""
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


# ------------------------------------------------------------------------------ invariants 3 and 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "dense"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("signed", [False, True])
def test_layer_by_layer_equals_step_by_step(name: str, presentation: str, signed: bool) -> None:
    """Six steps; but means over three of them are rounded, so in floating point two."""
    snn = convert(exact(name), ladder=Uniform(3), signed=signed, presentation=presentation)
    check_orders(snn, 6 if presentation == "once" else 2, None)
    check_orders(snn, 6, IntegerArithmetic(snn))


def check_orders(snn: SpikingModel, steps: int, arithmetic: IntegerArithmetic | None) -> None:
    """Step by step, layer by layer and threshold by threshold, to the last bit."""
    x = images(3, seed=4)
    orders: tuple[dict[str, bool], ...] = ({}, {"layer_by_layer": True}, {"literal": True})
    one, *others = (
        simulate(snn, x, time_steps=steps, record=True, arithmetic=arithmetic, **order)  # type: ignore[arg-type]
        for order in orders
    )
    for run in others:
        assert torch.equal(one.logits, run.logits)
        assert same(one.totals, run.totals)
        assert same(one.spike_counts, run.spike_counts)
        assert one.potentials is not None
        assert run.potentials is not None
        assert same(one.potentials, run.potentials)
        assert one.spikes is not None
        assert run.spikes is not None
        assert same(one.spikes, run.spikes)
    assert not torch.equal(one.logits[0], one.logits[-1])


@pytest.mark.parametrize("whole_window", [False, True])
def test_a_run_leaves_no_state(whole_window: bool) -> None:
    snn = convert(quantized("residual"), ladder=Uniform(3), signed=True, whole_window=whole_window)
    before = copy.deepcopy(snn.state_dict())
    x = images(3)
    first = simulate(snn, x, time_steps=5)
    simulate(snn, images(2, seed=9), time_steps=3)
    again = simulate(snn, x, time_steps=5)
    assert torch.equal(first.logits, again.logits)
    assert same(first.totals, again.totals)
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())


@pytest.mark.slow
def test_images_do_not_depend_on_their_batch() -> None:
    snn, x = convert(exact("residual"), ladder=Uniform(3), signed=True), images(4)
    together = simulate(snn, x, time_steps=4).logits
    for item in range(4):
        one = simulate(snn, x[item : item + 1], time_steps=4).logits
        assert torch.equal(one[:, 0], together[:, item])


# ------------------------------------------------------------------------------------ invariant 6


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", ["residual", "bottleneck", "pools", "clamps"])
@pytest.mark.parametrize("ladder", [Uniform(3), Binary(2), PowerOfTwo(4), Uniform(1)])
def test_signed_totals_settle_on_the_quantized_levels_and_stay(name: str, ladder: Ladder) -> None:
    qann, x = quantized(name, BatchNorm.FOLD), images(3, seed=6)
    expected, logits = levels_of(qann, x)
    snn = convert(qann, ladder=ladder, signed=True)
    reach = 4 if isinstance(ladder, PowerOfTwo) else ladder.reach  # up to 15 in four spikes
    steps = rests_by(snn, reach)
    equal = [same(found, expected) for found in history(snn, x, steps)]
    assert equal[-1]
    assert not equal[0]
    settled = equal.index(True)
    assert all(equal[settled:])
    assert torch.equal(simulate(snn, x, time_steps=steps).logits[-1], logits)


@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("signed", [False, True])
def test_layers_that_wait_for_their_window_are_exact_as_soon_as_it_holds_all_levels(
    presentation: str, signed: bool
) -> None:
    qann, x = quantized("residual"), images(3, seed=6)
    expected, logits = levels_of(qann, x)
    settings = {"presentation": presentation, "signed": signed, "whole_window": True}
    snn = convert(qann, ladder=Uniform(3), **settings)  # type: ignore[arg-type]
    run = simulate(snn, x, time_steps=5)  # 3 * 5 = 15 levels
    assert same(run.totals, expected)
    assert torch.equal(run.logits[-1], logits)
    short = simulate(snn, x, time_steps=4)
    assert not torch.equal(short.logits[-1], logits)
    if presentation == "once":
        long = simulate(snn, x, time_steps=7)
        assert same(long.totals, expected)
        assert torch.equal(long.logits[4], logits)
        assert torch.equal(long.logits[-1], logits)


def late_correction(signed: bool) -> SpikingModel:
    """relu(2 relu(a) - relu(b)) with one threshold per neuron: b takes longer to speak than a."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False), nn.ReLU())
    qann = quantize(model, QuantSpec(input_bits=None), calibration=torch.randn(8, 2))
    snn = convert(qann, ladder=Uniform(1), signed=signed)
    snn.layers.get_submodule("1").weight.data = torch.tensor([[2.0, -1.0]])
    for _, neuron in snn.neurons():
        neuron.delta.fill_(1.0)
    return snn


@pytest.mark.slow
def test_an_unsigned_neuron_cannot_take_back_what_a_signed_one_can() -> None:
    x = torch.tensor([[1.0, 3.0]])  # 2 * 1 - 3 < 0: the answer is 0
    wrong = simulate(late_correction(False), x, time_steps=8).logits[:, 0, 0]
    right = simulate(late_correction(True), x, time_steps=8).logits[:, 0, 0]
    assert wrong.tolist() == [1.0] * 8
    assert right.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------- level law


@pytest.mark.parametrize("n", [1, 3, 15])
@pytest.mark.parametrize("steps", [1, 5, 15, 16])
def test_a_constant_current_gives_the_level_law(n: int, steps: int) -> None:
    snn = alone(400, Uniform(n), step=0.25, presentation="every_step")
    generator = torch.Generator().manual_seed(n * steps)
    z = 5 * torch.rand(1, 400, generator=generator, dtype=torch.float64) - 0.5
    run = simulate(snn, z.float(), time_steps=steps)
    unit = 0.25 * 15 / n  # one emission: n of them in each step reach all 15 levels
    expected = torch.floor(z * steps / unit + 0.5).clamp(0, n * steps)
    assert torch.equal(run.totals["0"].double(), expected)
    torch.testing.assert_close(run.logits[-1].double(), unit / steps * expected)


@pytest.mark.sampled
@pytest.mark.parametrize("bound", [7, 49, 93, 98, 103])
def test_the_window_reaches_all_levels_whatever_their_number(bound: int) -> None:
    """1 / 49 * 49 is less than 1 in floating point."""
    qann = quantize(
        nn.Sequential(nn.ReLU6()), QuantSpec(act_bits=8, input_bits=None), calibration=images(2)
    )
    for parameter in qann.parameters():
        parameter.data.mul_(6 / bound / qann.layers.get_submodule("0").scale)
    snn = convert(qann, ladder=Uniform(1), presentation="every_step")
    assert levels(next(iter(snn.neurons()))[1].spec) == bound
    run = simulate(snn, torch.full((1, 2, 8, 8), 9.0), time_steps=3, record=True)
    assert run.spikes is not None
    assert bool((run.spikes["0"] == 1).all())


# ----------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize(
    ("ladder", "steps", "expected"),
    [
        (Uniform(15), 1, [23]),  # 0 + 5 + 3 + 15
        (Uniform(3), 4, [9, 5, 3, 3]),  # 3+3+3, 2+0+3, 3, 3
        (Binary(4), 1, [8]),  # 101, 11, 1111
        (Binary(2), 3, [6, 3, 2]),  # 11 11 11, then 2 and 3, then 3
        (PowerOfTwo(4), 4, [3, 3, 1, 1]),  # 4+1, 2+1, 8+4+2+1
    ],
)
def test_events_are_counted_as_by_hand(ladder: Ladder, steps: int, expected: list[int]) -> None:
    snn = alone(4, ladder)
    run = simulate(snn, torch.tensor([[-2.0, 5.0, 3.2, 99.0]]), time_steps=steps)
    assert run.spike_counts["0"].tolist() == expected
    assert run.neurons == {"0": 4}
    assert run.firing_rate == sum(expected) / (4 * steps)


def test_events_of_negative_spikes_count_like_positive_ones() -> None:
    emitted = torch.tensor([-3.0, 3.0, 0.0, -8.0])
    assert count_events(emitted, Uniform(15)).tolist() == [3, 3, 0, 8]
    assert count_events(emitted, Binary(4)).tolist() == [2, 2, 0, 1]
    assert count_events(emitted, PowerOfTwo(4)).tolist() == [2, 2, 0, 1]


@pytest.mark.slow
def test_spikes_over_time_add_up_to_the_totals_and_to_the_read_outs_input() -> None:
    snn, x = convert(exact("dense"), ladder=Uniform(3), signed=True), images(3)
    run = simulate(snn, x, time_steps=6, record=True)
    assert run.spikes is not None
    for name, spikes in run.spikes.items():
        assert spikes.shape == (6, *run.totals[name].shape)
        assert torch.equal(spikes.sum(0), run.totals[name])
        assert torch.equal(
            count_events(spikes, Uniform(3)).flatten(1).sum(1).double(), run.spike_counts[name]
        )
    step = dict(snn.neurons())["3"].delta
    head = snn.layers.get_submodule("5")
    for t in range(6):
        read = head((run.spikes["3"][: t + 1].sum(0) * step).flatten(1))
        assert torch.equal(read, run.logits[t])


def test_potentials_are_what_arrived_less_what_was_emitted_and_stay_at_rest() -> None:
    x = torch.tensor([[-2.0, 5.0, 3.25, 99.0]])
    run = simulate(alone(4, Uniform(3)), x, time_steps=8, record=True)
    assert run.spikes is not None
    assert run.potentials is not None
    emitted = run.spikes["0"].cumsum(0)
    assert torch.equal(run.potentials["0"], x - emitted + 0.5)
    assert torch.equal(run.potentials["0"][-1], run.potentials["0"][-2])
    assert simulate(alone(4, Uniform(3)), x, time_steps=8).potentials is None


def test_spikes_are_kept_only_when_asked_for() -> None:
    snn, x = convert(quantized("one_relu"), ladder=Uniform(3)), images(2)
    plain = simulate(snn, x, time_steps=4)
    assert plain.spikes is None
    kept = simulate(snn, x, time_steps=4, record=True)
    assert kept.spikes is not None
    assert {name: len(spikes) for name, spikes in kept.spikes.items()} == dict.fromkeys(
        ("relu", "relu_1", "relu_2"), 4
    )
    assert torch.equal(plain.logits, kept.logits)


@pytest.mark.slow
@pytest.mark.parametrize("record", [False, True])
def test_spikes_of_earlier_steps_are_let_go_unless_recorded(record: bool) -> None:
    """Memory does not grow with T."""
    snn, x = convert(exact("residual"), ladder=Uniform(1), signed=True), images(2)
    spikes: list[tuple[int, weakref.ref[Tensor]]] = []
    old: list[int] = []

    def observe(t: int, _: str, __: Tensor, emitted: Tensor) -> None:
        old.append(sum(step < t - 1 and spike() is not None for step, spike in spikes))
        spikes.append((t, weakref.ref(emitted)))

    run = simulate(snn, x, time_steps=6, record=record, observe=observe)
    assert len(spikes) == 5 * 6
    assert len(run.totals) == 5
    assert max(old) == (5 * 4 if record else 0)


@pytest.mark.parametrize("whole_window", [False, True])
def test_observers_see_each_layer_in_each_step(whole_window: bool) -> None:
    snn = convert(quantized("one_relu"), ladder=Uniform(15), whole_window=whole_window)
    seen: list[tuple[int, str]] = []
    emitted_by: dict[str, list[Tensor]] = {}

    def observe(t: int, name: str, total: Tensor, emitted: Tensor) -> None:
        seen.append((t, name))
        emitted_by.setdefault(name, []).append(emitted)
        assert torch.equal(torch.stack(emitted_by[name]).sum(0), total)

    run = simulate(snn, images(2), time_steps=4, observe=observe)
    names = ["relu", "relu_1", "relu_2"]
    steps_first = [(t, name) for t in range(4) for name in names]
    layers_first = [(t, name) for name in names for t in range(4)]
    assert seen == (layers_first if whole_window else steps_first)
    assert all(counts.shape == (4,) for counts in run.spike_counts.values())


def test_a_network_at_rest_stays_at_rest() -> None:
    snn, x = convert(quantized("residual")), images(3)
    run = simulate(snn, x, time_steps=4, record=True)
    assert run.logits.shape == (4, 3, 3)
    assert all(torch.equal(run.logits[0], later) for later in run.logits)
    assert all(bool((counts[1:] == 0).all()) for counts in run.spike_counts.values())
    assert all(counts[0] > 0 for counts in run.spike_counts.values())


def test_an_empty_batch_gives_empty_logits() -> None:
    run = simulate(convert(quantized("one_relu")), images(0), time_steps=2)
    assert run.logits.shape == (2, 0, 3)
    assert run.firing_rate == 0


def test_neurons_are_those_of_one_image() -> None:
    snn = convert(quantized("one_relu"))
    run = simulate(snn, images(3), time_steps=1)
    assert run.neurons == {"relu": 4 * 64, "relu_1": 4 * 64, "relu_2": 5}
    assert all(isinstance(layer, MTNeuron) for _, layer in snn.neurons())


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.sampled
@pytest.mark.parametrize("steps", [0, -1, 1.0, "3", None, True])
def test_time_steps_must_be_a_whole_number_from_one(steps: int) -> None:
    with pytest.raises(SpecError, match=rf"time_steps is {steps!r}: allowed are whole numbers"):
        simulate(convert(quantized("one_relu")), images(1), time_steps=steps)


def test_images_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    snn = convert(quantized("one_relu"))
    with pytest.raises(DataError, match=r"\(1, 3, 8, 8\) do not fit.*\[batch, 2, 8, 8\]"):
        simulate(snn, torch.zeros(1, 3, 8, 8), time_steps=1)
    batch = images(3)
    batch[2, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"images \[2\] of the batch hold NaN"):
        simulate(snn, batch, time_steps=1)


# ----------------------------------------------------------------------------- where images lie


class Windows(nn.Module):
    """Four windows of each image beside the images, or tokens first, in front of a neuron."""

    def __init__(self, tokens_first: bool) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.tokens_first = tokens_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT.unflatten(1, (4, 16))  # [batch, windows, tokens, channels]
        x = x.permute(2, 0, 1, 3).flatten(1, 2) if self.tokens_first else x.flatten(0, 1)
        x = torch.relu(self.inside(x))
        x = x.unflatten(1, (-1, 4)).mean((0, 2)) if self.tokens_first else x.unflatten(0, (-1, 4))
        return self.head(x if self.tokens_first else x.mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("tokens_first", [False, True])
def test_neurons_are_counted_per_image_wherever_images_lie(tokens_first: bool) -> None:
    net = lived_in(Windows(tokens_first))
    snn = convert(quantize(net, QuantSpec(), calibration=images(8)))
    run = simulate(snn, images(5), time_steps=2)
    assert run.neurons["relu"] == 4 * 16 * 4
    axes = {str(node.target): axis for node, axis in image_axes(snn.layers).items()}
    assert axes["relu"] == (1 if tokens_first else 0)
    assert axes["head"] == 0


@pytest.mark.slow
def test_shapes_are_inferred_on_the_device_of_the_network() -> None:
    layers = convert(quantize(dense(), QuantSpec(), calibration=images(8))).layers
    assert list(neuron_shapes(layers.to("meta"), 5).values()) == [(5, 4, 8, 8)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("tokens_first", [False, True])
def test_all_steps_at_once_is_refused_where_images_are_not_alone_in_front(
    tokens_first: bool,
) -> None:
    snn = convert(quantize(lived_in(Windows(tokens_first)), QuantSpec(), calibration=images(8)))
    with pytest.raises(SpecError, match="layer_by_layer=True: images are not alone"):
        simulate(snn, images(5), time_steps=2, layer_by_layer=True)
