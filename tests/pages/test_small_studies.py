"""The pages of the first studies hold what their stored rows say."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from paths import EVAL, ROOT
from studies import command_of

from mt_convert.experiments.bench import threads
from mt_convert.report.rows import results_from_json


def test_the_page_of_resnet20_is_made_from_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = EVAL / "cifar10_resnet20"
    script = command_of(folder, monkeypatch)
    stored = json.loads((folder / "results.json").read_text())
    rows, head = results_from_json(stored), (folder / "head.md").read_text()
    assert script.page(head, rows, stored["histories"]) == (folder / "README.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for row in script.exact_rows(rows):
        assert row.exact_share == 1
        assert row.images == 10_000
        assert row.qann_accuracy == row.snn_accuracy
        if row.seed == 0:
            recipe = ROOT / "recipes" / f"cifar10_resnet20_w{row.act_bits}a{row.act_bits}.yaml"
            assert f"{row.snn_accuracy:.2f} % at T = 1" in recipe.read_text()
        if (row.act_bits, row.seed) == (4, 0):
            assert (
                f"{row.ann_accuracy:.2f} %, the quantized one at {row.qann_accuracy:.2f} %"
                in readme
            )
    shown = {
        f"| {row.n} | {row.T} | {row.snn_accuracy:.2f} | {100 * row.exact_share:.2f} % |"
        for row in rows
        if (row.act_bits, row.seed, row.images) == (4, 0, 10_000)
    }
    lines = [line for line in readme.splitlines() if re.match(r"\| \d+ \| \d+ \| [\d.]+ \|", line)]
    assert len(lines) == 5
    assert all(any(line.startswith(part) for part in shown) for line in lines)


def test_the_page_of_batch_norms_is_made_from_the_stored_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = EVAL / "batch_norm"
    script = command_of(folder, monkeypatch)
    content = json.loads((folder / "results.json").read_text())
    assert script.page(content) == (folder / "README.md").read_text()


def test_the_page_of_training_speed_is_made_from_the_stored_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = EVAL / "training_speed"
    assert command_of(folder, monkeypatch).page() == (folder / "README.md").read_text()


def test_the_page_of_threads_is_made_from_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours, two threads on busy cores are within 1.1 times one, 2 in the 99th percentile."""
    folder = EVAL / "benchmark"
    head = command_of(folder, monkeypatch).BUSY
    times = threads.read(folder)
    assert threads.markdown(times, head) == (folder / "busy.md").read_text()
    ours = [row for row in times.rows if row.contender == "integer_native" and row.threads > 1]
    busy = [row for row in ours if row.busy]
    assert len(busy) == len(ours) / 2 == 4
    assert all((row.of_one or 9) <= 1.1 and (row.slow_of_one or 9) <= 2 for row in busy)


SCRIPTS = sorted(path for path in EVAL.glob("*/*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_script_of_every_study_finds_what_it_imports(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    before = set(sys.modules)
    try:
        runpy.run_path(str(path), run_name="imported")
    finally:
        for name in set(sys.modules) - before:
            if Path(str(getattr(sys.modules[name], "__file__", ""))).parent == path.parent:
                del sys.modules[name]  # siblings of one study have names like those of another


def test_pictures_of_studies_are_there_for_print_too() -> None:
    """Errors and rates by layer, many to a page, are PNG alone."""
    pictures = [
        path for path in EVAL.glob("*/*.png") if not path.stem.startswith(("errors_", "rates_"))
    ]
    assert len(pictures) >= 10
    for path in pictures:
        assert path.with_suffix(".pdf").read_bytes()[:4] == b"%PDF", path
        assert path.with_suffix(".svg").is_file(), path
