"""Networks trained from scratch: spikes step by step, gradients by BPTT and by traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, images, lived_in, network, shape_of
from torch import Tensor, nn

from mt_convert.data import DataSpec, open_data
from mt_convert.direct import BPTT, DSR, OTTT, SpikingNetwork, poisson, spiking
from mt_convert.errors import DataError, SpecError, UnsupportedLayerError
from mt_convert.ladder import Binary, Firing, Uniform
from mt_convert.neurons import IF, LIF, PLIF, NeuronSpec, Reset, initial_state, mt_step
from mt_convert.surrogate import ATan, Sigmoid, SpikeTime
from mt_convert.train import TrainSpec, fit
from mt_convert.train.algorithm import Lesson

PARALLEL = NeuronSpec(Uniform(4), charge=PLIF(), initial=0.0, surrogate=ATan())
KINDS = {
    "parallel_plif": PARALLEL,
    "cascade_lif": replace(PARALLEL, ladder=Binary(2), charge=LIF(2.0)),
    "hard_if": replace(PARALLEL, ladder=Uniform(1), charge=IF(), reset=Reset.HARD),
    "cascade_hard_plif": replace(
        PARALLEL, ladder=Uniform(3), firing=Firing.CASCADE, reset=Reset.HARD
    ),
}


def _spiking(name: str, spec: NeuronSpec, time_steps: int) -> SpikingNetwork:
    return spiking(
        network(name), spec, example=images(2, shape_of(name)), time_steps=time_steps
    ).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_rules_table_can_be_trained(name: str) -> None:
    found = _spiking(name, PARALLEL, 2).train()
    logits = found(3 * images(4, shape_of(name)))
    logits.square().sum().backward()
    gradients = [item.grad for item in found.parameters() if item.grad is not None]
    assert gradients
    assert all(bool(item.isfinite().all()) for item in gradients)
    assert any(float(item.abs().max()) > 0 for item in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_one_by_one_are_all_steps_at_once(kind: str) -> None:
    found = _spiking("residual", KINDS[kind], 4)
    batch = 3 * images(5, seed=31)
    with torch.no_grad():
        together, last = found(batch, range(4))
        states: dict[str, Any] = {}
        each = []
        for t in range(4):
            one, states = found(batch, (t,), states)
            each.append(one[0])
    mean = torch.stack(each).cumsum(0) / torch.arange(1, 5).reshape(-1, 1, 1)
    assert torch.allclose(mean, together, atol=1e-5)
    assert torch.equal(found(batch), together[-1])
    assert float(together.std()) > 0
    for name, state in last.items():
        assert torch.allclose(state.neuron.v, states[name].neuron.v, atol=1e-4), name


def test_frames_are_one_image_for_each_step() -> None:
    found = _spiking("residual", PARALLEL, 3)
    batch = 3 * images(4, seed=32)
    still = batch[:, None].expand(-1, 3, -1, -1, -1)
    assert torch.equal(found(still), found(batch))
    moving = still * torch.tensor([1.0, 0.0, 2.0]).reshape(1, 3, 1, 1, 1)
    assert not torch.allclose(found(moving), found(batch), atol=1e-3)
    both, _ = found(moving, range(3))
    states: dict[str, Any] = {}
    for t in range(3):
        with torch.no_grad():
            one, states = found(moving, (t,), states)
        assert torch.allclose(both[t] * (t + 1) - (both[t - 1] * t if t else 0), one[0], atol=1e-4)
    for wrong in (batch[:, :, :4], still[:, :2], batch[0]):
        with pytest.raises(DataError, match=r"or frames \[batch, 3, 2, 8, 8\]"):
            found(wrong)


def test_batch_norm_folds_into_one_layer_for_all_steps() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )
    found = spiking(lived_in(net), PARALLEL, example=images(2), time_steps=3).eval()
    folded = found.folded().double()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    batch = 2 * images(6, seed=33).double()
    assert torch.allclose(found.double()(batch), folded(batch), atol=1e-6)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in found.modules())


def _chain(charge: Any) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(7)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()),
        *(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)),
    )
    spec = NeuronSpec(Uniform(3), charge=charge, initial=0.0, surrogate=Sigmoid(2.0))
    found = spiking(net, spec, example=torch.zeros(2, 1, 4, 4), time_steps=5)
    return found.double(), 6 * torch.randn(6, 1, 4, 4).double()


LINEARS = ("1", "3", "5", "7")


def _written_out(found: SpikingNetwork, batch: Tensor, cut: int) -> dict[str, Tensor]:
    """BPTT spike by spike; what layers from ``cut`` on carry to the next step is taken as given."""
    held = {
        name: value.detach().clone().requires_grad_() for name, value in found.named_parameters()
    }
    neurons = [layer for layer in found.layers.modules() if hasattr(layer, "spec")]
    states: list[Any] = [None] * len(neurons)
    loss = torch.zeros(())
    for _ in range(found.time_steps):
        spikes = batch.flatten(1)
        for index, name in enumerate(LINEARS):
            current = spikes @ held[f"layers.{name}.weight"].T + held[f"layers.{name}.bias"]
            if index == len(neurons):
                loss = loss + (current - 0.3).square().mean() / found.time_steps
                break
            spec: Any = neurons[index].spec
            delta = torch.tensor(1 / 3)
            state = states[index] or initial_state(current, spec, delta)
            if index >= cut:
                state = state._replace(v=state.v.detach())
            spikes, states[index] = mt_step(state, current, spec, delta.double())
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: value.grad for name, value in held.items() if value.grad is not None}


def _lesson(found: SpikingNetwork, batch: Tensor) -> Lesson:
    return Lesson(
        network=found,
        images=batch,
        loss=lambda logits: (logits - 0.3).square().mean(),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        update=lambda: None,
        time_steps=found.time_steps,
    )


@pytest.mark.parametrize("charge", [IF(), LIF(2.0, decay_input=False), LIF(1.25)], ids=repr)
def test_traces_give_bptt_with_the_carry_of_the_layers_above_cut(charge: Any) -> None:
    """METHODS 3 (i), (ii), (iv), float64: weights and biases, first layer included."""
    found, batch = _chain(charge)
    OTTT().learn(_lesson(found, batch))
    full = _written_out(found, batch, cut=9)
    for index, name in enumerate(LINEARS):
        cut = _written_out(found, batch, cut=index + 1)
        for part in (f"layers.{name}.weight", f"layers.{name}.bias"):
            online = found.get_parameter(part).grad
            assert online is not None
            assert float(online.abs().max()) > 1e-5
            assert torch.allclose(online, cut[part], rtol=0, atol=1e-10), part
            same = torch.allclose(online, full[part], rtol=0, atol=1e-10)
            assert same == (name in LINEARS[2:]), part


def test_at_one_step_ottt_is_bptt() -> None:
    found = _spiking("residual", replace(PARALLEL, charge=LIF(2.0)), 1)
    gradients = []
    for algorithm in (BPTT(), OTTT()):
        found.zero_grad()
        algorithm.learn(_lesson(found, 3 * images(4, seed=34)))
        gradients.append([item.grad for item in found.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", [BPTT(), OTTT(), OTTT(online=True)], ids=repr)
def test_it_learns_the_digits(algorithm: Any, tmp_path: Path) -> None:
    data = DataSpec("digits", image_size=8, channels=1, classes=10, validation_share=0.2)
    splits = open_data(replace(data, limit=700, test_images=200))
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    spec = replace(PARALLEL, charge=LIF(2.0))
    found = spiking(net, spec, example=torch.zeros(2, 1, 8, 8), time_steps=2)
    how = TrainSpec(epochs=3, batch_size=32, lr=0.1)
    history = fit(found, splits, how, tmp_path, classes=10, algorithm=algorithm)
    assert history.best_accuracy is not None
    assert history.best_accuracy > 85
    assert history.rows[-1].train_loss < history.rows[0].train_loss


def test_delayed_a_layer_cannot_spike_before_its_step() -> None:
    torch.manual_seed(8)
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16), nn.ReLU()) * 4, nn.Linear(16, 3))
    spec = replace(PARALLEL, charge=IF(), ladder=Uniform(1))
    batch = 9 * torch.randn(20, 1, 4, 4)
    for delayed in (False, True):
        found = spiking(net, spec, example=batch[:2], time_steps=8, delayed=delayed)
        first: dict[str, int] = {}
        states: dict[str, Any] | None = None
        with torch.no_grad():
            for t in range(8):
                _, states = found(batch, (t,), states or {})
                for name, state in states.items():
                    if float(state.neuron.total.abs().sum()) > 0:
                        first.setdefault(name, t)
            together, _ = found(batch, range(8))
        spiked = list(first.values())
        assert len(spiked) == 4
        if delayed:
            assert all(t >= depth for depth, t in enumerate(spiked, 1))
        else:
            assert spiked[0] == 0
        assert torch.isfinite(together).all()


def test_poisson_spikes_are_signed_and_have_the_image_for_their_mean() -> None:
    shown = torch.linspace(-1.5, 1.5, 31)[None]
    steps = 4000
    frames = poisson(shown, steps, torch.Generator().manual_seed(1))
    assert frames.shape == (1, steps, 31)
    assert set(frames.unique().tolist()) == {-1.0, 0.0, 1.0}
    wanted = shown.clamp(-1, 1)
    sigma = (wanted.abs() * (1 - wanted.abs()) / steps).sqrt()
    assert bool(((frames.mean(1) - wanted).abs() <= 4 * sigma + 1e-6).all())
    again = poisson(shown, steps, torch.Generator().manual_seed(1))
    assert torch.equal(again, frames)


def test_what_cannot_be_trained_so_is_refused() -> None:
    example, net = images(2), network("residual")
    with pytest.raises(SpecError, match="give it a surrogate"):
        spiking(net, NeuronSpec(Uniform(1)), example=example, time_steps=2)
    timed = replace(PARALLEL, surrogate=SpikeTime())
    with pytest.raises(SpecError, match="keep no spike times"):
        spiking(net, timed, example=example, time_steps=2)
    with pytest.raises(SpecError, match="whole numbers from 1"):
        spiking(net, PARALLEL, example=example, time_steps=0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(SpecError, match="nothing becomes a layer of neurons"):
        spiking(plain, PARALLEL, example=example, time_steps=1)
    for spec in (PARALLEL, KINDS["hard_if"]):
        with pytest.raises(SpecError, match="train by BPTT"):
            OTTT().learn(_lesson(spiking(net, spec, example=example, time_steps=2), example))
    with pytest.raises(SpecError, match="train this one by BPTT or OTTT"):
        DSR().learn(_lesson(spiking(net, PARALLEL, example=example, time_steps=2), example))
    with pytest.raises(UnsupportedLayerError, match="have no rule"):
        spiking(_Sorted(), PARALLEL, example=example, time_steps=1)


class _Sorted(nn.Module):
    """An operator that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).flatten(1).sort(1).values
