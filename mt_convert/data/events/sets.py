"""The published sets of event recordings: their files, classes and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EventFiles:
    """One published data set: its sensor, and where tonic keeps it below a root folder.

    Units: ``side`` pixels of the square sensor. ``parts`` are the sub-folders of training and test
    recordings, the same where nobody published a split. ``path`` is a regular expression for what a
    recording's path from there on looks like. ``mirrors`` where a mirrored recording keeps its
    class.

    Example:
        >>> EVENT_FILES["nmnist"].part(Path("data"), train=False).as_posix()
        'data/NMNIST/Test'
    """

    folder: str
    side: int
    classes: int
    parts: tuple[str, str]
    suffix: str
    layout: str
    path: str
    mirrors: bool

    @property
    def split(self) -> bool:
        """Whether training and test recordings were published apart."""
        return self.parts[0] != self.parts[1]

    def part(self, root: Path, *, train: bool) -> Path:
        """The folder of one part, which is also the name of tonic's class."""
        return root / self.folder / self.parts[0 if train else 1]


EVENT_FILES = {
    "dvs_cifar10": EventFiles(
        "CIFAR10DVS",
        128,
        10,
        ("", ""),
        ".aedat4",
        "airplane … truck/*.aedat4",
        r"[a-z]+/[^/]+\.aedat4",
        mirrors=True,
    ),
    "nmnist": EventFiles(
        "NMNIST",
        34,
        10,
        ("Train", "Test"),
        ".bin",
        "0 … 9/*.bin",
        r"[0-9]/[^/]+\.bin",
        mirrors=False,
    ),
    "dvs_gesture": EventFiles(
        "DVSGesture",
        128,
        11,
        ("ibmGestureTrain", "ibmGestureTest"),
        ".npy",
        "userNN_LIGHT/0 … 10.npy",
        r"[^/]+/(10|[0-9])\.npy",
        mirrors=False,  # left and right hands, clockwise and back
    ),
}


SYNTHETIC_CLASSES = 10


SYNTHETIC_SIDE = 32


SYNTHETIC_SIDES = (16, 128)
