"""A finished run that the tests of runs look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import recipe, run, single_thread


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Another process comes to the same sums only with as many threads."""
    with single_thread():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; nothing may change it."""
    with single_thread():
        return run(recipe(), tmp_path_factory.mktemp("runs") / "digits", resume=False)


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, times of files included."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))
