"""The lines of Python that the guide prints run as they are printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import nn

import mt_convert as mt

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "guide.md").read_text(), re.S | re.M)


class QCFS(nn.Module):
    """An activation of eight levels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.L = nn.Parameter(torch.tensor([4.0])), 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x.clamp(0, 4) / 4 * 8 + 0.5) / 8 * 4


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_lines_of_the_guide_run_as_printed(
    every: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 10)),
    ).eval()
    model = nn.Sequential(*ann[:2], QCFS(), *ann[3:])
    scope: dict[str, Any] = {"ann": ann, "model": model, "images": torch.randn(8, 3, 16, 16)}
    assert len(BLOCKS) >= 9
    training = [block for block in BLOCKS if "TrainSpec" in block or "SpikingModule" in block]
    assert len(training) == 3
    for block in BLOCKS if every else ["import torch", BLOCKS[0], *training]:
        exec(compile(block, "guide.md", "exec"), scope)
    assert isinstance(scope["tuned"].snn, mt.spiking.SpikingModel)
    assert (tmp_path / "tuned" / "finished.json").is_file()
    assert (tmp_path / "own" / "finished.json").is_file()
    assert scope["snn"].image_shape == (3, 16, 16)
    assert "exact at T = 1" in capsys.readouterr().out
