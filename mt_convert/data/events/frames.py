"""Event recordings as frames: `EventSpec` says which and how, `open_events` gives `Splits`.

An item is frames float32 [T, 2, side, side], counts of OFF events (channel 0) and ON events
(channel 1) per pixel and bin, and a label; batches are [batch, T, 2, side, side]. The splits are
the `ImageSet` that training and accuracy read.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...system.progress import progress
from ..image_set import Draw, ImageSet, crop_flip
from ..image_spec import DataSpec
from ..randomness import generator
from ..splits import MEMORY_LIMIT, Splits, chosen_for_test, partition
from .recordings import Recordings, tenth_of_each_class
from .spec import SYNTHETIC, EventSpec
from .synthetic import SyntheticRecordings

_Recorded = Recordings | SyntheticRecordings


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
    chosen, held_back = partition(len(training), data, calibrates=False)
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
    kind = SyntheticRecordings if spec.dataset == SYNTHETIC else Recordings
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
            frames = self._read_all[chosen].float()
        else:
            read = [self._frames(place) for place in chosen.tolist() or range(1)]
            frames = torch.stack(read)[: len(chosen)].float()
        if draw.key is not None and self._augment:
            moves = self._moves_of(draw.key)[chosen]
            moved = crop_flip(frames.flatten(1, 2), moves, self._pad)
            frames = moved.reshape(frames.shape)
        return frames, self._labels[chosen]

    def subset(self, indices: Tensor) -> EventSource:
        """Some of the recordings, of which no others are read."""
        chosen = self._indices[indices]
        return EventSource(self._recordings, chosen, self._spec, augment=self._augment)

    @cached_property
    def _read_all(self) -> Tensor:
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
