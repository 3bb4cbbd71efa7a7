"""Scripts of eval/, which lie outside the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def command_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command of a study, which may import what lies beside it."""
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("regenerate", None)  # that of another study
    return importlib.import_module("regenerate")


def script(path: Path) -> ModuleType:
    """One script by itself."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
