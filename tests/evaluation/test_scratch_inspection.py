"""What is stored of a network from scratch for its page."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.data import DataSpec, images, open_data
from mt_convert.evaluation import scratch_inspection
from mt_convert.evaluation.scratch_inspection import inspect_scratch
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import PLIF, NeuronSpec
from mt_convert.neurons.surrogate import ATan
from mt_convert.training.from_scratch.network import ScratchNetwork, build_from_scratch
from mt_convert.training.from_scratch.record import record_run

T = 2


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, Any], ScratchNetwork, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)),
    )
    with torch.no_grad():
        net[1].bias.fill_(1.0)
        net[1].bias[2] = -100.0  # a channel that never fires
        net[4].bias.fill_(1.0)
    spec = NeuronSpec(Uniform(3), charge=PLIF(), initial=0.0, surrogate=ATan())
    example = torch.zeros(2, 1, 8, 8)
    network = build_from_scratch(net, spec, example=example, time_steps=T).eval()
    data = DataSpec(
        dataset="synthetic", image_size=8, channels=1, classes=10, limit=24, calibration_images=8
    )
    test = open_data(data).test
    return inspect_scratch(network, test), network, test


def test_the_graph_says_what_spikes_feed_and_why_the_rest_is_multiplied(case: Any) -> None:
    stored = case[0]
    assert len(json.dumps(stored, allow_nan=False)) < 200_000
    kinds = [(node["name"], node["kind"]) for node in stored["nodes"]]
    assert [kind for _, kind in kinds] == [
        *("image", "weighted", "neurons", "weighted", "neurons", "weighted", "output")
    ]
    weighted = [node for node in stored["nodes"] if node["kind"] == "weighted"]
    assert [node["spike_fed"] for node in weighted] == [False, True, True]
    (analog,) = stored["analog"]
    assert analog["reason"] == "fed by the image (direct coding), not by spikes"


def test_layers_say_how_often_they_fire_and_which_channels_never_do(case: Any) -> None:
    stored, network, test = case
    first, second = stored["layers"]
    run = record_run(network, images(test, stored["images"]))
    assert [first["rate"], second["rate"]] == list(run.firing_rates.values())
    assert min(first["rate"], second["rate"]) > 0.1
    assert (first["channels"], first["dead"], first["thresholds"]) == (4, 1, 3)
    assert first["tau"] == pytest.approx(2.0)
    assert first["step"] == pytest.approx(1 / 3)


def test_the_example_is_one_image_of_the_run(case: Any) -> None:
    stored, network, test = case
    run = record_run(network, images(test, 1), record=True)
    assert run.spikes is not None
    (first, _) = stored["example"]["layers"]
    spikes = run.spikes["2"].flatten(1).T
    assert first["spikes"] == spikes[first["chosen"]].tolist()
    assert stored["example"]["classes"] == run.logits[:, 0].argmax(1).tolist()


def test_the_account_is_of_its_last_step_and_over_all(case: Any) -> None:
    account = case[0]["account"]
    assert account["way"] == "n = 3, T = 2"
    assert [item["T"] for item in account["over_time"]["n = 3, T = 2"]] == [1, 2]
    assert account["spec"]["state_bits"] == 32
    assert account["thresholds"] == {"n = 3, T = 2": 3}


def test_what_cannot_be_counted_is_named(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise scratch_inspection.MTConvertError("its layers cannot be followed")

    monkeypatch.setattr(scratch_inspection, "energy", refuse)
    _, network, test = case
    stored = inspect_scratch(network, test)
    assert stored["not_counted"] == "its layers cannot be followed"
    assert "account" not in stored


def test_a_leak_that_training_drove_to_nothing_has_a_time_constant() -> None:
    """1 / sigmoid(w), which is 0 in float32 from w = -104 on."""
    layer = MTNeuron(NeuronSpec(Uniform(1), charge=PLIF(2.0)), torch.tensor(1.0))
    for w, tau in ((0.0, 2.0), (-200.0, 1 + math.exp(200)), (-1e9, 1 + math.exp(700))):
        layer.w.data.fill_(w)
        assert scratch_inspection._tau(layer) == tau
