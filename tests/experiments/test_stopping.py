"""Signals, several processes, odd folders: what the command line says, and what stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Command
from torch.utils.data import DataLoader, TensorDataset

from mt_convert import cli
from mt_convert.errors import OutputError
from mt_convert.experiments import eval_table
from mt_convert.experiments import finetune as finetunes
from mt_convert.experiments import run as runs
from mt_convert.experiments.bench import command as benches
from mt_convert.experiments.coverage import sweep as sweeps
from mt_convert.system import processes as processes_module
from mt_convert.system import stopping
from mt_convert.system.folder_lock import NAME, folder_lock
from mt_convert.system.processes import Processes, alone_in
from mt_convert.system.storage import append_line, atomic, save_tensors, sweep, write_json

WORK = {  # what each command does, and where
    ("run", "digits", "--smoke", "--out", "out"): (runs, "run"),
    ("finetune", "out", "--out", "out"): (finetunes, "run"),
    ("eval", "out", "--out", "out"): (eval_table, "run"),
    ("bench", "out", "--out", "out"): (benches, "run"),
    ("coverage", "vgg11", "--out", "out"): (sweeps, "plan"),
}


def kill_oneself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Signals end a process, also where this one was told to ignore them, as behind nohup."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("words", WORK, ids=lambda words: words[0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_ends_a_command_says_how_to_go_on(
    words: tuple[str, ...], number: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = WORK[words]
    monkeypatch.setattr(module, name, lambda *_, **__: kill_oneself(number))
    before = [signal.getsignal(item) for item in stopping.SIGNALS]
    done = command(*words)
    assert done.returncode == 128 + number
    assert done.stderr.startswith("\nstopped; ")
    assert done.stderr.count("\n") == 2
    assert before == [signal.getsignal(item) for item in stopping.SIGNALS]


def test_how_to_go_on_names_what_was_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run", lambda *_, **__: kill_oneself(signal.SIGTERM))
    done = command("run", "digits", "seed=3", "--smoke", "--out", "a b", "--overwrite")
    assert "run digits seed=3 --smoke --overwrite --out 'a b' --resume\n" in done.stderr


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping.as_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_a_forked_process_ends_at_once() -> None:
    with stopping.as_interrupts():
        child = os.fork()
        if child == 0:
            try:
                kill_oneself(signal.SIGTERM)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_workers_that_are_stopped_too_are_no_error() -> None:
    """A closed terminal ends a whole group of processes."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with stopping.as_interrupts():
            reading = iter(DataLoader(TensorDataset(torch.zeros(8)), num_workers=2))
            next(reading)
            with pytest.raises(KeyboardInterrupt):
                kill_oneself(signal.SIGTERM)
            for worker in reading._workers:
                subprocess.run(["kill", str(worker.pid)], check=True)  # its parent may stop it
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            time.sleep(0.1)
            del reading
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_of_several_processes_the_first_speaks_at_once_and_the_others_later(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = command("check", "digits", "seed=x")
        assert done.returncode == 2
        assert waited == [cli.LAUNCHER_S] * int(rank)
    monkeypatch.setattr(runs, "run", lambda *_, **__: kill_oneself(signal.SIGINT))
    assert command("run", "digits").stderr == ""


@pytest.mark.long
def test_a_launcher_shows_an_error_once(process: Command) -> None:
    done = process("run", "digits", "--smoke", "seed=x", processes=2)
    assert done.stderr.count("error: ") == 1
    assert "exitcode  : 2" in done.stderr


def test_what_keeps_the_first_process_out_keeps_out_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Processes()
    second.first = False
    monkeypatch.setattr(second, "all_of", lambda item: ["in use by process 7", item])
    with pytest.raises(OutputError, match="process 7"), alone_in(tmp_path, second):
        pass
    assert processes_module.Processes().first


OUTS = {
    "300 letters": "x" * 300,
    "a long path": "/".join(["y" * 100] * 60),
    "a file": "file",
    "below a file": "file/below",
    "a pipe": "pipe",
    "a loop": "loop",
    "a device": "/dev/null",
}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("words", WORK, ids=lambda words: words[0])
def test_an_out_that_can_be_no_folder_is_one_error_and_nothing_is_lost(
    words: tuple[str, ...], kind: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("of the user")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    if words[0] == "finetune":  # needs a run; its own folder is looked at before
        words = ("eval", "digits")
    if words[0] == "bench":
        words = ("bench", "digits_cnn")
    names = words[: words.index("--out")] if "--out" in words else words
    done = command(*names, "--out", OUTS[kind])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "--out" in done.stderr
    assert len(done.stderr) < 400
    assert (tmp_path / "file").read_text() == "of the user"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "loop", "pipe"]


@pytest.mark.parametrize("words", [words for words in WORK if words[0] != "finetune"])
def test_two_commands_in_one_folder_are_kept_apart(
    words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    if words[0] in ("eval", "bench"):
        words = (words[0], "digits_cnn" if words[0] == "bench" else "digits", "--out", "out")
    with folder_lock(tmp_path / "out"):
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        done = command(*words)
        assert done.returncode == 2
        assert f"in use by process {os.getpid()}" in done.stderr
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_modes_that_the_user_wants(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
        append_line(tmp_path / "log.jsonl", "{}")
        with atomic(tmp_path / "made anew") as temporary:
            temporary.unlink()
            temporary.write_text("")
            temporary.chmod(0o600)
        with folder_lock(tmp_path / "run"):
            modes = {stat.S_IMODE((tmp_path / "run" / NAME).stat().st_mode)}
    finally:
        os.umask(before)
    modes |= {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    ours = ("stage/.rows.json.abcd1234", "stage/deep/.x.mt-convert-tmp", ".y.abc.mt-convert-tmp")
    others = (".bashrc.20240101", ".config/.a.12345678", "stage/rows.json", "stage/.hidden")
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path, deep=False)
    sweep(tmp_path / "stage")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(others)


def test_long_names_and_pipes_as_files_are_said(tmp_path: Path) -> None:
    write_json(tmp_path / ("n" * 250 + ".json"), 1)
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(OutputError, match=r"log\.jsonl"):
        append_line(tmp_path / "log.jsonl", "{}")
