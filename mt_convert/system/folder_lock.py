"""One process at a time in a folder of results; which one it is, the others say."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .storage import check_folder

NAME = ".lock"
_held: set[tuple[int, int]] = set()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Work alone in a folder, which is made if it is not there.

    The system gives a lock back when its process ends in any way, so that none is ever stale. Where
    the file system has no locks, the process is looked for by its number.

    Raises:
        OutputError: another process works there, with its number and machine; or the folder cannot
            be made.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with folder_lock(folder):
        ...     (folder / NAME).is_file()
        True
        >>> list(folder.iterdir())
        []
    """
    path = folder / NAME
    check_folder(folder)
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Choose another --out folder"
        ) from error
    found = os.fstat(handle)
    known = (found.st_dev, found.st_ino)
    _held.add(known)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # before the lock is given back: nobody else holds it
        _held.discard(known)
        os.close(handle)
        with suppress(OSError):  # those that nothing was written to
            for item in made:
                item.rmdir()


def _acquire(path: Path) -> int:
    """The open lock file, locked and saying whose it is."""
    while True:
        if _is_held_here(path):  # without opening it: closing it again would give our lock back
            raise OutputError(_refusal(path, {"pid": os.getpid(), "host": platform.node()}))
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OutputError(f"{path} is no regular file: move it away")
            if not _lock(handle, path):
                raise OutputError(_refusal(path, _holder(path)))
            if _is_still(handle, path):
                with suppress(OSError):  # a full disk is said by whoever has something to write
                    _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has removed the file meanwhile


def _lock(handle: int, path: Path) -> bool:
    """Lock an open file; False if another process has."""
    try:  # of the process, not of the open file: processes that it forks do not share it
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return not _works(_holder(path))
    return True


def _is_held_here(path: Path) -> bool:
    """Whether this process holds a lock file itself."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) in _held


def _is_still(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    mine = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
    os.pwrite(handle, json.dumps(mine).encode(), 0)


def _holder(path: Path) -> dict[str, object]:
    """What the lock file says about its process."""
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(1000))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _works(holder: dict[str, object]) -> bool:
    """Whether the process that signed is there, as far as can be seen from here."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    if holder.get("host") != platform.node():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _refusal(path: Path, holder: dict[str, object]) -> str:
    since = f" since {holder['since']}" if "since" in holder else ""
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{since}"
    return (
        f"{path.parent} is in use by {who}: wait until it is finished, stop it, or name another "
        "folder with --out"
    )
