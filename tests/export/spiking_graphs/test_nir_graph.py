"""Integrate-and-fire neurons with scalar thresholds: equal levels and logits, or a refusal."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import converted, some_images
from networks import images, lived_in
from torch import Tensor, nn
from torch.nn import functional as F

import mt_convert as mt
from mt_convert.errors import CheckpointError, SpecError, UnsupportedLayerError
from mt_convert.export import verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.nodes import IntegerForm
from mt_convert.export.onnx_formats import onnx_graph
from mt_convert.export.spiking_graphs import nir_runtime
from mt_convert.export.spiking_graphs.nir_graph import write_nir

nir = pytest.importorskip("nir", reason="make installs it")
h5py = pytest.importorskip("h5py", reason="make installs it")

Written = tuple[IntegerForm, Path]


class Small(nn.Module):
    """Levels on both sides of 0, depthwise products, a shortcut, a maximum, a mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.a(x), -1, 1)
        x = F.relu(self.b(F.hardtanh(self.d(x), -1, 2)) + x)
        x = F.relu(self.c(F.max_pool2d(x, 3, 2, 1)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    form = integer_form(converted("line", "uniform_3"))
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    write_nir(form, path)
    return form, path


def opened(form: IntegerForm, path: Path) -> nir_runtime.NirGraph:
    """Without SpikingJelly, which reads a graph once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nir_runtime, "find_spec", lambda name: None)
        return nir_runtime.NirGraph(path, form)


def test_a_graph_is_exact_neuron_by_neuron_and_as_a_whole(written: Written) -> None:
    form, path = written
    found = verdict.verify("nir", form, opened(form, path), some_images("line"), {})
    assert found.exact
    assert sum(row.next_to for row in found.by_node) > 100
    assert sum(row.op == "fire" for row in found.on_images) > 0
    graph = nir.read(path)
    kinds = {type(node).__name__ for node in graph.nodes.values()}
    assert kinds <= nir_runtime.TYPES
    assert {
        float(t) for n in graph.nodes.values() if hasattr(n, "r") for t in n.v_threshold.flat
    } == {0.5}
    assert graph.metadata["time_steps"] == 1
    for node in graph.nodes.values():  # whole numbers up to the read-out
        if isinstance(node, nir.Conv1d):
            assert np.array_equal(node.weight, np.rint(node.weight))


@pytest.mark.slow
def test_spikingjelly_gives_the_logits_of_levels_on_both_sides_of_0(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly", reason="make installs it")
    batch = images(8, (2, 6, 6), 2)
    torch.manual_seed(0)
    spec = mt.QuantSpec(act_bits=2)
    snn = mt.convert(mt.quantize(lived_in(Small().eval()), spec, calibration=batch))
    found = mt.export.nir(snn, tmp_path / "network.nir", images=batch)
    assert found.exact
    assert found.runtime.startswith("spikingjelly")
    names = nir.read(tmp_path / "network.nir").nodes
    assert any("_down_1" in name for name in names)
    assert any(name.endswith("_minus") for name in names)


@pytest.mark.long
@pytest.mark.parametrize("ladder", [None, "power_of_two_4", "binary_4", "every_step"])
def test_every_ladder_leaves_as_its_first_step(ladder: str | None, tmp_path: Path) -> None:
    path = tmp_path / "network.nir"
    assert mt.export.nir(converted("line", ladder), path, images=some_images("line")).exact


def test_a_changed_graph_is_red(written: Written) -> None:
    form, path = written
    runtime = opened(form, path)
    fire = next(node for node in form.nodes if node.op == "fire")
    conv = [node for node in form.nodes if node.op == "conv"][-1]
    last = form.nodes[-1]

    def is_red(node: Any) -> bool:
        return verdict._compare_node(form, node, runtime).different > 0

    drive = runtime.graph.nodes[f"value_{fire.out}_up_2_drive"]
    weighted, logits = (runtime.graph.nodes[f"value_{node.out}"] for node in (conv, last))
    for node, array in ((fire, drive.bias), (conv, weighted.weight), (last, logits.bias)):
        assert not is_red(node)
        array.flat[0] += 1
        assert is_red(node)
        array.flat[0] -= 1
    neurons = runtime.graph.nodes[f"value_{fire.out}_up_1"]
    neurons.v_threshold = neurons.v_threshold + 1
    assert is_red(fire)
    padding, weighted.padding = weighted.padding, 0
    with pytest.raises((CheckpointError, AssertionError)):
        assert not is_red(conv)
    weighted.padding = padding
    spikes = f"value_{fire.out}_up_2"
    reader = next(target for source, target in runtime.graph.edges if source == spikes)
    runtime.before[reader].remove(spikes)
    assert any(is_red(node) for node in form.nodes)


REFUSED = {
    "pre_activation": "put an activation on the shortcut",
    "residual": "NIR has no such operator",
    "volume": "axes of space",
    "kinds_of_convolution": "a kernel that is not square",
    "mixed": "a maximum of other numbers",
}


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_has_no_form_for_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match=REFUSED[name]):
        mt.export.nir(converted(name), tmp_path / "network.nir")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_nir_would_read_for_hours_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 3)),
    )
    snn = mt.convert(mt.quantize(lived_in(net), "w4a8", calibration=images(8)))
    with pytest.raises(UnsupportedLayerError, match=r"[\d,]+ nodes and [\d,]+ edges"):
        mt.export.nir(snn, tmp_path / "network.nir")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_truncated_changed_and_foreign_files_are_one_message(
    written: Written, tmp_path: Path
) -> None:
    form, source = written
    whole, path, draw, refused = source.read_bytes(), tmp_path / "n.nir", random.Random(0), 0
    for index in range(20):
        content = bytearray(whole)
        if index % 2:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(2048)] = draw.randrange(256)
        path.write_bytes(content)
        try:
            opened(form, path).run(some_images("line", 2).numpy())
        except CheckpointError as error:
            refused += len(str(error).splitlines()) == 1
    assert refused >= 10

    def refuse(change: Any, words: str) -> None:
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(CheckpointError, match=words):
            nir_runtime.read_graph(path)

    def link(file: Any) -> None:
        file["node/nodes/other"] = h5py.ExternalLink("/etc/hostname", "/")

    def kind(file: Any) -> None:
        del file["node/nodes/input/type"]
        file["node/nodes/input"].create_dataset("type", data="LIF", dtype=h5py.string_dtype())

    def large(file: Any) -> None:
        file.create_dataset("node/nodes/input/more", (2**40,), "f4", compression="gzip")

    refuse(link, "is a link")
    refuse(kind, "LIF")
    refuse(large, "too large")
    with pytest.raises(CheckpointError, match="cannot read"):
        nir_runtime.read_graph(tmp_path / "none")


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"not installed: nir; pip install mt-convert\[export\]"):
        mt.export.nir(converted("line"), tmp_path / "network.nir")
