"""`mt-convert show`: what a finished run says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from small_runs import printed
from torch import nn

import mt_convert as mt
from mt_convert.errors import CheckpointError
from mt_convert.neurons.surrogate import ATan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
]  # nearly every test runs a recipe


def test_show_of_a_run_ends_with_the_sentence_the_folder_and_the_page(finished: Path) -> None:
    text = printed(finished)
    assert "ANN %" in text
    end = f"all artefacts are in {finished}.\npage: {finished / 'report.html'}"
    assert text.rstrip().endswith(end)


def test_show_of_the_default_recipe_has_both_modes_side_by_side(finished: Path) -> None:
    rows = [line.split() for line in printed(finished, width=80).splitlines()]
    assert any(row[:4] == ["presented", "mode", "signed", "n"] for row in rows)
    for mode in ("parallel", "cascade"):
        (exact,) = [row for row in rows if row[:5] == ["once", mode, "yes", "15", "1"]]
        assert exact[6:8] == ["100.00", "100.00"]


def test_show_of_a_converted_network_lists_neurons_and_what_is_analog(finished: Path) -> None:
    text = printed(finished / "convert")
    for word in ("Neurons", "Weighted layers", "Analog", "direct coding"):
        assert word in text


def test_show_of_a_quantized_network_tells_its_bits(finished: Path) -> None:
    assert "weight_bits=4" in printed(finished / "train")


WITHOUT_TORCH = """
import sys
from pathlib import Path
from rich.console import Console
from mt_convert.experiments.show import plain, show
for folder in sys.argv[1:]:
    show(Path(folder), Console(width=80))
    plain(Path(folder), "json")
    assert "torch" not in sys.modules, folder
    assert "matplotlib" not in sys.modules, folder
"""


def test_show_of_whatever_is_stored_waits_for_no_torch(finished: Path, tmp_path: Path) -> None:
    snn = mt.load(finished / "convert")
    mt.save(snn, tmp_path / "own")
    mt.export.save_pretrained(snn, tmp_path / "hub")
    scratch = mt.training.build_from_scratch(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
        mt.neurons.NeuronSpec(mt.Uniform(2), initial=0.0, surrogate=ATan()),
        example=torch.zeros(2, 1, 4, 4),
        time_steps=3,
    )
    mt.save(scratch.eval(), tmp_path / "scratch")
    folders = [finished, finished / "train", finished / "convert", tmp_path / "own"]
    folders += [tmp_path / "hub", tmp_path / "scratch"]
    folders += [ROOT / "eval" / name for name in ("benchmark", "coverage", "cifar10_resnet20")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a network trained from scratch, for 3 steps" in done.stdout


def test_a_summary_of_other_files_is_not_believed(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "convert", tmp_path / "convert"))
    due = printed(folder)
    assert "exact at T = 1 (" in due
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"kind": "qann", "spec": 3}))
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged"):
        printed(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"n": 15', '"n": 14'))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        printed(folder)
    (folder / "config.json").write_text(text)
    (folder / "summary.json").unlink()
    assert "Neurons" in printed(folder), "as it was stored before there were summaries"


def test_show_of_nothing_and_of_an_unfinished_run_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run"):
        printed(tmp_path)
    with pytest.raises(CheckpointError, match="holds no finished run"):
        printed(tmp_path / "nowhere")
    (tmp_path / "train.partial").mkdir()
    with pytest.raises(
        CheckpointError, match=r"unfinished: train\.partial, continue with run --res"
    ):
        printed(tmp_path)


def test_show_of_results_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": "mt_convert.results/2", "rows": []}')
    with pytest.raises(CheckpointError, match="has no rows"):
        printed(tmp_path)
