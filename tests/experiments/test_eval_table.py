"""Every data set has a label of its own, what was never trained is called so, and no more images
are asked for than are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mt_convert.data import DataSpec, open_data
from mt_convert.data.image_spec import data_labels
from mt_convert.errors import DataError, RecipeError
from mt_convert.experiments import eval_table
from mt_convert.experiments.recipes.conversion import dump, load_recipe, load_stored
from mt_convert.experiments.run import run
from mt_convert.experiments.subjects import subjects_of
from mt_convert.report.row_groups import kinds_of
from mt_convert.system.progress import notice

RECIPE = """name: {name}
model: {{architecture: digits_cnn, classes: 10, channels: 1}}
data: {{dataset: '', root: {root}, test_split: test, image_size: 8, channels: 1, classes: 10,
  validation_share: 0, calibration_images: {count}}}
evaluate: {{thresholds: [3], time_steps: [1], iso_level: false}}
"""


def written(folder: Path, name: str, *, seed: int = 0, count: int = 4) -> Path:
    """A recipe, and its twenty training and ten test images in a folder named ``images``."""
    random = np.random.default_rng(seed)
    for split, images in (("train", 2), ("test", 1)):
        for label in range(10):
            place = folder / "images" / split / str(label)
            place.mkdir(parents=True)
            for i in range(images):
                pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, root=folder / "images", count=count))
    return path


def evaluated(out: Path, names: list[Path], data: list[Path] | None = None) -> set[tuple[str, str]]:
    options = eval_table.EvalOptions(
        tuple(map(str, names)), data=tuple(map(str, data or [])), time_steps=(1,), levels=(3,)
    )
    rows = eval_table.run(options, out)
    assert len(kinds_of(rows)) == len(rows), "one line for each network and data set"
    return {(row.model, row.dataset) for row in rows}


@pytest.mark.long
def test_data_sets_of_equal_folder_names_have_labels_of_their_own(tmp_path: Path) -> None:
    one = written(tmp_path / "one", "mine", seed=1)
    other = written(tmp_path / "other", "yours", seed=2)
    found = evaluated(tmp_path / "out", [one], [one, other])
    name = "digits_cnn (random weights)"
    assert found == {(name, "images (mine)"), (name, "images (yours)")}


def test_labels_tell_apart_what_differs_and_nothing_else() -> None:
    here, there = DataSpec("", root="a/x"), DataSpec("", root="b/x")
    assert data_labels([here, here]) == ["x", "x"]
    assert data_labels([here, there], ["p", "q"]) == ["x (p)", "x (q)"]
    for names in ([], ["p", "p"], [None, "p"]):
        first, second = data_labels([here, there], names)
        assert first != second
        assert first.startswith("x (")
    trained_otherwise = DataSpec("", root="a/x", augmentation="crop_flip", calibration_images=3)
    assert data_labels([here, trained_otherwise]) == ["x", "x"]
    for changes in ({"test_images": 3}, {"test_split": "test"}, {"root": "b/x"}):
        pair = [here, DataSpec("", **{"root": "a/x", **changes})]  # type: ignore[arg-type]
        assert len(set(data_labels(pair))) == 2, changes
    named = [DataSpec("", root=place, name="same") for place in ("a", "b")]
    assert len(set(data_labels(named))) == 2
    seeds = [DataSpec("digits", seed=seed) for seed in (0, 1)]
    assert len(set(data_labels(seeds))) == 2
    assert len(set(data_labels([here, DataSpec("", root="./a/../a/x")]))) == 1


@pytest.mark.slow
def test_the_data_sets_of_one_run_are_told_apart_too(tmp_path: Path) -> None:
    recipe = written(tmp_path / "one", "mine", seed=1)
    written(tmp_path / "other", "yours", seed=2)
    other = (
        f"{{dataset: '', root: {tmp_path}/other/images, test_split: test, image_size: 8,"
        " channels: 1, classes: 10, calibration_images: 999}"
    )
    out = run(load_recipe(recipe, [f"evaluate.data=[{other}]"]), tmp_path / "out", resume=False)
    text = (out / "results.json").read_text()
    assert text.count('"dataset": "images (') == 2


@pytest.mark.slow
def test_calibration_images_are_asked_for_where_something_calibrates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    recipe = written(tmp_path / "one", "mine")
    out = run(load_recipe(recipe), tmp_path / "out", resume=False)
    assert "the float network has random weights" in capsys.readouterr().err
    few = written(tmp_path / "few", "few", seed=1, count=999)
    data = [load_recipe(few)]
    (shown,) = subjects_of(str(out), data, [], calibrates=False)
    assert len(shown.calibration) == 20
    (stored,) = subjects_of(str(out / "train"), data, [], calibrates=False)
    assert len(stored.test) == 10
    for name in (str(out), str(out / "train")):
        with pytest.raises(DataError, match="set calibration_images to at most 20"):
            subjects_of(name, data, [])
    with pytest.raises(DataError, match="at most 20"):
        subjects_of(str(recipe), data, [], calibrates=False)  # its network is quantized here
    assert len(open_data(data[0].data, calibrates=False).calibration) == 20
    seven = [load_recipe(few, ["data.classes=7", "model.classes=7"])]
    with pytest.raises(RecipeError, match="is 7, the head has 10 rows"):
        subjects_of(str(out / "train"), seven, [], calibrates=False)
    assert evaluated(tmp_path / "table", [out], [few]) == {("digits_cnn", "images")}


@pytest.mark.slow
def test_a_stored_recipe_that_ends_early_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    for words in ((), ("finetune={}",), ("train={epochs: 1}",)):
        recipe = load_recipe("digits", words)
        text = dump(recipe)
        (tmp_path / "recipe.yaml").write_text(text)
        assert load_stored(tmp_path) == recipe
        for keep in range(len(text) - 1, 0, -(len(text) // 40)):
            (tmp_path / "recipe.yaml").write_text(text[:keep])
            with pytest.raises(RecipeError, match=r"recipe\.yaml"):
                load_stored(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text[: text.index("evaluate:")])
    with pytest.raises(RecipeError, match="finetune is missing or cut off"):
        subjects_of(str(tmp_path), [], [])


@pytest.mark.slow
def test_images_that_are_normalised_otherwise_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    recipe = written(tmp_path / "one", "mine")
    other = load_recipe(recipe, ["data.mean=[0.4]", "data.std=[0.2]"])
    subjects_of(str(recipe), [other], [])
    said = capsys.readouterr().err
    assert "normalised by mean (0.4,) and std (0.2,)" in said
    assert "digits_cnn (random weights)" in said
