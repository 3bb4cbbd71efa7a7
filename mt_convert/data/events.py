"""Event recordings as frames: `EventSpec` says which and how, `open_events` gives `Splits`.

An item is frames float32 [T, 2, side, side], counts of OFF events (channel 0) and ON events
(channel 1) per pixel and bin, and a label; batches are [batch, T, 2, side, side]. The splits are
the `ImageSet` that training and accuracy read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import Fault, SpecError
from ..system.progress import progress
from .event_recordings import EVENT_FILES, EventFiles, Recordings, tenth_of_each_class
from .image_spec import DataSpec
from .images import Draw, ImageSet, crop_flip
from .randomness import generator
from .splits import MEMORY_LIMIT, Splits, chosen_for_test, partition
from .synthetic_events import MADE_CLASSES, MADE_SIDE, MADE_SIDES, MadeRecordings

BINS = ("time", "count")
SYNTHETIC = "synthetic"
DATASETS = (*EVENT_FILES, SYNTHETIC)
_Recorded = Recordings | MadeRecordings


@dataclass(frozen=True)
class EventSpec:
    """One data set of event recordings, complete.

    ``dataset`` is "nmnist" (34x34, 10 digits), "dvs_cifar10" (CIFAR10-DVS, 128x128, 10 classes),
    "dvs_gesture" (128x128, 11 gestures) or "synthetic" (made up); ``root`` the folder that holds
    tonic's folder NMNIST, CIFAR10DVS or DVSGesture. What is there is read as it stands, complete
    or not; only where there is no recording at all does ``download`` fetch it.

    Made-up recordings are drawn from ``seed``, see `moving_blob`: ``size`` 16 to 128 pixels, None
    for 32; ``classes`` directions, None for 10 (elsewhere None or what is published); 1024 to train
    and 256 to test where ``limit`` and ``test_images`` are None. They come from no file and bin by
    bin: ``root``, ``download`` and ``bins`` change nothing.

    N-MNIST and DVS-Gesture have a published split. CIFAR10-DVS has none: of each class, after a
    shuffle by ``seed``, the first tenth (rounded up) is test. Validation and calibration
    recordings are split off the training recordings by ``seed``, as for images.

    ``bins`` "time" cuts a recording into ``time_steps`` bins of equal duration, "count" into bins
    of equally many events, see `to_frames`. ``size``, if not None, sums events into fewer pixels:
    one at column x goes to ⌊x·size/side⌋, rows alike; whole blocks where size divides the side.

    ``augment`` shifts each training recording by up to an eighth of the side, all its frames alike,
    zeros coming in; and mirrors every second one of CIFAR10-DVS. All others are never mirrored: it
    would change their class.

    Units: ``time_steps`` frames; ``size`` pixels; ``limit``, ``calibration_images`` and
        ``test_images`` recordings, as in `DataSpec`.

    Raises:
        SpecError: values outside what is allowed; all of them at once.

    Example:
        >>> spec = EventSpec("dvs_gesture", "data", time_steps=16, size=64)
        >>> spec.channels, spec.side, spec.number_of_classes
        (2, 64, 11)
    """

    dataset: str
    root: str | None = None
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
    classes: int | None = None

    def __post_init__(self) -> None:
        faults = tuple(_faults(self))
        if faults:
            count = f"{len(faults)} values of EventSpec are"
            raise SpecError(f"{count} outside what is allowed", faults)

    @property
    def files(self) -> EventFiles:
        """The published data set.

        Raises:
            SpecError: the recordings are made up.
        """
        if self.dataset == SYNTHETIC:
            raise SpecError(f"made-up recordings have no files: {', '.join(EVENT_FILES)} do")
        return EVENT_FILES[self.dataset]

    @property
    def side(self) -> int:
        """Side of the frames, in pixels."""
        if self.size is not None:
            return self.size
        return MADE_SIDE if self.dataset == SYNTHETIC else self.files.side

    @property
    def image_size(self) -> int:
        """`side`, as `DataSpec` calls it."""
        return self.side

    @property
    def channels(self) -> int:
        """Channels of a frame: OFF and ON."""
        return 2

    @property
    def number_of_classes(self) -> int:
        """``classes`` where they are given, else those that are published, or 10."""
        if self.classes is not None:
            return self.classes
        return MADE_CLASSES if self.dataset == SYNTHETIC else self.files.classes


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
    train, test, training, tested = _recordings(spec)
    chosen, held_back = partition(len(training), data)
    trained = training[chosen]
    calibration = trained[: spec.calibration_images]

    def part(recordings: _Recorded, indices: Tensor, *, augment: bool = False) -> ImageSet:
        return ImageSet(EventSource(recordings, indices, spec, augment=augment), data)

    return Splits(
        train=part(train, trained, augment=spec.augment),
        validation=part(train, training[held_back]),
        calibration=part(train, calibration),
        test=part(test, tested[chosen_for_test(len(tested), data)]),
    )


def _recordings(spec: EventSpec) -> tuple[_Recorded, _Recorded, Tensor, Tensor]:
    """What there is to train on and to test on, and which of each."""
    kind = MadeRecordings if spec.dataset == SYNTHETIC else Recordings
    train: _Recorded = kind(spec, train=True)
    if spec.dataset != SYNTHETIC and not spec.files.split:
        return train, train, *tenth_of_each_class(train.labels, spec.seed)
    test: _Recorded = kind(spec, train=False)
    return train, test, torch.arange(len(train)), torch.arange(len(test))


class EventSource:
    """Some of the recordings as frames; what augmentation does to them depends on the draw alone.

    Shapes: `read` gives float32 [batch, T, 2, side, side] and labels int64 [batch].
    """

    def __init__(
        self, recordings: _Recorded, indices: Tensor, spec: EventSpec, *, augment: bool
    ) -> None:
        self._recordings = recordings
        self._indices = indices
        self._labels = recordings.labels[indices]
        self._spec = spec
        self._augment = augment
        self._pad = spec.side // 8
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
        return self._recordings.frames(int(self._indices[place]))

    def _moves_of(self, key: tuple[int, int]) -> Tensor:
        """Rows (down, right, mirror), one per recording, for one (seed, epoch): as for images."""
        if self._moves is None or self._moves[0] != key:
            count, most = len(self), 2 * self._pad + 1
            moves = torch.randint(0, most, (count, 3), generator=generator(*key, "crop"))
            mirrored = torch.randint(0, 2, (count,), generator=generator(*key, "flip"))
            moves[:, 2] = mirrored if self._recordings.mirrors else 0
            self._moves = (key, moves)
        return self._moves[1]


def _as_images(spec: EventSpec) -> DataSpec:
    """What the splits of images ask for: sizes and shares, and no change to the counts."""
    return DataSpec(
        spec.dataset,
        image_size=spec.side,
        channels=1,  # one mean of 0 and one deviation of 1 for everything
        classes=spec.number_of_classes,
        validation_share=spec.validation_share,
        calibration_images=spec.calibration_images,
        test_images=spec.test_images,
        seed=spec.seed,
        limit=spec.limit,
    )


def _faults(spec: EventSpec) -> Iterator[Fault]:
    """Everything that is wrong with the values themselves."""
    yield from _faults_of_the_recordings(spec)
    if spec.bins not in BINS:
        yield Fault("bins", repr(spec.bins), f"allowed: {', '.join(BINS)}")
    for name in ("time_steps", "calibration_images"):
        if not _whole(getattr(spec, name), least=1):
            yield Fault(name, repr(getattr(spec, name)), "allowed: a whole number, 1 or more")
    for name in ("limit", "test_images"):
        value = getattr(spec, name)
        if value is not None and not _whole(value, least=1):
            yield Fault(name, repr(value), "allowed: a whole number, 1 or more, or none for all")
    for name in ("augment", "download"):
        if not isinstance(getattr(spec, name), bool):
            yield Fault(name, repr(getattr(spec, name)), "allowed: true, false")
    if not _whole(spec.seed):
        yield Fault("seed", repr(spec.seed), "allowed: a whole number")
    share = spec.validation_share
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
        yield Fault("validation_share", repr(share), "allowed: 0 up to below 1")


def _faults_of_the_recordings(spec: EventSpec) -> Iterator[Fault]:
    """What is wrong with the data set, its folder, and what it says about side and classes."""
    made = spec.dataset == SYNTHETIC
    known = EVENT_FILES.get(spec.dataset) if isinstance(spec.dataset, str) else None
    if known is None and not made:
        yield Fault("dataset", repr(spec.dataset), f"allowed: {', '.join(DATASETS)}")
    if spec.root is None and known is not None:
        hint = f"allowed: the folder that holds {known.folder}, or is to hold it with download"
        yield Fault("root", "missing", hint)
    if spec.root is not None and (not isinstance(spec.root, str | Path) or not str(spec.root)):
        yield Fault("root", repr(spec.root), "allowed: the folder of the recordings")
    least, most = MADE_SIDES if made else (1, known.side if known else MADE_SIDES[1])
    if spec.size is not None and not _whole(spec.size, least, most):
        hint = f"allowed: {least} to {most}, or none for {MADE_SIDE if made else most}"
        yield Fault("size", repr(spec.size), hint)
    only = known.classes if known else None
    if spec.classes is not None and not _whole(spec.classes, only or 1, only):
        hint = f"allowed: {only or 'a whole number, 1 or more'}, or none"
        yield Fault("classes", repr(spec.classes), hint)


def _whole(value: object, least: int | None = None, most: int | None = None) -> bool:
    """Whether the value is a whole number, from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return (least is None or value >= least) and (most is None or value <= most)
