"""One thread beside several, on free and on busy cores: rows, ratios, and the processes beside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import Command
from rich.console import Console
from small_training import IMAGES, normed, quantized_net

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.experiments.bench import command, threads
from mt_convert.experiments.bench.contenders.contender import Case, Contender, ContenderKind
from mt_convert.experiments.bench.network import Network
from mt_convert.experiments.bench.timing import Clock


@pytest.fixture(scope="module")
def network() -> Network:
    """A small network, float and quantized."""
    return Network("small", normed(), quantized_net(), IMAGES[:8])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def by_threads(network: Network, clock: Clock | None = None) -> threads.ThreadTimes:
    """A contender whose call takes 1/threads on the clock, beside one that fails with two."""
    now = [0.0]

    def ticking(_: Network, case: Case) -> object:
        return lambda images: now.__setitem__(0, now[0] + 1 / torch.get_num_threads())

    def failing(_: Network, case: Case) -> object:
        if torch.get_num_threads() == 2:
            raise RuntimeError("not with two")
        return lambda images: now.__setitem__(0, now[0] + 1)

    made = [("good", ticking), ("bad", failing)]
    contenders = [
        Contender(name, ContenderKind.FLOAT, name, prepare)  # type: ignore[arg-type]
        for name, prepare in made
    ]
    clock = clock or Clock(now=lambda: now[0], pause=lambda: None)
    entries = [(item, Case(1)) for item in contenders]
    return threads.time_threads([network], lambda *_: entries, (1,), 2, 5, clock)


@pytest.mark.slow
def test_ratios_are_of_one_thread_in_the_same_round(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "check", lambda *_: type("Fine", (), {"fault": None}))
    before = torch.get_num_threads()
    times = by_threads(network)
    assert torch.get_num_threads() == before
    good = [row for row in times.rows if row.contender == "good"]
    assert [(row.threads, row.busy) for row in good] == [
        (1, False), (2, False), (1, True), (2, True),
    ]  # fmt: skip
    assert [row.of_one for row in good] == [None, 0.5, None, 0.5]
    assert [row.slow_of_one for row in good] == [None, 0.5, None, 0.5]
    assert [row.microseconds for row in good] == [1e6, 5e5, 1e6, 5e5]
    assert all(row.calls == 5 * threads.FEWEST_CALLS for row in good)
    (item,) = times.absent
    assert (item.contender, "not with two" in item.reason) == ("bad", True)
    assert any(
        "0.50 times as long as one with a busy process" in x for x in threads.findings(times)
    )
    assert any("not timed: small, bad" in line for line in threads.findings(times))
    assert threads.thread_times_from_json(json.loads(json.dumps(times.to_json()))) == times


@pytest.mark.slow
def test_processes_beside_end_with_what_they_were_started_for() -> None:
    started: list[int] = []
    popen = subprocess.Popen

    class Noted(popen):  # type: ignore[type-arg]
        def __init__(self, *given: object, **named: object) -> None:
            super().__init__(*given, **named)  # type: ignore[call-overload]
            started.append(self.pid)

    def stop_while_busy() -> None:
        with threads.busy_cores():
            assert len(started) == len(threads.cores())
            assert all(map(alive, started))
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Noted)
        with pytest.raises(KeyboardInterrupt):
            stop_while_busy()
    assert not any(map(alive, started))


@pytest.mark.long
def test_processes_beside_end_when_the_benchmark_is_killed() -> None:
    """Killed, it cannot end them: they look for it themselves."""
    words = (
        "import time\nfrom mt_convert.experiments.bench import threads\n"
        "import subprocess\nold = subprocess.Popen\n"
        "def noted(*given, **named):\n"
        "    made = old(*given, **named)\n    print(made.pid, flush=True)\n    return made\n"
        "subprocess.Popen = noted\n"
        "with threads.busy_cores():\n    print('all', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [line.strip() for line in iter(process.stdout.readline, "all\n")]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(600):
        if not any(alive(int(line)) for line in lines):
            break
        time.sleep(0.1)
    assert lines
    assert not any(alive(int(line)) for line in lines)


@pytest.mark.slow
def test_the_command_writes_rows_and_page_and_shows_them(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_network", lambda *_: network)
    monkeypatch.setattr(threads, "AT_LEAST", 0.01)
    names = ("integer_torch", "fp32_eager")
    options = command.BenchOptions(
        ("small",), batches=(1,), time_steps=(1,), contenders=names, threads=2
    )
    command.run_threads(options, tmp_path)
    times = threads.read(tmp_path)
    assert sorted(row.contender for row in times.rows) == sorted(names * 4)
    assert {(row.threads, row.busy) for row in times.rows} == {
        (1, False), (2, False), (1, True), (2, True),
    }  # fmt: skip
    assert (
        (tmp_path / "busy.md").read_text().startswith("# Threads, on free cores and on busy ones")
    )
    console = Console(record=True, width=80)
    command.show_threads(tmp_path, console)
    text = console.export_text()
    assert "2 threads take" in text
    assert "99 % of one" in text
    assert command.plain(tmp_path, "csv", "busy").startswith("network,contender,T,n,batch,threads")


def test_one_thread_alone_is_nothing_to_compare(command: Command, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    result = command("bench", "resnet20_cifar", "--busy", "--threads", 1, *out)
    assert result.returncode == 2
    assert "give --threads 2 or more" in result.stderr
    result = command("bench", "resnet20_cifar", "--busy", "--layers", *out)
    assert result.returncode == 2
    assert "--layers and --busy time different things" in result.stderr


@pytest.mark.parametrize("stored", [None, {"schema": "other"}, {"schema": threads.SCHEMA}])
def test_other_files_are_refused(stored: object) -> None:
    with pytest.raises(CheckpointError):
        threads.thread_times_from_json(stored)


def test_options_ask_for_no_fewer_than_one_thread() -> None:
    with pytest.raises(SpecError, match="nothing to compare"):
        command.run_threads(command.BenchOptions(("x",), threads=1), Path("none"))
