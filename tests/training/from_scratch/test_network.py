"""Networks trained from scratch: spikes step by step, gradients by BPTT and by traces."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, images, lived_in, network, shape_of
from torch import Tensor, nn

from mt_convert.data import DataSpec, open_data
from mt_convert.errors import DataError, SpecError, UnsupportedLayerError
from mt_convert.neurons.dynamics import initial_state, mt_step
from mt_convert.neurons.ladder import Binary, Firing, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.linear_recurrence import leaky_mean
from mt_convert.neurons.spec import IF, LIF, PLIF, NeuronSpec, Reset
from mt_convert.neurons.surrogate import ATan, Sigmoid, SpikeTime
from mt_convert.training.algorithm import Lesson
from mt_convert.training.from_scratch import neuron_steps
from mt_convert.training.from_scratch.archive import load, save
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.poisson import poisson
from mt_convert.training.from_scratch.tensor_trains.tensor_train import (
    ConvByStep,
    Form,
    TensorTrain,
    TTConv2d,
    decompose,
)
from mt_convert.training.gradients import BPTT, OTTT, Tandem
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

PARALLEL = NeuronSpec(Uniform(4), charge=PLIF(), initial=0.0, surrogate=ATan())
KINDS = {
    "parallel_plif": PARALLEL,
    "cascade_lif": replace(PARALLEL, ladder=Binary(2), charge=LIF(2.0)),
    "hard_if": replace(PARALLEL, ladder=Uniform(1), charge=IF(), reset=Reset.HARD),
    "cascade_hard_plif": replace(
        PARALLEL, ladder=Uniform(3), firing=Firing.CASCADE, reset=Reset.HARD
    ),
}


def _spiking(name: str, spec: NeuronSpec, time_steps: int) -> ScratchNetwork:
    return build_from_scratch(
        network(name), spec, example=images(2, shape_of(name)), time_steps=time_steps
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_rules_table_can_be_trained(name: str) -> None:
    found = _spiking(name, PARALLEL, 2).train()
    logits = found(3 * images(4, shape_of(name)))
    logits.square().sum().backward()
    gradients = [item.grad for item in found.parameters() if item.grad is not None]
    assert gradients
    assert all(bool(item.isfinite().all()) for item in gradients)
    assert any(float(item.abs().max()) > 0 for item in gradients)


@pytest.mark.slow
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


COMPILED = {
    "parallel_plif": PARALLEL,
    "cascade_hard_plif": KINDS["cascade_hard_plif"],
    "signed_through_resets": replace(
        KINDS["cascade_lif"], ladder=Uniform(2), signed=True, detach_reset=False
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.long if number else pytest.mark.slow)
        for number, kind in enumerate(COMPILED)
    ],
)
def test_one_kernel_for_all_steps_gives_the_same_spikes_and_gradients(kind: str) -> None:
    found = _spiking("residual", COMPILED[kind], 2).double().train()
    fused = deepcopy(found)
    fused.compiled = True
    for count in (5, 3):  # one kernel for every number of images
        batch = 4 * images(count, seed=47).double()
        seen = []
        for each in (found, fused):
            each.zero_grad()
            read_outs, states = each(batch, range(2))
            read_outs[-1].square().sum().backward()
            seen.append((read_outs, states, {k: p.grad for k, p in each.named_parameters()}))
        (one, states, grads), (other, others, fused_grads) = seen
        assert torch.equal(one, other)
        assert all(
            torch.equal(a, b)
            for name in states
            for a, b in zip(states[name].neuron, others[name].neuron, strict=True)
        )
        assert any(float(state.neuron.total.max()) > 1 for state in states.values())
        for name, grad in grads.items():
            assert torch.allclose(grad, fused_grads[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.slow
def test_traces_run_on_compiled_neurons_too() -> None:
    found = _spiking("residual", replace(PARALLEL, charge=LIF(2.0)), 2).double()
    fused = deepcopy(found)
    fused.compiled = True
    for each in (found, fused):
        OTTT().learn(_lesson(each, 4 * images(5, seed=53).double()))
    for (name, one), other in zip(found.named_parameters(), fused.parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.slow
def test_a_process_may_have_more_neurons_than_torch_compiles_forms_of_a_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = torch.compile(neuron_steps._loop, backend="eager", fullgraph=True)
    monkeypatch.setattr(neuron_steps, "_kernel", lambda: kernel)
    currents = torch.randn(2, 6)
    for n in range(1, 12):
        neuron = MTNeuron(replace(PARALLEL, ladder=Uniform(n), charge=IF()), 1 / n)
        found, _ = neuron_steps.step_through_compiled(neuron, currents, None)
        assert torch.equal(found, neuron_steps.step_through(neuron, currents, None)[0])


@pytest.mark.slow
def test_without_a_compiler_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no working C++ compiler\nand more")

    monkeypatch.setattr(neuron_steps, "_kernel", lambda: fails)
    found = _spiking("residual", PARALLEL, 2)
    found.compiled = True
    with pytest.raises(SpecError, match=r"no working C\+\+ compiler.*train without compile"):
        found(images(2))


@pytest.mark.slow
def test_at_one_step_without_a_decayed_input_nothing_leaks() -> None:
    """LIF and PLIF are one network there: the studies train it once."""
    batch, seen = 4 * images(5, seed=59), []
    for charge in (LIF(2.0, decay_input=False), PLIF(2.0, decay_input=False), IF()):
        found = _spiking("residual", replace(PARALLEL, charge=charge), 1).train()
        logits = found(batch)
        logits.square().sum().backward()
        grads = {k: p.grad for k, p in found.named_parameters() if not k.endswith(".w")}
        seen.append((logits, grads))
        leaks = [p.grad for k, p in found.named_parameters() if k.endswith(".w")]
        assert all(grad is None or float(grad) == 0 for grad in leaks)
    (first, wanted), *others = seen
    for logits, grads in others:
        assert torch.equal(logits, first)
        assert grads.keys() == wanted.keys()
        assert all(torch.equal(grads[name], wanted[name]) for name in wanted)


@pytest.mark.slow
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


@pytest.mark.slow
def test_batch_norm_folds_into_one_layer_for_all_steps() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )
    found = build_from_scratch(lived_in(net), PARALLEL, example=images(2), time_steps=3).eval()
    folded = found.fold().double()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    batch = 2 * images(6, seed=33).double()
    assert torch.allclose(found.double()(batch), folded(batch), atol=1e-6)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in found.modules())


def _chain(charge: Any) -> tuple[ScratchNetwork, Tensor]:
    torch.manual_seed(7)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()),
        *(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)),
    )
    spec = NeuronSpec(Uniform(3), charge=charge, initial=0.0, surrogate=Sigmoid(2.0))
    found = build_from_scratch(net, spec, example=torch.zeros(2, 1, 4, 4), time_steps=5)
    return found.double(), 6 * torch.randn(6, 1, 4, 4).double()


LINEARS = ("1", "3", "5", "7")


def _written_out(found: ScratchNetwork, batch: Tensor, cut: int) -> dict[str, Tensor]:
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


def _lesson(found: ScratchNetwork, batch: Tensor) -> Lesson:
    return Lesson(
        network=found,
        images=batch,
        loss=lambda logits: (logits - 0.3).square().mean(),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        update=lambda: None,
        time_steps=found.time_steps,
    )


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("charge", [IF(), LIF(2.0), LIF(1.25)], ids=repr)
def test_several_steps_at_once_learn_what_they_learn_one_by_one(charge: Any) -> None:
    gradients = []
    found, batch = _chain(charge)
    for pieces in ([(0,), (1,), (2,), (3,), (4,)], [(0, 1), (2, 3, 4)], [range(5)]):
        copied = deepcopy(found)  # as an average of the weights over training is
        states: dict[str, Any] = {}
        for steps in pieces:
            each, after = copied(batch, steps, states)
            sum((one - 0.3).square().mean() / 5 for one in each).backward()  # type: ignore[union-attr]
            states = {name: state.detach() for name, state in after.items()}
        gradients.append([item.grad for item in copied.parameters()])
    OTTT().learn(_lesson(found, batch))
    for wanted, *others in zip([item.grad for item in found.parameters()], *gradients, strict=True):
        assert wanted is not None
        for other in others:
            assert torch.allclose(other, wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [None, 1.5, 4.0])
def test_a_read_out_weighs_the_steps_so_far(tau: float | None) -> None:
    plain, batch = _chain(IF())
    found = ScratchNetwork(plain.layers, 5, read_out_tau=tau)
    leak = 1.0 if tau is None else 1 - 1 / tau
    frames = 6 * torch.randn(6, 5, 1, 4, 4).double()
    for shown in (batch, frames):
        with torch.no_grad():
            so_far, _ = found(shown, range(5))
            each, _ = found(shown, range(5), {})
        for t in range(5):
            assert torch.allclose(so_far[t], leaky_mean(each[: t + 1], leak), rtol=0, atol=1e-12)
        assert torch.equal(found(shown), so_far[-1])
        assert torch.equal(so_far[0], each[0])
        assert float(each.std(0).mean()) > 1e-2
    if tau is None:
        assert torch.equal(found(batch), plain(batch))
    first = ScratchNetwork(plain.layers, 1, read_out_tau=tau)
    assert torch.equal(first(batch), ScratchNetwork(plain.layers, 1)(batch))


@pytest.mark.slow
@pytest.mark.parametrize("tau", [None, 3.0])
def test_a_read_out_goes_on_from_call_to_call(tau: float | None) -> None:
    plain, _ = _chain(LIF(1.25))
    found = ScratchNetwork(plain.layers, 5, read_out_tau=tau)
    frames = 6 * torch.randn(6, 5, 1, 4, 4).double()
    wanted, _ = found(frames, range(5))
    assert float(wanted[-1].detach().std(0).min()) > 0
    states: dict[str, Any] = {}
    held, parts = None, []
    with torch.no_grad():
        for steps in ((0, 1), (2,), (3, 4)):
            each, states = found(frames, steps, states)
            so_far, held = found.read_out(each, held)
            parts.append(so_far)
    assert torch.allclose(torch.cat(parts), wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_leaky_read_out_passes_each_step_its_weight() -> None:
    plain, _ = _chain(IF())
    found = ScratchNetwork(plain.layers, 5, read_out_tau=2.0)
    each = torch.randn(5, 2, 3).double().requires_grad_()
    found.read_out(each)[0][-1].sum().backward()
    assert each.grad is not None
    wanted = 0.5 ** torch.arange(4, -1, -1).double() / sum(0.5**k for k in range(5))
    assert torch.allclose(each.grad[:, 0, 0], wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_read_out_learns_its_leak(tmp_path: Path) -> None:
    plain, batch = _chain(LIF(2.0))
    found = ScratchNetwork(plain.layers, 5, read_out_tau=3.0, learn_read_out=True).double()
    fixed = ScratchNetwork(plain.layers, 5, read_out_tau=3.0).double()
    assert found.read_out_tau == pytest.approx(3.0, rel=1e-6)
    assert torch.allclose(found(batch), fixed(batch), rtol=0, atol=1e-6)

    each = torch.randn(5, 2, 3).double()
    found.read_out(each)[0][-1].square().sum().backward()
    w = found.read_out.w.detach().clone().requires_grad_()
    kept = 1 - w.sigmoid()
    shares = kept ** torch.arange(4, -1, -1)
    mean = (shares[:, None, None] * each).sum(0) / shares.sum()
    (wanted,) = torch.autograd.grad(mean.square().sum(), w)
    assert found.read_out.w.grad is not None
    assert abs(float(wanted)) > 1e-3
    assert torch.allclose(found.read_out.w.grad, wanted, rtol=0, atol=1e-12)

    with torch.no_grad():
        found.read_out.w.add_(0.7)
    assert "read_out.w" in found.no_weight_decay()
    learned = found.float().eval()
    save(learned.fold(), tmp_path / "network")
    assert torch.equal(load(tmp_path / "network")(batch.float()), learned.fold()(batch.float()))
    with pytest.raises(SpecError, match="learn_read_out=False"):
        found.kept_share()
    with pytest.raises(SpecError, match="needs a read_out_tau"):
        ScratchNetwork(plain.layers, 5, learn_read_out=True)


class Blocks(nn.Module):
    """Convolutions that become trains: with a batch norm, a stride, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.norm, self.norms = nn.BatchNorm2d(6), nn.ModuleList(nn.BatchNorm2d(6) for _ in "ab")
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.shared
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.down(x)))
        x = torch.relu(self.norms[0](self.shared(x)))
        x = torch.relu(x + self.norms[1](self.again(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


TRACED = replace(PARALLEL, charge=LIF(2.0, decay_input=False), initial=0.5)


@cache
def _trained_trains(form: Form) -> ScratchNetwork:
    """A network whose trains have moved away from the convolutions that they come from."""
    options = {"example": images(2), "time_steps": 4, "tensor_train": TensorTrain(form, 3)}
    found = build_from_scratch(lived_in(Blocks()), TRACED, **options).double()  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(41)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
        for layer in found.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum, layer.bias.data = 1.0, torch.full_like(layer.bias, 0.5)
        found.train()(3 * images(20, seed=44).double())  # what is read is neither far nor all below
    return found.eval()


def _trains(form: Form) -> tuple[ScratchNetwork, Tensor]:
    random = torch.Generator().manual_seed(42)
    frames = 3 * torch.randn(5, 4, 2, 8, 8, generator=random, dtype=torch.float64)
    return deepcopy(_trained_trains(form)), frames


@pytest.mark.slow
@pytest.mark.parametrize("form", list(Form))
def test_trains_in_the_time_loop_are_the_convolutions_they_are_merged_into(form: Form) -> None:
    found, frames = _trains(form)
    kinds = [type(layer) for layer in found.layers.modules() if isinstance(layer, TTConv2d)]
    assert len(kinds) == 2
    merged, folded = found.merge_tensor_trains(), found.fold()
    for other in (merged, folded):
        assert not any(isinstance(layer, TTConv2d) for layer in other.modules())
        by_step = sum(isinstance(layer, ConvByStep) for layer in other.modules())
        assert (by_step > 0) == (form is Form.HTT)
    norms = [
        sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
        for net in (merged, folded)
    ]
    assert norms == [3, 0]
    wanted, _ = found(frames, range(4))
    for other, off in ((merged, 1e-12), (folded, 1e-10)):
        assert (other(frames, range(4))[0] - wanted).abs().max() <= off
    assert float(wanted.detach().std(1).min()) > 1e-3
    single = found.float()(frames.float(), range(4))[0]
    assert torch.allclose(
        found.merge_tensor_trains()(frames.float(), range(4))[0], single, atol=1e-5
    )


@pytest.mark.slow
def test_each_step_of_htt_has_the_weights_of_its_half() -> None:
    found, frames = _trains(Form.HTT)
    seen: list[tuple[str, int]] = []
    for name, layer in found.layers.named_modules():
        if isinstance(layer, TTConv2d):
            for arm in ("vertical", "expand"):
                hook = lambda _, given, key=f"{name}.{arm}": seen.append((key, len(given[0])))  # noqa: E731
                layer.get_submodule(arm).register_forward_pre_hook(hook)
    with torch.no_grad():
        together, _ = found(frames, range(4))
        at_once = dict(seen)
        states: dict[str, Any] = {}
        held, parts = None, []
        for t in range(4):
            seen.clear()
            each, states = found(frames, (t,), states)
            assert any("vertical" in name for name, _ in seen) == (t < 2)
            so_far, held = found.read_out(each, held)
            parts.append(so_far)
    assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-12)
    assert {count for name, count in at_once.items() if "vertical" in name} == {10}
    late, _ = found(frames, (3,))
    early, _ = found(frames[:, [3, 1, 2, 3]], (0,))
    assert not torch.allclose(late, early, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", list(Form))
def test_a_decomposed_model_becomes_the_same_network(form: Form) -> None:
    net, spec, how = lived_in(Blocks()), TRACED, TensorTrain(form, 3)
    one = build_from_scratch(net, spec, example=images(2), time_steps=3, tensor_train=how).eval()
    other = build_from_scratch(
        decompose(net, how).model, spec, example=images(2), time_steps=3
    ).eval()
    batch = 3 * images(5, seed=43)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(one(batch), other(batch))
    one.train()(batch).square().sum().backward()
    cores = {name: item.grad for name, item in one.named_parameters() if "down" in name}
    assert len(cores) == 4
    assert all(float(grad.abs().max()) > 0 for grad in cores.values() if grad is not None)
    assert all(grad is not None for grad in cores.values())


@pytest.mark.slow
@pytest.mark.parametrize("form", [Form.STT, Form.PTT])
def test_traces_reach_the_cores_of_a_train(form: Form) -> None:
    """The gradient of the merged convolution, pulled back through the product of the cores."""
    found, frames = _trains(form)
    merged = found.merge_tensor_trains()
    for each in (found, merged):
        OTTT().learn(_lesson(each, frames))
    trains = [item for item in found.layers.named_modules() if isinstance(item[1], TTConv2d)]
    assert len(trains) == 2
    for name, layer in trains:
        train = deepcopy(layer)
        assert isinstance(train, TTConv2d)
        train.zero_grad()
        dense = merged.layers.get_submodule(name)
        inputs, size = train.reduce.in_channels, 6 if train.stride == 2 else 5
        weight = torch.zeros(len(train.expand.weight), inputs, 3, 3).double()
        for row in range(3):  # a single 1 is answered by the weights that read it
            for column in range(3):
                spot = torch.zeros(inputs, inputs, size, size).double()
                middle = 2 * train.stride
                spot[range(inputs), range(inputs), middle + row - 1, middle + column - 1] = 1
                bias = 0 if train.expand.bias is None else train.expand.bias[:, None]
                weight[..., row, column] = train(spot)[..., 2, 2].T - bias
        pulled = (weight * dense.get_parameter("weight").grad).sum()
        if train.expand.bias is not None:
            pulled = pulled + (train.expand.bias * dense.get_parameter("bias").grad).sum()  # type: ignore[operator]
        pulled.backward()
        for part, wanted in train.named_parameters():
            online = found.get_parameter(f"layers.{name}.{part}").grad
            assert online is not None
            assert wanted.grad is not None
            assert float(online.abs().max()) > 1e-8
            assert torch.allclose(online, wanted.grad, rtol=0, atol=1e-10), (name, part)


@pytest.mark.slow
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
    found = build_from_scratch(net, spec, example=torch.zeros(2, 1, 8, 8), time_steps=2)
    how = TrainSpec(epochs=3, batch_size=32, lr=0.1)
    history = fit(found, splits, how, tmp_path, classes=10, algorithm=algorithm)
    assert history.best_accuracy is not None
    assert history.best_accuracy > 85
    assert history.rows[-1].train_loss < history.rows[0].train_loss


@pytest.mark.slow
def test_delayed_a_layer_cannot_spike_before_its_step() -> None:
    torch.manual_seed(8)
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16), nn.ReLU()) * 4, nn.Linear(16, 3))
    spec = replace(PARALLEL, charge=IF(), ladder=Uniform(1))
    batch = 9 * torch.randn(20, 1, 4, 4)
    for delayed in (False, True):
        found = build_from_scratch(net, spec, example=batch[:2], time_steps=8, delayed=delayed)
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


@pytest.mark.slow
def test_what_cannot_be_trained_so_is_refused() -> None:
    example, net = images(2), network("residual")
    with pytest.raises(SpecError, match="give it a surrogate"):
        build_from_scratch(net, NeuronSpec(Uniform(1)), example=example, time_steps=2)
    timed = replace(PARALLEL, surrogate=SpikeTime())
    with pytest.raises(SpecError, match="keep no spike times"):
        build_from_scratch(net, timed, example=example, time_steps=2)
    with pytest.raises(SpecError, match="whole numbers from 1"):
        build_from_scratch(net, PARALLEL, example=example, time_steps=0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(SpecError, match="nothing becomes a layer of neurons"):
        build_from_scratch(plain, PARALLEL, example=example, time_steps=1)
    for spec in (PARALLEL, KINDS["hard_if"]):
        with pytest.raises(SpecError, match="train by BPTT"):
            OTTT().learn(
                _lesson(build_from_scratch(net, spec, example=example, time_steps=2), example)
            )
    with pytest.raises(SpecError, match="train this one by BPTT, OTTT or DSR"):
        Tandem().learn(
            _lesson(build_from_scratch(net, PARALLEL, example=example, time_steps=2), example)
        )
    with pytest.raises(UnsupportedLayerError, match="1 operator of _Sorted without a rule"):
        build_from_scratch(_Sorted(), PARALLEL, example=example, time_steps=1)
    found, frames = _trains(Form.HTT)
    for tau in (1, 0.5, float("inf"), True, "2"):
        with pytest.raises(SpecError, match="allowed is a finite number above 1, or None"):
            ScratchNetwork(found.layers, 1, read_out_tau=tau)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="decompose with form stt or ptt, or train by BPTT"):
        OTTT().learn(_lesson(found, frames))
    delayed, batch = _chain(IF())
    delayed.delayed = True
    with pytest.raises(SpecError, match="delayed=False, or train by BPTT"):
        OTTT().learn(_lesson(delayed, batch))
    unused = decompose(nn.Sequential(_Unused(), nn.ReLU()), TensorTrain(Form.STT, 1)).model
    with pytest.raises(SpecError, match="remove it where nothing calls it"):
        build_from_scratch(unused, PARALLEL, example=example, time_steps=1)


class _Unused(nn.Module):
    """A convolution that stands in the model and is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Conv2d(2, 2, 3, padding=1)
        self.idle = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        called: Tensor = self.called(x)
        return called


class _Sorted(nn.Module):
    """An operator that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).flatten(1).sort(1).values
