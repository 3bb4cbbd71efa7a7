"""Work in child processes with bounds on memory and time: a crash is an outcome, not an end.

Children are forked from one server process that has imported torch, timm and Brevitas (seconds) but
computed nothing, so that each starts at once and none inherits another's state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

SECONDS_BETWEEN_LOOKS = 0.1
MIB = 2**20
Note = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Limits:
    """What each child may take, and how many run at once.

    Units: ``memory`` GiB, resident, its own children included; ``seconds`` wall-clock.

    Example:
        >>> Limits(memory=2).workers
        1
    """

    memory: float = 8.0
    seconds: float = 600.0
    workers: int = 1


@dataclass(frozen=True)
class Task:
    """One call of ``function(*arguments, note=...)`` in a child.

    ``function`` reports results so far by ``note({...})``, which outlives a crash; the
    key ``stage`` says what it is about to do. What the child prints goes to ``log``.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path


@dataclass
class Outcome:
    """What became of a task: a value, or an error in one line; and what it noted on the way.

    Units: ``memory`` the most that was measured, MiB.
    """

    key: str
    value: Any = None
    error: str | None = None
    noted: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0


def run_bounded(
    tasks: Iterable[Task], limits: Limits, preload: Iterable[str] = ()
) -> Generator[Outcome, None, None]:
    """Run tasks, each in its own child; yield outcomes as they come. ``preload``: modules to import
    in the server, by the first call in a process.

    Closing the iterator kills the children that still run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = iter(tasks)
    running: list[_Child] = []
    try:
        while True:
            while len(running) < limits.workers and (task := next(waiting, None)) is not None:
                running.append(_Child(context, task))
            if not running:
                return
            wait([child.connection for child in running], timeout=SECONDS_BETWEEN_LOOKS)
            for child in list(running):
                if child.look(limits):
                    running.remove(child)
                    yield child.outcome
    finally:
        for child in running:
            child.stop()


class _Child:
    """A task under way, seen from the parent."""

    def __init__(self, context: Any, task: Task) -> None:
        self.outcome = Outcome(task.key)
        self.started = time.monotonic()
        self.connection, theirs = context.Pipe(duplex=False)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(target=_work, args=(theirs, task), name=task.key)
        self.process.start()
        theirs.close()

    def look(self, limits: Limits) -> bool:
        """Take what the child sent and hold it to its limits; say whether it has ended."""
        self.outcome.seconds = time.monotonic() - self.started
        ended = self._receive()
        if not ended:
            self.outcome.memory = max(self.outcome.memory, _resident(self.process.pid) // MIB)
            ended = self._beyond(limits)
        if ended:
            self.stop()
        return ended

    def _receive(self) -> bool:
        """Read all messages; the last is a value or an error, or the child went without one."""
        try:
            while self.connection.poll():
                kind, content = self.connection.recv()
                if kind == "noted":
                    self.outcome.noted.update(content)
                    continue
                setattr(self.outcome, kind, content)
                return True
        except (EOFError, OSError):
            self.process.join(timeout=10)
            self.outcome.error = _ending(self.process.exitcode) + self._during()
            return True
        return False

    def _beyond(self, limits: Limits) -> bool:
        """Whether a limit is passed; which one becomes the error."""
        if self.outcome.memory > limits.memory * 1024:
            self.outcome.error = f"stopped at the memory limit of {limits.memory:g} GiB"
        elif self.outcome.seconds > limits.seconds:
            self.outcome.error = f"stopped at the time limit of {limits.seconds / 60:g} min"
        else:
            return False
        self.outcome.error += self._during()
        return True

    def _during(self) -> str:
        """The stage that the child was in, in words."""
        stage = self.outcome.noted.get("stage")
        return f" during {stage}" if stage else ""

    def stop(self) -> None:
        """End the process, whatever it does."""
        try:
            offspring = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            offspring = []
        self.process.kill()
        for item in offspring:
            try:
                item.kill()
            except psutil.Error:
                continue
        self.process.join()
        self.connection.close()


def _resident(pid: int | None) -> int:
    """Bytes that a process and its children hold in memory; 0 once it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(item.memory_info().rss for item in family)
    except psutil.Error:
        return 0


def _ending(code: int | None) -> str:
    """Why a process ended that did not say so itself."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        note = " (the system was out of memory?)" if name == "SIGKILL" else ""
        return f"crashed with {name}{note}"
    return f"ended with exit code {code} and no result"


def _work(connection: Connection, task: Task) -> None:
    """What runs in the child: the task, its prints in the log, its value or error on the pipe."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        value = task.function(*task.arguments, note=lambda facts: connection.send(("noted", facts)))
        connection.send(("value", value))
    except MemoryError:
        connection.send(("error", "MemoryError: the system refused more memory"))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        connection.send(("error", f"{type(error).__name__}: {first}"))
    finally:
        connection.close()


def _end_with_parent() -> None:
    """A child whose parent was killed has nobody to report to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
