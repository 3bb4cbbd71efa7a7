"""Fixtures for tests of stored studies."""

from __future__ import annotations

from types import ModuleType

import pytest
from studies import command_of


@pytest.fixture
def regenerate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command of the study whose folder a test file names: its ``FOLDER``."""
    return command_of(request.module.FOLDER, monkeypatch)
