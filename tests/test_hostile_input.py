"""Whatever stands in a file that is read: one of our errors or a value, soon, in little memory.

2,000 examples in all here; ``make fuzz`` tries as many for each reader (``MT_CONVERT_FUZZ``).
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from mt_convert.data import DataSpec
from mt_convert.data.class_map import head_faults
from mt_convert.data.image_files import list_split
from mt_convert.errors import MTConvertError
from mt_convert.evaluation.analysis import Analysis
from mt_convert.experiments.bench.rows import benchmark_from_json
from mt_convert.experiments.coverage.rows import read_table
from mt_convert.experiments.recipes.from_scratch import load as load_recipe
from mt_convert.experiments.show import show
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.spiking.archive import network as archive
from mt_convert.spiking.archive.layouts import digest_of, read_description, read_tensors
from mt_convert.spiking.conversion_report import ConversionReport
from mt_convert.spiking.convert import convert
from mt_convert.system.folder_lock import _holder, _works
from mt_convert.system.foreign_weights import load_foreign
from mt_convert.system.storage import load_tensors, read_json, save_tensors
from mt_convert.training.spec import EpochRow, History

ASKED = os.environ.get("MT_CONVERT_FUZZ")
LIGHT, HEAVY = (int(ASKED), int(ASKED)) if ASKED else (360, 100)
SECONDS, WAITING, MEBIBYTES = 10, 60, 600  # of this process; on the clock; more than before

fuzzed = settings(
    max_examples=LIGHT,
    deadline=None,
    derandomize=ASKED is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
of_networks = settings(fuzzed, max_examples=HEAVY)
pytestmark = pytest.mark.slow


class TooLong(BaseException):
    """Nothing of ours catches it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Our errors, and nothing else, within seconds and mebibytes."""

    def late(*_: object) -> None:
        raise TooLong

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usual = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    except MTConvertError as error:
        text = str(error)
        text.encode()
        assert text.strip()
        assert len(text) < 20_000
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in usual.items():
            signal.signal(number, handler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    assert grown < MEBIBYTES * 1024, f"{grown / 1024:.0f} MiB"


# ------------------------------------------------------------------------------ what is put in

NUMBERS = st.sampled_from(
    [
        *(-1, 0, 1, 2, 7, 255, 65_535, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40),
        *(0.5, -0.0, 1e-300, 1e300, 1e39),
    ]
)
SCALARS = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.sampled_from(
        ["", "meta", "aten.add.Tensor", "[/red]", "\0", "é", "a" * 300, "../x", "\ud800"]
    ),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "kind", "type", "rows", "schema", "n"]), inner),
    ),
    max_leaves=6,
)
SPECIAL = st.sampled_from(
    [
        *(b"", b"{}", b"[]", b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 5000, b"{" * 5000),
        *(b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b'"\\ud800"', b"\0" * 64),
        *("{}".encode("utf-16"), "{}".encode("utf-32"), b"[1" + b",1" * 9999 + b"]"),
    ]
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """Bytes that were whole: cut, changed, doubled, or something else."""
    how = draw(st.sampled_from(["cut", "bytes", "insert", "special", "twice"]))
    place = draw(st.integers(0, max(0, len(whole) - 1)))
    if how == "cut":
        return whole[:place]
    if how == "bytes":
        changed = bytearray(whole)
        for at in draw(st.lists(st.integers(0, max(0, len(whole) - 1)), min_size=1, max_size=4)):
            changed[at] = draw(st.integers(0, 255))
        return bytes(changed)
    if how == "insert":
        return whole[:place] + draw(st.binary(max_size=20)) + whole[place:]
    if how == "twice":
        return whole[:place] + whole
    return bytes(draw(SPECIAL))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in plain data."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


@st.composite
def forged(draw: Any, whole: Any) -> Any:
    """Plain data of which a few values are others, or gone."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            return draw(VALUES)
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        if isinstance(owner, dict) and draw(st.booleans()) and draw(st.booleans()):
            del owner[path[-1]]
        else:
            owner[path[-1]] = draw(VALUES)
    return value


def written(folder: str, name: str, value: Any) -> Path:
    path = Path(folder) / name
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


# ----------------------------------------------------------------------------------- the readers

ROW = Row(
    *("m", "d", 10, "once", "parallel", True, 3, 2, 90.0, 89.0, 88.0, 0.9, 0.5, 1.0, "uniform"),
    *(15, 4, False, None, 0),
)
HISTORY = History((EpochRow(1, 2.0, 50.0, 0.1, 1.0), EpochRow(2, 1.0, None, 0.1, 1.0)), 1)
REPORT = {
    "neurons": [
        *({"name": "a", "ladder": "u", "firing": "p", "signed": True, "levels": [0, 3]},),
    ],
    "weighted": [],
    "analog": [{"name": "f", "operator": "x", "reason": "y"}],
    "verdict": None,
}
BENCH = {"schema": "mt_convert.bench/1", "rows": [], "absent": [], "machine": {}, "networks": {}}
TABLE = {
    "schema": "mt_convert.coverage/1",
    "settings": {},
    "known": {"families": 1},
    "rows": [{"architecture": "a", "family": "b"}],
}
JSON = {
    "results": (results_to_json([ROW]), results_from_json),
    "history": (HISTORY.to_json(), History.from_json),
    "report": (REPORT, ConversionReport.from_json),
    "bench": (BENCH, benchmark_from_json),
    "analysis": (
        {"schema": "mt_convert.analysis/1", "subject": {"model": "a"}},
        Analysis.from_json,
    ),
}


@fuzzed
@given(st.data())
def test_json_files_of_every_kind(data: st.DataObject) -> None:
    whole, convert_json = JSON[data.draw(st.sampled_from(sorted(JSON)))]
    bytes_of = json.dumps(whole).encode()
    content = data.draw(st.one_of(damaged(bytes_of), forged(whole)))
    with TemporaryDirectory() as folder, bounded():
        read_json(written(folder, "a.json", content), convert_json)


@fuzzed
@given(st.data())
def test_tables_and_runs_that_are_shown(data: st.DataObject) -> None:
    console = Console(file=io.StringIO(), markup=False)
    with TemporaryDirectory() as folder:
        table = data.draw(st.one_of(damaged(json.dumps(TABLE).encode()), forged(TABLE)))
        with bounded():
            read_table(written(folder, "table.json", table))
        rows = results_to_json([ROW])
        rows = data.draw(st.one_of(damaged(json.dumps(rows).encode()), forged(rows)))
        written(folder, "results.json", rows)
        (Path(folder) / "convert").mkdir()
        written(folder, "convert/report.json", data.draw(forged({"report": REPORT})))
        with bounded():
            show(Path(folder), console)


RECIPE = b"""name: digits
model: {architecture: digits_cnn, classes: 10, channels: 1}
data: {dataset: digits, image_size: 8, channels: 1, mean: [0.3], std: [1e-1]}
train: {epochs: 2, lr: 0.1, steps: {lr_scale: 0.1}}
quantize:
  overrides:
    - pattern: "conv*"
      weight_bits: 8
smoke: {train: {epochs: 1}}
"""
KEYS = (
    *("seed", "model.classes", "model.kwargs.depth", "model.kwargs", "data.image_size", "data"),
    *("data.mean", "data.class_map", "ann", "ann.lr", "train.epochs", "train.steps.lr_scale"),
    *("quantize.weight_bits", "quantize.overrides", "evaluate.data", "evaluate.methods.0", "smoke"),
    *("finetune.train.momentum", "spiking", "events", "name", "convert", "", "a..b", "data.mean.0"),
)


@of_networks
@given(st.data())
def test_recipes(data: st.DataObject) -> None:
    text = RECIPE
    overrides = []
    if data.draw(st.booleans()):
        text = data.draw(damaged(RECIPE))
    for _ in range(data.draw(st.integers(0, 3))):
        value = data.draw(VALUES)
        written_as = data.draw(st.sampled_from([json.dumps, str, repr]))
        key = data.draw(st.sampled_from(KEYS))
        overrides.append(f"{key}={written_as(value)}".replace("\0", ""))
    with TemporaryDirectory() as folder, bounded():
        load_recipe(written(folder, "a.yaml", text), overrides, data.draw(st.booleans()))


@cache
def stored(kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A small network as it is stored."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(8, 2))
    torch.manual_seed(0)
    qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
    with TemporaryDirectory() as folder:
        archive.save(convert(qann) if kind == "snn" else qann, folder)
        content = read_description(folder)
        del content["digest"]
        return content, read_tensors(folder)


@of_networks
@given(st.data())
def test_stored_networks_whose_digest_is_right(data: st.DataObject) -> None:
    content, tensors = stored(data.draw(st.sampled_from(["qann", "snn"])))
    content, tensors = data.draw(forged(content)), dict(tensors)
    if data.draw(st.booleans()) and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = data.draw(
            st.sampled_from(
                [torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.full((2,), float("nan"))]
            )
        )
    with TemporaryDirectory() as folder:
        if isinstance(content, dict):
            content["digest"] = digest_of(content, tensors)
        config = data.draw(st.sampled_from([content, {"packed": {}, "network": content}]))
        written(folder, "config.json", config)
        save_tensors(Path(folder) / "model.safetensors", tensors)
        with bounded():
            network = archive.load(folder)
            if hasattr(network, "spec"):  # what could be read can be used
                network(torch.zeros(1, *network.image_shape))


@fuzzed
@given(st.data())
def test_files_of_tensors(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["torch", "old", "safetensors"]))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        state = {"a": torch.arange(6.0), "b.c": torch.ones(2, 2)}
        if kind == "safetensors":
            save_tensors(path, state)
        else:
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "torch")
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        for read in (load_foreign, load_tensors):
            with bounded():
                read(path)


@cache
def archive_of_images() -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        for name in ("a/x.png", "b/y.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"\x89PNG"))
    return memory.getvalue()


@fuzzed
@given(st.data())
def test_archives_of_images(data: st.DataObject) -> None:
    whole = archive_of_images()
    content = data.draw(damaged(whole))
    if data.draw(st.booleans()) and len(content) > 512:  # a header whose sum is right again
        header = bytearray(content[:512])
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content = bytes(header) + content[512:]
    if data.draw(st.booleans()):
        content = zlib.compress(content, wbits=31)
    with TemporaryDirectory() as folder:
        written(folder, "train.tar", content)
        with bounded():
            list_split(DataSpec("", root=folder, classes=2), "train")


@fuzzed
@given(st.data())
def test_class_maps_and_locks(data: st.DataObject) -> None:
    content = data.draw(damaged(b"0\n1\nn01440764\n"))
    with TemporaryDirectory() as folder:
        path = written(folder, "map.txt", content)
        with bounded():
            head_faults(DataSpec("digits", class_map=str(path), classes=3), 1000)
        lock = data.draw(st.one_of(damaged(b'{"pid": 1}'), forged({"pid": 1, "host": "x"})))
        with bounded():
            _works(_holder(written(folder, ".lock", lock)))


def test_the_count_of_examples_is_what_is_promised() -> None:
    tests = [item for item in globals().values() if hasattr(item, "is_hypothesis_test")]
    assert (len(tests) - 2) * LIGHT + 2 * HEAVY >= 2000
