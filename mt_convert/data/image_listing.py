"""The images of a folder or a tar file, listed as ``torchvision.datasets.ImageFolder`` lists them.

The folders right below the split are the classes, in alphabetical order; all that lies below one of
them, at any depth, is of that class. What is no image by its name is counted, class by class.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError, Fault
from ..system.progress import notice
from ..system.storage import check_regular

_LINKS = 40
_BLOCK = 2**20
_PACKED = 1100  # times that a compressed archive can be smaller than what it holds (deflate: 1032)


class Entry(NamedTuple):
    """One file: its size in bytes, and when it changed, in nanoseconds."""

    size: int
    time: int


class FolderFiles:
    """Everything below a folder, links followed, names from it on.

    Raises:
        DataError: a folder cannot be read, or a link leads back to a folder above it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.entries: dict[str, Entry] = {}
        self.folders: list[str] = []
        self._walk("", (os.path.realpath(folder),))

    def _walk(self, below: str, above: tuple[str, ...]) -> None:
        try:
            found = list(os.scandir(self.path / below))
        except OSError as error:
            fault = Fault(str(self.path / below), str(error.strerror), "make it readable, or move")
            raise DataError("a folder of images cannot be read", [fault]) from error
        for item in found:
            name = posixpath.join(below, item.name)
            if not item.is_dir():
                self.entries[name] = _entry(item)
                continue
            self.folders.append(name)
            real = os.path.realpath(item.path) if item.is_symlink() else None
            if real in above:
                fault = Fault(item.path, f"is a link to {real}, which holds it", "remove the link")
                raise DataError("a folder of images has no end", [fault])
            self._walk(name, (*above, real or os.path.join(above[-1], item.name)))

    def open(self, name: str) -> BinaryIO:
        """The bytes of one file."""
        path = self.path / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no regular file")
        return path.open("rb")


class TarFiles:
    """Everything in a tar file, as it would lie in a folder once unpacked.

    Of several members of one name the last counts. A single folder around everything that has the
    name of the file or of the split is left out, as unpacking beside the file would.

    Raises:
        tarfile.TarError, OSError: it is no tar file, ends early, or claims more than it can hold.
    """

    def __init__(self, path: Path, split: str) -> None:
        self.path = path
        self._handle: tuple[int, tarfile.TarFile] | None = None
        check_regular(path)
        members: dict[str, tarfile.TarInfo] = {}
        with tarfile.open(path) as archive:
            for item in archive:
                _check_size(item, path.stat().st_size)
                if (name := _plain(item.name)) is not None:
                    members[name] = item
        unpacks_here = members.pop("", None) is not None
        for around in (split, path.stem):
            if not unpacks_here and _only_around(around, members):
                members = {
                    name[len(around) + 1 :]: item
                    for name, item in members.items()
                    if name != around
                }
                break
        self.folders = [name for name, item in members.items() if item.isdir()]
        self.folders += {str(above) for name in members for above in _above(name)}
        self._members = {name: item for name, item in members.items() if not item.isdir()}
        self.entries = {name: Entry(item.size, 0) for name, item in self._members.items()}

    def open(self, name: str) -> BinaryIO:
        """The bytes of one file; links inside the tar file are followed."""
        item = self._members[name]
        for _ in range(_LINKS):
            if not (item.issym() or item.islnk()):
                break
            where = posixpath.dirname(name) if item.issym() else ""
            name = posixpath.normpath(posixpath.join(where, item.linkname))
            if name not in self._members:
                raise OSError(f"it is a link to {item.linkname}, which is not in the file")
            item = self._members[name]
        stream = self._archive().extractfile(item) if item.isreg() else None
        if stream is None:
            raise OSError("it is no regular file")
        return io.BytesIO(stream.read())

    def _archive(self) -> tarfile.TarFile:
        """The open file: one for each process, which must not share a position."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), tarfile.open(self.path))  # noqa: SIM115
        return self._handle[1]


class Listing:
    """Which images there are, of which class, and what was passed over.

    Raises:
        DataError: no class folders, or one without an image; all of them at once.
    """

    def __init__(self, path: Path, split: str) -> None:
        self.files = FolderFiles(path) if path.is_dir() else TarFiles(path, split)
        self.path = path
        self.classes = sorted({name for name in self.files.folders if "/" not in name})
        self.names, self.skipped = arrange(self.files.entries)
        label_of = {name: label for label, name in enumerate(self.classes)}
        self.labels = [label_of[name.split("/", 1)[0]] for name in self.names]
        faults = list(self._faults())
        if faults:
            raise DataError(f"{path} does not hold images in class folders", faults)
        if self.skipped:
            notice(f"{path}: {self.skipped_text()}")

    def _faults(self) -> Iterator[Fault]:
        allowed = ", ".join(IMG_EXTENSIONS)
        if not self.classes:
            yield Fault(str(self.path), "has no folders", "put the images into one for each class")
        for label in sorted(set(range(len(self.classes))) - set(self.labels)):
            there = Counter(
                _suffix(name)
                for name in self.files.entries
                if name.startswith(f"{self.classes[label]}/")
            )
            what = f"holds no images ({_counts(there)})" if there else "is empty"
            hint = f"remove it, or put images there ({allowed})"
            yield Fault(_readable(self.classes[label]), what, hint)

    def skipped_text(self) -> str:
        """What was passed over, in words."""
        allowed = ", ".join(IMG_EXTENSIONS)
        total = sum(self.skipped.values())
        return (
            f"{total} of {total + len(self.names)} files are not read ({_counts(self.skipped)}): "
            f"images are files in class folders that end in {allowed}"
        )

    def name(self, index: int) -> str:
        """An image's name from the split on, fit to be printed."""
        return _readable(self.names[index])

    def digest(self, *, content: bool = False) -> str:
        """A digest of names, sizes and times (of the tar file as a whole), or of what they hold."""
        sha = hashlib.sha256()
        whole = isinstance(self.files, TarFiles)
        if whole and not content:
            sha.update(repr(_entry(self.path)).encode())
        for name in self.names:
            sha.update(os.fsencode(name) + b"\0")
            if content:
                with self.files.open(name) as stream:
                    while block := stream.read(_BLOCK):
                        sha.update(block)
            elif not whole:
                sha.update(repr(self.files.entries[name]).encode())
        return sha.hexdigest()


def arrange(names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The images among ``names`` in ImageFolder's order, and how many of which kind are none.

    Example:
        >>> arrange(["10/a.png", "2/b.JPG", "2/x/c.gif", "d.png"])
        (['10/a.png', '2/b.JPG'], Counter({'.gif': 1, 'outside class folders': 1}))
    """
    taken, skipped = [], Counter[str]()
    for name in names:
        if "/" not in name:
            skipped["outside class folders"] += 1
        elif name.lower().endswith(IMG_EXTENSIONS):
            taken.append(name)
        else:
            skipped[_suffix(name)] += 1
    return sorted(taken, key=lambda name: (name.split("/", 1)[0], *posixpath.split(name))), skipped


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower() or "no suffix"


def _counts(kinds: Mapping[str, int]) -> str:
    """Kinds and their numbers, the most frequent first."""
    order = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    more = ", …" if len(order) > 8 else ""
    return _readable(", ".join(f"{count} {kind}" for kind, count in order[:8]) + more)


def _entry(file: os.DirEntry[str] | Path) -> Entry:
    """Size and time of a file; of a link that leads nowhere, none."""
    try:
        found = file.stat()
    except OSError:
        return Entry(-1, 0)
    return Entry(found.st_size, found.st_mtime_ns)


def _readable(name: str) -> str:
    """A file's name without the stand-ins for bytes that are no text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_size(item: tarfile.TarInfo, whole: int) -> None:
    """Raise for a member that claims more bytes than its archive can hold."""
    if not 0 <= item.size <= whole * _PACKED or (item.sparse is not None and item.size > whole):
        raise OSError(
            f"{_readable(item.name)[:200]} would have {item.size} bytes, the archive has {whole}"
        )


def _plain(name: str) -> str | None:
    """A member's name inside the folder it would be unpacked to; None if it would lie outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _above(name: str) -> Iterator[str]:
    """The folders that hold a file."""
    while name := posixpath.dirname(name):
        yield name


def _only_around(around: str, members: Mapping[str, tarfile.TarInfo]) -> bool:
    """Whether all members lie in one folder of this name, with images in folders in it."""
    inside = all(name == around or name.startswith(f"{around}/") for name in members)
    images = (name for name in members if name.lower().endswith(IMG_EXTENSIONS))
    return inside and any(name.count("/") > 1 for name in images)
