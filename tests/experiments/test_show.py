"""`mt-convert show`: what a finished run says."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import (
    printed,
)

from mt_convert.errors import CheckpointError

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
        assert exact[6:8] == ["1.0000", "1.0000"]


def test_show_of_a_converted_network_lists_neurons_and_what_is_analog(finished: Path) -> None:
    text = printed(finished / "convert")
    for word in ("Neurons", "Weighted layers", "Analog", "direct coding"):
        assert word in text


def test_show_of_a_quantized_network_tells_its_bits(finished: Path) -> None:
    assert "weight_bits=4" in printed(finished / "train")


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
