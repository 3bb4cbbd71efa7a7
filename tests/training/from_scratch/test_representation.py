"""DSR of networks from scratch: forward on spikes, back as through clipped leaky means."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import lived_in, network
from torch import Tensor, nn

from mt_convert.data import DataSpec, open_data
from mt_convert.errors import SpecError
from mt_convert.graph.nodes import set_image_shape
from mt_convert.neurons.ladder import Binary, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.linear_recurrence import leaky_mean
from mt_convert.neurons.spec import IF, LIF, PLIF, Charge, NeuronSpec, Reset
from mt_convert.neurons.surrogate import ATan
from mt_convert.training.algorithm import Derivative, Lesson
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.tensor_trains.tensor_train import Form, TensorTrain
from mt_convert.training.gradients import BPTT, DSR, Tandem
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

CLIP = Derivative.CLIP
CHARGES: list[Charge] = [IF(), LIF(2.0), LIF(1.25, decay_input=False)]
LIVELY: list[Charge] = [IF(), LIF(1.25), LIF(2.0, decay_input=False)]  # reach a deep read-out
SPEC = NeuronSpec(Uniform(3), surrogate=ATan())


def kept(charge: Charge) -> float:
    return 1 - 1 / charge.tau if isinstance(charge, LIF) else 1.0


def mapped(charge: Charge, mean: Tensor) -> Tensor:
    """What representations are about, of neurons without a bound."""
    return mean / charge.tau if isinstance(charge, LIF) and charge.decay_input else mean


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chain() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()),
        nn.Linear(12, 3),
    )


def normed() -> nn.Module:
    return lived_in(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)),
            *(nn.ReLU(), nn.Linear(6, 3)),
        )
    )


def convolved() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "normed": normed,
    "convolved": convolved,
    "neurons": lambda: flat(nn.ReLU(), nn.Linear(16, 3)),
    "all pass": lambda: flat(nn.ReLU(), nn.Linear(16, 16, bias=False)),
    "dropout": lambda: flat(nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16, bias=False)),
    "maximum": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()),
    "norm": lambda: flat(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)),
    "norm behind": lambda: flat(
        nn.Linear(16, 8), nn.BatchNorm1d(8, eps=1e-12), nn.ReLU(), nn.Linear(8, 3)
    ),
}


@cache
def traced(name: str, train: TensorTrain | None) -> ScratchNetwork:
    torch.manual_seed(9)
    net, shape = (NETS[name](), (1, 4, 4)) if name in NETS else (network(name), (2, 8, 8))
    return build_from_scratch(
        net, SPEC, example=torch.zeros(2, *shape), time_steps=1, tensor_train=train
    )


def built(name: str, spec: NeuronSpec | Charge, time_steps: int, **options: Any) -> ScratchNetwork:
    """In float64 and eval mode, with the read-out that goes with the neurons; traced once."""
    spec = spec if isinstance(spec, NeuronSpec) else replace(SPEC, charge=spec)
    source = traced(name, options.pop("tensor_train", None))
    layers = deepcopy(source.layers)
    set_image_shape(layers, source.image_shape)
    for target, _ in source.neurons():
        layers.set_submodule(target, MTNeuron(spec, 1 / spec.ladder.reach))
    tau = spec.charge.tau if isinstance(spec.charge, LIF) else None
    options = {"read_out_tau": tau, **options}
    return ScratchNetwork(layers, time_steps, **options).double().eval()


def lesson(found: nn.Module, batch: Tensor, time_steps: int) -> Lesson:
    return Lesson(
        network=found,
        images=batch,
        loss=lambda logits: (logits - 0.3).square().mean(),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        update=lambda: None,
        time_steps=time_steps,
    )


def run_of(neuron: MTNeuron, currents: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes step by step, and the potential that is left."""
    state, spikes = neuron.initial_state(currents[0]), []
    for current in currents:
        emitted, state = neuron(current, state)
        spikes.append(emitted)
    return torch.stack(spikes), state.v


@pytest.mark.parametrize("charge", CHARGES, ids=repr)
@pytest.mark.parametrize("ladder", [Uniform(1), Uniform(2), Uniform(4), Binary(2)], ids=repr)
@pytest.mark.parametrize("initial", [0.0, 0.3, 0.5, 1.0])
def test_representations_of_constant_currents_are_as_near_as_the_bound_says(
    charge: Charge, ladder: Any, initial: float
) -> None:
    delta, leak = 0.7, kept(charge)
    spec = NeuronSpec(ladder, charge=charge, initial=initial)
    neuron = MTNeuron(spec, torch.tensor(delta, dtype=torch.float64))
    gain = 1 / leak if isinstance(charge, LIF) and charge.decay_input else 1.0
    current = 1.2 * gain * ladder.reach * drawn(4000, seed=1)
    widest = []
    for steps in (1, 2, 5, 16):
        spikes, _ = run_of(neuron, current.expand(steps, -1))
        ideal = mapped(charge, current).clamp(0, ladder.reach * delta)
        off = (leaky_mean(spikes, leak) - ideal).abs().max().item()
        share, weights = initial * leak**steps, sum(leak**k for k in range(steps))
        bound = max(share, 1 - share) * delta / weights
        assert off <= bound + 1e-12
        widest.append(off)
    assert widest[0] > 0.9 * max(initial * leak, 1 - initial * leak) * delta
    limit = (1 - leak) * delta  # Δ/τ: what a neuron that never fires can hold back
    assert widest[-1] < 0.1 * delta if leak == 1 else widest[-1] > 0.85 * limit


@pytest.mark.parametrize("charge", CHARGES, ids=repr)
@pytest.mark.parametrize("signed", [False, True])
def test_what_currents_lack_in_spikes_is_what_the_potential_holds(
    charge: Charge, signed: bool
) -> None:
    """r = c − (v_T − λ^T v_0)/W, for any currents."""
    leak, steps = kept(charge), 9
    spec = NeuronSpec(Uniform(2), charge=charge, initial=0.25, signed=signed)
    currents = 2 * drawn(steps, 500, seed=2)
    spikes, left = run_of(MTNeuron(spec, torch.tensor(0.5, dtype=torch.float64)), currents)
    missing = (left - leak**steps * 0.25 * 0.5) / sum(leak**k for k in range(steps))
    wanted = mapped(charge, leaky_mean(currents, leak)) - missing
    assert torch.allclose(leaky_mean(spikes, leak), wanted, rtol=0, atol=1e-12)
    assert float(spikes.std()) > 0


@pytest.mark.parametrize("charge", CHARGES, ids=repr)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("frames", [False, True])
def test_gradients_are_those_of_the_clipped_leaky_mean(
    charge: Charge, signed: bool, steps: int, frames: bool
) -> None:
    found = built("neurons", replace(SPEC, charge=charge, signed=signed), steps)
    weight = found.layers.get_submodule("2").get_parameter("weight").detach()
    layer = found.neurons()[0][1]
    layer.delta = nn.Parameter(del_(layer, "delta"))
    shape = (60, steps, 1, 4, 4) if frames else (60, 1, 4, 4)
    batch = (3 * drawn(*shape, seed=3)).requires_grad_()
    pull = drawn(60, 3, seed=4)
    (found(batch, None, None, CLIP) * pull).sum().backward()

    theirs = batch.detach().clone().requires_grad_()
    step = layer.delta.detach().clone().requires_grad_()
    mean = leaky_mean(theirs.transpose(0, 1), kept(charge)) if frames else theirs
    ideal = mapped(charge, mean).flatten(1)
    low = -3 * step if signed else 0 * step
    (torch.clamp(ideal, low, 3 * step) @ weight.T * pull).sum().backward()
    assert batch.grad is not None
    assert torch.allclose(batch.grad, theirs.grad, rtol=0, atol=1e-10)  # type: ignore[arg-type]

    arriving = pull @ weight
    counts = 3.0 * (ideal > 3 * step).double() - 3.0 * ((ideal < -3 * step) & signed).double()
    assert layer.delta.grad is not None
    assert torch.allclose(layer.delta.grad, (arriving * counts).sum(), rtol=0, atol=1e-10)
    assert float((batch.grad == 0).double().mean()) > 0.02
    assert float((batch.grad != 0).double().mean()) > 0.02


def del_(layer: nn.Module, name: str) -> Tensor:
    """Take a buffer out of a layer."""
    value: Tensor = layer.get_buffer(name)
    delattr(layer, name)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("charge", CHARGES, ids=repr)
def test_a_chain_learns_from_what_its_layers_emitted(charge: Charge) -> None:
    steps = 3
    found, batch = built("chain", charge, steps), 4 * drawn(20, 1, 4, 4, seed=5)
    DSR().learn(lesson(found, batch, steps))
    held = {
        name: value.detach().clone().requires_grad_() for name, value in found.named_parameters()
    }
    neurons, leak = [layer for _, layer in found.neurons()], kept(charge)
    spikes, mean = batch.flatten(1).expand(steps, -1, -1), batch.flatten(1)
    for name, neuron in zip(("1", "3"), neurons, strict=True):
        weight, bias = held[f"layers.{name}.weight"], held[f"layers.{name}.bias"]
        spikes, _ = run_of(neuron, (spikes @ weight.T + bias).detach())
        ideal = mapped(charge, mean @ weight.T + bias).clamp(0, 1)
        mean = ideal + (leaky_mean(spikes, leak) - ideal).detach()
    logits = mean @ held["layers.5.weight"].T + held["layers.5.bias"]
    (logits - 0.3).square().mean().backward()  # type: ignore[no-untyped-call]
    for name, value in found.named_parameters():
        assert value.grad is not None
        assert held[name].grad is not None
        assert torch.allclose(value.grad, held[name].grad, rtol=0, atol=1e-10), name  # type: ignore[arg-type]
        assert float(value.grad.abs().max()) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("charge", LIVELY, ids=repr)
@pytest.mark.parametrize("name", ["residual", "pools", "clamps"])
def test_the_read_out_is_that_of_the_spikes_bit_for_bit(charge: Charge, name: str) -> None:
    found = built(name, charge, 3)
    batch = 3 * drawn(4, 3, 2, 8, 8, seed=6)
    with torch.no_grad():
        wanted = found(batch)
    logits = found(batch, None, None, CLIP)
    assert torch.equal(logits, wanted)
    assert float(wanted.std(0).min()) > 0
    logits.square().sum().backward()
    gradients = [item.grad for item in found.parameters() if item.grad is not None]
    assert all(bool(item.isfinite().all()) for item in gradients)
    assert all(float(item.abs().max()) > 0 for item in gradients)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that graphs hold for the backward pass, each storage once."""
    held: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.slow
@pytest.mark.parametrize("charge", CHARGES[:2], ids=repr)
def test_what_the_gradient_holds_does_not_grow_with_t(charge: Charge) -> None:
    batch = drawn(8, 2, 8, 8, seed=7)
    held: dict[str, list[int]] = {"one pass": [], "through time": []}
    for steps in (2, 16):
        found = built("residual", charge, steps).train()
        calls = {"one pass": (None, None, CLIP), "through time": ()}
        for way, rest in calls.items():
            held[way].append(saved_bytes(lambda rest=rest, found=found: found(batch, *rest)))
    assert held["one pass"][0] == held["one pass"][1] > 0
    assert held["through time"][1] > 4 * held["through time"][0]


@pytest.mark.slow
@pytest.mark.parametrize("charge", LIVELY[:2], ids=repr)
def test_batch_norms_count_a_batch_once_and_use_the_statistics_of_its_spikes(
    charge: Charge,
) -> None:
    batch, logits, norms = 3 * drawn(12, 1, 4, 4, seed=8), [], []
    for derivative in (Derivative.SPIKES, CLIP):
        found = built("normed", charge, 4).train()
        logits.append(found(batch, None, None, derivative).detach())
        norms.append({name: value for name, value in found.named_buffers() if "running" in name})
    assert torch.equal(*logits)
    fresh = built("normed", charge, 4)
    assert len(norms[0]) == 4
    for name, value in norms[0].items():
        assert torch.equal(value, norms[1][name]), name
        assert not torch.equal(value, fresh.get_buffer(name))


@pytest.mark.slow
def test_behind_a_batch_norm_weights_are_not_pushed_along_themselves() -> None:
    """Neither scale nor shift of what it reads has an effect, so neither has a gradient."""
    for charge in CHARGES:
        found = built("norm behind", charge, 4).train()
        frames = 2 * drawn(20, 4, 1, 4, 4, seed=9)
        found(frames, None, None, CLIP).square().sum().backward()
        layer = found.layers.get_submodule("1")
        assert isinstance(layer, nn.Linear)
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        assert float(layer.weight.grad.abs().max()) > 1e-4
        along = (layer.weight.grad * layer.weight.detach()).sum(1)
        assert float(along.abs().max()) < 1e-9
        assert float(layer.bias.grad.abs().max()) < 1e-9


@pytest.mark.slow
def test_at_one_step_a_batch_norm_s_gradient_is_autograd_s() -> None:
    """One step's representation is its spikes, and its statistics are theirs."""
    found = built("norm", IF(), 1).train()
    batch = (2 * drawn(30, 1, 4, 4, seed=10)).requires_grad_()
    pull = drawn(30, 3, seed=11)
    (found(batch, None, None, CLIP) * pull).sum().backward()
    theirs = batch.detach().clone().requires_grad_()
    head = deepcopy(found.layers.get_submodule("3"))
    plain = flat(nn.BatchNorm1d(16), nn.Hardtanh(0, 1), head).double()
    (plain(theirs) * pull).sum().backward()
    assert batch.grad is not None
    assert torch.allclose(batch.grad, theirs.grad, rtol=0, atol=1e-10)  # type: ignore[arg-type]
    longer = built("norm", IF(), 4).train()
    alone = longer(drawn(1, 4, 1, 4, 4, seed=18), None, None, CLIP)  # one image has no variance
    alone.sum().backward()
    assert bool(alone.isfinite().all())
    assert bool(longer.get_parameter("layers.1.weight").grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_maximum_passes_its_gradient_to_the_largest_representation() -> None:
    found = built("maximum", IF(), 8)
    batch = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    batch[0, 0, 1, 2] = 0.6
    batch.requires_grad_()
    logits = found(batch, None, None, CLIP)
    assert torch.equal(logits, found(batch))
    logits.sum().backward()
    wanted = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    wanted[0, 0, 1, 2] = 1
    assert batch.grad is not None
    assert torch.equal(batch.grad, wanted)


def test_a_dropout_has_one_mask_for_all_steps() -> None:
    found = built("dropout", IF(), 4).train()
    nn.init.eye_(found.get_parameter("layers.3.weight"))
    batch = torch.full((50, 1, 4, 4), 0.6, dtype=torch.float64, requires_grad=True)
    logits = found(batch, None, None, CLIP)
    assert 0.3 < float((logits == 0).double().mean()) < 0.7
    assert len(logits.unique()) == 2  # a mask for each step would leave some of the spikes
    logits.sum().backward()
    assert batch.grad is not None
    assert torch.equal(batch.grad.flatten(1), torch.where(logits == 0, 0.0, 2.0).double())


class Wrapped(nn.Module):
    """What training puts around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


@pytest.mark.slow
def test_however_it_is_wrapped_it_runs_once() -> None:
    found, batch = built("chain", IF(), 4), drawn(6, 1, 4, 4, seed=12)
    ways = [found, Wrapped(Wrapped(found))]
    gradients = []
    for way in ways:
        found.zero_grad()
        DSR().learn(lesson(way, batch, 4))
        gradients.append([item.grad for item in found.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))  # type: ignore[misc]
    with pytest.raises(SpecError, match="hand DSR the network as a module"):
        DSR().learn(replace(lesson(found, batch, 4), network=lambda *args: found(*args)))


def test_at_one_step_dsr_and_bptt_agree_on_the_last_layer_and_on_the_loss() -> None:
    found, batch = built("chain", LIF(2.0), 1, read_out_tau=None), drawn(6, 1, 4, 4, seed=13)
    seen = []
    for algorithm in (BPTT(), DSR()):
        found.zero_grad()
        loss = algorithm.learn(lesson(found, batch, 1))
        seen.append((loss, found.get_parameter("layers.5.weight").grad))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.allclose(seen[0][1], seen[1][1], rtol=0, atol=1e-12)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "plif": ({"charge": PLIF()}, "its leak would get no gradient: take LIF, or train by BPTT"),
    "hard": ({"reset": Reset.HARD}, "reset soft, or train by BPTT"),
    "delayed": ({"delayed": True}, "delayed=False, or train by BPTT"),
    "leaky neurons": ({"charge": LIF(2.0), "read_out_tau": None}, "take read_out_tau=2.0"),
    "leaky read-out": ({"read_out_tau": 3.0}, "take read_out_tau=None"),
    "no memory": ({"charge": LIF(1.0), "read_out_tau": 1.5}, "tau above 1 and the same read_out"),
    "bounds": ({"charge": LIF(2.0), "bounds": (0, 4)}, "bounds=None, or train by BPTT"),
    "htt": ({"tensor_train": TensorTrain(Form.HTT, 1)}, "form stt or ptt, or train by BPTT"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", REFUSED)
def test_what_has_no_representation_is_refused(way: str) -> None:
    options, message = REFUSED[way]
    options = dict(options)
    spec = replace(SPEC, **{key: options.pop(key) for key in list(options) if hasattr(SPEC, key)})
    found = built("convolved", spec, 2, **options)
    with pytest.raises(SpecError) as caught:
        DSR().learn(lesson(found, drawn(2, 1, 4, 4, seed=14), 2))
    assert message in str(caught.value)
    found(drawn(2, 1, 4, 4, seed=14)).sum().backward()  # BPTT, as the message advises


def test_other_ways_to_ask_are_refused() -> None:
    found, batch = built("chain", IF(), 2), drawn(2, 1, 4, 4, seed=15)
    with pytest.raises(SpecError, match="train this one by BPTT, OTTT or DSR"):
        Tandem().learn(lesson(found, batch, 2))
    for steps, states in (((1,), None), (None, {})):
        with pytest.raises(SpecError, match="all T steps at once"):
            found(batch, steps, states, CLIP)
    mixed = built("chain", LIF(2.0), 1)
    other = MTNeuron(replace(SPEC, charge=LIF(3.0)), 0.5).double()
    mixed.layers.set_submodule(mixed.neurons()[1][0], other)
    with pytest.raises(SpecError, match="layers leak differently"):
        mixed(batch, None, None, CLIP)


@pytest.mark.slow
def test_bounds_of_a_neuron_without_leak_bound_its_representation() -> None:
    found = built("all pass", replace(SPEC, bounds=(0, 6)), 4)
    weight = found.get_parameter("layers.2.weight").detach()
    batch = (2 * drawn(40, 1, 4, 4, seed=16)).requires_grad_()
    pull = drawn(40, 16, seed=17)
    (found(batch, None, None, CLIP) * pull).sum().backward()
    inside = (batch > 0) & (batch < 6 / 3 / 4)
    wanted = (pull @ weight).reshape(batch.shape) * inside
    assert batch.grad is not None
    assert torch.allclose(batch.grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_it_learns_the_digits(tmp_path: Path) -> None:
    data = DataSpec("digits", image_size=8, channels=1, classes=10, validation_share=0.2)
    splits = open_data(replace(data, limit=700, test_images=200))
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    spec, example = replace(SPEC, charge=LIF(2.0)), torch.zeros(2, 1, 8, 8)
    found = build_from_scratch(net, spec, example=example, time_steps=3, read_out_tau=2.0)
    how = TrainSpec(epochs=3, batch_size=32, lr=0.1)
    history = fit(found, splits, how, tmp_path, classes=10, algorithm=DSR())
    assert history.best_accuracy is not None
    assert history.best_accuracy > 85
    assert history.rows[-1].train_loss < history.rows[0].train_loss
