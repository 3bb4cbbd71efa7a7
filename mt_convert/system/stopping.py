"""Signals that ask a process to end, answered as Ctrl-C is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_by: list[int] = []


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Let these signals raise KeyboardInterrupt; those that are ignored stay so. Processes that are
    forked meanwhile end by them at once. Where these were stopped too, as a whole group is, torch's
    loaders would raise an error next: they no longer do.

    Example:
        >>> import time
        >>> with as_interrupts():
        ...     try:
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ...         time.sleep(1)
        ...     except KeyboardInterrupt:
        ...         exit_code()
        143
    """
    mine = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != mine:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _by.append(number)
        if callable(signal.getsignal(signal.SIGCHLD)):
            signal.signal(signal.SIGCHLD, lambda *_: None)  # to the end of the process
        raise KeyboardInterrupt

    _by.clear()
    before = {}
    if threading.current_thread() is threading.main_thread():
        usual = {item: signal.getsignal(item) for item in SIGNALS}
        before = {item: old for item, old in usual.items() if old is signal.SIG_DFL}
    for item in before:
        signal.signal(item, stop)
    try:
        yield
    finally:
        for item, old in before.items():
            signal.signal(item, old)


def exit_code() -> int:
    """What a process that was stopped ends with: 128 and the number of the signal."""
    return 128 + (_by[-1] if _by else signal.SIGINT)
