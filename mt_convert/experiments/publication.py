"""How a finished run takes the place of an earlier one in its folder: by one rename.

A folder beside it is filled with links to all that stays and to what is new; then the two exchange
their names, and the old one is removed. A process killed at any moment leaves the old run or the
new one, whole; the next run in the folder removes what was left. Where folders cannot be exchanged
(a mount point, the working folder, a file system without links) the stages follow one another.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import OutputError
from ..system.exchange import exchange

NEW, PARTIAL, OLD = ".new", ".partial", ".old"
_BESIDE = ".mt-convert-publishing"


def publish(
    out: Path,
    names: Iterable[str],
    moved: Mapping[Path, str],
    describe: Callable[[Path], None],
) -> None:
    """Put new stages, each under its name, and what ``describe`` writes in place of the old.

    Raises:
        OutputError: no space, no permission; the old run stands.
    """
    beside = _beside(out)
    remove(beside)
    linked = _link_all(out, beside, set(names), moved)
    if linked:
        try:
            describe(beside)
            exchange(out.resolve(), beside)
            return
        except OSError:
            pass  # below
        finally:
            remove(beside)
    for path, name in moved.items():
        replace_stage(path, out / name)
    describe(out)


def recover(out: Path, names: Iterable[str]) -> None:
    """Remove what earlier runs left that were killed while they published.

    Of two stages of one name the new one had not taken its place yet, if that is empty.
    """
    remove(_beside(out))
    for name in names:
        older = out / f"{name}{OLD}"
        if older.is_dir() and not (out / name).exists():
            os.replace(older, out / name)
        remove(older)


def replace_stage(partial: Path, folder: Path) -> None:
    """Put a finished stage in its place; an older one there stays whole while in sight."""
    older = folder.with_name(f"{folder.name}{OLD}")
    remove(older)
    try:
        if folder.exists():
            os.replace(folder, older)
        os.replace(partial, folder)
    except OSError as error:
        raise OutputError(f"cannot put {partial} in the place of {folder}: {error}") from error
    remove(older)


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error}; remove it yourself") from error


def _beside(out: Path) -> Path:
    """The folder where the new run is put together."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name[:200]}{_BESIDE}")


def _link_all(out: Path, beside: Path, names: set[str], moved: Mapping[Path, str]) -> bool:
    """Fill a folder with links to all that belongs to the new run; False where that cannot be."""
    whole, here = out.resolve(), Path.cwd().resolve()
    if os.path.ismount(whole) or whole == here or whole in here.parents:
        return False
    ends = {f"{name}{end}" for name in names for end in (NEW, PARTIAL, OLD)}
    left_out = ends | set(moved.values()) | {"results.json", "recipe.yaml", "versions.json"}

    def skip(folder: str, found: list[str]) -> set[str]:
        return left_out & set(found) if Path(folder) == whole else set()

    try:
        shutil.copytree(whole, beside, symlinks=True, ignore=skip, copy_function=_link)
        for path, name in moved.items():
            shutil.copytree(path, beside / name, symlinks=True, copy_function=_link)
    except (OSError, shutil.Error) as error:
        remove(beside)
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OutputError(f"cannot write {beside}: {error}. Free some space") from error
        return False
    return True


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)
