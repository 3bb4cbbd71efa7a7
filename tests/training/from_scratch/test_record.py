"""What is recorded of a network from scratch, against the network that answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.spec import IF, LIF, NeuronSpec
from mt_convert.neurons.surrogate import ATan
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.poisson import Coding
from mt_convert.training.from_scratch.record import record_run

SPEC = NeuronSpec(Uniform(2), charge=IF(), initial=0.0, surrogate=ATan())
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "delayed": {"delayed": True},
    "leaky read-out": {"read_out_tau": 2.0},
    "norm by step": {"norm_by_step": True},
    "poisson": {"coding": Coding.POISSON},
}
T = 4


def network(spec: NeuronSpec = SPEC, **options: Any) -> ScratchNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    )
    example = torch.zeros(2, 1, 4, 4)
    return build_from_scratch(net, spec, example=example, time_steps=T, **options).eval()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("plain", "delayed") else pytest.mark.long)
        for name in OPTIONS
    ],
)
def test_the_read_outs_are_the_networks_own(name: str) -> None:
    trained, images = network(**OPTIONS[name]), 2 * torch.rand(3, 1, 4, 4)
    run = record_run(trained, images)
    with torch.no_grad():
        each, _ = trained(images, range(T))
    torch.testing.assert_close(run.logits, each)
    assert run.firing_rate > 0


def test_what_came_in_is_what_was_emitted_and_what_is_held() -> None:
    trained, images = network(), 2 * torch.rand(3, 1, 4, 4)
    run = record_run(trained, images, record=True)
    assert run.spikes is not None
    assert run.potentials is not None
    with torch.no_grad():
        current = trained.layers.get_submodule("1")(trained.layers.get_submodule("0")(images))
    steps = torch.arange(1, T + 1).reshape(-1, 1, 1, 1, 1)
    held = run.potentials["2"] + run.spikes["2"].cumsum(0)
    torch.testing.assert_close(held / 2, steps * current, msg="in Δ = 1/2, a constant current")
    assert torch.equal(run.spikes["2"].sum(0), run.totals["2"])
    assert run.spike_counts["2"].tolist() == run.spikes["2"].sum((1, 2, 3, 4)).tolist()
    assert run.packets["2"].tolist() == (run.spikes["2"] != 0).sum((1, 2, 3, 4)).tolist()
    assert run.neurons == {"2": 8, "5": 6}


def test_a_layer_that_stands_twice_is_told_by_its_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.fc = nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.act(self.fc(self.act(x.flatten(1)))))

    spec = replace(SPEC, charge=LIF(2.0))
    trained = build_from_scratch(Twice(), spec, example=torch.zeros(2, 1, 2, 2), time_steps=2)
    run = record_run(trained, torch.ones(1, 1, 2, 2))
    assert len(run.neurons) == 2
    assert trained.training, "it is as it was"
