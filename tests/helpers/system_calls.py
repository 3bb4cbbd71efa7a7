"""A process that ends itself at one of its calls of the system, as by a kill from outside."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def kill_after(calls: int) -> Callable[[], int]:
    """Let this process be killed at the call behind so many; returns what tells how many it made.

    Calls are those that files and folders are touched by.
    """
    made = 0

    def count(event: str, _: object) -> None:
        nonlocal made
        if event != "os.kill" and event.split(".")[0] in ("os", "open", "shutil"):
            made += 1
            if made > calls:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return lambda: made
