"""Where things lie, seen from the tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
EVAL = ROOT / "eval"
EXPECTED = EVAL / "expected"
SHARED_DATA = ROOT.parent / "shared" / "data"
