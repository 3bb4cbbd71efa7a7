"""What lies beside a stored network for a reader who wants no torch: what it is, in plain data, and
the digests of the files that this is said of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .storage import check_regular, read_json, write_json

SUMMARY = "summary.json"
SUMMARY_SCHEMA = "mt_convert.summary/1"


def write_summary(folder: str | Path, files: Sequence[Path], content: Mapping[str, Any]) -> None:
    """Write what a network is beside its files, which are written already.

    Raises:
        OutputError: no permission, no space.
    """
    digests = {path.name: _digest(path) for path in files}
    stored = {"schema": SUMMARY_SCHEMA, "files": digests, **content}
    write_json(Path(folder) / SUMMARY, stored)


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """What was written, if it is of the files that lie beside it, to the last byte; else None.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("a")
        >>> write_summary(folder, [folder / "a"], {"kind": "qann"})
        >>> read_summary(folder)["kind"]
        'qann'
        >>> _ = (folder / "a").write_text("b")
        >>> read_summary(folder) is None
        True
    """
    folder = Path(folder)
    if not (folder / SUMMARY).is_file():
        return None
    try:
        stored = read_json(folder / SUMMARY)
        if not isinstance(stored, dict) or stored.get("schema") != SUMMARY_SCHEMA:
            return None
        files = stored.get("files")
        if not isinstance(files, dict) or not files or any(Path(n).name != n for n in files):
            return None
        same = all(_digest(folder / name) == digest for name, digest in files.items())
    except (CheckpointError, OSError):
        return None
    return stored if same else None


def _digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
