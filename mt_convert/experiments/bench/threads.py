"""``mt-convert bench --busy``: one thread beside several, on free cores and on busy ones.

Other programs take processors away: a thread that waits for one without a processor costs more than
it gains. So everything is timed with nothing beside, and with a busy process on every core; call by
call, since what counts on a shared machine are the slow ones too. Leaves ``busy.json`` and
``busy.md``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from ...errors import error_line, many
from ...report.records import of_schema, with_schema
from ...system.devices import cores
from ...system.progress import progress
from ...system.storage import atomic, read_json, write_json
from .contenders.contender import Case, Contender, Runner
from .measure import check
from .network import Network
from .rows import THREADS_SCHEMA, Absent
from .timing import Clock, clock_of

SCHEMA = THREADS_SCHEMA
CONTENDERS = ("integer_native", "onnxruntime_int8_sums", "onnxruntime_fp32")
AT_LEAST = 0.3  # seconds of calls of each contender in each round
FEWEST_CALLS = 5
HEAD = """# Threads, on free cores and on busy ones

Written by `mt-convert bench --busy`. *Busy*: a process on every core that never rests. Each call is
timed by itself; "of one thread" are the median and the 99th percentile of the calls of a round
beside those of one thread in the same round, the median of the rounds.
"""
# A process that keeps a core busy as long as the one that started it lives.
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class ThreadRow:
    """A contender with so many threads.

    Units: microseconds of a call of ``batch`` images: the median, the least and the 99th percentile
        of all calls. ``of_one`` and ``slow_of_one``: how many times as long the median and the 99th
        percentile are as with one thread, None for that itself.
    """

    network: str
    contender: str
    T: int | None
    n: int | None
    batch: int
    threads: int
    busy: bool
    microseconds: float
    least: float
    slow: float
    calls: int
    of_one: float | None
    slow_of_one: float | None


@dataclass(frozen=True)
class ThreadTimes:
    """All rows, what is missing, and the cores of this process."""

    rows: tuple[ThreadRow, ...]
    absent: tuple[Absent, ...]
    cores: int

    def to_json(self) -> dict[str, Any]:
        """The content of ``busy.json``."""
        return with_schema(SCHEMA, self)


def thread_times_from_json(stored: Any) -> ThreadTimes:
    """What `ThreadTimes.to_json` described.

    Raises:
        CheckpointError: another schema, or a column missing or of another type.
    """
    return of_schema(SCHEMA, ThreadTimes, "times by threads", stored)


@contextmanager
def busy_cores() -> Iterator[None]:
    """A busy process on every core while it lasts; they end with this process too."""
    command = [sys.executable, "-S", "-c", _BUSY]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for core in cores():
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            if hasattr(os, "sched_setaffinity"):
                with suppress(OSError):
                    os.sched_setaffinity(started[-1].pid, {core})
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def time_threads(
    networks: Sequence[Network],
    entries: Callable[[Network, int], Sequence[tuple[Contender, Case]]],
    batches: Sequence[int],
    threads: int,
    rounds: int,
    clock: Clock | None = None,
) -> ThreadTimes:
    """Time contenders with one thread and with ``threads``, on free and on busy cores."""
    rows: list[ThreadRow] = []
    absent: list[Absent] = []
    clock = clock or clock_of(torch.device("cpu"))
    before = torch.get_num_threads()
    try:
        for network in networks:
            for batch in batches:
                ready = list(_prepare(network, entries(network, batch), (1, threads), absent))
                for busy in (False, True):
                    with busy_cores() if busy else nullcontext():
                        label = f"{network.name}, batch {batch}, {'busy' if busy else 'free'} cores"
                        taken = _rounds(network, batch, ready, rounds, clock, label)
                    rows += _rows(network.name, busy, ready, taken)
    finally:
        torch.set_num_threads(before)
    return ThreadTimes(tuple(rows), tuple(absent), len(cores()))


@dataclass(frozen=True)
class _Ready:
    """What is called with so many threads."""

    contender: Contender
    case: Case
    threads: int
    run: Runner


def _prepare(
    network: Network,
    entries: Sequence[tuple[Contender, Case]],
    counts: Sequence[int],
    absent: list[Absent],
) -> Iterator[_Ready]:
    """Every contender made ready and checked with each number of threads; what cannot run is named
    in ``absent``."""
    for contender, case in entries:
        reason = contender.available(network.device)
        for threads in counts if reason is None else ():
            torch.set_num_threads(threads)
            try:
                run = contender.prepare(network, case)
                reason = check(network, contender, case, run).fault
            except Exception as error:  # other packages raise what they meet
                reason = error_line(error)
            if reason is not None:
                break
            yield _Ready(contender, case, threads, run)
        if reason is not None:
            absent.append(Absent(network.name, contender.name, str(case), reason))


def _rounds(
    network: Network,
    batch: int,
    ready: Sequence[_Ready],
    rounds: int,
    clock: Clock,
    label: str,
) -> list[list[list[float]]]:
    """Seconds of each call: by contender, by round; in an order drawn anew in every round."""
    generator, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    taken: list[list[list[float]]] = [[] for _ in ready]
    for _ in progress(range(rounds), label):
        images = network.images(batch, generator)
        for index in torch.randperm(len(ready), generator=order).tolist():
            torch.set_num_threads(ready[index].threads)
            taken[index].append(_calls(ready[index].run, images, clock))
    return taken


def _calls(run: Runner, images: Tensor, clock: Clock) -> list[float]:
    """Seconds of calls one by one, of `AT_LEAST` seconds together; one goes before."""
    clock.pause()
    run(images)
    seconds: list[float] = []
    while len(seconds) < FEWEST_CALLS or sum(seconds) < AT_LEAST:
        start = clock.now()
        run(images)
        seconds.append(clock.now() - start)
    return seconds


def _rows(
    name: str, busy: bool, ready: Sequence[_Ready], taken: Sequence[list[list[float]]]
) -> Iterator[ThreadRow]:
    """The rows of what was timed."""
    alone = {
        (item.contender.name, item.case): seconds
        for item, seconds in zip(ready, taken, strict=True)
        if item.threads == 1
    }
    for item, seconds in zip(ready, taken, strict=True):
        every = [value for one in seconds for value in one]
        ratios: list[float | None] = [None, None]
        if item.threads > 1:
            pairs = [*zip(seconds, alone[item.contender.name, item.case], strict=True)]
            ratios = [
                round(statistics.median(of(own) / of(one) for own, one in pairs), 3)
                for of in (statistics.median, _slowest)
            ]
        yield ThreadRow(
            name,
            item.contender.name,
            item.case.T,
            item.case.n,
            item.case.batch,
            item.threads,
            busy,
            microseconds=round(1e6 * statistics.median(every), 1),
            least=round(1e6 * min(every), 1),
            slow=round(1e6 * _slowest(every), 1),
            calls=len(every),
            of_one=ratios[0],
            slow_of_one=ratios[1],
        )


def _slowest(values: Sequence[float]) -> float:
    """The least value that 99 % of all do not pass."""
    return float(np.percentile(values, 99, method="inverted_cdf"))


# ------------------------------------------------------------------------------------------- page

HEADINGS = ("contender", "T", "n", "cores", "threads", "µs", "99 %", "of one", "99 % of one")


def cells(row: ThreadRow) -> list[str]:
    """A row as text, under `HEADINGS`."""
    return [
        row.contender,
        "–" if row.T is None else str(row.T),
        "–" if row.n is None else str(row.n),
        "busy" if row.busy else "free",
        str(row.threads),
        *(f"{value:,.0f}" for value in (row.microseconds, row.slow)),
        *("–" if value is None else f"{value:.2f}" for value in (row.of_one, row.slow_of_one)),
    ]


def groups(times: ThreadTimes) -> Iterator[tuple[str, list[ThreadRow]]]:
    """The rows of each network and batch, under a title."""
    for name, batch in dict.fromkeys((row.network, row.batch) for row in times.rows):
        rows = [row for row in times.rows if (row.network, row.batch) == (name, batch)]
        yield f"{name}, batch {batch}, {many(times.cores, 'core', 'cores')}", rows


def findings(times: ThreadTimes) -> Iterator[str]:
    """What the rows say, computed."""
    for title, rows in groups(times):
        for row in rows:
            if row.of_one is not None:
                where = "a busy process on every core" if row.busy else "nothing beside"
                steps = "" if row.T is None else f", T = {row.T}"
                yield (
                    f"{title}, {row.contender}{steps}: {row.threads} threads take "
                    f"{row.of_one:.2f} times as long as one with {where} "
                    f"(99th percentile: {row.slow_of_one:.2f})"
                )
    for item in times.absent:
        yield f"not timed: {item.network}, {item.contender}, {item.case}: {item.reason}"


def markdown(times: ThreadTimes, head: str = HEAD) -> str:
    """The page."""
    lines = [head.rstrip(), ""]
    for title, rows in groups(times):
        lines += [f"## {title}", "", f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
        lines.append("")
    return "\n".join([*lines, *(f"- {text}" for text in findings(times))]) + "\n"


def rich_tables(times: ThreadTimes) -> Iterator[Table]:
    """The rows for a terminal, a table for each network and batch."""
    for title, rows in groups(times):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if place == 0 else "right")
        for row in rows:
            table.add_row(*cells(row))
        yield table


def publish(times: ThreadTimes, out: Path, head: str = HEAD) -> ThreadTimes:
    """Write table and page."""
    write_json(out / "busy.json", times.to_json())
    with atomic(out / "busy.md") as temporary:
        temporary.write_text(markdown(times, head), encoding="utf-8")
    return times


def read(out: Path) -> ThreadTimes:
    """What `publish` wrote."""
    return read_json(out / "busy.json", thread_times_from_json)
