"""The command line, in this process or in one of its own.

A process of its own imports torch first, which takes seconds: it is for what a process is the
subject of (kills, several processes, a full disk, a closed pipe), and for one message and one help
text. Everything else is called here, by the same entry point.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from mt_convert.cli import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def call_here(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the entry point prints in a folder, and the exit code; anything it lets through is
    raised here."""
    printed, said = io.StringIO(), io.StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["mt-convert", *words])
        patch.setattr(sys.modules["__main__"], "__package__", None)  # the name in usage lines
        try:
            with redirect_stdout(printed), redirect_stderr(said):
                main()
        except SystemExit as end:
            code = {None: 0}.get(end.code, end.code)
    return subprocess.CompletedProcess(words, code, printed.getvalue(), said.getvalue())


def call_process(
    folder: Path, *words: str, before: str = "", timeout: float = 600, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, started by a shell that first does ``before``, or in
    several on the CPU."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    several = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    launch = (*several, "-m") if processes > 1 else ()
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **on_cpu}
    command = [sys.executable, "-m", *launch, "mt_convert.cli", *words]
    return subprocess.run(
        ["bash", "-c", f'{before}\nexec "$@"', "bash", *command],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
