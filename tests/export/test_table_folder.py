"""Tables: the reader of the document on the files that were written, and files that are hostile."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import LADDERS, NAMES, converted, some_images
from safetensors.numpy import load_file, save_file

import mt_convert as mt
from mt_convert.errors import CheckpointError
from mt_convert.export.table_folder import TableReader, hex_text, read_tables


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
def test_every_small_network_leaves_exactly(name: str, tmp_path: Path) -> None:
    verdict = mt.export.tables(converted(name), tmp_path / "out", images=some_images(name))
    assert verdict.exact
    assert verdict.images == 8
    levels = [row for row in verdict.on_images if row.op == "fire"]
    assert len(levels) == len([row for row in verdict.by_node if row.op == "fire"]) > 0
    assert all(row.next_to > 0 for row in verdict.by_node if row.op == "fire")
    stored = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert stored["exact"] is True
    assert stored["target"] == "tables"


@pytest.mark.sampled
@pytest.mark.parametrize("ladder", LADDERS)
def test_every_ladder_leaves_as_its_first_step(ladder: str, tmp_path: Path) -> None:
    snn = converted("residual", ladder)
    assert mt.export.tables(snn, tmp_path / "out", images=some_images("residual")).exact


def test_the_folder_runs_without_this_package(tmp_path: Path) -> None:
    snn, images = converted("residual"), some_images("residual")
    mt.export.tables(snn, tmp_path / "out", images=images)
    reader: dict[str, Any] = runpy.run_path(str(tmp_path / "out" / "reader.py"))
    values = reader["run"](*reader["read"](tmp_path / "out"), images.numpy())
    run = mt.simulate(
        snn, images, time_steps=1, arithmetic=mt.integer_engine.IntegerArithmetic(snn)
    )
    assert torch.equal(torch.tensor(list(values.values())[-1]), run.logits[-1])


def test_golden_vectors_are_what_every_node_reads_and_makes(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    mt.export.tables(converted("residual"), folder, images=some_images("residual"))
    network, arrays = read_tables(folder)
    reader = TableReader(folder)
    values = reader.run(np.load(folder / "golden" / "000.npy"))
    assert len(values) == len(network["nodes"]) + 1 == len(arrays) + 1
    for index, value in values.items():
        stored = np.load(folder / "golden" / f"{index:03d}.npy")
        assert np.array_equal(stored, value)
        bits = network["values"].get(str(index), {}).get("bits", 32)
        lines = (folder / "golden" / f"{index:03d}.hex").read_text().split()
        assert len(lines) == value.size
        if stored.dtype == np.int32:
            numbers = [int(line, 16) for line in lines]
            signed = [
                n - (1 << bits) if n >> (bits - 1) and value.min() < 0 else n for n in numbers
            ]
            assert signed == stored.ravel().tolist()
    assert hex_text(np.array([1.0], dtype=np.float32), 32) == "3f800000\n"


@pytest.mark.slow
def test_accumulator_widths_are_those_that_numbers_need(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    mt.export.tables(converted("mixed"), folder, images=some_images("mixed"))
    network, _ = read_tables(folder)
    for value in network["values"].values():
        if "bits" in value:
            signed = value["low"] < 0
            held = 1 << (value["bits"] - signed)
            assert -held * signed <= value["low"] <= value["high"] < held


# ------------------------------------------------------------------------------- hostile files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables that nobody changes."""
    out = tmp_path_factory.mktemp("tables") / "out"
    mt.export.tables(converted("residual"), out, images=some_images("residual", 2))
    return out


def copy_with(folder: Path, out: Path, **content: bytes) -> Path:
    """The same tables with other bytes in a file."""
    out.mkdir(exist_ok=True)
    for end in ("json", "safetensors"):
        name = f"network.{end}"
        (out / name).write_bytes(content.get(end, (folder / name).read_bytes()))
    return out


def changed_description(folder: Path, out: Path, change: Any) -> Path:
    """The same tables with a changed description."""
    network = json.loads((folder / "network.json").read_text())
    change(network)
    return copy_with(folder, out, json=json.dumps(network).encode())


def first(network: Any, op: str) -> Any:
    return next(node for node in network["nodes"] if node["op"] == op)


CHANGES: dict[str, Any] = {
    "another format": lambda n: n.update(format="zip"),
    "another version": lambda n: n.update(version=99),
    "no nodes": lambda n: n.update(nodes=[]),
    "nodes that are a number": lambda n: n.update(nodes=7),
    "an unknown operator": lambda n: n["nodes"][0].update(op="__import__"),
    "an operator that is a list": lambda n: n["nodes"][0].update(op=[]),
    "a value made twice": lambda n: n["nodes"][2].update(out=n["nodes"][1]["out"]),
    "reading ahead": lambda n: n["nodes"][1].update({"in": [n["nodes"][3]["out"]]}),
    "no inputs": lambda n: n["nodes"][1].update({"in": []}),
    "an image of a terabyte": lambda n: n.update(image_shape=[1 << 20, 1 << 20]),
    "a shape below 0": lambda n: n.update(image_shape=[-1, 8, 8]),
    "a value of a terabyte": lambda n: n["values"]["1"].update(shape=[1 << 40]),
    "padding of a terabyte": lambda n: first(n, "conv").update(padding=[60000, 60000]),
    "a kernel that is not its weight's": lambda n: first(n, "conv").update(kernel=[9, 9]),
    "a stride of 0": lambda n: first(n, "conv").update(stride=[0, 0]),
    "sums in parts of 0": lambda n: first(n, "conv").update(unit=0),
    "sums in parts of text": lambda n: first(n, "linear").update(unit="2"),
    "groups of 0": lambda n: first(n, "conv").update(groups=0),
    "an array that is not there": lambda n: first(n, "conv")["arrays"].update(weight="none"),
    "an array of another node": lambda n: first(n, "fire")["arrays"].update(
        place=first(n, "gather")["arrays"]["index"]
    ),
    "levels that are text": lambda n: first(n, "fire").update(first="1"),
    "factors that are not there": lambda n: first(n, "fire")["arrays"].pop("factor_0"),
    "no read-out": lambda n: n["nodes"].pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_description_of_something_else_is_refused(
    change: str, folder: Path, tmp_path: Path
) -> None:
    copied = changed_description(folder, tmp_path / "copy", CHANGES[change])
    with pytest.raises(CheckpointError, match="no whole tables"):
        read_tables(copied)


def test_the_copy_itself_is_read(folder: Path, tmp_path: Path) -> None:
    read_tables(changed_description(folder, tmp_path / "copy", lambda network: None))


@pytest.mark.slow
def test_truncated_and_changed_bytes_are_refused_or_run(folder: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    images = some_images("residual", 2).numpy()
    outcomes = {"refused": 0, "run": 0}
    for index in range(80):
        end = ("json", "safetensors")[index % 2]
        whole = bytearray((folder / f"network.{end}").read_bytes())
        if index % 4 < 2:
            whole = whole[: draw.randrange(len(whole))]
        else:
            for _ in range(draw.randrange(1, 4)):
                whole[draw.randrange(len(whole))] = draw.randrange(256)
        copied = copy_with(folder, tmp_path / "copy", **{end: bytes(whole)})
        try:
            TableReader(copied).run(images)
            outcomes["run"] += 1
        except CheckpointError as error:
            outcomes["refused"] += len(str(error)) < 700
    assert outcomes["refused"] >= 40
    assert outcomes["run"] > 0  # a changed number is no damage that a reader could see


def test_numbers_of_another_type_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "network.safetensors")
    copied = copy_with(folder, tmp_path / "copy")
    name = next(name for name in tensors if name.endswith(".thresholds"))
    save_file(tensors | {name: tensors[name].astype(np.float64)}, copied / "network.safetensors")
    with pytest.raises(CheckpointError, match="no whole tables"):
        read_tables(copied)


def test_thresholds_out_of_order_are_refused(folder: Path, tmp_path: Path) -> None:
    """The reader finds a level by halving, others by counting: both need the same order."""
    tensors = load_file(folder / "network.safetensors")
    copied = copy_with(folder, tmp_path / "copy")
    name = next(name for name in tensors if name.endswith(".thresholds"))
    turned = np.ascontiguousarray(tensors[name][:, ::-1])
    save_file(tensors | {name: turned}, copied / "network.safetensors")
    with pytest.raises(CheckpointError, match="the order of thresholds"):
        read_tables(copied)


def test_a_missing_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tables at"):
        read_tables(tmp_path / "none")
