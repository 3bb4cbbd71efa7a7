"""A run sees that images changed under their names; it says what it did not look at."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mt_convert.errors import OutputError
from mt_convert.experiments.recipes.conversion import Recipe, load_recipe
from mt_convert.experiments.run import run
from mt_convert.system.progress import notice
from mt_convert.system.storage import read_json

CLASSES = tuple("abcdefghij")


def pictures(root: Path, seed: int) -> None:
    """Two training images and one test image of each of ten classes."""
    random = np.random.default_rng(seed)
    for split, count in (("train", 2), ("test", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def recipe(root: Path, *more: str) -> Recipe:
    words = (
        *("data.dataset=''", f"data.root={root}", "data.train_split=train", "data.test_split=test"),
        *("data.limit=null", "data.test_images=null", "data.calibration_images=4"),
        *("ann=null", "train=null", "evaluate.thresholds=[3]", "evaluate.time_steps=[1]"),
        *("evaluate.iso_level=false", "data.validation_share=0", *more),
    )
    return load_recipe("digits", words, smoke=True)


def entered(out: Path, since: int = 0) -> list[str]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[since:]]
    return [line["stage"] for line in lines if line["event"] == "started"]


def again(given: Recipe, out: Path) -> list[str]:
    lines = len((out / "log.jsonl").read_text().splitlines())
    run(given, out, resume=False)
    return entered(out, lines)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and a finished run on them."""
    root, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run") / "out"
    pictures(root, 0)
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    run(recipe(root), out, resume=False)
    return root, out


@pytest.fixture
def run_copy(first: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[1], tmp_path / "out"))


@pytest.mark.slow
def test_a_run_says_what_it_was_made_from(first: tuple[Path, Path]) -> None:
    (data,) = read_json(first[1] / "versions.json")["data"]["ann"]
    assert data["splits"]["train"]["images"] == 20
    assert data["splits"]["train"]["not_read"] == {".txt": 1}
    assert data["compared"] == "times"
    assert read_json(first[1] / "ann" / "weights.json") == {"weights": "drawn from seed 0"}


@pytest.mark.long
def test_images_that_changed_under_their_names_are_seen(
    first: tuple[Path, Path], run_copy: Path
) -> None:
    root = first[0]
    assert again(recipe(root), run_copy) == []
    before = (root / "test" / "a" / "0.png").read_bytes()
    stamp = (root / "test" / "a" / "0.png").stat()
    try:
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(root / "test" / "a" / "0.png")
        assert again(recipe(root), run_copy)[0] == "ann"
        assert again(recipe(root), run_copy) == []
    finally:
        (root / "test" / "a" / "0.png").write_bytes(before)
        os.utime(root / "test" / "a" / "0.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert again(recipe(root), run_copy)[0] == "ann"


@pytest.mark.long
def test_where_images_are_gone_what_is_finished_is_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    pictures(tmp_path / "images", 1)
    given, out = recipe(tmp_path / "images"), tmp_path / "out"
    run(given, out, resume=False)
    (tmp_path / "images").rename(tmp_path / "away")
    assert again(given, out) == []
    assert "stage 'ann' is kept as it saw them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["times", "content"])
def test_by_times_a_copy_is_another_and_by_content_the_same(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    root, out = tmp_path / "images", tmp_path / "out"
    pictures(root, 2)
    given = recipe(root, f"data.compare={kind}")
    run(given, out, resume=False)
    for path in root.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    capsys.readouterr()
    assert bool(again(given, out)) == (kind == "times")
    assert ("stage 'ann' is made again" in capsys.readouterr().err) == (kind == "times")
    elsewhere = recipe(root.rename(tmp_path / "elsewhere"), f"data.compare={kind}")
    if kind == "content":
        assert again(elsewhere, out) == []
    else:
        with pytest.raises(OutputError, match=r"data\.root"):
            again(elsewhere, out)
    root = (tmp_path / "elsewhere").rename(root)
    hidden = root / "train" / "a" / "0.png"
    content = bytearray(hidden.read_bytes())
    content[-20] ^= 1  # same size, same time
    hidden.write_bytes(bytes(content))
    os.utime(hidden, ns=(1, 1))
    if kind == "content":
        with pytest.raises(Exception, match=r"a/0\.png"):  # it is damaged now, and looked at
            again(given, out)
    else:
        assert again(given, out) == []


@pytest.mark.long
def test_tar_files_and_other_data_sets_of_the_evaluation_are_looked_at(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "test"):
        with tarfile.open(packed / f"{split}.tar", "w") as archive:
            archive.add(tmp_path / "images" / split, arcname=".")
    other = (
        f"{{dataset: '', root: {packed}, test_split: test, image_size: 8, channels: 1,"
        " classes: 10, calibration_images: 4}"
    )
    given, out = recipe(tmp_path / "images", f"evaluate.data=[{other}]"), tmp_path / "out"
    run(given, out, resume=False)
    assert again(given, out) == []
    os.utime(packed / "test.tar", ns=(1, 1))
    assert again(given, out) == ["evaluate", "inspect", "report"]
