"""A converted network as a module of SpikingJelly: equal, watched by their monitors, trained."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import types
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import NAMES, converted, some_images
from torch import nn

import mt_convert as mt
from mt_convert.errors import CheckpointError
from mt_convert.export import targets, verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.spiking_graphs import spikingjelly_folder
from mt_convert.export.spiking_graphs.spikingjelly_folder import SpikingJellyNetwork
from mt_convert.integer_engine.threshold_tables import ThresholdTable
from mt_convert.spiking.model import SpikingModel

pytest.importorskip("spikingjelly", reason="make installs it")


def load_as_a_user(folder: Path) -> Any:
    """By the file in the folder, not by the package."""
    spec = importlib.util.spec_from_file_location("theirs", folder / "spiking_network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


@cache
def both() -> SpikingModel:
    """Levels on both sides of 0, which their neuron does not have, and levels from 0 up."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.Hardtanh(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
    )
    spec = mt.QuantSpec(act_bits=3)
    return mt.convert(mt.quantize(net, spec, calibration=pictures(8, 1)), verify=pictures(2, 2))


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spikingjelly") / "out"
    found = mt.export.spikingjelly(both(), folder, images=pictures(8, 3))
    assert found.exact
    assert found.runtime.startswith("spikingjelly 2")
    assert sum(row.op == "fire" for row in found.on_images) == 2
    return folder


def test_the_folder_alone_gives_a_module_with_the_logits(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == [
        "network.json",
        "network.safetensors",
        "spiking_network.py",
        "verdict.json",
    ]
    images = pictures(8, 3)
    run = mt.simulate(both(), images, time_steps=1)
    net = load_as_a_user(written)
    with torch.no_grad():
        logits = net(images)
    assert torch.equal(net(images).detach(), logits), "with surrogates, threshold by threshold"
    torch.testing.assert_close(logits, run.logits[-1], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits.argmax(1), run.logits[-1].argmax(1))


@pytest.fixture
def their_monitors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their monitors import a writer of tensorboard, which recording does not need."""
    if importlib.util.find_spec("tensorboard") is None:
        stub = types.ModuleType("torch.utils.tensorboard")
        stub.__dict__["SummaryWriter"] = object
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)


@pytest.mark.usefixtures("their_monitors")
def test_monitors_and_a_training_step_of_theirs_run_on_it(written: Path) -> None:
    from spikingjelly.activation_based import functional, layer, monitor, neuron

    torch.manual_seed(0)
    net = load_as_a_user(written)
    images, labels = pictures(16, 4), torch.arange(16) % 3
    kinds = (neuron.FewSpikeNode, neuron.SimpleBaseNode)
    nodes = [one for one in net.modules() if isinstance(one, kinds)]
    assert {type(one).__name__ for one in nodes} == {"FewSpikeNode", "MultiThresholdNode"}
    assert any(isinstance(one, layer.Conv2d) for one in net.modules())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = []
    with (
        monitor.OutputMonitor(net, kinds) as spikes,
        monitor.AttributeMonitor("v", pre_forward=False, net=net, instance=kinds[1]) as potentials,
        monitor.GradOutputMonitor(net, kinds) as gradients,
    ):
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            assert all(one.grad is not None for one in net.parameters())
            optimizer.step()
            functional.reset_net(net)
            losses.append(float(loss.detach()))
        assert len(spikes.records) == len(gradients.records) == 12 * len(nodes)
        assert potentials.records
    assert losses[-1] < 0.9 * losses[0]
    levels = torch.cat([one.flatten() for one in spikes.records])
    assert torch.equal(levels, levels.round())
    frames = functional.multi_step_forward(torch.stack([images, images]), net)
    assert torch.equal(frames[0], frames[1])


def test_their_neuron_stands_where_no_sum_is_half_way_to_an_odd_level() -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(1, 2, 3)
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    snn = mt.convert(mt.quantize(net, mt.QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
    form = integer_form(snn)
    fire = next(node for node in form.nodes if node.op == "fire")
    item = form.sources[fire.out]
    assert spikingjelly_folder._few_spikes(form, fire, item) == 4
    term = item.input.terms[0]
    term.multiplier.fill_(0.5)  # an odd sum is now half-way
    item.input.bias.fill_(0.0)
    assert ThresholdTable(item, form.program).thresholds(torch.zeros(1, 1).long())[0][0, 0] == 2
    assert spikingjelly_folder._few_spikes(form, fire, item) == 0
    item.input.bias.fill_(0.25)
    assert spikingjelly_folder._few_spikes(form, fire, item) == 4


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_network_leaves(name: str, tmp_path: Path) -> None:
    assert mt.export.spikingjelly(converted(name), tmp_path / "a", images=some_images(name)).exact


@pytest.mark.long
@pytest.mark.parametrize("ladder", ["uniform_3", "power_of_two_4", "binary_4"])
def test_every_ladder_leaves_as_its_first_step(ladder: str, tmp_path: Path) -> None:
    snn = converted("line", ladder)
    assert mt.export.spikingjelly(snn, tmp_path / "a", images=some_images("line")).exact


def test_a_changed_folder_is_red(written: Path) -> None:
    form = integer_form(both())
    runtime = SpikingJellyNetwork(written, form)

    def is_red(node: Any) -> bool:
        return verdict._compare_node(form, node, runtime).different > 0

    fires = [node for node in form.nodes if node.op == "fire"]
    conv = next(node for node in form.nodes if node.op == "conv")
    last = form.nodes[-1]
    for node, name in ((fires[0], "formula.bias"), (conv, "run.weight"), (last, "bias")):
        array = runtime.module.get_submodule(f"value_{node.out}").get_parameter(name)
        assert not is_red(node)
        with torch.no_grad():
            before = array.clone()
            array.flatten()[0] += 1
            assert is_red(node)
            array.copy_(before)
    layers = [one for one in runtime.module.modules() if hasattr(one, "neuron")]
    ours = next(one for one in layers if type(one.neuron).__name__ == "MultiThresholdNode")
    theirs = next(one for one in layers if type(one.neuron).__name__ == "FewSpikeNode")
    for one, name in ((ours, "thresholds"), (theirs, "theta")):
        node = next(n for n in fires if runtime.module.get_submodule(f"value_{n.out}") is one)
        thresholds = one.neuron.get_buffer(name)
        thresholds[0] += 0.02
        assert is_red(node)
    window = runtime.module.get_submodule(f"value_{conv.out}")
    window.around = [0, 0, 0, 0]
    assert is_red(conv)


def test_truncated_changed_and_foreign_folders_are_one_message(
    written: Path, tmp_path: Path
) -> None:
    form = integer_form(both())
    content = {path.name: path.read_bytes() for path in written.iterdir() if path.suffix != ".py"}
    draw = random.Random(0)
    for trial in range(40):
        folder = tmp_path / str(trial)
        folder.mkdir()
        name = draw.choice(["network.json", "network.safetensors"])
        data = bytearray(content[name])
        if trial % 2:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(4):
                data[draw.randrange(len(data))] = draw.randrange(256)
        for other, whole in content.items():
            (folder / other).write_bytes(bytes(data) if other == name else whole)
        with suppress(CheckpointError):  # what survived a change, runs
            SpikingJellyNetwork(folder, form).run(pictures(2, 4).numpy())
    tables = tmp_path / "tables"
    mt.export.tables(both(), tables, images=pictures(2, 4))
    with pytest.raises(CheckpointError, match="of another kind"):
        SpikingJellyNetwork(tables, form)
    huge = tmp_path / "huge"
    huge.mkdir()
    network = json.loads(content["network.json"])
    for value in network["values"].values():
        value["shape"] = [2**20, 2**20]
    (huge / "network.json").write_text(json.dumps(network))
    (huge / "network.safetensors").write_bytes(content["network.safetensors"])
    with pytest.raises(CheckpointError, match="shape"):
        SpikingJellyNetwork(huge, form)


def test_without_their_package_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    monkeypatch.setattr("mt_convert.export.onnx_formats.onnx_graph.find_spec", lambda name: None)
    with pytest.raises(mt.errors.SpecError, match=r"spikingjelly; pip install mt-convert\[peers\]"):
        targets.export(both(), "spikingjelly", tmp_path / "out")
