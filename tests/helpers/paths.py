"""Where things lie, seen from the tests; the type of the `command` fixture."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
EVAL = ROOT / "eval"
EXPECTED = EVAL / "expected"
SHARED_DATA = ROOT.parent / "shared" / "data"

Command = Callable[..., "subprocess.CompletedProcess[str]"]
