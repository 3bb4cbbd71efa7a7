"""Event recordings: files written here byte by byte, counted event by event, split and shifted."""

from __future__ import annotations

import hashlib
import io
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tonic", reason="event recordings are read with tonic: the events extra")
pytest.importorskip("aedat", reason="tonic reads CIFAR10-DVS with aedat: the events extra")

import tonic.datasets

import mt_convert.data.events.frames
from mt_convert.data import Draw, ImageSet, batches, images
from mt_convert.data.events.frames import open_events
from mt_convert.data.events.recordings import to_frames
from mt_convert.data.events.sets import EVENT_FILES
from mt_convert.data.events.spec import EventSpec
from mt_convert.data.image_set import crop_flip
from mt_convert.data.splits import select_test_images
from mt_convert.errors import DataError, SpecError
from mt_convert.training.accuracy import accuracy
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

Events = np.ndarray[Any, Any]
FIELDS = [("x", "i8"), ("y", "i8"), ("t", "i8"), ("p", "i8")]
CIFAR_CLASSES = ("airplane", "cat", "truck")
SIDES = {"nmnist": 34, "dvs_cifar10": 128, "dvs_gesture": 128}


def made_up(number: int, side: int, *, count: int = 60, unit: int = 1) -> Events:
    """Events at random places, several at the same time, in the order of their times."""
    random = np.random.default_rng(number)
    events = np.zeros(count, dtype=FIELDS)
    for name, most in (("x", side), ("y", side), ("t", 300), ("p", 2)):
        events[name] = random.integers(0, most, count)
    events["t"] = (np.sort(events["t"]) + number) * unit
    return events


def aer(events: Events, *, marker_at: int | None = None) -> bytes:
    """40-bit words x, y, polarity and 23 bits of time; a marker adds 2^13 to later times."""
    words = []
    for place, (x, y, t, p) in enumerate(events.tolist()):
        if place == marker_at:
            words.append(bytes([0, 240, 0, 0, 0]))
        late = marker_at is not None and place >= marker_at
        words.append(bytes([x, y]) + (p << 23 | (t - 8192 * late)).to_bytes(3, "big"))
    return b"".join(words)


def aedat4(events: Events, *, packet: int = 25) -> bytes:
    """AEDAT 4.0 without compression: a header in flatbuffers, and packets of events."""
    stream = (
        '<attr key="typeIdentifier" type="string">EVTS</attr><node name="info">'
        '<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node>'
    )
    text = f'<dv><node name="outInfo"><node name="0">{stream}</node></node></dv>'.encode()
    packets = b""
    for start in range(0, len(events), packet):
        rows = events[start : start + packet].tolist()
        body = b"".join(struct.pack("<qhh?3x", t, x, y, bool(p)) for x, y, t, p in rows)
        # root at 16; its table of fields at 8; its only field, 4 bytes on, points to the vector
        table = struct.pack("<I4sHHHHiII", 16, b"EVTS", 6, 8, 4, 0, 8, 4, len(rows)) + body
        packets += struct.pack("<III", 0, len(table) + 4, len(table)) + table
    magic, head = b"#!AER-DAT4.0\r\n", 48 + len(text) + 1
    end = len(magic) + 4 + head + len(packets)
    # root at 24; its table of fields at 8: no compression, where packets end, the description
    header = struct.pack("<I4sHHHHH6x", 24, b"IOHE", 10, 20, 4, 8, 16)
    header += struct.pack("<iiqII", 16, 0, end, 4, len(text)) + text + b"\0"
    return magic + struct.pack("<I", head) + header + packets


def npy(events: Events) -> bytes:
    """An array of x, y, polarity and milliseconds."""
    columns = [events["x"], events["y"], events["p"], events["t"] // 1000]
    buffer = io.BytesIO()
    np.save(buffer, np.stack(columns, 1))
    return buffer.getvalue()


def write(root: Path, dataset: str, *, each: int = 10) -> dict[bytes, tuple[Events, int]]:
    """A small data set in its published format, and every recording by its bytes."""
    written: dict[bytes, tuple[Events, int]] = {}

    def keep(path: Path, content: bytes, events: Events, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written[content] = (events, label)

    number = 0
    for train in (True, False):
        folder = EVENT_FILES[dataset].part(root, train=train)
        for i in range(each if train else 3):
            for label in (0, 3, 9):
                number += 1
                if dataset == "nmnist":
                    events = made_up(number, 34)
                    keep(folder / str(label) / f"{i:05d}.bin", aer(events), events, label)
                elif dataset == "dvs_gesture":
                    events = made_up(number, 128, unit=1000)
                    keep(folder / f"user{i:02d}_led" / f"{label}.npy", npy(events), events, label)
                elif train:
                    events = made_up(number, 128)
                    name = CIFAR_CLASSES[(0, 3, 9).index(label)]
                    keep(folder / name / f"{name}_{i}.aedat4", aedat4(events), events, label)
    return written


@pytest.fixture
def nmnist(tmp_path: Path) -> EventSpec:
    """30 training and 9 test recordings of three digits."""
    write(tmp_path, "nmnist")
    return EventSpec("nmnist", str(tmp_path), time_steps=4, calibration_images=5)


def counted(events: Events, spec: EventSpec) -> Tensor:
    """Frames event by event, as `to_frames` says."""
    side, size, steps = SIDES[spec.dataset], spec.size or SIDES[spec.dataset], spec.time_steps
    frames = torch.zeros(steps, 2, size, size)
    first, last = int(events["t"][0]), int(events["t"][-1])
    width, many = (last - first) // steps, len(events) // steps
    for i, (x, y, t, p) in enumerate(events.tolist()):
        k = (t - first) // width if spec.bins == "time" else i // many
        if k < steps:
            frames[k, p, y * size // side, x * size // side] += 1
    return frames


def rows(split: ImageSet) -> list[tuple[bytes, int]]:
    found = []
    for frames, labels in batches(split, 7):
        found += [(f.numpy().tobytes(), int(n)) for f, n in zip(frames, labels, strict=True)]
    return found


@pytest.mark.parametrize("bins", ["time", "count"])
@pytest.mark.parametrize(
    ("dataset", "size"),
    [("nmnist", None), ("nmnist", 17), ("nmnist", 25), ("dvs_gesture", 48), ("dvs_cifar10", 32)],
)
def test_frames_of_written_files_are_the_counts_of_a_loop(
    tmp_path: Path, dataset: str, size: int | None, bins: str
) -> None:
    written = write(tmp_path, dataset)
    spec = EventSpec(
        dataset, str(tmp_path), time_steps=7, bins=bins, size=size, calibration_images=2
    )
    splits = open_events(spec)
    parts = [rows(part) for part in (splits.train, splits.validation, splits.test)]
    expected = [(counted(e, spec).numpy().tobytes(), label) for e, label in written.values()]
    assert sorted(row for part in parts for row in part) == sorted(expected)
    assert len(set(expected)) == len(written) == (30 if dataset == "dvs_cifar10" else 39)
    frames, labels = splits.train[Draw([1, 0])]
    assert (frames.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert frames.shape == (2, 7, 2, spec.side, spec.side)


@pytest.mark.parametrize("bins", ["time", "count"])
def test_an_event_on_an_edge_begins_the_later_bin_and_the_rest_is_in_none(bins: str) -> None:
    spec = EventSpec("nmnist", "nowhere", time_steps=4, bins=bins)
    times = [5, 14, 15, 15, 24, 25, 34, 35, 44, 45, 46, 47]  # 42 long: four bins of ten
    events = made_up(1, 34, count=len(times))
    events["t"] = times
    frames = to_frames(events, spec)
    assert frames.dtype == torch.int16
    assert torch.equal(frames.float(), counted(events, spec))
    expected = [2, 3, 2, 2] if bins == "time" else [3, 3, 3, 3]
    assert frames.sum((1, 2, 3)).tolist() == expected


def test_large_times_keep_their_edges_and_fields_are_taken_by_name() -> None:
    spec = EventSpec("dvs_cifar10", "nowhere", time_steps=3)
    events = made_up(4, 128)
    late = np.zeros(len(events), dtype=[("t", "u8"), ("y", "u2"), ("p", "?"), ("x", "u2")])
    for name in ("x", "y", "p", "t"):
        late[name] = events[name]
    late["t"] += 2**62 + 1
    assert torch.equal(to_frames(late, spec).float(), counted(events, spec))
    assert int(late["t"][0]) > 2**62, "the events handed in must stay as they are"


def test_more_events_in_a_bin_than_tonic_can_count_are_an_error() -> None:
    spec = EventSpec("nmnist", "nowhere", time_steps=1, bins="count", size=1)
    for count in (32768, 65536):
        events = made_up(1, 34, count=count)
        events["p"] = 1
        with pytest.raises(DataError, match="more than 32767 events in one pixel and bin"):
            to_frames(events, spec)
    assert to_frames(events[:32767], spec)[0, 1, 0, 0] == 32767


def test_times_of_nmnist_go_on_after_a_marker_and_the_marker_is_no_event(nmnist: EventSpec) -> None:
    folder = Path(nmnist.root) / "NMNIST" / "Test"
    events = made_up(77, 34, unit=200)
    events["t"][30:] += 8192
    for path in sorted(folder.rglob("*.bin")):
        path.write_bytes(aer(events, marker_at=30))
    frames, _ = open_events(nmnist).test[Draw([0])]
    assert torch.equal(frames[0], counted(events, nmnist))


def test_events_out_of_order_are_binned_by_their_time(nmnist: EventSpec) -> None:
    folder = Path(nmnist.root) / "NMNIST" / "Test"
    events = made_up(78, 34)
    for path in folder.rglob("*.bin"):
        path.write_bytes(aer(events[np.random.default_rng(3).permutation(len(events))]))
    frames, _ = open_events(nmnist).test[Draw([4])]
    assert torch.equal(frames[0], counted(events, nmnist))


def test_the_test_part_is_the_published_one_and_the_rest_is_shared_out(nmnist: EventSpec) -> None:
    splits = open_events(replace(nmnist, validation_share=0.2))
    parts = (splits.train, splits.validation, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [24, 6, 5, 9]
    train, validation, calibration, test = (set(rows(part)) for part in parts)
    assert len(train | validation | test) == 39
    assert calibration < train
    assert torch.equal(images(splits.calibration, 5), splits.train[Draw(range(5))][0])


def test_limit_and_test_images_choose_by_the_seed(nmnist: EventSpec) -> None:
    small = replace(nmnist, limit=10, test_images=4, calibration_images=2)
    first, again, other = (open_events(replace(small, seed=seed)) for seed in (0, 0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (9, 1, 4)
    for name in ("train", "validation", "test"):
        assert rows(getattr(first, name)) == rows(getattr(again, name))
    assert rows(first.train) != rows(other.train)
    assert set(rows(first.test)) != set(rows(other.test))


def test_a_subset_of_the_recordings_is_what_opening_them_for_it_gives(nmnist: EventSpec) -> None:
    opened = open_events(replace(nmnist, test_images=4)).test
    for spec in (nmnist, replace(nmnist, test_images=6)):
        assert rows(select_test_images(spec, 4, open_events(spec))) == rows(opened)


def test_cifar10_dvs_gives_a_tenth_of_each_class_to_the_test(tmp_path: Path) -> None:
    write(tmp_path, "dvs_cifar10", each=11)
    spec = EventSpec("dvs_cifar10", str(tmp_path), time_steps=2, size=16, calibration_images=2)
    first, again, other = (open_events(replace(spec, seed=seed)) for seed in (0, 0, 5))
    test = rows(first.test)
    assert sorted(label for _, label in test) == [0, 0, 3, 3, 9, 9]
    assert not set(test) & set(rows(first.train) + rows(first.validation))
    assert len(first.train) + len(first.validation) == 27
    assert test == rows(again.test)
    assert test != rows(other.test)


@pytest.mark.parametrize("dataset", ["nmnist", "dvs_cifar10", "dvs_gesture"])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(tmp_path: Path, dataset: str) -> None:
    write(tmp_path, dataset)
    spec = EventSpec(dataset, str(tmp_path), time_steps=3, size=24, calibration_images=2)
    plain, shifted = open_events(spec).train, open_events(replace(spec, augment=True)).train
    everything = Draw(range(len(plain)), (4, 1))
    frames, found = plain[everything][0], shifted[everything][0]
    assert torch.equal(found[[6, 2]], shifted[Draw([6, 2], (4, 1))][0])
    assert not torch.equal(found, shifted[Draw(range(len(plain)), (4, 2))][0])
    assert not torch.equal(found, shifted[Draw(range(len(plain)), (5, 1))][0])
    assert torch.equal(frames, shifted[Draw(range(len(plain)))][0])
    moves = [(d, r, m) for d in range(7) for r in range(7) for m in (0, 1)]
    mirrored = set()
    for before, after in zip(frames, found, strict=True):
        every = crop_flip(before.flatten(0, 1).expand(98, -1, -1, -1), torch.tensor(moves), 3)
        fits = (every == after.flatten(0, 1)).flatten(1).all(1).nonzero().flatten().tolist()
        assert len(fits) == 1, "all frames of a recording must move alike"
        mirrored.add(moves[fits[0]][2])
    assert mirrored == ({0, 1} if dataset == "dvs_cifar10" else {0})


def test_frames_made_each_time_are_those_kept_in_memory(
    nmnist: EventSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_events(replace(nmnist, augment=True)).train
    draw = Draw([3, 3, 17], (0, 2))
    expected = kept[draw]
    assert kept.in_memory
    monkeypatch.setattr(mt_convert.data.events.frames, "MEMORY_LIMIT", 1000)
    streamed = open_events(replace(nmnist, augment=True)).train
    assert not streamed.in_memory
    assert torch.equal(streamed[draw][0], expected[0])
    assert torch.equal(streamed[draw][1], expected[1])
    assert torch.equal(kept[draw][0], expected[0]), "reading must not change what is kept"


class Summed(nn.Module):
    """A linear layer on the frames summed over time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 17 * 17, 10)

    def forward(self, frames: Tensor) -> Tensor:
        return self.linear(frames.sum(1).flatten(1))


@pytest.mark.slow
def test_training_and_accuracy_read_event_recordings(nmnist: EventSpec, tmp_path: Path) -> None:
    for path in (Path(nmnist.root) / "NMNIST").rglob("*.bin"):
        events = made_up(int(hashlib.sha256(path.read_bytes()).hexdigest()[:6], 16) % 999, 34)
        events["y"] = events["y"] % 11 + 11 * (0, 3, 9).index(int(path.parent.name))
        path.write_bytes(aer(events))
    splits, model = open_events(replace(nmnist, size=17, augment=True)), Summed()
    torch.nn.init.zeros_(model.linear.weight)
    spec = TrainSpec(epochs=6, batch_size=9, lr=0.01)
    history = fit(model, splits, spec, tmp_path / "run", classes=10)
    assert accuracy(model, splits.test, 4) == 100.0
    assert history.rows[-1].train_loss < history.rows[0].train_loss


def last_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def last_event_cut_in_two(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def rubbish(path: Path) -> None:
    path.write_bytes(b"#!AER-DAT2.0\r\n" + bytes(range(256)))


def header_points_nowhere(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[18:22] = b"\xff" * 4
    path.write_bytes(content)


def header_is_no_text(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"outInfo", b"out\xff\xfefo"))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("dataset", "damage", "message"),
    [
        ("nmnist", last_cut_off, "ends inside an event"),
        ("nmnist", last_event_cut_in_two, "ends inside an event"),
        ("nmnist", emptied, "holds no events"),
        ("nmnist", rubbish, "the sensor has 34x34 pixels"),
        ("dvs_gesture", half, "cannot be read"),
        ("dvs_gesture", emptied, "cannot be read"),
        ("dvs_gesture", rubbish, "cannot be read"),
        ("dvs_cifar10", half, "cannot be read"),
        ("dvs_cifar10", last_cut_off, "cannot be read"),
        ("dvs_cifar10", emptied, "cannot be read"),
        ("dvs_cifar10", rubbish, "cannot be read"),
        ("dvs_cifar10", header_points_nowhere, "cannot be read"),
        ("dvs_cifar10", header_is_no_text, "cannot be read"),
    ],
)
def test_a_damaged_recording_is_named(
    tmp_path: Path, dataset: str, damage: Callable[[Path], None], message: str
) -> None:
    write(tmp_path, dataset, each=2)
    folder = tmp_path / EVENT_FILES[dataset].folder
    paths = sorted(folder.rglob(f"*{EVENT_FILES[dataset].suffix}"))
    damage(paths[0])
    spec = EventSpec(dataset, str(tmp_path), size=8, validation_share=0, calibration_images=1)
    splits = open_events(spec)
    with pytest.raises(DataError, match=message) as raised:
        [rows(part) for part in (splits.train, splits.test)]
    assert raised.value.faults[0].where.endswith("/".join(paths[0].parts[-2:]))


def test_recordings_without_events_or_too_short_for_the_bins_are_errors() -> None:
    events = made_up(1, 34, count=5)
    spec = EventSpec("nmnist", "nowhere", time_steps=6, bins="count")
    with pytest.raises(DataError, match="has 5 events for 6 bins"):
        to_frames(events, spec)
    events["t"] = [7, 7, 8, 9, 12]
    assert to_frames(events, replace(spec, time_steps=5, bins="time")).sum() == 4
    with pytest.raises(DataError, match="has 5 microseconds for 6 bins"):
        to_frames(events, replace(spec, bins="time"))
    with pytest.raises(DataError, match="holds no events"):
        to_frames(events[:0], spec)


@pytest.mark.parametrize("dataset", ["nmnist", "dvs_cifar10", "dvs_gesture"])
def test_missing_recordings_are_an_error_that_says_where_and_what(
    tmp_path: Path, dataset: str
) -> None:
    spec = EventSpec(dataset, str(tmp_path / "data"))
    folder = EVENT_FILES[dataset].part(tmp_path / "data", train=True)
    with pytest.raises(DataError, match="does not exist") as raised:
        open_events(spec)
    (fault,) = raised.value.faults
    assert fault.where == str(folder)
    assert EVENT_FILES[dataset].layout in fault.hint
    assert "set download" in fault.hint
    assert not (tmp_path / "data").exists()
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="holds no"):
        open_events(spec)


@pytest.mark.parametrize(
    ("dataset", "path"),
    [
        ("nmnist", "NMNIST/Train/seven/1.bin"),
        ("dvs_cifar10", "CIFAR10DVS/lorry/1.aedat4"),
        ("dvs_gesture", "DVSGesture/ibmGestureTrain/user01_led/wave.npy"),
        ("dvs_gesture", "DVSGesture/ibmGestureTrain/user01_led/11.npy"),
        ("dvs_gesture", "DVSGesture/ibmGestureTrain/user01_led/01.npy"),
        ("dvs_gesture", "DVSGesture/ibmGestureTrain/user01_led/-1.npy"),
        ("nmnist", "NMNIST/Train/11/1.bin"),
        ("nmnist", "NMNIST/Train/run1/1.bin"),
        ("nmnist", "NMNIST/Train/1/old/3/1.bin"),
        ("nmnist", "NMNIST/Train/1/1.robin"),
        ("dvs_cifar10", "CIFAR10DVS/old/airplane/1.aedat4"),
    ],
)
def test_folders_that_are_not_as_published_are_an_error(
    tmp_path: Path, dataset: str, path: str
) -> None:
    write(tmp_path, dataset, each=1)
    (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(DataError, match="not as published"):
        open_events(EventSpec(dataset, str(tmp_path)))


@pytest.mark.parametrize("package", ["tonic", "aedat"])
def test_without_tonic_or_aedat_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    write(tmp_path, "dvs_cifar10", each=1)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"need {package}.*pip install 'mt_convert\[events\]'"):
        open_events(EventSpec("dvs_cifar10", str(tmp_path)))


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What stands in for the published N-MNIST: two small archives behind local addresses."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    write(tmp_path / "made", "nmnist", each=3)
    for part in ("train", "test"):
        path = tmp_path / f"{part}.published"
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "made" / "NMNIST" / part.title()).rglob("*.bin"):
                archive.write(file, file.relative_to(tmp_path / "made" / "NMNIST"))
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        monkeypatch.setattr(tonic.datasets.NMNIST, f"{part}_url", url)
        monkeypatch.setattr(tonic.datasets.NMNIST, f"{part}_md5", md5)
    Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.usefixtures("archives")
def test_a_download_is_tonics_and_comes_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    spec = EventSpec("nmnist", str(root), time_steps=3, calibration_images=1, download=True)
    first = rows(open_events(spec).test)
    made = EventSpec("nmnist", str(tmp_path / "made"), time_steps=3, calibration_images=1)
    assert first == rows(open_events(made).test)
    assert sorted(path.name for path in root.iterdir()) == ["NMNIST"]
    for path in tmp_path.glob("*.published"):
        path.unlink()
    next((root / "NMNIST" / "Train" / "0").iterdir()).unlink()
    assert len(open_events(spec).train) == 7, "what is there is read, and nothing is fetched"


@pytest.mark.slow
@pytest.mark.usefixtures("archives")
def test_a_download_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tonic.datasets.NMNIST, "train_md5", "0" * 32)
    root = tmp_path / "root"
    spec = EventSpec("nmnist", str(root), calibration_images=1, download=True)
    with pytest.raises(DataError, match=r"download of NMNIST failed(.|\n)*corrupted"):
        open_events(spec)
    assert list(root.iterdir()) == []
    mine = root / "NMNIST" / "Train" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(DataError, match="not downloaded over what is there"):
        open_events(spec)
    assert mine.read_text() == "mine"


def test_every_wrong_value_stands_in_one_error() -> None:
    wrong: dict[str, Any] = {
        "dataset": "shd",
        "root": "",
        "time_steps": 0,
        "bins": "energy",
        "size": 129,
        "augment": "yes",
        "download": 1,
        "seed": 0.5,
        "limit": 0,
        "validation_share": float("nan"),
        "calibration_images": True,
        "test_images": "9",
        "classes": 0,
    }
    with pytest.raises(SpecError, match="13 values of EventSpec") as raised:
        EventSpec(**wrong)
    assert {fault.where for fault in raised.value.faults} == set(wrong)
    assert all(fault.hint.startswith("allowed: ") for fault in raised.value.faults)
    with pytest.raises(SpecError, match="1 to 34"):
        EventSpec("nmnist", "data", size=35)
    with pytest.raises(SpecError, match="nmnist, dvs_gesture"):
        EventSpec(["nmnist"], "data")  # type: ignore[arg-type]
