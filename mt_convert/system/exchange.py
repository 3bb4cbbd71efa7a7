"""Put a folder in the place of another by one rename: no moment shows half of each."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

_HERE, _EXCHANGE, _SWAP = -100, 2, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS


def exchange(first: Path, second: Path) -> None:
    """Let two folders on one file system change names, at once.

    Raises:
        OSError: this system or file system cannot, or a folder is a mount point.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("old", "new"):
        ...     (root / name / f"of_{name}").mkdir(parents=True)
        >>> exchange(root / "old", root / "new")
        >>> [item.name for item in (root / "old").iterdir()]
        ['of_new']
    """
    call = _call()
    if call is None:
        raise OSError(f"{platform.system()} cannot exchange folders")
    if call(os.fsencode(first), os.fsencode(second)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first))


@cache
def _call() -> Any:
    """The system's own exchange of two paths, if it has one."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        linux = library.renameat2
        linux.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]
        linux.argtypes += [ctypes.c_uint]
        return lambda first, second: linux(_HERE, first, _HERE, second, _EXCHANGE)
    if hasattr(library, "renamex_np"):
        return lambda first, second: library.renamex_np(first, second, ctypes.c_uint(_SWAP))
    return None
