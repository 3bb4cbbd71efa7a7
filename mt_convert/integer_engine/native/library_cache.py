"""The folder where built libraries are kept: of this user alone, each file known by its content.

A library is named ``NAME-CONTENT.so``, CONTENT being a digest of its bytes. One that is damaged,
that others own or may write is never loaded: it is removed, and built again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BUILDING = ".building-"
_FORGOTTEN_S = 3600.0  # no build takes so long: what is older was left by one that was killed
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class ForeignFolder(Exception):
    """The folder for libraries is not this user's."""


class LibraryCache:
    """Built libraries in one folder, which is made for this user alone.

    Raises:
        ForeignFolder: another user owns the folder.
        OSError: it cannot be made.

    Example:
        >>> cache = LibraryCache(Path(tempfile.mkdtemp()))
        >>> with cache.building() as folder:
        ...     _ = (folder / "made.so").write_bytes(b"code")
        ...     path = cache.keep(folder / "made.so", "kernels-1")
        >>> cache.find("kernels-1") == path, cache.find("kernels-2")
        (True, None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise ForeignFolder(f"{folder} belongs to user {found.st_uid}")
        if found.st_mode & _OTHERS_WRITE:
            folder.chmod(0o700)

    def find(self, name: str) -> Path | None:
        """A library of this name that is whole and ours; others under this name are removed."""
        for path in sorted(self.folder.glob(f"{name}-*.so")):
            if _is_ours(path) and path.stem.rpartition("-")[2] == _content(path):
                return path
            _remove(path)
        return None

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A folder to build in, removed afterwards; those of killed builds go too."""
        for older in self.folder.glob(f"{_BUILDING}*"):
            if time.time() - older.lstat().st_mtime > _FORGOTTEN_S:
                _remove(older)
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=self.folder) as building:
            yield Path(building)

    def keep(self, built: Path, name: str) -> Path:
        """Put a library that was built in `building` under its name; it is whole or absent."""
        built.chmod(0o700)
        with built.open("rb") as file:
            os.fsync(file.fileno())
        target = self.folder / f"{name}-{_content(built)}.so"
        os.replace(built, target)
        return target


def _is_ours(path: Path) -> bool:
    """Whether a plain file is this user's, and nobody else may write it."""
    found = path.lstat()
    plain = stat.S_ISREG(found.st_mode) and not found.st_mode & _OTHERS_WRITE
    return plain and found.st_uid == os.geteuid()


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
