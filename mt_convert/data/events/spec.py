"""`EventSpec`: which recordings of events to read, and how they become frames. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import Fault, SpecError, many
from .sets import EVENT_FILES, SYNTHETIC_CLASSES, SYNTHETIC_SIDE, SYNTHETIC_SIDES, EventFiles

BINS = ("time", "count")


SYNTHETIC = "synthetic"


DATASETS = (*EVENT_FILES, SYNTHETIC)


@dataclass(frozen=True)
class EventSpec:
    """One data set of event recordings, complete.

    ``dataset`` is "nmnist" (34x34, 10 digits), "dvs_cifar10" (CIFAR10-DVS, 128x128, 10 classes),
    "dvs_gesture" (128x128, 11 gestures) or "synthetic" (no files); ``root`` the folder that holds
    tonic's folder NMNIST, CIFAR10DVS or DVSGesture. What is there is read as it stands, complete
    or not; only where there is no recording at all does ``download`` fetch it.

    Synthetic recordings are drawn from ``seed``, see `moving_blob`: ``size`` 16 to 128 pixels, None
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
            count = f"{many(faults, 'value', 'values')} of EventSpec"
            raise SpecError(f"{count} outside what is allowed", faults)

    @property
    def files(self) -> EventFiles:
        """The published data set.

        Raises:
            SpecError: the recordings are synthetic.
        """
        if self.dataset == SYNTHETIC:
            raise SpecError(f"made-up recordings have no files: {', '.join(EVENT_FILES)} do")
        return EVENT_FILES[self.dataset]

    @property
    def side(self) -> int:
        """Side of the frames, in pixels."""
        if self.size is not None:
            return self.size
        return SYNTHETIC_SIDE if self.dataset == SYNTHETIC else self.files.side

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
        """``classes`` where the spec names them, else those that are published, or 10."""
        if self.classes is not None:
            return self.classes
        return SYNTHETIC_CLASSES if self.dataset == SYNTHETIC else self.files.classes


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
    is_synthetic = spec.dataset == SYNTHETIC
    files = EVENT_FILES.get(spec.dataset) if isinstance(spec.dataset, str) else None
    if files is None and not is_synthetic:
        yield Fault("dataset", repr(spec.dataset), f"allowed: {', '.join(DATASETS)}")
    if spec.root is None and files is not None:
        hint = f"allowed: the folder that holds {files.folder}, or is to hold it with download"
        yield Fault("root", "missing", hint)
    if spec.root is not None and (not isinstance(spec.root, str | Path) or not str(spec.root)):
        yield Fault("root", repr(spec.root), "allowed: the folder of the recordings")
    least, most = (
        SYNTHETIC_SIDES if is_synthetic else (1, files.side if files else SYNTHETIC_SIDES[1])
    )
    if spec.size is not None and not _whole(spec.size, least, most):
        hint = f"allowed: {least} to {most}, or none for {SYNTHETIC_SIDE if is_synthetic else most}"
        yield Fault("size", repr(spec.size), hint)
    only = files.classes if files else None
    if spec.classes is not None and not _whole(spec.classes, only or 1, only):
        hint = f"allowed: {only or 'a whole number, 1 or more'}, or none"
        yield Fault("classes", repr(spec.classes), hint)


def _whole(value: object, least: int | None = None, most: int | None = None) -> bool:
    """Whether the value is a whole number, from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return (least is None or value >= least) and (most is None or value <= most)
