"""The most memory that something took, beyond what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psutil
import torch

from .storage import read_json, write_json

MIB = 2**20


class Meter(Protocol):
    """Made before what is to be measured is set up, started before it runs, stopped behind it."""

    def start(self) -> None:
        """Forget earlier peaks."""

    def stop(self) -> float:
        """MiB beyond what was held when the meter was made."""


def meter_of(device: torch.device) -> Meter:
    """Of memory allocated on an accelerator; on a CPU of what the process holds.

    Example:
        >>> meter = meter_of(torch.device("cpu"))
        >>> meter.start()
        >>> held = torch.ones(8 * 2**20)  # 32 MiB
        >>> meter.stop() > 24
        True
    """
    return _Resident() if device.type == "cpu" else _Device()


@contextmanager
def store_peak(path: Path) -> Iterator[None]:
    """Store in ``path`` what the work in this context takes at most; `stored_peak` reads it.

    A number that is there stays: it was measured when the work was done, not when it was found
    finished.
    """
    meter = meter_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    meter.start()
    yield
    if not path.is_file():
        write_json(path, {"peak_mib": round(meter.stop(), 1)})


def stored_peak(path: Path) -> float:
    """The MiB that `store_peak` stored."""
    peak: float = read_json(path, lambda content: float(content["peak_mib"]))
    return peak


class _Resident:
    """Resident memory as Linux counts it; elsewhere the peak of the whole process."""

    def __init__(self) -> None:
        gc.collect()
        _trim()
        self._before = psutil.Process().memory_info().rss

    def start(self) -> None:
        """Forget earlier peaks, those of compiling among them."""
        gc.collect()
        _trim()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not Linux, or not allowed: peaks of preparing count too
            return

    def stop(self) -> float:
        """MiB beyond the start."""
        return max(0.0, (_peak_resident() - self._before) / MIB)


class _Device:
    """Memory allocated on the accelerator."""

    def __init__(self) -> None:
        gc.collect()
        self._before = torch.accelerator.memory_allocated()

    def start(self) -> None:
        torch.accelerator.synchronize()
        torch.accelerator.reset_peak_memory_stats()

    def stop(self) -> float:
        torch.accelerator.synchronize()
        return max(0.0, (torch.accelerator.max_memory_allocated() - self._before) / MIB)


def _peak_resident() -> int:
    """Bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _trim() -> None:
    """Hand freed memory back to the system, so that it is not taken for memory in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
