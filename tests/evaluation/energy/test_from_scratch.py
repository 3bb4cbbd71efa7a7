"""Energy of networks from scratch: each count against one taken at the layers while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_convert.errors import DataError, SpecError
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.report import EnergyReport
from mt_convert.graph.signals import Signal
from mt_convert.neurons.ladder import Binary, Uniform
from mt_convert.neurons.spec import IF, LIF, PLIF, NeuronSpec, Reset
from mt_convert.neurons.surrogate import ATan
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.poisson import Coding
from mt_convert.training.from_scratch.record import counted_network, record_run
from mt_convert.training.from_scratch.tensor_trains.tensor_train import Form, TensorTrain

SINGLE = NeuronSpec(Uniform(1), charge=IF(), initial=0.0, surrogate=ATan())
T = 3


class Residual(nn.Module):
    """A maximum, and a sum of what two layers of neurons emit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2)
        self.short, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        spikes = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        both = F.relu(self.second(spikes)) + F.relu(self.short(spikes))[..., ::2, ::2]
        out: Tensor = self.head(both.flatten(1))
        return out


def scratch(
    model: nn.Module | None = None, spec: NeuronSpec = SINGLE, **more: Any
) -> ScratchNetwork:
    torch.manual_seed(0)
    model = Residual() if model is None else model
    shape = (1, 8, 8)
    built = build_from_scratch(model, spec, example=torch.zeros(2, *shape), time_steps=T, **more)
    return built.eval()


def some_images(count: int = 3) -> Tensor:
    return 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@contextmanager
def additions_at(network: ScratchNetwork, unit: float = 1.0) -> Iterator[dict[str, list[float]]]:
    """What arrives at each weighted layer in each step, as additions: its size times the outputs
    that each entry reaches, found by the gradient of the layer with all weights 1."""
    seen: dict[str, list[float]] = {}
    handles = []
    for name, layer in network.layers.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def hear(layer: Any, given: tuple[Tensor, ...], _: Any, name: str = name) -> None:
                ones = torch.ones_like(layer.weight)
                x = (given[0].abs() / unit).round()
                if isinstance(layer, nn.Linear):
                    reached = F.linear(x, ones)
                else:
                    form = (layer.stride, layer.padding, layer.dilation, layer.groups)
                    reached = F.conv2d(x, ones, None, *form)
                seen.setdefault(name, []).append(float(reached.double().sum()))

            handles.append(layer.register_forward_hook(hear))
    yield seen
    for handle in handles:
        handle.remove()


def rows_at(report: EnergyReport, steps: int = T) -> dict[str, Any]:
    return {row.name: row for row in report.rows if row.time_steps == steps}


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.long), 3])
def test_each_spike_of_each_step_causes_an_addition_for_each_output_that_it_reaches(n: int) -> None:
    network, images = scratch(spec=replace(SINGLE, ladder=Uniform(n))), some_images()
    rows = rows_at(energy(network, images, time_steps=T, batch_size=2))
    counted = counted_network(network)
    with additions_at(counted, unit=1 / n) as seen, torch.no_grad():
        counted(images)
    for name in ("second", "short", "head"):
        assert rows[name].synops == pytest.approx(sum(seen[name]) / len(images))
        assert rows[name].synops > 0
        assert rows[name].macs == 0
    assert rows["first"].synops == 0
    assert rows["first"].macs == rows["first"].ann_macs == 4 * 9 * 64, (
        "once: every step is the same"
    )
    assert rows["first"].bits == (32, 32)


@pytest.mark.slow
def test_events_are_those_of_the_run_and_more_steps_never_count_less() -> None:
    network, images = scratch(), some_images()
    report = energy(network, images, time_steps=(1, T))
    run = record_run(network, images)
    for steps in (1, T):
        rows = rows_at(report, steps)
        for name, counts in run.spike_counts.items():
            assert rows[name].events == float(counts[:steps].sum()) / len(images)
            assert rows[name].packets == float(run.packets[name][:steps].sum()) / len(images)
    assert run.firing_rate > 0


@pytest.mark.parametrize(
    ("charge", "leaks"),
    [
        pytest.param(IF(), 0, marks=pytest.mark.long),
        pytest.param(LIF(1.0), 0, marks=pytest.mark.long),
        (LIF(2.0), 1),
        pytest.param(PLIF(2.0, decay_input=False), 1, marks=pytest.mark.long),
    ],
)
def test_a_leak_is_a_multiply_accumulate_per_neuron_and_step(charge: Any, leaks: int) -> None:
    spec = replace(SINGLE, charge=charge, ladder=Binary(2), reset=Reset.HARD)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    report = energy(scratch(net, spec), some_images(), time_steps=(1, T))
    for steps in (1, T):
        row = rows_at(report, steps)["1"]
        assert (row.neurons, row.leaks) == (256, 256 * steps * leaks)
        assert row.comparisons == 256 * steps * 2
    ends = report.totals[-1]
    assert ends.leaks == 256 * T * leaks
    assert ends.comparison_picojoules == pytest.approx(0.9 * 256 * T * 2 + 4.6 * ends.leaks)


@pytest.mark.slow
def test_frames_are_multiplied_in_every_step_and_poisson_spikes_are_added() -> None:
    images = some_images().clamp(max=1)
    frames = images[:, None].repeat(1, T, 1, 1, 1)
    rows = rows_at(energy(scratch(), frames, time_steps=T))
    assert rows["first"].macs == T * rows["first"].ann_macs
    network = scratch(coding=Coding.POISSON)
    report = energy(network, images, time_steps=T)
    counted = counted_network(network)
    with additions_at(counted) as seen, torch.no_grad():
        counted(images)
    first = rows_at(report)["first"]
    assert (first.fed_by, first.macs) == (Signal.SPIKES, 0)
    assert first.synops == pytest.approx(sum(seen["first"]) / len(images))
    assert any(item.operator == "poisson" for item in report.not_counted)


@pytest.mark.long
def test_a_train_of_two_halves_has_the_connections_of_each() -> None:
    trained = scratch(TwoLayers(), tensor_train=TensorTrain(Form.HTT, rank=2))
    network, images = counted_network(trained), some_images()
    rows = rows_at(energy(trained, images, time_steps=T))
    with additions_at(network) as seen, torch.no_grad():
        network(images)
    assert set(seen) == {"first", "second.early", "second.late", "head"}
    both = sum(seen["second.early"]) + sum(seen["second.late"])
    assert seen["second.late"] != [0.0]
    assert rows["second"].synops == pytest.approx(both / len(images))
    assert rows["second"].ann_macs == 4 * 4 * 9 * 64, "of the whole convolution"


class TwoLayers(nn.Module):
    """A convolution that can be decomposed behind one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))
        return out


def test_norms_of_each_step_are_listed_and_nothing_in_the_network_changes() -> None:
    network = scratch(norm_by_step=True).train()
    before = {name: item.clone() for name, item in network.state_dict().items()}
    report = energy(network, some_images(), time_steps=1)
    assert ("norm", "NormByStep") in {(item.name, item.operator) for item in report.not_counted}
    assert network.training
    assert all(torch.equal(item, before[name]) for name, item in network.state_dict().items())


@pytest.mark.parametrize(
    ("images", "steps", "message"),
    [
        (torch.rand(2, 1, 8, 8), T + 1, "was trained for 3"),
        (torch.rand(0, 1, 8, 8), 1, "both must be 1 or more"),
    ],
)
def test_what_cannot_be_counted_is_refused(images: Tensor, steps: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        energy(scratch(), images, time_steps=steps)


def test_frames_of_other_steps_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"allowed are \[batch, 3, 1, 8, 8\]"):
        energy(scratch(), torch.rand(2, T + 1, 1, 8, 8), time_steps=1)
