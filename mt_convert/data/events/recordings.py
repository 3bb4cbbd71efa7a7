"""Published event recordings through tonic: fetched, read, checked and binned.

The only module that imports tonic, and only when recordings are opened: it takes a second. tonic
itself would fetch a data set anew, over what is there, where an archive or a recording is missing;
here what is there is read as it stands, and a download goes to an empty folder first.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, Fault
from ...system.storage import check_regular
from ..image_set import label_faults
from ..randomness import generator

if TYPE_CHECKING:
    from .spec import EventSpec  # which reads this file
from .sets import EventFiles

_MOST = np.iinfo(np.int16).max  # tonic counts in int16
_TEST_TENTH = 10
_AER_EVENT_BYTES = 5
_AEDAT_TEXT = 18  # where the header of AEDAT 4 begins, its length just before


def import_optional(package: str) -> Any:
    """An optional package.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"event recordings need {package}, which cannot be imported ({error}): "
            "pip install 'mt_convert[events]'"
        ) from error


class Recordings:
    """The recordings of one part, in the order of their paths, whatever the file system says.

    Raises:
        DataError: nothing is there and ``download`` is off, the download failed, folders are not
            as published, or tonic is missing; while reading, a recording that is unreadable, cut
            off or empty, or holds events off the sensor.
    """

    def __init__(self, spec: EventSpec, *, train: bool) -> None:
        self._spec = spec
        self._files = files = spec.files
        root = Path(spec.root or "").expanduser()
        self.folder = files.part(root, train=train)
        if files.suffix == ".aedat4":
            import_optional("aedat")  # tonic reads with it and does not ask for it
        if not _holds(self.folder, files.suffix):
            if not spec.download:
                raise _missing(self.folder, files)
            _download(files, root, train)
        self._dataset = _tonic_data(files, root, train)
        paths = self._dataset.data
        self._order = sorted(range(len(paths)), key=lambda place: str(paths[place]))
        self._check_paths()
        self.labels: Tensor = torch.tensor([self._dataset.targets[i] for i in self._order])
        faults = label_faults(self.labels, files.classes, str(self.folder))
        if faults:
            raise DataError("the labels of event recordings are not as published", faults)

    def __len__(self) -> int:
        return len(self._order)

    def _check_paths(self) -> None:
        """tonic takes the last digit of any folder for a class: names must be as published."""
        names = [self.name(index) for index in range(len(self))]
        wrong = [name for name in names if not re.fullmatch(self._files.path, name)]
        hint = f"expected: {self._files.layout}; move it away"
        faults = [Fault(name, "is not named as a published recording", hint) for name in wrong[:10]]
        if faults:
            headline = f"{len(wrong)} recordings in {self.folder} are not as published"
            raise DataError(headline, faults)

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored recording keeps its class."""
        return self._files.mirrors

    def frames(self, index: int) -> Tensor:
        """The frames of one recording."""
        return to_frames(self.load(index), self._spec, self.name(index))

    def name(self, index: int) -> str:
        """The file of one recording, from its data set's folder on."""
        path = Path(self._dataset.data[self._order[index]])
        return path.relative_to(self.folder).as_posix()

    def load(self, index: int) -> np.ndarray[Any, Any]:
        """The events of one recording by time, as tonic gives them.

        Units: fields ``x`` and ``y`` pixels, ``t`` microseconds, ``p`` 1 for ON and 0 for OFF.
        """
        path = Path(self._dataset.data[self._order[index]])
        try:
            _check_bytes(path)
            events: np.ndarray[Any, Any] = self._dataset[self._order[index]][0]
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # bare exceptions, and aedat's panics, which are none
            what = f"cannot be read ({str(error) or type(error).__name__})"
            raise unfit(self.name(index), what) from error
        wrong = _wrong(events, self._files.side)
        if wrong is not None:
            raise unfit(self.name(index), wrong)
        late = events["t"][1:] < events["t"][:-1]  # a difference of unsigned times would wrap
        return events[np.argsort(events["t"], kind="stable")] if late.any() else events


def to_frames(events: np.ndarray[Any, Any], spec: EventSpec, where: str = "recording") -> Tensor:
    """Counts of the events per bin, polarity and pixel, by tonic's ``ToFrame``.

    With t from the first event on and n events in all, an event goes to bin ⌊t/w⌋ for "time",
    w = ⌊duration/T⌋ microseconds, and the i-th to bin ⌊i/m⌋ for "count", m = ⌊n/T⌋. An event on an
    edge begins the later bin. What would go to bin T is in no bin: for "time" the last event and
    fewer than T microseconds before it, for "count" fewer than T events.

    Shapes: events by time, with fields x, y, t, p; frames int16 [T, 2, side, side].

    Raises:
        DataError: no events; too short, or too few, for T bins; more than 32,767 events in one
            pixel and bin.
    """
    steps, by_time = spec.time_steps, spec.bins == "time"
    if not len(events):
        raise unfit(where, "holds no events")
    plain = np.empty(len(events), dtype=[(name, np.int64) for name in ("x", "y", "t", "p")])
    plain["t"] = events["t"] - events["t"][0]  # tonic's edges are floats, exact below 2^53
    plain["p"] = events["p"]
    for axis in ("x", "y"):
        plain[axis] = events[axis].astype(np.int64) * spec.side // spec.files.side
    extent = int(plain["t"][-1]) if by_time else len(events)
    if extent < steps:
        what = f"has {extent} {'microseconds' if by_time else 'events'} for {steps} bins"
        raise unfit(where, what, "lower time_steps, or remove the file")
    bins = {"n_time_bins" if by_time else "n_event_bins": steps}
    frames = import_optional("tonic").transforms.ToFrame((spec.side, spec.side, 2), **bins)(plain)
    end = extent // steps * steps
    counted = int(np.searchsorted(plain["t"], end)) if by_time else end
    if frames.min() < 0 or frames.sum(dtype=np.int64) != counted:
        hint = "raise time_steps or size"
        raise unfit(where, f"has more than {_MOST} events in one pixel and bin", hint)
    return torch.from_numpy(frames)


def tenth_of_each_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices, both in order; see `events.EventSpec`."""
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        of_class = (labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=generator(seed, "test split", label))
        tested[of_class[order[: math.ceil(len(of_class) / _TEST_TENTH)]]] = True
    return (~tested).nonzero().flatten(), tested.nonzero().flatten()


def unfit(where: str, what: str, hint: str = "replace or remove the file") -> DataError:
    """The error for one recording that cannot be used."""
    return DataError("an event recording cannot be used", [Fault(where, what, hint)])


def _check_bytes(path: Path) -> None:
    """Raise where a reader would take half an event for none, wait for ever, or end the process."""
    check_regular(path)
    if path.suffix == ".bin" and path.stat().st_size % _AER_EVENT_BYTES:
        raise ValueError("it ends inside an event")
    if path.suffix == ".aedat4":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_AEDAT_TEXT)[-4:], "little")
            header = file.read(length)
        header[header.find(b"<dv") : header.rfind(b"</dv>")].decode()


def _wrong(events: np.ndarray[Any, Any], side: int) -> str | None:
    """What is wrong with events that could be read."""
    if not len(events):
        return "holds no events"
    columns, rows = events["x"].astype(np.int64), events["y"].astype(np.int64)
    off = (np.minimum(columns, rows) < 0) | (np.maximum(columns, rows) >= side)
    if not off.any():
        return None
    first = int(off.argmax())
    place = f"x = {columns[first]}, y = {rows[first]}"
    return f"event {first} is at {place}, the sensor has {side}x{side} pixels"


def _holds(folder: Path, suffix: str) -> bool:
    """Whether there is a recording at all."""
    return folder.is_dir() and next(folder.rglob(f"*{suffix}"), None) is not None


def _missing(folder: Path, files: EventFiles) -> DataError:
    """The error for recordings that are not there."""
    what = f"holds no {files.suffix} files" if folder.exists() else "does not exist"
    hint = f"expected in it: {files.layout}; set download, or root to what holds {files.folder}"
    return DataError("there are no event recordings", [Fault(str(folder), what, hint)])


def _tonic_class(files: EventFiles, *, present: bool) -> Any:
    """tonic's class, its check for an archive and thousands of recordings answered by us."""
    base = getattr(import_optional("tonic").datasets, files.folder)
    return type(files.folder, (base,), {"_check_exists": lambda self: present})


def _tonic_data(files: EventFiles, root: Path, train: bool) -> Any:
    """tonic's data set of what is there."""
    part = {"train": train} if files.split else {}
    try:
        return _tonic_class(files, present=True)(str(root), **part)
    except (KeyError, ValueError, IndexError) as error:
        folder = str(files.part(root, train=train))
        hint = f"expected in it: {files.layout}, and no other {files.suffix} files"
        fault = Fault(folder, f"a label cannot be read ({error})", hint)
        raise DataError("the folders of event recordings are not as published", [fault]) from error


def _download(files: EventFiles, root: Path, train: bool) -> None:
    """tonic's download into a folder beside, renamed into place once it is whole."""
    part = {"train": train} if files.split else {}
    folder, fetch = files.part(root, train=train), _tonic_class(files, present=False)
    if folder.is_dir() and any(folder.iterdir()):
        fault = Fault(str(folder), "holds other files", f"move them away, or unpack {files.layout}")
        raise DataError(f"{files.folder} is not downloaded over what is there", [fault])
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            with redirect_stdout(sys.stderr):
                fetch(temporary, **part)
            downloads = files.part(Path(temporary), train=train)
            for archive in downloads.glob("*.zip"):
                archive.unlink()
            folder.parent.mkdir(exist_ok=True)
            os.rename(downloads, folder)  # refuses a folder that holds anything
    except Exception as error:  # whatever the network, the archive or the disk may raise
        reason = str(error) or type(error).__name__
        hint = f"try again, or unpack the published archive there: {files.layout}"
        fault = Fault(str(folder), f"not fetched ({reason})", hint)
        raise DataError(f"the download of {files.folder} failed", [fault]) from error
