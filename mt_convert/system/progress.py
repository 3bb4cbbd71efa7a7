"""Progress of long work, and notes, on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` and show how far they are.

    Units: ``total`` counts items; taken from ``len(items)`` where it has one.

    Example:
        >>> list(progress([1, 2], "counting"))
        [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not sys.stderr.isatty():
        yield from _lines(items, label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task)


def speaks() -> bool:
    """Whether this process is the one of ``accelerate launch`` that prints; alone it always is."""
    return os.environ.get("RANK", "0") == "0"


@cache
def notice(text: str) -> None:
    """A line on stderr, where progress is shown; the same one only once, whoever else computes.

    Example:
        >>> notice("3 files are not read")
    """
    if not speaks():
        return
    sys.stderr.write(f"note: {text}\n")
    sys.stderr.flush()


def _lines(items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
    """A line every ten seconds, for logs; nothing for work that is done sooner."""
    shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            sys.stderr.write(f"{label}: {done}/{total or '?'}\n")
            sys.stderr.flush()
