"""The study on an accelerator: its parts on a CPU, its page from rows, its line without one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT
from small_training import IMAGES, normed, quantized_net

from mt_convert.experiments.bench.network import Network
from mt_convert.experiments.bench.timing import Clock
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "gpu"
CPU = torch.device("cpu")
CLOCK = Clock(pause=lambda: None)


@pytest.fixture
def network() -> Network:
    return Network("small", normed(), quantized_net(), IMAGES[:8])


def test_equality_is_asked_with_tf32_off_and_on_and_the_switch_is_put_back(
    regenerate: ModuleType, network: Network
) -> None:
    before = torch.get_float32_matmul_precision()
    rows = list(regenerate.equality(network, CPU, ("torch",)))
    assert [row.tf32 for row in rows] == [False] * 3 + [True] * 3
    assert all(row.different == 0 < row.compared for row in rows)
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_the_page_says_what_was_made_and_what_was_not(
    regenerate: ModuleType, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt_convert.experiments.bench.timing.AT_LEAST", 0.0)
    names = ("integer_torch", "fp32_eager")
    content = {
        "machine": {"name": "a card", "device": "cuda", "torch": "2"},
        "equality": [],
        "speed": [[], []],
        "training": [[], []],
        "tests": {"exit": 0, "said": "16 passed"},
        "missing": ["equality mobilenetv2_100: took longer than 75 s"],
    }
    row = regenerate.Equality("small", regenerate.SPIKING, True, 30, 2)
    regenerate.add(content, "equality", [vars(row)])
    regenerate.add(content, "speed", list(regenerate.speed(network, 2, names, clock=CLOCK)))
    monkeypatch.setattr(regenerate, "ways", lambda levels, real=regenerate.ways: real(levels)[:2])
    regenerate.add(content, "training", list(regenerate.training(network, 4, clock=CLOCK)))
    page = regenerate.page("# Head\n", content)
    assert f"| small | {regenerate.SPIKING} | on | 30 | 2 |" in page
    assert "With TF32 off 0 numbers differ." in page
    assert "16 passed" in page
    assert "| integer_torch | 4 |" in page
    assert "| small | quantized | – | float32 | 4 |" in page
    assert page.endswith("- equality mobilenetv2_100: took longer than 75 s\n")
    assert sum(regenerate.SECONDS.values()) <= 480


def test_without_an_accelerator_it_says_so_and_writes_nothing(
    regenerate: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(regenerate.devices, "device", lambda: CPU)
    monkeypatch.setattr(sys, "argv", ["regenerate.py", "--out", str(tmp_path)])
    regenerate.main()
    said = capsys.readouterr().out
    assert said == "skipped: torch finds no accelerator here; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_the_stored_page_is_made_from_stored_rows(regenerate: ModuleType) -> None:
    if not (FOLDER / "results.json").is_file():
        pytest.skip("eval/gpu has no rows yet: no accelerator was at hand")
    stored = read_json(FOLDER / "results.json")
    assert stored["schema"] == regenerate.SCHEMA
    head = (FOLDER / "head.md").read_text()
    assert (FOLDER / "README.md").read_text() == regenerate.page(head, stored)
