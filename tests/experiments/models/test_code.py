"""Networks of one's own: made by the file that a recipe names, kept by the run, never brought by a
folder from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mt_convert.data import open_data
from mt_convert.errors import CheckpointError, RecipeError, SpecError
from mt_convert.experiments.bench.network import open_network
from mt_convert.experiments.models.build import ModelSpec, build, load_ann, model_faults
from mt_convert.experiments.models.code import code_files, run_file, split_architecture
from mt_convert.experiments.recipes.conversion import dump, load_recipe, load_stored
from mt_convert.experiments.run import run
from mt_convert.experiments.subjects import run_subject, subjects_of

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(width * 36, num_classes)
    def forward(self, x):
        return self.head(self.body(x))
def every(**settings):
    return Net(settings["num_classes"], settings["in_chans"])
def fixed():
    return Net(3)
def wrong():
    return 5
def fails(num_classes):
    raise ValueError("no such thing")
"""
REGISTERED = """
from timm.models import register_model
from torch import nn
@register_model
def {name}(pretrained=False, num_classes=3, in_chans=1, **settings):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, 8), nn.ReLU(),
                         nn.Linear(8, num_classes))
"""
RECIPE = """name: own
model: {{{model}, classes: 3, channels: 1}}
data: {{dataset: synthetic, image_size: 8, channels: 1, classes: 3, limit: 24,
  calibration_images: 8, test_images: 8, validation_share: 0}}
evaluate: {{thresholds: [3], time_steps: [1], iso_level: false}}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing yet."""
    monkeypatch.setenv("MT_CONVERT_CACHE", str(tmp_path / "cache"))


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_class_or_function_of_a_file_makes_the_network(tmp_path: Path) -> None:
    file = written(tmp_path, "net.py", NET)
    images = torch.zeros(2, 1, 8, 8)
    for name, settings in (("Net", {"width": 2}), ("every", {}), ("fixed", {})):
        spec = ModelSpec(f"{file}:{name}", classes=3, channels=1, kwargs=settings)
        one, other = (build(spec, seed=1, image_size=8) for _ in range(2))
        assert one(images).shape == (2, 3)
        assert torch.equal(one(images), other(images))
        assert spec.short_name == name
    assert not torch.equal(build(spec, seed=2)(images), one(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nett", "did you mean Net"),
        ("wrong", "gives a int, not an nn.Module"),
        ("fails", r"net.py:\d+: ValueError: no such thing; it was called with {'num_classes': 5}"),
        ("fixed", r"gives \[2, 3\] for two images, and model.classes is 5"),
    ],
)
def test_a_file_that_makes_no_such_network_is_told(tmp_path: Path, name: str, message: str) -> None:
    file = written(tmp_path, "net.py", NET)
    with pytest.raises(SpecError, match=message):
        build(ModelSpec(f"{file}:{name}", classes=5, channels=1), image_size=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import helpers_of_mine", "net.py:1: ModuleNotFoundError.*it must be one file"),
        ("x = 1\nx +* 2", "net.py:2: SyntaxError"),
        ("def f():\n    return 1 / 0\nf()", "net.py:2: ZeroDivisionError"),
        ("raise ValueError", "net.py:1: ValueError: no message"),
        (None, "cannot read .*net.py: No such file"),
    ],
)
def test_a_file_that_does_not_run_names_its_line(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        written(tmp_path, "net.py", text)
    spec = ModelSpec(f"{tmp_path}/net.py:Net", classes=3)
    with pytest.raises(SpecError, match=message):
        build(spec)
    (fault,) = model_faults(spec)
    assert fault.where == "model.architecture"


def test_names_of_timm_and_of_hubs_are_no_files() -> None:
    for name in ("resnet18", "hf-hub:timm/resnet18.a1_in1k", "local-dir:nets/mine", "vit.augreg"):
        assert split_architecture(name) is None
    assert code_files("a/b.py:Net", "c.py") == {"import.py": "c.py", "architecture.py": "a/b.py"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["architecture", "import"])
def test_a_run_keeps_its_code_and_every_command_uses_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "architecture":
        file = written(tmp_path, "net.py", NET)
        model = f"architecture: '{file}:Net'"
    else:
        file = written(tmp_path, "net.py", REGISTERED.format(name="own_of_a_run"))
        model = f"architecture: own_of_a_run, import: {file}"
    recipe = load_recipe(written(tmp_path, "own.yaml", RECIPE.format(model=model)))
    out = run(recipe, tmp_path / "run", resume=False)
    assert (out / "ann" / "code" / f"{kind}.py").read_text() == file.read_text()
    assert load_stored(out) == recipe
    before = (out / "log.jsonl").read_text()
    assert run(recipe, out, resume=False) == out
    assert '"started"' not in (out / "log.jsonl").read_text().removeprefix(before)
    file.unlink()  # from here on its copy is used
    (subject,) = subjects_of(str(out), [], [])
    assert subject.describe["model"] == ("Net" if kind == "architecture" else "own_of_a_run")
    ann = load_ann(recipe.model, 8, out / "ann")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(ann(images), subject.ann(images))  # type: ignore[misc]
    assert torch.equal(open_network(str(out), tmp_path).ann.cpu()(images), ann(images))
    other = run_subject(out, recipe, open_data(recipe.data))
    assert torch.equal(other.qann(images), subject.qann(images))

    stranger = tmp_path / "stranger"
    monkeypatch.setenv("MT_CONVERT_CACHE", str(stranger))
    shutil.copytree(out, tmp_path / "downloaded")
    with pytest.raises(CheckpointError, match=r"never run here.*mt-convert check .*recipe\.yaml"):
        subjects_of(str(tmp_path / "downloaded"), [], [])
    run_file(tmp_path / "downloaded" / "ann" / "code" / f"{kind}.py", given=True)
    assert subjects_of(str(tmp_path / "downloaded"), [], [])


@pytest.mark.long
def test_changed_code_makes_the_network_again(tmp_path: Path) -> None:
    file = written(tmp_path, "net.py", NET)
    path = written(tmp_path, "own.yaml", RECIPE.format(model=f"architecture: '{file}:Net'"))
    out = run(load_recipe(path), tmp_path / "run", resume=False)
    before = load_ann(load_recipe(path).model, 8, out / "ann")
    file.write_text(NET.replace("width=4", "width=5"))
    run(load_recipe(path), out, resume=False)
    after = load_ann(load_recipe(path).model, 8, out / "ann")
    widths = [net.get_submodule("head").get_parameter("weight").shape[1] for net in (before, after)]
    assert widths == [4 * 36, 5 * 36]


def test_the_key_is_import_and_no_other_name(tmp_path: Path) -> None:
    text = RECIPE.format(model="architecture: digits_cnn, import_: a.py")
    with pytest.raises(RecipeError, match=r"model\.import_ .*did you mean import"):
        load_recipe(written(tmp_path, "own.yaml", text))
    good = RECIPE.format(model="architecture: digits_cnn, import: a.py")
    assert "import: a.py" in dump(load_recipe(written(tmp_path, "own.yaml", good)))
