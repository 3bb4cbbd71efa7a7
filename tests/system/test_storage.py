"""Files are whole or absent, and nothing that could run code is opened."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.errors import CheckpointError, OutputError
from mt_convert.system.storage import (
    atomic,
    load_foreign,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files too."""
    return sorted(item.name for item in folder.iterdir())


def test_a_failing_writer_leaves_the_earlier_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"whole": 1})

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyError("interrupted")

    with pytest.raises(KeyError):
        interrupted()
    assert read_json(path) == {"whole": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_is_an_output_error_and_the_earlier_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: write_json(path, 2), lambda: save_tensors(path, {"a": torch.ones(2)})):
        with pytest.raises(OutputError, match=r"a\.json.*No space left.*--out"):
            write()
    assert path.read_text() == "1\n"
    assert names(tmp_path) == ["a.json"]


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_missing_folders_are_made_and_files_have_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_json(path, [1])
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_json_keeps_text_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"Δ": [0.1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"Δ": [0.1, None, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"a": 1} tail'])
def test_damaged_json_is_a_checkpoint_error_with_the_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"graph\.json is not JSON"):
        read_json(path)


def test_missing_files_are_checkpoint_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")
    for read in (load_tensors, load_foreign):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*a\.pt"):
            read(tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            read(tmp_path)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4)
    tensors = {
        "float": torch.randn(3, 4).t(),  # not contiguous
        "half": torch.randn(3).bfloat16(),
        "whole": torch.arange(5),
        "empty": torch.zeros(0, 2),
        "number": torch.tensor(1e-45),  # a subnormal
        "one": shared,
        "same": shared,
        "part": shared[1:],
        "parameter": nn.Parameter(torch.randn(2)),
    }
    save_tensors(tmp_path / "a.safetensors", tensors)
    found = load_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_tensors_are_a_checkpoint_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load_tensors, load_foreign):
        with pytest.raises(CheckpointError, match=r"a\.safetensors is not a whole safetensors"):
            read(path)


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_of_others_are_unpacked(tmp_path: Path, key: str | None) -> None:
    state = OrderedDict(nn.Linear(2, 3).state_dict())
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pth")
    found = load_foreign(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


class Harmful:
    """What a pickle can do: make a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    torch.save({"a": torch.ones(2), "b": Harmful(traces)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful(traces)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match=r"run code.*not opened.*safetensors"):
            load_foreign(tmp_path / name)
    assert not traces.exists()
    pickle.loads((tmp_path / "b.pt").read_bytes())
    assert traces.exists(), "the control: the pickle does run code where it is opened carelessly"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no torch file at all"])
def test_a_damaged_torch_file_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is (damaged|not a whole torch file)"):
        load_foreign(tmp_path / "a.pt")


def test_a_truncated_torch_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole torch file"):
        load_foreign(tmp_path / "a.pt")


def test_a_file_without_tensors_is_a_checkpoint_error(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors: expected a state_dict"):
        load_foreign(tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds a list, not named tensors"):
        load_foreign(tmp_path / "b.pt")
