"""The stored study of a pretrained network: its page, its rows, its differences."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from mt_convert.evaluation.peers.converters import PEERS
from mt_convert.report.rows import results_from_json, results_to_json
from mt_convert.system.storage import read_json

FOLDER = ROOT / "eval" / "pretrained"


@pytest.fixture
def pages(regenerate: ModuleType) -> ModuleType:
    return import_module("pretrained_page")


def test_page_and_rows_are_made_from_the_stored_cells(
    regenerate: ModuleType, pages: ModuleType
) -> None:
    cells = regenerate.stored_cells()
    assert (FOLDER / "README.md").read_text() == pages.page((FOLDER / "head.md").read_text(), cells)
    if (FOLDER / "results.json").is_file():
        stored = read_json(FOLDER / "results.json")
        assert len(results_from_json(stored)) == len(stored["rows"])
        assert stored["rows"] == results_to_json(pages.rows_of(cells))["rows"]
        for name, cell in cells.items():
            assert cell.settings == regenerate.settings(name), (
                "the cell is of other settings: make it"
            )


def example(regenerate: ModuleType) -> dict[str, object]:
    """A float network that is right on 90 of 100, one that misses five more."""
    floats, ours = "1" * 90 + "0" * 10, "1" * 85 + "0" * 15
    answer = regenerate.Answer("imagenette", ours, 25, 25, 2e-5, 3.0, 0.5)
    paid = regenerate.Paid(4, 0.97, 3.0, 0.5, 1.5, 2.25, "int8, 45 nm")
    way = regenerate.Way("uniform", 255, 1, answer, paid)
    few = regenerate.Way("radix", 1, 8, regenerate.Answer("imagenette", ours[:50]), paid)
    cells = [
        regenerate.Cell("float", "", [regenerate.Answer("imagenette", floats)]),
        regenerate.Cell(
            "W4A8 corrected",
            "",
            [answer],
            [way],
            (4, 8),
            ("gptq",),
            255,
            "abc",
            notes={"verified": 4, "exact": True},
        ),
        regenerate.Cell("W4A8 corrected steps", "", (), [few], (4, 8), ("gptq",), 255, "abc"),
        regenerate.Cell("sinabs as it is", "", refused="converted nothing"),
    ]
    return {cell.name: cell for cell in cells}


def test_a_page_says_what_is_decided_what_was_refused_and_what_is_missing(
    regenerate: ModuleType,
    pages: ModuleType,
) -> None:
    page = pages.page("head", example(regenerate))
    assert "| W4A8, `gptq` | Imagenette, ten logits, 100 | 90.00 | 85.00 | -5.00 (" in page
    assert (
        "| 5 / 0 | 5: not decided | 4 of 4; 25 of 25, 2.0e-05 | 3.0, 0.5 | 0.9700 | 1.50 / 2.25 |"
        in page
    )
    assert "| radix 1 | 8 | 50 | 100.00 | +0.00 (" in page
    assert "| sinabs | as it is | – | – | – | – | converted nothing |" in page
    assert "Not made yet: W8A8 corrected;" in page


def test_rows_have_the_networks_beside_each_other_on_the_same_images(
    regenerate: ModuleType, pages: ModuleType
) -> None:
    cells = example(regenerate)
    first, second = pages.rows_of(cells)
    assert (first.ann_accuracy, first.qann_accuracy, first.snn_accuracy) == (90.0, 85.0, 85.0)
    assert (first.weight_bits, first.act_bits, first.exact_share) == (4, 8, 1.0)
    assert (second.ladder, second.n, second.T, second.images) == ("radix", 1, 8, 50)
    assert second.ann_accuracy == second.qann_accuracy == 100.0
    for cell in cells.values():
        stored = json.loads(json.dumps(asdict(cell)))
        assert json.loads(json.dumps(asdict(regenerate.Cell.from_json(stored)))) == stored


def test_a_cell_of_fewer_images_than_asked_for_is_made_again(regenerate: ModuleType) -> None:
    few = regenerate.Cell("float", "", [regenerate.Answer("photos", "1" * 200)])
    assert regenerate.enough(few, 100)
    assert regenerate.enough(few, 200)
    assert not regenerate.enough(few, 201)
    assert not regenerate.enough(few, None)
    assert regenerate.enough(regenerate.Cell("sinabs as it is", "", refused="no"), None)


def test_an_interval_holds_the_difference_and_decides_where_images_suffice(
    pages: ModuleType,
) -> None:
    few, many = (
        pages.difference("1" * n, "1" * (n - n // 50) + "0" * (n // 50)) for n in (50, 5000)
    )
    for found in (few, many):
        assert found.points == -2.0
        assert found.low < -2.0 < found.high
    assert (few.within(4), many.within(4), many.within(1)) == ("not decided", "yes", "no")
    swapped = pages.difference("0111", "1101")
    assert (swapped.points, swapped.only_first, swapped.only_second) == (0.0, 1, 1)
    assert swapped.low == -swapped.high


def test_ten_rows_of_a_thousand_compete_for_imagenette(regenerate: ModuleType) -> None:
    logits = torch.zeros(2, 1000)
    logits[:, 3] = 9.0  # no class of Imagenette
    logits[0, 217], logits[1, 701] = 1.0, 1.0
    labels = torch.tensor([217, 0])
    assert regenerate.correct("imagenette", logits, labels) == "10"
    assert regenerate.correct("photos", logits, labels) == "00"
    assert regenerate.correct("imagenette", logits[:, list(regenerate.ROWS)], labels) == "10"


def test_every_width_and_every_package_has_its_cells(regenerate: ModuleType) -> None:
    names = regenerate.names()
    assert len(set(names)) == len(names)
    for word in ("W8A8", "W8A4", "W4A8", "W4A4"):
        for stage in ("calibrated", "corrected", "trained"):
            spec = regenerate.spec_of_cell(f"{word} {stage}")
            assert (spec.weight_bits, spec.act_bits) == (int(word[1]), int(word[3]))
            assert bool(spec.after) == (stage != "calibrated")
            assert f"{word} {stage}" in names
            assert regenerate.on_request(f"{word} {stage}") == (stage == "trained")
    assert {regenerate.peers_of(name)[0] for name in names if regenerate.peers_of(name)} == set(
        PEERS
    )


@pytest.mark.slow
def test_a_recipe_takes_what_a_training_is_told(regenerate: ModuleType, tmp_path: Path) -> None:
    from mt_convert.experiments.recipes.conversion import load_recipe

    words = regenerate.training_words("W4A8 trained", tmp_path, tmp_path / "weights.safetensors")
    recipe = load_recipe("imagenet_efficientnet_lite0_w4a4", words)
    assert recipe.control
    assert recipe.quantize.weight_bits == 4
    assert recipe.quantize.act_bits == 8
    assert recipe.train.epochs <= 8
    assert recipe.train.distillation_weight > 0
    assert len(recipe.model.rows) == recipe.model.classes == recipe.data.classes == 10
