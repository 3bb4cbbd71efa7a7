"""One process at a time; no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mt_convert.errors import OutputError
from mt_convert.system.folder_lock import NAME, folder_lock

HOLD = """
import sys, time
from contextlib import suppress
from pathlib import Path
from mt_convert.system.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        import os
        if os.fork() == 0:
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("forks",)])
def test_the_second_is_told_who_is_there_and_a_killed_one_is_not(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    other = hold(tmp_path, *words)
    try:
        with pytest.raises(OutputError) as raised, folder_lock(tmp_path):
            pass
        assert f"process {other.pid} on {platform.node()}" in str(raised.value)
        assert json.loads((tmp_path / NAME).read_text())["pid"] == other.pid
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with folder_lock(tmp_path):  # though a process that it forked may still be there
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(other.pid, signal.SIGKILL)


def test_a_process_does_not_lock_twice_nor_lose_its_lock_by_trying(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        for _ in range(2):
            with pytest.raises(OutputError, match=f"process {os.getpid()}"), folder_lock(tmp_path):
                pass
        child = os.fork()
        if child == 0:
            try:
                with folder_lock(tmp_path):
                    os._exit(1)
            except OutputError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": "x"}', '{"pid": -1}', "[" * 2000])
def test_a_lock_file_of_a_dead_process_is_taken_over(left: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(left)
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("holder", "taken"),
    [
        ({"pid": os.getppid(), "host": platform.node()}, True),
        ({"pid": 2**22 + 5, "host": platform.node()}, False),
        ({"pid": 1, "host": "elsewhere"}, True),
        ({}, False),
    ],
)
def test_without_locks_of_the_file_system_the_process_is_looked_for(
    holder: dict[str, object], taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", none)
    (tmp_path / NAME).write_text(json.dumps(holder))
    if taken:
        with pytest.raises(OutputError, match="in use"), folder_lock(tmp_path):
            pass
    else:
        with folder_lock(tmp_path):
            pass


def test_what_is_no_folder_or_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / NAME)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / NAME).symlink_to("/dev/null")
    for name in ("file", "file/below", "piped", "linked", "x" * 300):
        with pytest.raises(OutputError), folder_lock(tmp_path / name):
            pass
