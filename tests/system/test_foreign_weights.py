"""Weights of others: which set is taken, which prefix is removed; damage is one message."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mt_convert.errors import CheckpointError, MTConvertError
from mt_convert.system.foreign_weights import ForeignWeights, load_foreign
from mt_convert.system.storage import load_tensors, read_json

NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
STATE = dict(NETWORK.state_dict())


def stored(path: Path, content: Any) -> ForeignWeights:
    torch.save(content, path)
    return load_foreign(path).named_as(STATE)


def is_state(tensors: dict[str, Tensor]) -> bool:
    return tensors.keys() == STATE.keys() and all(
        torch.equal(tensors[name], STATE[name]) for name in STATE
    )


OTHER = {name: value + 1 for name, value in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
SETS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (STATE, ""),
    "plain beside numbers": ({**STATE, "epoch": 3}, ""),
    "net": ({"net": STATE, "acc": 91.2, "epoch": 3}, "net"),
    "model_state_dict": (
        {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER},
        "model_state_dict",
    ),
    "ema of timm": (
        {
            "state_dict": OTHER,
            "state_dict_ema": STATE,
            "args": argparse.Namespace(lr=1),
            "optimizer": OPTIMIZER,
        },
        "state_dict_ema",
    ),
    "ema of detection code": ({"model": OTHER, "ema": {"module": STATE, "decay": 1}}, "ema.module"),
    "no ema was kept": ({"state_dict": STATE, "state_dict_ema": None}, "state_dict"),
    "averaged parameters": ({"params": OTHER, "params_ema": STATE}, "params_ema"),
    "two deep": ({"model": {"state_dict": STATE, "step": 1}}, "model.state_dict"),
    "one set of an unknown name": ({"wheels": STATE, "note": "mine"}, "wheels"),
    "moments of the optimizer beside": ({"wheels": STATE, "optim": {"m": STATE}}, "wheels"),
}


@pytest.mark.parametrize(("content", "taken"), SETS.values(), ids=SETS.keys())
def test_the_set_that_is_taken_is_said(content: Any, taken: str, tmp_path: Path) -> None:
    found = stored(tmp_path / "a.pt", content)
    assert is_state(found.tensors)
    assert found.taken == taken
    assert (repr(taken) if taken else "the file's tensors") in str(found)
    assert found.to_json()["set"] == (taken or None)


def test_sets_that_are_passed_over_are_said(tmp_path: Path) -> None:
    content = {"state_dict": OTHER, "state_dict_ema": STATE}
    found = stored(tmp_path / "a.pt", content)
    assert str(found) == "took 'state_dict_ema', passed over 'state_dict'"


def test_two_sets_of_unknown_names_are_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 sets of tensors, none under a name") as caught:
        stored(tmp_path / "a.pt", {"student": STATE, "teacher": OTHER})
    assert [item.where for item in caught.value.faults] == ["student", "teacher"]


PREFIXES = ("net.", "backbone.", "model.", "module.", "_orig_mod.", "student.encoder.", "a.b.c.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_removed_and_said(prefix: str, tmp_path: Path) -> None:
    found = stored(tmp_path / "a.pt", {prefix + name: value for name, value in STATE.items()})
    assert is_state(found.tensors)
    expected = "" if prefix == "_orig_mod." else prefix
    assert found.prefix == expected
    assert expected in str(found)


def test_wrappers_of_every_kind_are_unwrapped(tmp_path: Path) -> None:
    averaged = AveragedModel(NETWORK, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(NETWORK)
    found = stored(tmp_path / "a.pt", averaged.state_dict())
    assert is_state(found.tensors)
    assert (found.prefix, found.left_out) == ("module.", ("n_averaged",))
    assert is_state(stored(tmp_path / "a.pt", nn.DataParallel(NETWORK).state_dict()).tensors)
    inner = {name.replace(".", "._orig_mod.", 1): value for name, value in STATE.items()}
    assert is_state(stored(tmp_path / "a.pt", {f"module.{n}": v for n, v in inner.items()}).tensors)
    lightning = {f"model.{name}": value for name, value in STATE.items()}
    content = {"state_dict": {**lightning, "loss.weight": torch.ones(2)}, "callbacks": {}}
    found = stored(tmp_path / "a.pt", content)
    assert is_state(found.tensors)
    assert str(found) == "took 'state_dict', removed the prefix 'model.', left out loss.weight"


def test_two_prefixes_that_fit_are_an_error(tmp_path: Path) -> None:
    both = {f"{part}.{name}": value for part in ("a", "b") for name, value in STATE.items()}
    with pytest.raises(CheckpointError, match=r"2 sets of weights that fit, under a\., b\.:"):
        stored(tmp_path / "a.pt", both)


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.bin")
    torch.save(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    for name in ("a.bin", "a.safetensors", "old.th"):
        assert is_state(load_foreign(tmp_path / name).tensors)


ODD: dict[str, tuple[dict[Any, Any], str]] = {
    "meta": ({"a": torch.ones(1, device="meta")}, r"a  holds no numbers \(meta\)"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "a  is sparse"),
    "sparse rows": ({"a": torch.eye(2).to_sparse_csr()}, "a  is sparse"),
    "quantized": (
        {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        "quantized",
    ),
    "number": ({1: torch.ones(1)}, "1  is named by a int"),
    "pair": ({("a", 1): torch.ones(1)}, "is named by a tuple"),
    "nested": ({"a": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])}, "a "),
}


@pytest.mark.parametrize(("content", "message"), ODD.values(), ids=ODD.keys())
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_listed(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path / "a.pt", content)


def test_an_empty_safetensors_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(CheckpointError, match="holds no tensors: expected named weights"):
        load_foreign(tmp_path / "a.safetensors")


def test_a_tensor_of_more_numbers_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    assert load_foreign(tmp_path / "a.pt").tensors["0.weight"].untyped_storage().nbytes() == 4


def files() -> dict[str, bytes]:
    """One file of each format."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(STATE, folder / "a.safetensors")
        torch.save({"state_dict": STATE, "epoch": 1}, folder / "a.pt")
        torch.save(STATE, folder / "a.th", _use_new_zipfile_serialization=False)
        return {item.name: item.read_bytes() for item in folder.iterdir()}


FILES = files()


@pytest.mark.slow
@settings(deadline=2000, max_examples=150)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=0, max_size=3),
    st.one_of(st.none(), st.integers(0, 2**20)),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_one_message_and_takes_no_memory(
    name: str, flips: list[tuple[int, int]], keep: int | None, early: bool
) -> None:
    content = bytearray(FILES[name])
    for place, bits in flips:
        content[place % (200 if early else len(content))] ^= bits
    if keep is not None:
        content = content[: keep % len(content)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(content)
        with contextlib.suppress(MTConvertError):  # and nothing else
            load_foreign(path).named_as(STATE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_of_others_are_unpacked(tmp_path: Path, key: str | None) -> None:
    state = OrderedDict(nn.Linear(2, 3).state_dict())
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pth")
    found = load_foreign(tmp_path / "a.pth").tensors
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


def test_a_packed_torch_file_does_not_grow_in_memory(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(10**6)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    assert set(load_foreign(plain).tensors) == {"a"}
    with pytest.raises(CheckpointError, match="bytes, which it does not hold"):
        load_foreign(packed)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    for read in (load_foreign, load_tensors, read_json):
        with pytest.raises(CheckpointError):
            read(tmp_path / "a.pt")
