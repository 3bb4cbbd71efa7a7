"""Training through time: it starts from exactly the converted network, and gradients are exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import NETWORKS, images, quantized, shape_of
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.errors import SpecError
from mt_convert.neurons.dynamics import initial_state, mt_step
from mt_convert.neurons.ladder import Binary, Learned, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import LIF, NeuronSpec
from mt_convert.neurons.surrogate import (
    ATan,
    Linear,
    Rectangular,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Triangular,
)
from mt_convert.neurons.totals import totals_step
from mt_convert.spiking.presentation import Encoder, Presentation
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike
from mt_convert.training.algorithm import Backpropagation, Derivative, Lesson
from mt_convert.training.finetune.finetune import FinetuneSpec
from mt_convert.training.finetune.learner import TrainableSpikingModel
from mt_convert.training.finetune.neuron import State, TrainableParts, TrainedNeuron
from mt_convert.training.gradients import BPTT, DSR, OTTT
from mt_convert.training.surrogate_step import fire

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 1),
    "signed": ({"ladder": Uniform(3), "signed": True}, 3),
    "cascade": ({"ladder": Binary(2), "signed": True}, 3),
    "power_of_two": ({"ladder": PowerOfTwo(3)}, 2),
    "one_threshold": ({"ladder": Uniform(1), "presentation": "every_step"}, 4),
    "every_step": ({"ladder": Uniform(3), "signed": True, "presentation": "every_step"}, 3),
}
ALL = TrainableParts(potentials=True, leaks=True)
SURROGATES = [Rectangular(2.0), ATan(), Sigmoid(), Triangular(2.0), Linear(), StraightThrough()]


def _moved_(module: nn.Module, seed: int = 1) -> None:
    """Everything that learns, some way from its start."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                away = torch.randn(parameter.shape, generator=random)
                parameter += 0.1 * away * (parameter.abs().mean() + 0.2)


def _lesson(
    learner: TrainableSpikingModel, batch: Tensor, updates: list[int] | None = None
) -> Lesson:
    """A lesson whose loss is the mean square of the logits, shifted."""
    return Lesson(
        network=learner,
        images=batch,
        loss=lambda logits: (logits - 0.3).square().mean(),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        update=lambda: updates.append(1) if updates is not None else None,
        time_steps=learner.time_steps,
    )


def _gradients(learner: TrainableSpikingModel, algorithm: Any, batch: Tensor) -> dict[str, Tensor]:
    learner.zero_grad()
    algorithm.learn(_lesson(learner, batch))
    return {
        name: parameter.grad.clone()
        for name, parameter in learner.named_parameters()
        if parameter.grad is not None
    }


def test_learning_the_steps_of_a_calibration_warns_of_nothing() -> None:
    snn = mt.convert(quantized("residual"))
    snn.report = replace(snn.report, calibrated_T=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainableSpikingModel(snn, 2)(images(2))


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_learning_starts_from_exactly_the_converted_network(way: str, name: str) -> None:
    options, steps = WAYS[way]
    snn = mt.convert(quantized(name), **options)
    batch = 2 * images(3, shape_of(name), seed=21)
    learner = TrainableSpikingModel(snn, steps, learns=ALL)
    wanted = simulate(snn, batch, time_steps=steps)
    read_outs, states = learner(batch, range(steps))
    assert torch.equal(read_outs, wanted.logits)
    for layer, total in wanted.totals.items():
        assert torch.equal(states[layer].total, total), layer
    back = simulate(learner.snapshot(), batch, time_steps=steps)
    assert torch.equal(back.logits, wanted.logits)


@pytest.mark.sampled
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leaks", [False, True])
def test_what_was_learned_is_what_simulate_runs_and_spikes_show(way: str, leaks: bool) -> None:
    options, steps = WAYS[way]
    snn = mt.convert(quantized("residual"), **options)
    learner = TrainableSpikingModel(snn, steps, learns=TrainableParts(potentials=True, leaks=leaks))
    _moved_(learner)
    batch = images(5, seed=22)
    read_outs, _ = learner(batch, range(steps))
    found = learner.snapshot()
    run = simulate(found, batch, time_steps=steps)
    assert torch.equal(run.logits, read_outs)
    assert not torch.equal(run.logits, simulate(snn, batch, time_steps=steps).logits)
    leaky = [isinstance(neuron.spec.charge, LIF) for _, neuron in found.neurons()]
    assert any(leaky) == leaks
    spikes = spike_by_spike(found, batch, time_steps=steps)
    assert torch.allclose(spikes.logits, run.logits, atol=1e-4)
    apart = [(spikes.totals[name] != total).float().mean() for name, total in run.totals.items()]
    assert max(apart) < 0.01


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
@pytest.mark.parametrize("ladder", [Uniform(3), Binary(2), PowerOfTwo(3)], ids=repr)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("detached", [True, False])
def test_gradients_through_time_are_those_of_the_membrane_potential(
    detached: bool, signed: bool, ladder: Any, surrogate: Any
) -> None:
    """Three steps of one layer, with `mt_step` on potentials and `fire` on totals."""
    how: dict[str, Any] = {"surrogate": surrogate, "detach_reset": detached}
    spec = NeuronSpec(ladder, signed=signed, bounds=(0, 12), **how)
    random = torch.Generator().manual_seed(3)
    start = torch.randn(3, 200, generator=random, dtype=torch.float64) * 3 + 1
    weights = torch.randn(3, 200, generator=random, dtype=torch.float64)
    found = []
    for totals in (False, True):
        current = start.clone().requires_grad_()
        if totals:
            total, emitted = torch.zeros_like(start[0]), []
            for t in range(3):
                after = fire(current[: t + 1].sum(0), total, spec)
                emitted.append(after - total)
                total = after
        else:
            state, emitted = initial_state(current[0], spec, 1.0), []
            for t in range(3):
                spikes, state = mt_step(state, current[t], spec, 1.0)
                emitted.append(spikes)
        spikes = torch.stack(emitted)
        (spikes * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert current.grad is not None
        found.append((spikes.detach(), current.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert float(found[0][1].abs().sum()) > 0
    assert torch.allclose(found[0][1], found[1][1], atol=1e-10)


def test_stdb_passes_what_the_time_since_the_last_spike_leaves() -> None:
    surrogate = SpikeTime(0.3, 0.5)
    spec = NeuronSpec(Uniform(2), bounds=(0, 9))
    layer = TrainedNeuron(MTNeuron(spec, 1.0), surrogate, TrainableParts(), (4,))
    scripted = torch.tensor([[0.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 4.0]])
    since = torch.tensor([[torch.inf, 0, torch.inf, 0], [0, 1, torch.inf, 1], [1, 2, torch.inf, 0]])
    state: State | None = None
    for t in range(3):
        x = scripted[t].clone().requires_grad_()
        value, state = layer(x, Presentation.ONCE, t, None if state is None else state.detach())
        value.sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, 0.3 * torch.exp(-0.5 * since[t]))


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 3])
def test_dsr_is_the_gradient_of_the_clipped_mean_current(n: int, T: int) -> None:
    spec = NeuronSpec(Uniform(n), bounds=(0, n), surrogate=None)
    layer = TrainedNeuron(
        MTNeuron(spec, torch.tensor(0.7)), StraightThrough(), TrainableParts(), (300,)
    )
    mean = (torch.randn(2, 300) * n).requires_grad_()
    state = None
    for t in range(T):
        last = t == T - 1
        with torch.set_grad_enabled(last):
            derivative = Derivative.CLIP if last else Derivative.SPIKES
            value, state = layer(mean, Presentation.EVERY_STEP, t, state, derivative)
    weights = torch.randn(2, 300)
    (value * weights).sum().backward()
    theirs = mean.detach().clone().requires_grad_()
    step = torch.tensor(0.7, requires_grad=True)
    (theirs.clamp(min=0).minimum(n * step) * weights).sum().backward()
    assert mean.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(mean.grad, theirs.grad, atol=1e-6)
    full = mean.detach() > n * 0.7
    counted = n * (weights * full).sum()  # of the step: each saturated unit counts n times
    assert step.grad is not None
    assert torch.allclose(step.grad, counted, rtol=1e-4)
    assert layer.factor.grad is not None
    assert torch.allclose(layer.factor.grad, 0.7 * counted, rtol=1e-4)
    bound = 0.5 * 0.7 / T + 1e-5
    assert float((value - mean.clamp(0, n * 0.7)).detach().abs().max()) <= bound


def _chain(detach_reset: bool = True) -> tuple[TrainableSpikingModel, Tensor]:
    """Three layers of neurons, signed, T = 4, in float64."""
    torch.manual_seed(5)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()),
        *(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)),
    ).eval()
    batch = torch.randn(6, 1, 4, 4)
    qann = mt.quantize(net, mt.QuantSpec(), calibration=batch)
    snn = mt.convert(qann, ladder=Uniform(2), signed=True).double()
    learner = TrainableSpikingModel(snn, 4, surrogate=Sigmoid(2.0), detach_reset=detach_reset)
    return learner, batch.double()


LINEARS = ("1", "3", "5", "7")


def _spike_by_spike(learner: TrainableSpikingModel, batch: Tensor, cut: int) -> dict[str, Tensor]:
    """BPTT on potentials and single spikes, written out; what layers from ``cut`` on carry from one
    step to the next is taken as given. The loss is of what each step adds to the read-out."""
    layers = learner.snn.layers
    encoder = next(item for item in layers.modules() if isinstance(item, Encoder))
    held: dict[tuple[str, str], Tensor] = {}
    for name in LINEARS:
        held[name, "weight"] = learner.grids[name].weight().detach().requires_grad_()
        held[name, "bias"] = layers.get_submodule(name).get_parameter("bias").detach().clone()
        held[name, "bias"].requires_grad_()
    neurons = [neuron for _, neuron in learner.snn.neurons()]
    states: list[Any] = [None] * len(neurons)
    loss = torch.zeros(())
    for t in range(learner.time_steps):
        spikes = encoder(batch).flatten(1) * (t == 0)
        for index, name in enumerate(LINEARS):
            current = spikes @ held[name, "weight"].T + held[name, "bias"] * (t == 0)
            if index == len(neurons):
                loss = loss + (current - 0.3).square().mean()
                break
            detached = learner.learner("2").detach_reset
            spec = replace(neurons[index].spec, surrogate=Sigmoid(2.0), detach_reset=detached)
            state = states[index] or initial_state(current, spec, neurons[index].delta)
            if index >= cut:
                state = state._replace(v=state.v.detach())
            spikes, states[index] = mt_step(state, current, spec, neurons[index].delta)
    loss.backward()  # type: ignore[no-untyped-call]
    return {f"{name}.{part}": value.grad for (name, part), value in held.items()}  # type: ignore[misc]


@pytest.mark.slow
def test_ottt_is_bptt_with_the_carry_of_the_layers_above_cut() -> None:
    """METHODS 3 (i), (ii) and the biases of (iv), in float64."""
    learner, batch = _chain()
    states: dict[str, State] = {}
    before: Any = torch.zeros(())
    for t in range(4):
        read_outs, after = learner(batch, (t,), states)
        (read_outs[0] - before - 0.3).square().mean().backward()
        before = read_outs[0].detach()
        states = {name: state.detach() for name, state in after.items()}
    full = _spike_by_spike(learner, batch, cut=9)
    for index, name in enumerate(LINEARS[:-1]):
        cut = _spike_by_spike(learner, batch, cut=index + 1)
        for part in ("weight", "bias"):
            online = learner.snn.layers.get_submodule(name).get_parameter(part).grad
            assert online is not None
            wanted = cut[f"{name}.{part}"]
            assert float(wanted.abs().max()) > 1e-6
            assert torch.allclose(online, wanted, rtol=0, atol=1e-10), (name, part)
            same = torch.allclose(online, full[f"{name}.{part}"], rtol=0, atol=1e-10)
            assert same == (name == LINEARS[-2])  # the last spiking layer alone


@pytest.mark.slow
@pytest.mark.parametrize("detached", [True, False])
def test_bptt_on_totals_is_bptt_on_potentials(detached: bool) -> None:
    learner, batch = _chain(detached)
    read_outs, _ = learner(batch, range(4))
    added = read_outs.diff(dim=0, prepend=torch.zeros_like(read_outs[:1]))
    (added - 0.3).square().mean((1, 2)).sum().backward()
    for name, wanted in _spike_by_spike(learner, batch, cut=9).items():
        layer, part = name.split(".")
        found = learner.snn.layers.get_submodule(layer).get_parameter(part).grad
        assert found is not None
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10), name


@pytest.mark.slow
def test_at_one_step_ottt_is_bptt_and_at_full_reach_dsr_is_the_quantized_network() -> None:
    snn = mt.convert(quantized("residual"))
    learner, batch = TrainableSpikingModel(snn, 1), images(4, seed=23)
    through = _gradients(learner, BPTT(), batch)
    for other in (OTTT(), OTTT(online=True), BPTT(every_step=1.0), Backpropagation()):
        found = _gradients(learner, other, batch)
        assert through.keys() == found.keys()
        assert all(torch.allclose(found[name], through[name], atol=1e-7) for name in through)
    clipped = _gradients(learner, DSR(), batch)
    weights = [name for name in through if name.endswith("weight")]
    assert weights
    for name in weights:  # straight-through passes half a level more at either end
        cosine = torch.cosine_similarity(clipped[name].flatten(), through[name].flatten(), 0)
        assert float(cosine) > 0.9


def _saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that graphs hold for the backward pass, each storage once."""
    held: dict[int, Any] = {}  # the storages themselves: an address could be used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.sampled
@pytest.mark.parametrize(("algorithm", "flat"), [(BPTT(), False), (OTTT(), True), (DSR(), True)])
def test_memory_is_flat_in_t_where_it_is_said_to_be(algorithm: Any, flat: bool) -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(2), signed=True)
    batch = images(8, seed=24)
    held = []
    for steps in (2, 16):
        learner = TrainableSpikingModel(snn, steps)
        most = 0

        def network(*args: Any, learner: TrainableSpikingModel = learner) -> Any:
            nonlocal most
            found: list[Any] = []
            most = max(most, _saved_bytes(lambda: found.append(learner(*args))))
            return found[0]

        lesson = _lesson(learner, batch)
        algorithm.learn(Lesson(**{**lesson.__dict__, "network": network}))
        held.append(most)
    assert held[0] > 0
    assert (held[1] < 1.01 * held[0]) == flat
    if not flat:
        assert held[1] > 4 * held[0]


def test_variant_o_updates_between_steps_and_a_does_not() -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(1), signed=True)
    batch = images(3, seed=25)
    for online, wanted in ((False, 0), (True, 3)):
        updates: list[int] = []
        OTTT(online).learn(_lesson(TrainableSpikingModel(snn, 4), batch, updates))
        assert len(updates) == wanted


@pytest.mark.slow
def test_what_cannot_learn_so_is_refused() -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(1), signed=True)
    leaky = TrainableSpikingModel(snn, 2, learns=TrainableParts(leaks=True))
    for algorithm in (OTTT(), DSR()):
        with pytest.raises(SpecError, match="leaks=False, or by BPTT"):
            algorithm.learn(_lesson(leaky, images(2)))
    BPTT().learn(_lesson(leaky, images(2)))
    with pytest.raises(SpecError, match="whole_window=False"):
        TrainableSpikingModel(mt.convert(quantized("residual"), whole_window=True), 2)
    with pytest.raises(SpecError, match="whole numbers from 1"):
        TrainableSpikingModel(snn, 0)
    with pytest.raises(SpecError, match="nothing learns"):
        TrainableParts(False, False, False, False)
    with pytest.raises(SpecError, match="every_step=2"):
        BPTT(2)
    with pytest.raises(SpecError, match="true, or train by BPTT"):
        FinetuneSpec(2, OTTT(), detach_reset=False)


@pytest.mark.slow
def test_only_what_is_chosen_learns() -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(2), signed=True)
    endings = {
        "weights": ("weight", "bias"),
        "thresholds": ("factor",),
        "potentials": ("offset",),
        "leaks": ("leak",),
    }
    for chosen, ends in endings.items():
        learns = TrainableParts(**{name: name == chosen for name in endings})
        learner = TrainableSpikingModel(snn, 3, learns=learns, surrogate=Sigmoid())
        found = _gradients(learner, BPTT(), images(4, seed=26))
        assert found
        assert all(name.endswith(ends) for name in found), chosen
        assert all(bool(gradient.isfinite().all()) for gradient in found.values())
        assert any(float(gradient.abs().max()) > 0 for gradient in found.values())


@pytest.mark.slow
def test_learned_gaps_stay_sorted_and_are_what_simulate_runs() -> None:
    qann = mt.quantize(
        _small(), mt.QuantSpec(act_bits=2, spacing="learned"), calibration=images(16, (1, 4, 4))
    )
    snn = mt.convert(qann)
    learner = TrainableSpikingModel(snn, 1)
    batch = images(6, (1, 4, 4), seed=27)
    found = _gradients(learner, BPTT(), batch)
    gaps = [name for name in found if name.endswith("gaps")]
    assert gaps
    assert any(float(found[name].abs().max()) > 0 for name in gaps)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name.endswith("gaps"):
                parameter += 3 * torch.randn(parameter.shape)
    for layer in learner.neurons.values():
        assert isinstance(layer, TrainedNeuron)
        assert bool((layer.thresholds().diff() > 0).all())
        assert float(layer.thresholds().detach()[0]) > 0
    run = simulate(learner.snapshot(), batch, time_steps=1)
    assert torch.equal(run.logits[0], learner(batch))
    with pytest.raises(SpecError, match="pass nothing to learned gaps"):
        DSR().learn(_lesson(learner, batch))
    with pytest.raises(SpecError, match="one gradient for all thresholds"):
        TrainableSpikingModel(snn, 1, surrogate=SpikeTime())


def test_a_learned_ladder_s_total_answers_to_its_last_input_alone() -> None:
    ladder = Learned((0.5, 1.0, 0.75))
    for learns, signed in ((TrainableParts(), True), (TrainableParts(thresholds=False), False)):
        spec = NeuronSpec(ladder, initial=0.0, signed=signed, bounds=(0, 3))
        layer = TrainedNeuron(MTNeuron(spec, 1.0), Rectangular(2.0), learns, (40,))
        x = torch.randn(2, 40).mul(2).abs().requires_grad_()
        state = None
        for t in range(2):
            value, state = layer(x[: t + 1].sum(0), Presentation.ONCE, t, state)
        value.sum().backward()
        y = x.detach().sum(0)
        wanted = sum(Rectangular(2.0).derivative(y - threshold) for threshold in ladder.thresholds)
        assert x.grad is not None
        assert torch.allclose(x.grad, torch.stack([wanted, wanted]))  # type: ignore[list-item]


def _small() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def test_weights_stay_on_the_grid_of_their_quantizer() -> None:
    snn = mt.convert(quantized("residual"))
    learner = TrainableSpikingModel(snn, 1)
    _moved_(learner)
    before = dict(snn.layers.named_modules())
    for name, layer in learner.snapshot().layers.named_modules():
        scale = getattr(layer, "weight_scale", None)
        if scale is None:
            continue
        levels = layer.get_parameter("weight") / scale
        assert torch.allclose(levels, levels.round(), atol=1e-4), name
        old = before[name].get_parameter("weight") / before[name].weight_scale
        assert levels.round().abs().max() <= old.round().abs().max()
        assert not torch.equal(levels.round(), old.round())


def test_the_neuron_on_totals_without_a_leak_is_running_step() -> None:
    y = torch.randn(500) * 6
    total = torch.randint(0, 9, (500,)).float()
    spec = NeuronSpec(Uniform(3), signed=True, bounds=(0, 8))
    assert torch.equal(fire(y, total, spec), totals_step(y, total, spec))
