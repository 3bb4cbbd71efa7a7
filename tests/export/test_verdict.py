"""The check can turn red: a threshold moved by one, a bias by one, a padding removed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import converted, some_images
from networks import quantized
from torch import nn

import mt_convert as mt
from mt_convert.errors import CheckpointError, OutputError, SpecError, UnsupportedLayerError
from mt_convert.export import targets, verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.nodes import IntegerForm, Node
from mt_convert.export.table_folder import TableReader, write_tables


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[IntegerForm, Path]:
    form, folder = integer_form(converted("residual")), tmp_path_factory.mktemp("a") / "tables"
    write_tables(form, folder)
    return form, folder


def is_red(form: IntegerForm, node: Node, reader: TableReader) -> bool:
    return verdict._compare_node(form, node, reader).different > 0


def nodes_of(form: IntegerForm, op: str) -> list[tuple[int, Node]]:
    return [(index, node) for index, node in enumerate(form.nodes) if node.op == op]


@pytest.mark.slow
def test_every_written_threshold_moved_by_one_is_red(written: tuple[IntegerForm, Path]) -> None:
    form, folder = written
    reader, moved = TableReader(folder), 0
    for index, node in nodes_of(form, "fire"):
        thresholds = reader.arrays[index]["thresholds"]
        free, alone = form.values[node.inputs[0]], len(node.inputs) == 1
        rows, columns = thresholds.shape
        for entry in range(0, rows * columns, 11):
            row, column = divmod(entry, columns)
            threshold = thresholds[row, column]
            if alone and not free.low < threshold < free.high:
                continue  # no accumulator comes there
            for step in (1, -1) if alone else (1,):  # between two sums a threshold has some room
                thresholds[row, column] = threshold + step
                assert is_red(form, node, reader), (node.name, row, column)
                moved += 1
            thresholds[row, column] = threshold
        assert not is_red(form, node, reader)
    assert moved > 25


def test_a_bias_by_one_is_red(written: tuple[IntegerForm, Path]) -> None:
    form, folder = written
    reader = TableReader(folder)
    for index, node in nodes_of(form, "fire"):
        reader.network["nodes"][index]["first"] += 1
        assert is_red(form, node, reader)
    last = len(form.nodes) - 1
    bias = reader.arrays[last]["bias"]
    bias[0] = np.nextafter(bias[0], np.float32(np.inf))
    assert is_red(form, form.nodes[last], reader)


def test_a_weight_by_one_and_a_padding_removed_are_red(written: tuple[IntegerForm, Path]) -> None:
    form, folder = written
    reader = TableReader(folder)
    for index, node in [*nodes_of(form, "conv"), *nodes_of(form, "linear")]:
        reader.arrays[index]["weight"].flat[0] += 1
        assert is_red(form, node, reader)
        reader.arrays[index]["weight"].flat[0] -= 1
        assert not is_red(form, node, reader)
        if node.op == "conv":
            reader.network["nodes"][index]["padding"] = [0, 0]
            assert is_red(form, node, reader)


def test_a_scale_of_the_image_by_an_ulp_is_red(written: tuple[IntegerForm, Path]) -> None:
    form, folder = written
    reader = TableReader(folder)
    scale = reader.arrays[0]["scale"]
    reader.arrays[0]["scale"] = np.nextafter(scale, np.float32(np.inf))
    assert is_red(form, form.nodes[0], reader)


def test_random_images_alone_would_not_see_a_threshold_moved(
    written: tuple[IntegerForm, Path],
) -> None:
    form, folder = written
    images = some_images("residual", 32)
    unseen = 0
    for index, node in nodes_of(form, "fire")[:2]:
        reader = TableReader(folder)
        thresholds = reader.arrays[index]["thresholds"]
        thresholds[0, -1] += 1
        compared, *_ = verdict._compare_on_images(form, reader, images)
        unseen += all(row.different == 0 for row in compared)
        assert is_red(form, node, reader)
    assert unseen > 0


@pytest.mark.slow
def test_checking_again_tells_a_changed_file(tmp_path: Path) -> None:
    snn, images = converted("residual"), some_images("residual", 2)
    mt.export.tables(snn, tmp_path / "out", images=images)
    assert targets.export(snn, "tables", tmp_path / "out", images=images, again=True).exact
    path = tmp_path / "out" / "network.json"
    network: Any = json.loads(path.read_text())
    next(node for node in network["nodes"] if node["op"] == "conv")["padding"] = [0, 0]
    path.write_text(json.dumps(network))
    with pytest.raises(CheckpointError) as error:
        targets.export(snn, "tables", tmp_path / "out", images=images, again=True)
    assert "tables" in str(error.value)
    with pytest.raises(CheckpointError, match="export it first"):
        targets.export(snn, "tables", tmp_path / "none", images=images, again=True)


def test_what_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(form: IntegerForm, folder: Path) -> None:
        write_tables(form, folder)
        path = folder / "network.json"
        network = json.loads(path.read_text())
        network["nodes"][2]["first"] += 1
        path.write_text(json.dumps(network))

    wrong = replace(targets.TARGETS["tables"], write=write_wrong)
    monkeypatch.setitem(targets.TARGETS, "tables", wrong)
    with pytest.raises(UnsupportedLayerError, match="nothing was kept") as error:
        mt.export.tables(converted("residual"), tmp_path / "out", images=some_images("residual", 2))
    assert "numbers differ next to thresholds" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_second_export_replaces_the_first_and_spares_what_is_none(tmp_path: Path) -> None:
    snn, images = converted("functional"), some_images("functional", 2)
    mt.export.tables(snn, tmp_path / "out", images=images)
    mt.export.tables(converted("residual"), tmp_path / "out", images=images)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match="no export"):
        mt.export.tables(snn, tmp_path / "mine", images=images)
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"
    (tmp_path / "file").write_text("dear")
    with pytest.raises(OutputError, match="no export"):
        mt.export.tables(snn, tmp_path / "file", images=images)
    with pytest.raises(OutputError, match="cannot write"):
        mt.export.tables(snn, tmp_path / "file" / "below", images=images)


@pytest.mark.slow
def test_what_has_no_exact_form_is_refused_with_every_reason(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.LayerNorm([4, 6, 6]), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.Softmax(1), nn.Flatten(), nn.Linear(64, 3)),
    )
    images = some_images("residual")
    spec = mt.QuantSpec(input_bits=None)
    snn = mt.convert(mt.quantize(net.eval(), spec, calibration=images))
    with pytest.raises(UnsupportedLayerError) as error:
        mt.export.tables(snn, tmp_path / "out", images=images)
    assert len(error.value.faults) >= 2
    assert not (tmp_path / "out").exists()
    waiting = mt.convert(quantized("line"), ladder=mt.PowerOfTwo(2), whole_window=True)
    with pytest.raises(UnsupportedLayerError, match="one pass does not say its window"):
        mt.export.tables(waiting, tmp_path / "out")
    with pytest.raises(SpecError, match="allowed are tables"):
        targets.export(converted("residual"), "zip", tmp_path / "out")
    with pytest.raises(SpecError, match="export"):
        mt.export.tables(net, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tables", "c"])
def test_a_value_that_is_read_twice_is_two_inputs(target: str, tmp_path: Path) -> None:
    form = integer_form(converted("doubled"))
    assert all(len({*node.inputs}) == len(node.inputs) for node in form.nodes)
    assert [node.name for node in form.nodes if node.name.startswith("again")] == ["again 3"]
    found = targets.export(converted("doubled"), target, tmp_path / "out", images=some_images("x"))
    assert found.exact


def test_the_reference_is_the_integer_engine_itself() -> None:
    form = integer_form(converted("residual"))
    node = next(node for node in form.nodes if node.op == "fire")
    place = node.arrays["place"].flatten()[0]
    threshold = int(node.arrays["thresholds"][place, 0] * node.arrays["factor_0"][place])
    shape = form.values[node.inputs[0]].shape
    at = torch.full((1, *shape), threshold)
    first = node.settings["first"]
    assert int(verdict.expected(form, node, [at]).flatten()[0]) == first + 1


@pytest.mark.slow
def test_exports_beside_one_another_keep_verdicts_of_their_own(tmp_path: Path) -> None:
    snn, images = converted("line"), some_images("line", 2)
    for name in ("network.c", "network.w8.c", 'a "network".c'):
        mt.export.c(snn, tmp_path / name, images=images)
    assert len(list(tmp_path.glob("*.verdict.json"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("ladder", "steps"), [(mt.Radix(1), 4), (mt.Uniform(4), 4)])
@pytest.mark.parametrize("target", ["tables", "onnx"])
def test_a_whole_window_leaves_as_one_pass(
    target: str, ladder: Any, steps: int, tmp_path: Path
) -> None:
    if target == "onnx":
        pytest.importorskip("onnxruntime", reason="make installs it: it is in the extra dev")
    waiting = mt.convert(quantized("line"), ladder=ladder, whole_window=True)
    form, plain = integer_form(waiting), integer_form(converted("line"))
    assert form.time_steps == steps
    assert [node.op for node in form.nodes] == [node.op for node in plain.nodes]
    images = some_images("line")
    found = targets.export(waiting, target, tmp_path / "out", images=images)
    assert found.exact
    assert found.json()["time_steps"] == steps
    runs = form.model.run(images, steps).logits[-1], plain.model.run(images).logits[-1]
    assert torch.equal(*runs)
