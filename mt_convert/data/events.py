"""Event recordings as frames: `EventSpec` says which and how, `open_events` gives `Splits`.

An item is frames float32 [T, 2, side, side], counts of OFF events (channel 0) and ON events
(channel 1) per pixel and bin, and a label; batches are [batch, T, 2, side, side]. The splits are
the `ImageSet` that training and accuracy read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import Fault, SpecError
from ..progress import progress
from .event_files import EVENT_FILES, EventFiles, Recordings, needed, unfit
from .images import Draw, ImageSet, crop_flip
from .randomness import generator
from .spec import DataSpec
from .splits import MEMORY_LIMIT, Splits, chosen_for_test, partition

BINS = ("time", "count")
_MOST = np.iinfo(np.int16).max  # tonic counts in int16
_TEST_TENTH = 10


@dataclass(frozen=True)
class EventSpec:
    """One data set of event recordings, complete.

    ``dataset`` is "nmnist" (34x34, 10 digits), "dvs_cifar10" (CIFAR10-DVS, 128x128, 10 classes) or
    "dvs_gesture" (128x128, 11 gestures); ``root`` the folder that holds tonic's folder NMNIST,
    CIFAR10DVS or DVSGesture. What is there is read as it stands, complete or not; only where there
    is no recording at all does ``download`` fetch it.

    N-MNIST and DVS-Gesture have a published split. CIFAR10-DVS has none: of each class, after a
    shuffle by ``seed``, the first tenth (rounded up) is test. Validation and calibration
    recordings are split off the training recordings by ``seed``, as for images.

    ``bins`` "time" cuts a recording into ``time_steps`` bins of equal duration, "count" into bins
    of equally many events, see `to_frames`. ``size``, if not None, sums events into fewer pixels:
    one at column x goes to ⌊x·size/side⌋, rows alike; whole blocks where size divides the side.

    ``augment`` shifts each training recording by up to an eighth of the side, all its frames alike,
    zeros coming in; and mirrors every second one of CIFAR10-DVS. Digits and gestures are never
    mirrored: it would change their class.

    Units: ``time_steps`` frames; ``size`` pixels; ``limit``, ``calibration_images`` and
        ``test_images`` recordings, as in `DataSpec`.

    Raises:
        SpecError: values outside what is allowed; all of them at once.

    Example:
        >>> spec = EventSpec("dvs_gesture", "data", time_steps=16, size=64)
        >>> spec.side, spec.files.classes
        (64, 11)
    """

    dataset: str
    root: str
    time_steps: int = 10
    bins: str = "time"
    size: int | None = None
    augment: bool = False
    download: bool = False
    seed: int = 0
    limit: int | None = None
    validation_share: float = 0.1
    calibration_images: int = 512
    test_images: int | None = None

    def __post_init__(self) -> None:
        faults = tuple(_faults(self))
        if faults:
            count = f"{len(faults)} values of EventSpec are"
            raise SpecError(f"{count} outside what is allowed", faults)

    @property
    def files(self) -> EventFiles:
        """The published data set."""
        return EVENT_FILES[self.dataset]

    @property
    def side(self) -> int:
        """Side of the frames, in pixels."""
        return self.files.side if self.size is None else self.size


def open_events(spec: EventSpec) -> Splits:
    """Open the recordings and split them; they are read when a split is first read.

    Frames of one split that fit in 1 GiB are kept in memory, others made anew each time.

    Returns:
        `Splits` as of `open_data`, with frames instead of images: counts, not normalised.

    Raises:
        DataError: recordings, tonic or (for CIFAR10-DVS) aedat are missing, folders or labels are
            not as published, or there are too few recordings; while reading, a recording that is
            unreadable, cut off, empty or too short for ``time_steps`` bins.
    """
    data = _as_images(spec)
    root = Path(spec.root).expanduser()
    train = Recordings(spec.files, root, train=True, download=spec.download)
    if spec.files.split:
        test = Recordings(spec.files, root, train=False, download=spec.download)
        training, tested = torch.arange(len(train)), torch.arange(len(test))
    else:
        test = train
        training, tested = _tenth_of_each_class(train.labels, spec.seed)
    chosen, held_back = partition(len(training), data)
    trained = training[chosen]
    calibration = trained[: spec.calibration_images]

    def part(recordings: Recordings, indices: Tensor, *, augment: bool = False) -> ImageSet:
        return ImageSet(EventSource(recordings, indices, spec, augment=augment), data)

    return Splits(
        train=part(train, trained, augment=spec.augment),
        validation=part(train, training[held_back]),
        calibration=part(train, calibration),
        test=part(test, tested[chosen_for_test(len(tested), data)]),
    )


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
    frames = needed("tonic").transforms.ToFrame((spec.side, spec.side, 2), **bins)(plain)
    end = extent // steps * steps
    counted = int(np.searchsorted(plain["t"], end)) if by_time else end
    if frames.min() < 0 or frames.sum(dtype=np.int64) != counted:
        hint = "raise time_steps or size"
        raise unfit(where, f"has more than {_MOST} events in one pixel and bin", hint)
    return torch.from_numpy(frames)


class EventSource:
    """Some of the recordings as frames; what augmentation does to them depends on the draw alone.

    Shapes: `read` gives float32 [batch, T, 2, side, side] and labels int64 [batch].
    """

    def __init__(
        self, recordings: Recordings, indices: Tensor, spec: EventSpec, *, augment: bool
    ) -> None:
        self._recordings = recordings
        self._indices = indices
        self._labels = recordings.labels[indices]
        self._spec = spec
        self._augment = augment
        self._moves: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def in_memory(self) -> bool:
        """Whether the frames of all recordings are kept."""
        count = len(self) * self._spec.time_steps * 2 * self._spec.side**2
        return count * np.dtype(np.int16).itemsize <= MEMORY_LIMIT

    def read(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Frames and labels of the samples drawn."""
        chosen = torch.as_tensor(draw.indices, dtype=torch.int64)
        if self.in_memory:
            frames = self._kept[chosen].float()
        else:
            frames = torch.stack([self._frames(place) for place in chosen.tolist()]).float()
        if draw.key is not None and self._augment:
            moves = self._moves_of(draw.key)[chosen]
            moved = crop_flip(frames.flatten(1, 2), moves, self._pad)
            frames = moved.reshape(frames.shape)
        return frames, self._labels[chosen]

    @cached_property
    def _kept(self) -> Tensor:
        """All frames, in the order of the split."""
        side = self._spec.side
        frames = torch.empty(len(self), self._spec.time_steps, 2, side, side, dtype=torch.int16)
        for place in progress(range(len(self)), "reading event recordings"):
            frames[place] = self._frames(place)
        return frames

    def _frames(self, place: int) -> Tensor:
        index = int(self._indices[place])
        return to_frames(self._recordings.load(index), self._spec, self._recordings.name(index))

    @property
    def _pad(self) -> int:
        return self._spec.side // 8

    def _moves_of(self, key: tuple[int, int]) -> Tensor:
        """Rows (down, right, mirror), one per recording, for one (seed, epoch): as for images."""
        if self._moves is None or self._moves[0] != key:
            count, most = len(self), 2 * self._pad + 1
            moves = torch.randint(0, most, (count, 3), generator=generator(*key, "crop"))
            mirrored = torch.randint(0, 2, (count,), generator=generator(*key, "flip"))
            moves[:, 2] = mirrored if self._spec.files.mirrors else 0
            self._moves = (key, moves)
        return self._moves[1]


def _as_images(spec: EventSpec) -> DataSpec:
    """What the splits of images ask for: sizes and shares, and no change to the counts."""
    return DataSpec(
        spec.dataset,
        root=str(spec.root),
        image_size=spec.side,
        channels=1,  # one mean of 0 and one deviation of 1 for everything
        classes=spec.files.classes,
        validation_share=spec.validation_share,
        calibration_images=spec.calibration_images,
        test_images=spec.test_images,
        seed=spec.seed,
        limit=spec.limit,
    )


def _tenth_of_each_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices, both in order; see `EventSpec`."""
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        of_class = (labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=generator(seed, "test split", label))
        tested[of_class[order[: math.ceil(len(of_class) / _TEST_TENTH)]]] = True
    return (~tested).nonzero().flatten(), tested.nonzero().flatten()


def _faults(spec: EventSpec) -> Iterator[Fault]:
    """Everything that is wrong with the values themselves."""
    known = EVENT_FILES.get(spec.dataset) if isinstance(spec.dataset, str) else None
    if known is None:
        yield Fault("dataset", repr(spec.dataset), f"allowed: {', '.join(EVENT_FILES)}")
    if not isinstance(spec.root, str | Path) or not str(spec.root):
        yield Fault("root", repr(spec.root), "allowed: the folder of the recordings")
    if spec.bins not in BINS:
        yield Fault("bins", repr(spec.bins), f"allowed: {', '.join(BINS)}")
    for name in ("time_steps", "calibration_images"):
        if not _whole(getattr(spec, name), least=1):
            yield Fault(name, repr(getattr(spec, name)), "allowed: a whole number, 1 or more")
    for name in ("limit", "test_images"):
        value = getattr(spec, name)
        if value is not None and not _whole(value, least=1):
            yield Fault(name, repr(value), "allowed: a whole number, 1 or more, or none for all")
    most = known.side if known else max(files.side for files in EVENT_FILES.values())
    if spec.size is not None and not (_whole(spec.size, least=1) and spec.size <= most):
        yield Fault("size", repr(spec.size), f"allowed: 1 to {most}, or none for {most}")
    for name in ("augment", "download"):
        if not isinstance(getattr(spec, name), bool):
            yield Fault(name, repr(getattr(spec, name)), "allowed: true, false")
    if not _whole(spec.seed):
        yield Fault("seed", repr(spec.seed), "allowed: a whole number")
    share = spec.validation_share
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
        yield Fault("validation_share", repr(share), "allowed: 0 up to below 1")


def _whole(value: object, least: int | None = None) -> bool:
    """Whether the value is a whole number, from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least
