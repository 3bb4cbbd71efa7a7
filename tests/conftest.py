"""Fixtures that several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Command, call_here, call_process
from paths import EXPECTED, SHARED_DATA


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite eval/expected/*.json")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a sampled test all cases but the first are slow."""
    seen: set[tuple[Path, str]] = set()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "sampled" not in marks or marks & {"slow", "long"}:
            continue
        test = item.path, item.name.split("[")[0]
        if test in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(test)


@pytest.fixture(autouse=True, scope="session")
def tracing_once() -> Iterator[None]:
    """Networks that are equal to the last bit are traced once for all that is quantized."""
    from traces import tracing_once

    with tracing_once():
        yield


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
    """The command line in this process, in an empty folder."""
    return partial(call_here, tmp_path)


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """The command line in a process of its own, or in several on the CPU, in an empty folder."""
    return partial(call_process, tmp_path)
