"""Class folders as rows of a larger head: labels, files of rows or WordNet ids, every fault."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import SHARED_DATA
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from mt_convert.data import DataSpec, batches, open_data, tensor_set
from mt_convert.data.class_map import head_faults, head_rows
from mt_convert.errors import DataError, SpecError
from mt_convert.training.accuracy import accuracy
from mt_convert.training.loop import fit
from mt_convert.training.spec import TrainSpec

ROWS = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
IDS = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)
SPEC = DataSpec("synthetic", image_size=8, channels=1, limit=100, calibration_images=8)


class Head(nn.Module):
    """Says the row whose number times 1/1000 all pixels are."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.linear = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def labels_of(split: Dataset) -> list[int]:
    return torch.cat([labels for _, labels in batches(split, 50)]).tolist()  # type: ignore[arg-type]


def test_labels_are_the_rows_of_the_head_in_order_of_the_classes() -> None:
    plain, mapped = open_data(SPEC), open_data(replace(SPEC, class_map=ROWS))
    for name in ("train", "validation", "calibration", "test"):
        expected = [ROWS[label] for label in labels_of(getattr(plain, name))]
        assert labels_of(getattr(mapped, name)) == expected


def test_ten_folders_and_a_head_of_a_thousand(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(IDS):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), number * 20 + i).save(folder / f"{i}.png")
    (tmp_path / "map.txt").write_text("\n".join(IDS) + "\n\n")
    spec = DataSpec(
        "",
        root=str(tmp_path),
        test_split="test",
        image_size=8,
        channels=1,
        calibration_images=4,
        class_map=str(tmp_path / "map.txt"),
    )
    assert head_rows(spec) == ROWS
    assert head_faults(spec, 1000) == []
    splits, model = open_data(spec), Head()
    assert labels_of(splits.test) == [row for row in ROWS for _ in range(2)]
    nn.init.zeros_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    with torch.no_grad():
        model.linear.bias[701] = 1.0
    assert accuracy(model, splits.test, 7) == 10.0
    with torch.no_grad():
        model.linear.bias[999] = 2.0  # a row that no folder has
    assert accuracy(model, splits.test, 7) == 0.0
    fit(model, splits, TrainSpec(epochs=1, batch_size=6, lr=0.5), tmp_path / "run", classes=1000)
    gained = model.linear.bias.detach()
    assert set(gained.topk(10).indices.tolist()) - {999} <= set(ROWS)


def test_tensors_of_ones_own_are_mapped_too() -> None:
    spec = DataSpec("mine", image_size=2, channels=1, classes=2, class_map=(5, 3))
    split = tensor_set(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]), spec)
    assert labels_of(split) == [5, 3, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((1, 2), "holds 2 rows .*one row for each of the 3 class folders"),
        ((1, 2, -1), "holds row -1"),
        ((1, 2, 2), "holds row 2 twice"),
    ],
)
def test_rows_that_do_not_fit_the_classes_are_refused(
    rows: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        DataSpec("mine", classes=3, class_map=rows)
    if min(rows) >= 0:
        (tmp_path / "map").write_text("\n".join(map(str, rows)))
        with pytest.raises(DataError, match=message):
            head_rows(DataSpec("mine", classes=3, class_map=str(tmp_path / "map")))


def test_a_row_beyond_the_head_and_other_heads_are_faults(tmp_path: Path) -> None:
    spec = DataSpec("mine", classes=2, class_map=(3, 10))
    (fault,) = head_faults(spec, 10)
    assert str(fault) == "class_map  holds row 10  allowed: 0 to 9"
    (fault,) = head_faults(replace(spec, class_map=None), 10)
    assert "set class_map" in fault.hint
    (tmp_path / "map").write_text("n01440764\nn02102040\n")
    (fault,) = head_faults(replace(spec, class_map=str(tmp_path / "map")), 21841)
    assert "WordNet ids" in fault.what


def test_every_line_of_a_file_that_is_no_row_is_listed(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("1\nn00000000\ntench\n-4\n")
    with pytest.raises(DataError) as caught:
        head_rows(DataSpec("mine", classes=4, class_map=str(tmp_path / "map")))
    assert [item.where for item in caught.value.faults] == ["line 2", "line 3", "line 4"]
    with pytest.raises(DataError, match="must be a text file"):
        head_rows(DataSpec("mine", classes=4, class_map=str(tmp_path / "gone")))
    (tmp_path / "map").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="must be a text file"):
        head_rows(DataSpec("mine", classes=4, class_map=str(tmp_path / "map")))


def test_imagenettes_folders_are_these_rows() -> None:
    path = SHARED_DATA / "imagenette224" / "test.tar"
    if not path.exists():
        pytest.skip("imagenette224 is not in ../shared/data")
    with tarfile.open(path) as archive:
        folders = sorted({name.split("/")[0] for name in archive.getnames()})
    assert folders == list(IDS)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.full((2, 1, 2, 2), 255.0), "whole numbers up to 255 .*divide by 255"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.int64), "pixels are int64"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.bool), "pixels are bool"),
    ],
)
def test_pixels_that_would_be_taken_for_others_are_refused(
    pixels: torch.Tensor, message: str
) -> None:
    spec = DataSpec("mine", image_size=2, channels=1, classes=2)
    with pytest.raises(DataError, match=message):
        tensor_set(pixels, torch.tensor([0, 1]), spec)
    with pytest.raises(DataError, match="labels with fractions"):
        tensor_set(torch.zeros(2, 1, 2, 2), torch.tensor([0, 0.5]), spec)


def test_a_row_of_5000_digits_is_beyond_the_head(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("9" * 5000)
    spec = DataSpec("digits", class_map=str(tmp_path / "map.txt"), classes=1)
    assert "holds row" in head_faults(spec, 10)[0].what
