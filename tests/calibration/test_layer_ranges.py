"""Thresholds by calibration: each is what its definition says, found again by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from networks import dense, images, network, quantized
from torch import Tensor

from mt_convert.calibration.calibrate import calibrate
from mt_convert.calibration.gaussian import gaussian_theta
from mt_convert.calibration.samples import Samples
from mt_convert.calibration.search import (
    BETAS,
    Window,
    alpha_beta,
    alpha_beta_losses,
    best_theta,
    midpoints,
)
from mt_convert.calibration.spec import (
    Gaussian,
    InitialPotential,
    Maximum,
    MeanSquaredError,
    Objective,
    Percentile,
    PercentileAlphaBeta,
)
from mt_convert.errors import SpecError
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import analog, even_response, levels
from mt_convert.spiking.levels import quantized_activation as activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Presentation
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

ONCE, EVERY_STEP = Presentation.ONCE, Presentation.EVERY_STEP
PRESENTATIONS = (ONCE, EVERY_STEP)


def neuron(n: int, bounds: tuple[int, int] = (0, 255), step: float = 1 / 255) -> MTNeuron:
    """A layer of uniform ladders; signed where levels go below 0."""
    return MTNeuron(NeuronSpec(Uniform(n), signed=bounds[0] < 0, bounds=bounds), step)


def exponential(count: int, mean: float, seed: int = 0) -> Tensor:
    """Skewed inputs, as activations are."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return -mean * (1 - draws).log()


def mixed(count: int, seed: int = 0) -> Tensor:
    """Inputs of both signs, in eighths so that many are equal."""
    draws = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return (draws * 4).round() / 8


def spiking(name: str = "residual", n: int = 1, **choices: bool | str) -> SpikingModel:
    """A small network of 4 bits, presented in every step unless told otherwise."""
    choices = {"presentation": "every_step", **choices}
    return convert(quantized(name), ladder=Uniform(n), **choices)  # type: ignore[arg-type]


def inputs_of(snn: SpikingModel, batch: Tensor) -> dict[str, Tensor]:
    """What each layer of neurons gets in the quantized network."""
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        found[name] = x
        return activation(layer, x)

    with torch.no_grad():
        forward_with(snn, batch, keep)
    return found


# ----------------------------------------------------------------------------- the range of a layer


@pytest.mark.parametrize("presentation", PRESENTATIONS)
@pytest.mark.parametrize("bounds", [(0, 15), (-7, 7), (-5, 10), (-7, 0)])
@pytest.mark.parametrize("ladder", [Uniform(1), Uniform(4), Uniform(99), Binary(2)])
def test_theta_is_the_largest_value_that_even_input_makes_a_neuron_emit(
    presentation: Presentation, bounds: tuple[int, int], ladder: Ladder
) -> None:
    spec = NeuronSpec(ladder, signed=bounds[0] < 0, bounds=bounds)
    for steps in (1, 3, 20):
        window = Window(presentation, steps)
        layer = window.with_theta(MTNeuron(spec, 0.5), 6.0)
        assert float(window.theta(layer)) == pytest.approx(6.0)
        emitted = even_response(layer, torch.tensor([-1e3, 1e3]), presentation, steps)
        assert float(emitted.abs().max()) == pytest.approx(6.0)


def test_another_theta_leaves_the_rest_of_a_layer_as_it_was() -> None:
    offset, gain = torch.rand(3, 1, 1), torch.tensor(0.5)
    spec = NeuronSpec(Uniform(3), signed=True, bounds=(0, 15))
    layer = MTNeuron(spec, 1.0, offset=offset, gain=gain, clip=(0.0, 6.0))
    new = Window(EVERY_STEP, 4).with_theta(layer, 7.5)
    assert new.offset is offset
    assert new.gain is gain
    assert (new.spec, new.clip, float(new.delta), float(layer.delta)) == (spec, (0, 6), 0.5, 1.0)


def test_responses_to_several_thetas_are_those_to_each() -> None:
    x = mixed(40)
    thetas = torch.tensor([0.5, 1.0, 2.0])
    for presentation in PRESENTATIONS:
        for ladder in (Uniform(2), PowerOfTwo(3)):
            window = Window(presentation, 3)
            spec = NeuronSpec(ladder, signed=True, bounds=(-15, 15))
            layer = MTNeuron(spec, 1.0, offset=torch.tensor(0.25), gain=torch.tensor(2.0))
            rows = window.responses(layer, x, thetas)
            for theta, row in zip(thetas, rows, strict=True):
                alone = window.response(window.with_theta(layer, theta), x)
                assert torch.equal(2 * row, alone)


# ----------------------------------------------------------------------------- percentile and grid


@pytest.mark.slow
@pytest.mark.parametrize("percent", [80.0, 99.0, 100.0])
def test_a_percentile_is_that_of_all_activations(percent: float) -> None:
    snn, batch = spiking("clamps", 3), images(16)
    found = calibrate(snn, batch, [Percentile(percent)], time_steps=4, keep_better=False)
    window, reference = Window(EVERY_STEP, 4), dict(snn.neurons())
    for name, x in inputs_of(snn, batch[:12]).items():
        sizes = analog(reference[name], x).abs().flatten().sort().values
        place = percent / 100 * (len(sizes) - 1)
        low, high = sizes[int(place)], sizes[math.ceil(place)]
        theta = float(low + (high - low) * (place - int(place)))
        layer = dict(found.snn.neurons())[name]
        assert float(window.theta(layer)) == pytest.approx(theta, rel=1e-5), name


@pytest.mark.slow
def test_a_percentile_of_0_leaves_the_layer_alone() -> None:
    snn = spiking(n=3)
    found = calibrate(snn, images(16), [Percentile(1.0)], time_steps=4, keep_better=False)
    for (_, old), (_, new), row in zip(
        snn.neurons(), found.snn.neurons(), found.report.rows, strict=True
    ):
        assert torch.equal(old.delta, new.delta)
        assert (row.loss, row.kept) == ("theta would be 0", False)


@pytest.mark.parametrize("presentation", PRESENTATIONS)
def test_the_grid_finds_the_least_mean_square(presentation: Presentation) -> None:
    x, window = exponential(500, 0.3), Window(presentation, 2)
    layer = neuron(2)
    target = activation(layer, x)
    thetas = torch.linspace(0.05, 1, 40)
    losses = []
    for theta in thetas:
        candidate = window.with_theta(layer, theta)
        emitted = even_response(candidate, x, presentation, 2)
        losses.append(float((target - emitted).square().mean()))
    assert best_theta(layer, x, target, thetas, window) == losses.index(min(losses))


def test_middles_of_equal_shares_stand_for_many_inputs() -> None:
    x = exponential(50_000, 1.0)
    points = midpoints(x)
    assert len(points) <= 2048
    assert float(points.mean()) == pytest.approx(float(x.mean()), rel=1e-2)
    assert float(points.square().mean()) == pytest.approx(float(x.square().mean()), rel=2e-2)
    few = x[:100]
    assert torch.equal(midpoints(few), few.sort().values)


# ---------------------------------------------------------------------------------- alpha and beta


@given(
    seed=some.integers(0, 2**31),
    n=some.sampled_from([1, 3]),
    steps=some.sampled_from([1, 2, 5]),
    presentation=some.sampled_from(PRESENTATIONS),
    bounds=some.sampled_from([(0, 15), (-7, 7)]),
)
@settings(max_examples=40, deadline=None)
def test_alpha_and_beta_are_never_worse_than_1_and_1(
    seed: int, n: int, steps: int, presentation: Presentation, bounds: tuple[int, int]
) -> None:
    x, window = mixed(300, seed), Window(presentation, steps)
    layer = neuron(n, bounds, 1.5 / bounds[1])
    alpha, beta = alpha_beta(layer, x, layer, window, Objective.MSE)

    def loss(alpha: float, beta: float) -> float:
        candidate = window.with_theta(layer, alpha * 1.5, gain=torch.tensor(beta))
        missed = activation(layer, x) - window.response(candidate, x)
        return float(missed.square().mean())

    assert loss(alpha, beta) <= loss(1.0, 1.0) + 1e-6


@pytest.mark.parametrize(("n", "steps", "signed"), [(1, 4, False), (3, 2, False), (1, 6, True)])
def test_a_planted_alpha_and_beta_are_recovered(n: int, steps: int, signed: bool) -> None:
    x, window = exponential(400, 0.3), Window(EVERY_STEP, steps)
    layer = neuron(n, (-127, 127) if signed else (0, 255), 1 / (127 if signed else 255))
    x = torch.cat([x, -x]) if signed else x
    alphas = torch.linspace(0.1, 1, 37)
    responses = window.responses(layer, x, alphas)
    losses = alpha_beta_losses(responses, 1.37 * responses[17], BETAS, Objective.MSE)
    row, column = divmod(int(losses.argmin()), len(BETAS))
    assert (row, float(BETAS[column])) == (17, pytest.approx(1.37))
    assert float(losses.min()) < 1e-12


def test_the_losses_of_all_betas_are_those_computed_one_by_one() -> None:
    responses, target = mixed(60).reshape(3, 20), mixed(20, 1)
    betas = torch.tensor([0.0, 0.5, 1.25])
    for objective, size in (
        (Objective.MSE, lambda gap: gap.square().mean()),
        (Objective.SIGNED, lambda gap: gap.sum().abs()),
    ):
        found = alpha_beta_losses(responses, target, betas, objective)
        for row, response in enumerate(responses):
            for column, beta in enumerate(betas):
                expected = float(size(target - beta * response))
                assert float(found[row, column]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_with_many_steps_nothing_is_to_be_scaled(n: int) -> None:
    x, layer = exponential(20_000, 0.2).clamp(max=1), neuron(n)
    alpha, beta = alpha_beta(layer, x, layer, Window(EVERY_STEP, 256 // n), Objective.MSE)
    assert beta == 1
    assert alpha > 0.9  # the percentiles just below 1 lie this far apart
    alpha, beta = alpha_beta(layer, x, layer, Window(EVERY_STEP, 2), Objective.MSE)
    assert alpha < 0.9


def test_the_signed_objective_is_blind_to_errors_that_cancel() -> None:
    x, layer, window = exponential(20_000, 0.2).clamp(max=1), neuron(1), Window(EVERY_STEP, 64)

    def mean_square(alpha: float, beta: float) -> float:
        candidate = window.with_theta(layer, alpha, gain=torch.tensor(beta))
        return float((activation(layer, x) - window.response(candidate, x)).square().mean())

    signed = alpha_beta(layer, x, layer, window, Objective.SIGNED)
    square = alpha_beta(layer, x, layer, window, Objective.MSE)
    assert mean_square(*signed) > 10 * mean_square(1, 1)
    assert mean_square(*square) <= mean_square(1, 1)


def test_inputs_that_are_almost_0_are_no_alpha() -> None:
    x, layer = torch.tensor([1e-44] * 99 + [0.5, 1.0]), neuron(1)
    alpha, beta = alpha_beta(layer, x, layer, Window(EVERY_STEP, 2), Objective.MSE)
    assert (alpha, beta) == (1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("presentation", PRESENTATIONS)
def test_beta_folds_into_the_next_weights(presentation: Presentation) -> None:
    qann = quantize(dense(), QuantSpec(), calibration=images(8))
    snn = convert(qann, ladder=Uniform(1), presentation=presentation)
    step = PercentileAlphaBeta()
    snn = calibrate(snn, images(16, seed=2), [step], time_steps=3, keep_better=False).snn
    plain = {}
    for name, layer in snn.neurons():
        assert layer.gain is not None
        plain[name] = MTNeuron(layer.spec, layer.delta, clip=layer.clip)
    folded = snn.with_neurons(plain)
    for (_, layer), weighted in zip(snn.neurons(), ("2", "5"), strict=True):
        folded.layers.get_submodule(weighted).weight.data *= layer.gain
    assert any(float(layer.gain) != 1 for _, layer in snn.neurons())  # type: ignore[arg-type]
    batch = images(6, seed=3)
    expected = simulate(snn, batch, time_steps=3).logits
    torch.testing.assert_close(
        simulate(folded, batch, time_steps=3).logits, expected, rtol=1e-5, atol=1e-5
    )


# ---------------------------------------------------------------------------------------- gaussian


def gaussian_losses(mean: float, std: float, low: int, high: int, thetas: Tensor) -> Tensor:
    """E(z − f(z))² by quadrature; below the lowest threshold an activation without levels is 0."""
    count = max(-low, high)
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    x = mean + std * z
    step = (thetas / count)[:, None]
    emitted = step * torch.floor(x / step + 0.5).clamp(low, high)
    target = x if low < 0 else x.clamp(min=0)
    return ((target - emitted).square() * weight).sum(1) / weight.sum()


@pytest.mark.sampled
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.75), (3.0, 1.5)])
@pytest.mark.parametrize(
    "bounds", [(0, 1), (0, 3), (0, 4), (0, 12), (0, 48), (-1, 1), (-3, 3), (-12, 12), (-5, 10)]
)
def test_the_gaussian_theta_is_the_optimum_of_a_grid(
    mean: float, std: float, bounds: tuple[int, int]
) -> None:
    theta = gaussian_theta(mean, std, *bounds)
    coarse = torch.linspace(0.05, 6, 120, dtype=torch.float64) * (abs(mean) + std)
    start = float(coarse[gaussian_losses(mean, std, *bounds, coarse).argmin()])
    fine = torch.linspace(0.9, 1.1, 161, dtype=torch.float64) * start
    losses = gaussian_losses(mean, std, *bounds, fine)
    best = float(fine[losses.argmin()])
    assert theta == pytest.approx(best, rel=1e-2)
    here = gaussian_losses(mean, std, *bounds, torch.tensor([theta], dtype=torch.float64))
    assert float(here) <= float(losses.min()) * (1 + 1e-4)


@given(
    mean=some.floats(-3, 3),
    std=some.floats(0.05, 3),
    low=some.integers(-40, 0),
    high=some.integers(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_the_ratio_of_the_closed_form_is_1_at_its_theta(
    mean: float, std: float, low: int, high: int
) -> None:
    assume(low < 0 or mean > -19 * std)
    theta, count = gaussian_theta(mean, std, low, high), max(-low, high)

    def ratio(theta: float) -> float:
        zeta = [
            ((2 * i - 1) * theta / (2 * count) - mean) / (math.sqrt(2) * std)
            for i in range(low + 1, high + 1)
        ]
        upper = mean / theta * (2 * low + sum(map(math.erfc, zeta)))
        upper += std / theta * math.sqrt(2 / math.pi) * sum(math.exp(-z * z) for z in zeta)
        odd = range(2 * low + 1, 2 * high, 2)
        lower = 2 * low**2 + sum(i * math.erfc(z) for i, z in zip(odd, zeta, strict=True))
        return count * upper / lower

    assert ratio(theta * 0.999) >= 1 - 1e-9
    assert ratio(theta * 1.001) <= 1 + 1e-9


def test_a_gaussian_theta_grows_with_the_inputs() -> None:
    once = gaussian_theta(0.3, 0.7, 0, 12)
    assert gaussian_theta(0.9, 2.1, 0, 12) == pytest.approx(3 * once, rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "low", "high", "where"),
    [
        (0.0, 0.0, 0, 3, "std"),
        (float("nan"), 1.0, 0, 3, "mean"),
        (0.0, 1.0, 0, 0, "low, high"),
        (0.0, 1.0, 1, 3, "low, high"),
        (-80.0, 1.0, 0, 3, "mean, std"),
    ],
)
def test_a_gaussian_without_a_theta_is_refused(
    mean: float, std: float, low: int, high: int, where: str
) -> None:
    with pytest.raises(SpecError) as raised:
        gaussian_theta(mean, std, low, high)
    assert [fault.where for fault in raised.value.faults] == [where]


@pytest.mark.slow
def test_a_layer_gets_the_gaussian_theta_of_its_inputs() -> None:
    snn, batch = spiking(n=3), images(16)
    found = calibrate(snn, batch, [Gaussian()], time_steps=4, keep_better=False)
    for name, x in inputs_of(snn, batch[:12]).items():
        theta = gaussian_theta(float(x.mean()), float(x.std()), 0, 12)
        layer = dict(found.snn.neurons())[name]
        assert float(Window(EVERY_STEP, 4).theta(layer)) == pytest.approx(theta, rel=1e-3)


# ----------------------------------------------------------------------------------------- maximum


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("presentation", PRESENTATIONS)
@pytest.mark.parametrize(("n", "signed", "scale"), [(1, False, 1.0), (3, True, 0.7)])
def test_balanced_thresholds_are_the_largest_currents_seen_spike_by_spike(
    presentation: Presentation, n: int, signed: bool, scale: float
) -> None:
    snn = spiking("residual", n, signed=signed, presentation=str(presentation))
    batch = images(8, seed=5)
    found = calibrate(snn, batch, [Maximum(scale)], time_steps=3, keep_better=False).snn
    feeders = {
        str(node.target): node.args[0].name  # type: ignore[union-attr]
        for node in snn.layers.graph.nodes
        if node.op == "call_module" and isinstance(snn.layers.get_submodule(node.target), MTNeuron)
    }
    expected: dict[str, MTNeuron] = {}
    for name, layer in snn.neurons():
        run = spike_by_spike(snn.with_neurons(expected), batch[:6], time_steps=3)
        currents = run.arriving[feeders[name]]
        if presentation is ONCE:
            currents = currents.cumsum(0)
        theta = scale * float(currents.max())
        parts = levels(layer.spec) if presentation is EVERY_STEP else min(15, 3 * n)
        expected[name] = MTNeuron(layer.spec, theta / parts, clip=layer.clip)
    for name, layer in found.neurons():
        assert float(layer.delta) == pytest.approx(float(expected[name].delta), rel=1e-5), name


def test_balancing_goes_on_with_the_thresholds_that_were_kept() -> None:
    snn, batch = spiking("residual", 1), images(8, seed=5)
    kept = calibrate(snn, batch, [Maximum(0.7)], time_steps=3)
    for (_, old), (_, new), row in zip(
        snn.neurons(), kept.snn.neurons(), kept.report.rows, strict=True
    ):
        assert row.kept is not torch.equal(old.delta, new.delta)


# ------------------------------------------------------------------------------- initial potential


def test_an_initial_potential_of_0_rounds_down() -> None:
    snn, batch = spiking("residual", 1), images(8)
    found = calibrate(snn, batch, [InitialPotential(0.0)], time_steps=4, keep_better=False).snn
    window = Window(EVERY_STEP, 4)
    for _, layer in found.neurons():
        theta = float(window.theta(layer))
        x = torch.tensor([0.1, 0.3, 0.74, 0.76, 2.0]) * theta
        expected = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]) * theta
        torch.testing.assert_close(window.response(layer, x), expected)
    usual = calibrate(found, batch, [InitialPotential()], time_steps=4, keep_better=False).snn
    assert torch.equal(
        simulate(usual, batch, time_steps=4).logits, simulate(snn, batch, time_steps=4).logits
    )


# ---------------------------------------------------------------------------------------- samples


@pytest.mark.slow
def test_inputs_are_spread_over_images_neurons_and_columns() -> None:
    net = network("functional")
    snn = convert(quantize(net, QuantSpec(), calibration=images(8)))
    batch = images(1024)
    samples = Samples.split(snn, batch, 1)
    for name, x in inputs_of(snn, samples.fit).items():
        values = samples.inputs(held_out=False)[name]
        assert 2**15 < len(values) <= 2**16 < x.numel()
        assert float(values.mean()) == pytest.approx(float(x.mean()), abs=0.02 * float(x.std()))
        assert float(values.std()) == pytest.approx(float(x.std()), rel=0.02)
        top = float(samples.largest[name])
        assert top == pytest.approx(float(x.max()), rel=1e-5)


@pytest.mark.slow
def test_few_inputs_are_all_there_and_means_are_of_quantized_activations() -> None:
    snn = spiking("clamps")
    samples = Samples.split(snn, images(9), 1)
    assert (len(samples.fit), len(samples.held_out)) == (7, 2)
    reference = dict(snn.neurons())
    for held_out, part in ((False, samples.fit), (True, samples.held_out)):
        for name, x in inputs_of(snn, part).items():
            assert torch.equal(samples.inputs(held_out)[name], x.flatten())
            mean = activation(reference[name], x).mean(0)
            torch.testing.assert_close(samples.means(held_out)[name], mean)


@pytest.mark.slow
def test_the_grid_of_mean_squares_is_used_on_every_layer() -> None:
    snn, batch = spiking(n=1), images(16)
    found = calibrate(snn, batch, [MeanSquaredError(10)], time_steps=2, keep_better=False).snn
    window, reference = Window(EVERY_STEP, 2), dict(snn.neurons())
    for name, layer in found.neurons():
        x = inputs_of(snn, batch[:12])[name].flatten()
        target = activation(reference[name], x)
        thetas = torch.arange(1, 11) / 10 * target.max()
        losses = [
            float((target - window.response(window.with_theta(layer, theta), x)).square().mean())
            for theta in thetas
        ]
        best = thetas[losses.index(min(losses))]
        assert float(window.theta(layer)) == pytest.approx(float(best), rel=1e-5)
