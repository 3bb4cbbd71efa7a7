"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import EXPECTED, ROOT, SHARED_DATA, Command


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite eval/expected/*.json")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images and published weights, where the machine has one."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images and weights of shared/data beside the repository")
    return SHARED_DATA


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare plain numbers with ``eval/expected/NAME.json``; ``make golden`` rewrites the file."""

    def compare(name: str, found: Any) -> None:
        path = EXPECTED / f"{name}.json"
        if request.config.getoption("--golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
        assert found == json.loads(path.read_text()), f"{path} differs: see `make golden`"

    return compare


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The real command line in a process of its own, or in several on the CPU, in an empty
    folder."""

    def call(
        *words: str, timeout: float = 300, processes: int = 1
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        several = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        launch = (*several, "-m") if processes > 1 else ()
        on_cpu = {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
        settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **on_cpu}
        return subprocess.run(
            [sys.executable, "-m", *launch, "mt_convert.cli", *words],
            cwd=tmp_path,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call
