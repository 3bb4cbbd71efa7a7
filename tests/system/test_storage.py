"""Files are whole or absent, tensors come back bit for bit."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.errors import CheckpointError, OutputError
from mt_convert.system.foreign_weights import load_foreign
from mt_convert.system.storage import (
    atomic,
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
    with pytest.raises(OutputError, match="no number"):
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


JSON_OF_OTHERS = {
    "nested 200 deep": "[" * 200 + "]" * 200,
    "nested 10^5 deep": "[" * 10**5,
    "5,000 digits": "9" * 5000,
    "22 digits": "9" * 22,
    "beyond all floats": "1e999",
    "NaN": "NaN",
    "minus infinity": "[-Infinity]",
    "half a pair of UTF-16": '"\\ud800"',
    "the same as a key": '{"\\udfff": 1}',
    "utf-16": "{}".encode("utf-16"),
    "utf-32": "{}".encode("utf-32"),
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "latin-1": '{"é": 1}'.encode("latin-1"),
    "two values": "{} {}",
    "nothing": "",
    "zeros": b"\0" * 99,
}


@pytest.mark.parametrize("name", JSON_OF_OTHERS)
def test_json_that_is_not_ours_is_one_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    content = JSON_OF_OTHERS[name]
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"a\.json is not JSON"):
        read_json(path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="MiB"):
        read_json(tmp_path / "a.json")


def test_what_a_reader_raises_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    wrong = (lambda x: x["b"], lambda x: x.b, lambda x: x["a"][0], lambda x: 1 / 0 if x else 0)
    for convert in wrong[:3]:
        with pytest.raises(CheckpointError, match=r"a\.json is damaged"):
            read_json(path, convert)
    with pytest.raises(ZeroDivisionError):  # a fault of ours stays one
        read_json(path, wrong[3])
    assert read_json(path, lambda x: x["a"]) == 1


def test_a_number_that_is_none_is_one_error_with_its_name(tmp_path: Path) -> None:
    value = {"rows": [{"a": 1.0}, {"a": float("inf"), "b": float("nan")}]}
    with pytest.raises(OutputError, match=r"rows\.1\.a and 1 more: NaN or infinite"):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())
