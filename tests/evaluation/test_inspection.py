"""What is stored of a network for its page, against the simulation it speaks of."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from mt_convert.data import DataSpec, images, open_data
from mt_convert.evaluation import inspection
from mt_convert.evaluation.inspection import inspect, pick_setting, picture
from mt_convert.evaluation.settings import Setting
from mt_convert.evaluation.subject import Subject
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import LIF
from mt_convert.quantization.quantize import levels_of, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

SETTINGS = [Setting(Uniform(n), (1, 4)) for n in (1, 3, 15)]


class Residual(nn.Module):
    """Two paths that join, so that a neuron is fed by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act1, self.act2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(4 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.first(x))
        return self.head(self.act2(x + self.second(x)).flatten(1))


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], Subject, Any]:
    torch.manual_seed(0)
    spec = DataSpec(
        dataset="synthetic", image_size=8, channels=1, classes=10, limit=48, calibration_images=16
    )
    splits = open_data(spec)
    calibration = images(splits.calibration, 16)
    net = Residual().eval()
    with torch.no_grad():
        net.first.bias[2] = -100.0  # a channel that never fires
    qann = quantize(net, QuantSpec(4, 4), calibration=calibration).eval()
    describe = {"model": "residual", "dataset": "synthetic", "seed": 0}
    subject = Subject(qann, net, splits.test, calibration, describe)
    return inspect(subject, SETTINGS, convert(qann)), subject, qann


@pytest.mark.slow
def test_it_is_plain_data(made: Any) -> None:
    assert len(json.dumps(made[0], allow_nan=False)) < 200_000
    assert made[0]["setting"]["n"] == 3
    assert made[0]["setting"]["T"] == 4
    assert "not_analysed" not in made[0]
    assert made[0]["account"]["way"] == "n = 15, T = 1"


def test_the_level_that_a_thousandth_exceeds_leaves_out_what_is_silent() -> None:
    levels = torch.cat([torch.zeros(5000), torch.full((999,), 2.0), torch.tensor([-15.0])])
    assert inspection._typical(levels) == 2
    assert inspection._typical(levels[-500:]) == 15
    assert inspection._typical(torch.zeros(3)) == 0


@pytest.mark.slow
def test_energy_is_stored_over_the_steps_of_the_table(made: Any) -> None:
    account = made[0]["account"]
    assert account["thresholds"] == {"n = 15, T = 1": 15, "n = 3, T = 4": 3}
    costs = {
        way: {item["T"]: item["total"] for item in items}
        for way, items in account["over_time"].items()
    }
    assert {way: list(item) for way, item in costs.items()} == {
        "n = 15, T = 1": [1],
        "n = 3, T = 4": [1, 4],
    }
    _, exact, several, _ = account["networks"]
    assert list(account["neurobench"]) == list(account["thresholds"])
    assert costs["n = 15, T = 1"][1] == exact["total"]
    assert costs["n = 3, T = 4"][4] == several["total"] > costs["n = 3, T = 4"][1]


def test_spikes_are_those_of_the_simulation_and_potentials_keep_the_charge(made: Any) -> None:
    stored, subject, qann = made
    snn = convert(qann, ladder=Uniform(3), signed=True)
    image = images(subject.test, 1)
    run = simulate(snn, image, time_steps=4, record=True)
    assert run.spikes is not None
    layers = dict(snn.neurons())
    drive = (subject_first_current(qann, image) / layers["act1"].delta).flatten()
    for layer in stored["example"]["layers"]:
        emitted = run.spikes[layer["name"]].flatten(1).T
        assert layer["spikes"] == emitted[layer["chosen"]].tolist()
        assert layer["active"] == int((emitted.abs().sum(1) > 0).sum())
        assert layer["events"] == float(emitted.abs().sum())
    first = stored["example"]["layers"][0]
    assert first["name"] == "act1"
    totals = run.spikes["act1"].flatten(1).cumsum(0).T[first["chosen"]]
    potentials = drive[first["chosen"]][:, None] - totals + 0.5
    assert torch.allclose(torch.tensor(first["potentials"]), potentials, atol=1e-3)
    assert stored["example"]["classes"] == run.logits[:, 0].argmax(1).tolist()


def test_potentials_of_leaky_neurons_are_those_that_leaked(made: Any) -> None:
    _, subject, qann = made
    snn = convert(qann, ladder=Uniform(3), signed=True)
    neuron = dict(snn.neurons())["act1"]
    leaky = replace(neuron.spec, charge=LIF(4.0, decay_input=False))
    snn = snn.with_neurons({"act1": MTNeuron(leaky, neuron.delta, offset=torch.tensor(0.125))})
    image = images(subject.test, 1)
    run = simulate(snn, image, time_steps=5, record=True)
    assert run.spikes is not None
    first = inspection.example_of(snn, image, 0, 5)["layers"][0]
    v, arriving = 0.5 + 0.125, (subject_first_current(qann, image) / neuron.delta).flatten()
    wanted = []
    for emitted in run.spikes["act1"].flatten(1):
        v = v - v / 4 + arriving - emitted
        wanted.append(v[first["chosen"]])
        arriving = torch.zeros_like(arriving)
    assert torch.allclose(torch.tensor(first["potentials"]), torch.stack(wanted, 1), atol=1e-3)


def subject_first_current(qann: Any, image: torch.Tensor) -> torch.Tensor:
    """What the first layer of neurons is given: the first convolution of the encoded image."""
    layers = qann.layers
    encoded = layers.get_submodule("input_quant")(image)
    with torch.no_grad():
        current: torch.Tensor = layers.get_submodule("first")(encoded)
    return current


def test_the_picture_of_the_network_joins_what_feeds_what(made: Any) -> None:
    nodes = made[0]["nodes"]
    place = {node["name"]: k for k, node in enumerate(nodes)}
    assert nodes[place["act2"]]["feeders"] == sorted([place["act1"], place["second"]])
    assert nodes[place["first"]]["reason"].startswith("fed by the encoded image")
    assert nodes[place["second"]]["spike_fed"]
    assert nodes[place["second"]]["macs"] == 64 * 4 * 4 * 9
    assert [node["kind"] for node in nodes][:3] == ["image", "encoder", "weighted"]


def test_channels_that_never_fire_and_activations_at_the_end_are_counted(made: Any) -> None:
    stored, subject, qann = made
    current = subject_first_current(qann, images(subject.test, stored["images"]))
    with torch.no_grad():
        levels = qann.layers.get_submodule("act1")(current) / stored["layers"][0]["step"]
    levels = levels.round()
    first = stored["layers"][0]
    assert first["channels"] == 4
    assert first["dead"] == int((levels.amax((0, 2, 3)) == 0).sum()) >= 1
    assert first["saturated"] == pytest.approx(float((levels == 15).double().mean()))
    assert first["rate"] > 0


class ChannelsLast(nn.Module):
    """Channels behind a linear layer lie last, those behind a convolution over a line do not."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.line, self.head = nn.Linear(8, 6), nn.Conv1d(6, 5, 3), nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(x).relu()
        return self.head(self.line(x.flatten(1, 2).transpose(1, 2)).relu().flatten(1))


@pytest.mark.slow
def test_channels_are_counted_where_they_lie() -> None:
    torch.manual_seed(0)
    net, shown = ChannelsLast().eval(), torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        net.last.bias[:2] = net.line.bias[:3] = -100.0  # channels that never fire
    qann = quantize(net, QuantSpec(4, 4), calibration=shown)
    snn = convert(qann)
    with levels_of(qann) as reached, torch.no_grad():
        qann(shown)
    run = simulate(snn, shown, time_steps=2)
    rows = inspection._layers(snn, reached, run)
    assert [(row["channels"], row["dead"]) for row in rows] == [(6, 2), (5, 3)]


def test_the_worst_images_are_sorted_by_the_distance_of_their_logits(made: Any) -> None:
    stored, subject, qann = made
    snn = convert(qann, ladder=Uniform(3), signed=True)
    shown = images(subject.test, stored["images"])
    with torch.no_grad():
        differ = qann(shown) != simulate(snn, shown, time_steps=4).logits[-1]
    assert stored["worst"]["differ"] == int(differ.any(1).sum())
    distances = [row["distance"] for row in stored["worst"]["rows"]]
    assert distances == sorted(distances, reverse=True)


def test_the_setting_that_is_looked_into_takes_several_steps() -> None:
    assert pick_setting(SETTINGS, 15).ladder == Uniform(3)
    assert pick_setting([Setting(Uniform(15), (1,))], 15).ladder == Uniform(15)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_image_of_any_number_of_channels_is_a_small_png(channels: int) -> None:
    shown = Image.open(io.BytesIO(base64.b64decode(picture(torch.rand(channels, 96, 80)))))
    assert shown.mode == ("RGB" if channels >= 3 else "L")
    assert max(shown.size) == 64


def test_the_integer_engine_is_compared_with_the_simulation(made: Any) -> None:
    (stored,) = made[0]["backends"]
    assert stored["images"] == made[0]["images"]
    assert stored["neurons"] == stored["images"] * 2 * 4 * 64
    assert 0 <= stored["differ"] <= stored["neurons"] // 1000, "float sums may round otherwise"
    json.dumps(stored)
