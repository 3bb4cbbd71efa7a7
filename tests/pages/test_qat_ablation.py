"""The ablation of quantization-aware training: its cells, its page, and that it goes on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from mt_convert.data import DataSpec
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "qat_ablation"


def test_the_page_is_made_from_the_stored_rows(regenerate: ModuleType) -> None:
    stored = FOLDER / "results.json"
    rows = [regenerate.Row(**row) for row in read_json(stored)["rows"]] if stored.exists() else []
    assert (FOLDER / "README.md").read_text() == regenerate.page(rows)


def test_the_page_compares_means_over_seeds_and_gives_their_range(regenerate: ModuleType) -> None:
    row = regenerate.Row(2, "none", 0, 80.0, 0.5, None, None, 4, 10_000, "bf16", True, "")
    rows = [
        *(replace(row, seed=seed, accuracy=80.0 + seed) for seed in range(3)),
        *(replace(row, arm="all", seed=s, accuracy=84.0, frozen=1000 + s) for s in range(3)),
        replace(row, arm="all but steps", accuracy=83.0),
        replace(row, arm="steps alone", accuracy=80.5),
        replace(row, bits=32, arm="float", accuracy=90.0, mean_level=None),
    ]
    page = regenerate.page(regenerate.sort(rows))
    assert "Trained in bfloat16, compiled." in page
    assert "by the same schedule: 90.00 % (90.00 to 90.00)." in page
    lines = page[page.index("## W2A2") :].splitlines()[4:]
    assert lines == [
        "| all | 84.00 % (84.00 to 84.00) | +3.00 none | 0.50 | 1,001 | 3 |",
        "| none | 81.00 % (80.00 to 82.00) |  | 0.50 |  | 3 |",
        "| all but steps | 83.00 % (83.00 to 83.00) | -1.00 all | 0.50 |  | 1 |",
        "| steps alone | 80.50 % (80.50 to 80.50) | -0.50 none | 0.50 |  | 1 |",
    ]


def test_arms_are_all_parts_none_each_left_out_and_each_alone(regenerate: ModuleType) -> None:
    arms = regenerate.arms()
    count = len(regenerate.PARTS)
    assert len(arms) == 3 + 2 * count
    assert len(arms["all"]) == count
    for name in regenerate.PARTS:
        assert set(arms["all"]) - set(arms[f"all but {name}"]) == {name}
        assert arms[f"{name} alone"] == (name,)
        assert f"| {name} |" in (FOLDER / "head.md").read_text()


@pytest.mark.slow
def test_held_out_images_are_those_of_the_float_network_and_cells_train_on_its_others(
    regenerate: ModuleType, tmp_path: Path
) -> None:
    sizes = regenerate.full("nowhere", {})
    assert round(50_000 * sizes.data.validation_share) == 5000
    assert round(sizes.few.limit * sizes.few.validation_share) == 5000
    assert sizes.few.limit == 15_000
    digits = DataSpec(  # 1,438 images
        "digits", image_size=8, channels=1, validation_share=0.1, calibration_images=16
    )
    some = replace(sizes, data=digits, held_out=144, images=300)
    whole, few = regenerate.open_data(some.data), regenerate.open_data(some.few)
    assert (len(whole.validation), len(few.validation), len(few.train)) == (144, 144, 300)
    for one, other, count in (
        (whole.validation, few.validation, 144),
        (whole.train, few.train, 300),
    ):
        assert regenerate.images(one, count).equal(regenerate.images(other, count))
    small = regenerate.Study(regenerate.small(), tmp_path, tmp_path)
    for arm in regenerate.arms():  # every arm is a valid one
        assert small.spec(2, arm).act_bits == 2
        assert small.training(2, arm, 0).epochs == 1
    digests = {small.settings(bits, arm, 0) for bits in (2, 3) for arm in regenerate.arms()}
    assert len(digests) == 2 * len(regenerate.arms())


@pytest.mark.long
def test_the_small_study_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "regenerate.py"), "--smoke"]
    script += ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]

    def run(*words: str) -> list[str]:
        done = subprocess.run(
            [*script, *words], capture_output=True, text=True, timeout=300, cwd=ROOT, check=True
        )
        return [line for line in done.stdout.splitlines() if line.startswith("Row(")]

    assert len(run("--only", "float", "none")) == 2
    assert len(run("--only", "float", "none", "frozen alone")) == 1
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| frozen alone |" in page
    assert len(read_json(tmp_path / "out" / "results.json")["rows"]) == 3
