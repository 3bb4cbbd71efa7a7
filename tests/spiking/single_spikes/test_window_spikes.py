"""Whole windows on single spikes: nothing but digits, and bit for bit what `simulate` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dyadic import dyadic_, dyadic_images
from function_networks import images as function_images
from function_networks import network
from networks import conv, lived_in
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native import build
from mt_convert.integer_engine.shift_add import shift_add
from mt_convert.neurons import totals
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Radix, Uniform, UnsignedRadix
from mt_convert.neurons.layer import MTNeuron
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking import simulate as simulation
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import quantized_activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

Meeting = Callable[[Tensor, Tensor], Tensor]


def signed(x: Tensor) -> Tensor:
    """An activation whose levels go below 0."""
    return F.hardtanh(x, -2, 2)


class Meets(nn.Module):
    """Two branches, one of signed levels, that meet in several ways, each read by neurons of its
    own behind a padded convolution; a last layer of neurons sees all of them."""

    def __init__(self, meetings: Sequence[Meeting]) -> None:
        super().__init__()
        self.a, self.b, self.meetings = conv(2, 4), conv(2, 4), meetings
        self.after = nn.ModuleList(conv(8 if join is joined else 4, 2) for join in meetings)
        self.last, self.head = conv(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = signed(self.a(x)), torch.relu(self.b(x))
        pairs = zip(self.meetings, self.after, strict=True)
        x = sum(F.adaptive_avg_pool2d(signed(after(meet(a, b))), 4) for meet, after in pairs)
        return self.head(torch.relu(self.last(x)).sum((2, 3)))


def joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def pooled(a: Tensor, b: Tensor) -> Tensor:
    """Maxima and averages over windows that reach beyond the border."""
    largest = F.max_pool2d(a, 3, 2, 1) - F.max_pool2d(b, 3, 2, 1)
    return largest + F.avg_pool2d(a, 2)


SUMS = [lambda a, b: a + b, lambda a, b: a - b + 0.25, joined, pooled]
PRODUCTS = [
    lambda a, b: a * b,
    lambda a, b: (a * b) * a,
    lambda a, b: a @ b.transpose(2, 3),
    lambda a, b: a * b + a,  # trains of different powers: both wait
    lambda a, b: F.max_pool2d(a + b, 2),  # of two layers: it waits
]
MEETINGS: dict[str, Sequence[Meeting]] = {"sums": SUMS, "products": PRODUCTS}
LADDERS: list[tuple[Radix, int]] = [(Radix(1), 3), (Radix(2), 2), (Radix(1), 2), (Radix(1), 5)]
OTHERS: list[Ladder] = [Uniform(2), Binary(2), PowerOfTwo(2)]


@cache
def meeting(name: str) -> QuantizedModel:
    """Few bits, so that all sums stay exact in float32."""
    spec = QuantSpec(input_bits=4, weight_bits=3, first_bits=3, last_bits=3, act_bits=3)
    return quantize(lived_in(Meets(MEETINGS[name])), spec, calibration=dyadic_images(8))


@cache
def plain(spacing: Spacing = Spacing.EQUAL) -> QuantizedModel:
    """A sum of two branches, levels from 0."""
    spec = QuantSpec(act_bits=3, spacing=spacing)
    net = nn.Sequential(conv(2, 4), nn.ReLU(), Adds(conv(4, 4)), nn.ReLU(), conv(4, 3))
    head = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return quantize(lived_in(head), spec, calibration=dyadic_images(8))


class Adds(nn.Module):
    """x + relu(layer(x))."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(x))


def in_windows(qann: QuantizedModel, ladder: Any, **settings: Any) -> SpikingModel:
    return dyadic_(convert(qann, ladder=ladder, whole_window=True, **settings))


def levels_of(snn: SpikingModel, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the quantizers say, and the logits."""
    levels = {}

    def neuron(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        out = quantized_activation(layer, x)
        levels[name] = out / layer.delta
        return out

    with torch.no_grad():
        logits = forward_with(snn, images, neuron)
    return levels, logits


def assert_equal_runs(snn: SpikingModel, images: Tensor, steps: int) -> dict[str, Tensor]:
    """`spike_by_spike` and `simulate` to the last bit: totals, and the read-out of every step."""
    run, expected = (f(snn, images, time_steps=steps) for f in (spike_by_spike, simulate))
    assert list(run.totals) == list(expected.totals)
    for name, total in expected.totals.items():
        assert torch.equal(run.totals[name], total), name
    assert torch.equal(run.logits, expected.logits)
    return expected.totals


@pytest.mark.slow
@pytest.mark.parametrize("name", MEETINGS)
def test_digits_that_meet_are_the_quantized_network_ties_included(name: str) -> None:
    qann, images = meeting(name), dyadic_images(2)
    for ladder, steps in LADDERS:
        snn = in_windows(qann, ladder)
        found = assert_equal_runs(snn, images, steps)
        if steps >= ladder.digits(7):
            levels, logits = levels_of(snn, images)
            assert torch.equal(simulate(snn, images, time_steps=steps).logits[-1], logits)
            for layer, expected in levels.items():
                assert torch.equal(found[layer], expected), layer
    assert min(float(level.min()) for level in levels.values()) < 0
    assert all(level.unique().numel() > 2 for level in levels.values())


def keep_lowest(lows: list[Tensor], t: int, name: str, total: Tensor, emitted: Tensor) -> None:
    """The least that a layer emits in a step."""
    lows.append(emitted.min())


def assert_equal_integers(
    snn: SpikingModel, images: Tensor, steps: int, found: dict[str, Tensor]
) -> None:
    """Backends say the same levels; shifts and additions have no event for a constant."""
    model = integer(snn, backend="torch")
    expected = simulate(snn, images, time_steps=steps, arithmetic=IntegerArithmetic(snn))
    backends = [model] + [integer(snn, backend="native")] * (build.missing() is None)
    for ran in (one.run(images, steps, totals=True) for one in backends):
        assert torch.equal(ran.logits, expected.logits)
        assert all(torch.equal(ran.totals[at].float(), found[at]) for at in found)
    with pytest.raises(SpecError, match="counts from its lowest level"):
        shift_add(model, images, time_steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEETINGS)
def test_digits_from_the_lowest_level_have_no_spike_below_0(name: str, tmp_path: Path) -> None:
    qann, images = meeting(name), dyadic_images(2)
    cut_short = [(UnsignedRadix(1), 2)] if name == "sums" else []
    for ladder, steps in [(UnsignedRadix(2), 2), *cut_short, (UnsignedRadix(1), 3)]:
        snn = in_windows(qann, ladder)
        lows: list[Tensor] = []
        simulate(snn, images, time_steps=steps, observe=partial(keep_lowest, lows))
        assert min(lows) == 0
        found = assert_equal_runs(snn, images, steps)
        lowest = {layer: neuron.spec.start for layer, neuron in snn.neurons()}
        assert min(lowest.values()) < 0
        if name == "sums":  # products of matrices have no integer form
            assert_equal_integers(snn, images, steps, found)
        if steps < ladder.digits(7):
            continue
        levels, logits = levels_of(snn, images)
        assert torch.equal(simulate(snn, images, time_steps=steps).logits[-1], logits)
        assert all(torch.equal(found[layer], level) for layer, level in levels.items())
        run = spike_by_spike(snn, images, time_steps=steps)
        for node, neuron in layer_nodes(snn.layers, MTNeuron):
            digits = run.arriving[node.name] / neuron.delta
            digits[-1] -= lowest[str(node.target)]  # the constant of a layer, once
            assert digits.min() == 0
            assert digits.max() <= ladder.n
    save(snn, tmp_path)
    again = simulate(load(tmp_path), images, time_steps=2).logits
    assert torch.equal(again, simulate(snn, images, time_steps=2).logits)


def test_functions_speak_from_their_lowest_level_too() -> None:
    qann = quantize(network("silu"), QuantSpec(4, 4), calibration=function_images())
    snn = convert(qann, ladder=UnsignedRadix(1), whole_window=True, verify=function_images(2))
    assert snn.report.verdict is not None
    assert snn.report.verdict.window is not None
    assert snn.report.verdict.window.exact


@pytest.mark.sampled
@pytest.mark.parametrize("ladder", OTHERS, ids=repr)
@pytest.mark.parametrize("both", [False, True], ids=["unsigned", "signed"])
def test_windows_of_other_ladders_run_on_spikes_too(ladder: Ladder, both: bool) -> None:
    for steps in (1, 3):
        snn = in_windows(plain(), ladder, signed=both)
        assert_equal_runs(snn, dyadic_images(2), steps)


def test_windows_of_an_image_presented_in_every_step_run_on_spikes_too() -> None:
    settings = {"signed": True, "presentation": "every_step", "whole_window": True}
    snn = convert(plain(), ladder=Uniform(3), **settings)  # type: ignore[arg-type]
    images = dyadic_images(2)
    run, expected = (f(snn, images, time_steps=3) for f in (spike_by_spike, simulate))
    for name, total in expected.totals.items():
        assert torch.equal(run.totals[name], total), name
    torch.testing.assert_close(run.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_learned_gaps_are_said_in_digits() -> None:
    qann, images = plain(Spacing.LEARNED), dyadic_images(2)
    snn = convert(qann, ladder=Radix(1), whole_window=True)
    assert all(neuron.spec.ladder.gaps for _, neuron in snn.neurons())  # type: ignore[union-attr]
    one_step = simulate(convert(qann), images, time_steps=1)
    run, one = (f(snn, images, time_steps=3) for f in (spike_by_spike, simulate))
    assert torch.equal(one.logits[-1], one_step.logits[0])
    for name, total in one_step.totals.items():
        assert torch.equal(one.totals[name], total), name
        assert torch.equal(run.totals[name], total), name


@pytest.mark.slow
def test_nothing_but_digits_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, images = meeting("products"), dyadic_images(2)
    snn = in_windows(qann, Radix(2))

    def raises(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("totals")

    for name in ("totals_step", "totals_step_literal"):
        monkeypatch.setattr(totals, name, raises)
        monkeypatch.setattr(simulation, name, raises)
    with pytest.raises(AssertionError, match="totals"):
        simulate(snn, images, time_steps=2)
    run = spike_by_spike(snn, images, time_steps=2)
    for node, neuron in layer_nodes(snn.layers, MTNeuron):
        digits = run.arriving[node.name] / neuron.delta
        assert torch.equal(digits, digits.round())
        assert digits.abs().max() == 2


def test_layers_of_one_n_end_together_and_other_n_are_refused_where_they_meet() -> None:
    qann, images = plain(), dyadic_images(2)
    names = [name for name, _ in convert(qann).neurons()]
    mixed = convert(qann, ladder={names[0]: Radix(1), names[1]: Radix(3)}, whole_window=True)
    ladders = [neuron.spec.ladder for _, neuron in mixed.neurons()]
    assert ladders == [Radix(1, steps=3), Radix(3, steps=3), Uniform(7)]
    with pytest.raises(SpecError, match="in base 2"):
        spike_by_spike(mixed, images, time_steps=3)
    _, logits = levels_of(mixed, images)
    assert torch.equal(simulate(mixed, images, time_steps=3).logits[-1], logits)


def test_levels_of_several_sizes_are_aligned_at_the_last_digit() -> None:
    snn, images = in_windows(plain(), Radix(1, steps=5)), dyadic_images(2)
    assert {neuron.spec.ladder.steps for _, neuron in snn.neurons()} == {5}  # type: ignore[union-attr]
    found, (levels, _) = assert_equal_runs(snn, images, 5), levels_of(snn, images)
    assert all(torch.equal(found[name], levels[name]) for name in levels)
    early = simulate(snn, images, time_steps=2).totals.values()
    assert not any(bool(total.any()) for total in early), "levels of 3 bits begin with zeros"


def test_digits_without_windows_are_refused_by_layer() -> None:
    qann = plain()
    for settings in ({}, {"whole_window": True, "presentation": "every_step"}):
        with pytest.raises(UnsupportedLayerError, match=r"without whole windows|in every step"):
            convert(qann, ladder=Radix(1), **settings)  # type: ignore[arg-type]
    snn = convert(qann, ladder=Radix(1), whole_window=True)
    with pytest.raises(SpecError, match="not complete"):
        SpikingModel(snn.layers, snn.presentation, False)
