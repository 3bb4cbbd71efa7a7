"""Compiled code of another instruction set is never taken up."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mt_convert.system.devices import compile_by_torch

PROGRAM = """
import torch
from mt_convert.system.devices import compile_by_torch
torch.set_num_threads(1)
x = torch.linspace(-1, 1, 1000)
found = compile_by_torch(lambda x: (x.sin() + 1).sqrt() * 3)(x)
torch.testing.assert_close(found, (x.sin() + 1).sqrt() * 3)
"""


def test_compiled_code_is_kept_apart_by_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    for kind in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        assert compile_by_torch(torch.neg, backend="eager")(torch.ones(1)).item() == -1
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith(f"_{kind.lower()}")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_the_folder_that_torch_has_named_itself_is_taken_apart_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does so on its first look, as in an export."""
    for user in ("me", "0"):
        named = Path(tempfile.gettempdir(), f"torchinductor_{user}")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(named))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
        for _ in range(2):
            compile_by_torch(torch.neg, backend="eager")
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{named}_no_avx"


def test_a_folder_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    compile_by_torch(torch.neg, backend="eager")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"


@pytest.mark.long
def test_processes_of_different_instruction_sets_compute_the_same(tmp_path: Path) -> None:
    """One folder of temporary files; the first process fills torch's cache."""
    given = {name: text for name, text in os.environ.items() if "TORCHINDUCTOR" not in name}
    for kind in ("avx512", "avx2", "default"):
        env = {**given, "TMPDIR": str(tmp_path), "ATEN_CPU_CAPABILITY": kind}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
