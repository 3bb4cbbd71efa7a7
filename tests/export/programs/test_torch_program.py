"""A program of torch.export: equal levels and logits where this package is not there."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import LADDERS, NAMES, converted, some_images

import mt_convert as mt
from mt_convert.errors import CheckpointError
from mt_convert.export import node_inputs, targets, verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.nodes import Node
from mt_convert.export.programs import torch_program, torch_reader

Change = Callable[[str, bytes], bytes]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, verdict.Verdict]:
    path = tmp_path_factory.mktemp("torch") / "network.pt2"
    return path, mt.export.torch(converted("line"), path, images=some_images("line"))


class InThisProcess:
    """What a process of its own does, here: torch is there already."""

    version = "here"

    def __init__(self, path: Path) -> None:
        self.program = torch_reader.Program(path)
        self.form = integer_form(converted("line"))

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        shown = [node.out for node in self.form.nodes if node.op in ("fire", "read_out")]
        found = self.program.run({0: torch.from_numpy(images)}, shown)
        return {index: one.numpy() for index, one in zip(shown, found, strict=True)}

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        kind = torch.float32 if node.op == "encode" else torch.int32
        tensors = [torch.from_numpy(one).to(kind) for one in inputs]
        (found,) = self.program.run(dict(zip(node.inputs, tensors, strict=True)), [node.out])
        return np.asarray(found)


def change_parts(path: Path, to: Path, change: Change) -> Path:
    """The same archive with other parts."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w") as sink:
        for item in source.infolist():
            sink.writestr(item.filename, change(item.filename, source.read(item)))
    return to


def described(edit: Callable[[Any], None]) -> Change:
    """A change of the program's description."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return change


@pytest.mark.slow
def test_a_process_without_this_package_gives_every_level_and_logit(
    written: tuple[Path, verdict.Verdict],
) -> None:
    path, found = written
    assert found.exact
    assert found.runtime.startswith("torch")
    assert sum(row.op == "fire" for row in found.on_images) > 0
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "network.pt2",
        "network.pt2.verdict.json",
    ]
    text = path.read_bytes()
    assert b"forward\\n" not in text  # no places of this machine
    assert b"/torch_program.py" not in text


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_network_and_ladder_leaves_to_torch(name: str, tmp_path: Path) -> None:
    ladders = (None, *LADDERS) if name == "line" else (None,)
    for ladder in ladders:
        snn = converted(name, ladder)
        found = targets.export(snn, "torch", tmp_path / "a.pt2", images=some_images(name))
        assert found.exact


@pytest.mark.slow
def test_many_thresholds_are_searched_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_program, "MOST_COMPARED", 2)
    form = integer_form(converted("residual"))
    network = torch_program.Network(form)
    for node in form.nodes:
        if node.op == "fire":
            assert hasattr(network.get_submodule(f"value_{node.out}"), "thresholds_rows")
            for inputs, _ in node_inputs.inputs_of(form, node):
                made = network.get_submodule(f"value_{node.out}")(*(one.int() for one in inputs))
                assert torch.equal(made, verdict.expected(form, node, inputs).int())
    images = some_images("residual")
    assert torch.equal(network(images), form.model.run(images).logits[-1])


@pytest.mark.slow
def test_a_changed_program_is_red(written: tuple[Path, verdict.Verdict], tmp_path: Path) -> None:
    path, _ = written
    form, images = integer_form(converted("line")), some_images("line", 2)

    def is_red(change: Change) -> bool:
        runtime = InThisProcess(change_parts(path, tmp_path / "network.pt2", change))
        return not verdict.verify("torch", form, runtime, images, {}).exact

    with zipfile.ZipFile(path) as archive:
        name = "network/data/weights/model_weights_config.json"
        config = json.loads(archive.read(name))["config"]

    def plus_one(leaf: str) -> Change:
        rows = {key: row for key, row in config.items() if key.endswith(leaf)}
        row = next(iter(rows.values()))
        kind = {4: np.int32, 7: np.float32}[row["tensor_meta"]["dtype"]]

        def change(name: str, content: bytes) -> bytes:
            if not name.endswith(f"/{row['path_name']}"):
                return content
            numbers = np.frombuffer(content, kind).copy()
            numbers[len(numbers) // 2] += 1
            return numbers.tobytes()

        return change

    def unpad(model: Any) -> None:
        nodes = model["graph_module"]["graph"]["nodes"]
        node = next(one for one in nodes if one["target"] == "torch.ops.aten.pad.default")
        around = next(one["arg"]["as_ints"] for one in node["inputs"] if one["name"] == "pad")
        around[:] = [around[0] + around[1], 0]

    assert not is_red(lambda name, content: content)
    assert is_red(plus_one(".thresholds"))
    assert is_red(plus_one(".weight"))
    assert is_red(plus_one(".bias"))
    assert is_red(described(unpad))


@pytest.mark.slow
def test_what_would_run_code_or_is_damaged_is_refused_unread(
    written: tuple[Path, verdict.Verdict], tmp_path: Path
) -> None:
    path, _ = written
    other, refused, draw = tmp_path / "network.pt2", 0, random.Random(0)
    torch_reader.check(path)

    def pickled(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle": false', b'"use_pickle": true ')

    def example(name: str, content: bytes) -> bytes:
        return b"cos\nsystem\n" if name.endswith(".pt") else content

    def target(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][-1]["target"] = "torch.load"

    def size(model: Any) -> None:
        text = json.dumps(model)
        assert "expr_str" in text
        model["more"] = {"expr_str": "__import__('os').getcwd()"}

    def guard(model: Any) -> None:
        model["guards_code"] = ["print(1)"]

    for change in (pickled, example, *(described(edit) for edit in (target, size, guard))):
        with pytest.raises(ValueError, match=r"pickled|no operator|no size|no part"):
            torch_reader.check(change_parts(path, other, change))
    whole = path.read_bytes()
    for index in range(40):
        content = bytearray(whole)
        if index % 2:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        other.write_bytes(content)
        try:
            torch_reader.check(other)
        except Exception:
            refused += 1
    assert refused >= 35  # a bit of what zip files keep twice, or pad with, changes nothing


@pytest.mark.slow
def test_a_file_that_does_not_run_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    path.write_bytes(b"no program")
    with pytest.raises(CheckpointError, match=r"does not run .* write it again") as error:
        torch_program.TorchProgram(path, integer_form(converted("line")))
    assert "\n" not in str(error.value)
