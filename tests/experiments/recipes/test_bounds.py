"""Every number has two bounds; what a constructor is handed is known; what runs cannot is told."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from mt_convert.errors import RecipeError
from mt_convert.experiments.models.build import ModelSpec
from mt_convert.experiments.recipes.bounds import ARGUMENTS, BOUNDS, argument_faults
from mt_convert.experiments.recipes.conversion import Recipe
from mt_convert.experiments.recipes.faults import _bare, item_of, keys_of
from mt_convert.experiments.recipes.feasibility import network_faults, training_faults
from mt_convert.experiments.recipes.from_scratch import SpikingRecipe, faults_here, load
from mt_convert.experiments.run import run
from mt_convert.training.spec import TrainSpec


def numbers_of(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key whose type has numbers in it."""
    for name, inner in keys_of(kind).items():
        below = _bare(inner) if keys_of(_bare(inner)) else item_of(inner)
        if keys_of(below):
            yield from numbers_of(below, (*path, name))
        elif _holds_numbers(inner):
            yield (*path, name)


def _holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(map(_holds_numbers, typing.get_args(kind)))


@pytest.mark.parametrize("kind", [Recipe, SpikingRecipe])
def test_every_number_of_every_recipe_has_both_bounds(kind: type) -> None:
    keys = list(numbers_of(kind))
    assert len(keys) > 40
    assert [key for key in keys if key[-1] not in BOUNDS] == []


@pytest.mark.slow
@pytest.mark.parametrize("end", [0, 1])
def test_a_number_beyond_a_bound_is_told_with_both(end: int) -> None:
    for name, key in {key[-1]: key for key in numbers_of(Recipe)}.items():
        low, high = BOUNDS[name]
        value = (low - 1, high * 2 + 1)[end]
        if (key[0] in ("evaluate", "quantize") and len(key) > 2) or name in ("class_map", "mean"):
            continue
        dotted = ".".join(key)
        with pytest.raises(RecipeError) as raised:
            load("digits", [f"{dotted}=[{value}]" if name in _LISTS else f"{dotted}={value}"])
        told = [item for item in raised.value.faults if dotted in item.where]
        assert told, dotted
        assert told[0].hint.startswith("allowed: "), dotted
        assert " to " in told[0].hint, dotted


_LISTS = ("thresholds", "std", "calibrated_for", "rows")

ODD = {
    "seed=18446744073709551616": "seed",
    f"seed={'9' * 5000}": "seed",
    "seed=0x" + "f" * 5000: "seed",
    "seed=.inf": "seed",
    "seed=1:2:3:4:5:6:7:8:9:10:11:12:13": "seed",
    "data.workers=3": "data.workers",
    "ann.workers=1000000000": "ann.workers",
    "train.weight_decay=1e300": "train.weight_decay",
    "train.lr=1e-320": "train.lr",
    "data.image_size=65535": "data.image_size",
    "data.std=[1e-30]": "data.std",
    "data.mean=[1e30]": "data.mean",
    "evaluate.time_steps=[1, 2, 1000000000]": "evaluate.time_steps",
    "evaluate.batch_size=10000000000": "evaluate.batch_size",
    "data.class_map=[0, -1]": "data.class_map",
    "quantize.overrides=[{pattern: x, weight_bits: 99}]": "quantize.overrides",
    "evaluate.data=[{dataset: digits, image_size: 70000}]": "evaluate.data",
}


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:30])
def test_odd_numbers_are_faults_of_their_key(text: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load("digits", [text])
    assert any(ODD[text] in fault.where for fault in raised.value.faults)


TEXTS = (
    *("smoke: [1]", "smoke: x", "smoke: 3", "seed: !!int 'x'", "seed: !!float 'x'"),
    *("seed: !!timestamp 'x'", "seed: !!binary '***'", "data: !!set {a}", "x: [" * 900),
    *("? [a]\n: 3", "name: '\\ud800'", "a: &b 1", "{" * 300, "- 1", "3", "", "\t", "a: b: c"),
)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_odd_yaml_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load(tmp_path / "a.yaml")


def test_a_recipe_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"#" * (2**17 + 1))
    with pytest.raises(RecipeError, match="at most"):
        load(tmp_path / "a.yaml")


NEVER = (
    *("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_cfg_overlays"),
    *("cache_dir", "pretrained", "device", "dtype", "features_only", "out_indices", "feature_cfg"),
    *("kwargs_filter", "pretrained_filter_fn", "pretrained_strict", "model_cfg", "scriptable"),
    *("block_fn", "block_cls", "round_chs_fn", "cfg", "stem_backbone", "__class__", "file"),
)


@pytest.mark.parametrize("name", NEVER)
def test_what_is_no_known_argument_of_a_network_is_refused(name: str) -> None:
    assert name not in ARGUMENTS
    for architecture in ("resnet18", "digits_cnn", "hf-hub:x/y", "local-dir:x"):
        (fault,) = argument_faults(architecture, {name: "x", "drop_rate": 0.1})
        assert fault.where == f"model.kwargs.{name}"


@pytest.mark.parametrize("value", [10**9, -(10**9), 1e300, "x" * 101, [[[[[1]]]]], [10**6]])
def test_arguments_are_small_and_plain(value: Any) -> None:
    assert argument_faults("resnet18", {"depths": value})
    assert not argument_faults("resnet18", {"depths": [2, 2], "act_layer": "gelu"})


CANNOT = {
    "model.architecture=vit_tiny_patch16_224": "model.architecture",
    "model.kwargs={depths: [-1]}": "model.kwargs",
    "ann.momentum=0": "ann.optimizer",
    "train.optimizer=lbfgs": "train.optimizer",
    "finetune.train.momentum=0": "finetune.train.optimizer",
    "model.kwargs.device=meta": "model.kwargs.device",
}


@pytest.mark.parametrize("override", CANNOT)
def test_check_and_run_name_the_same_faults(
    override: str, command: Command, tmp_path: Path
) -> None:
    words = [override, "finetune={}"] if override.startswith("fine") else [override]
    words = [*words[1:], *words[:1]]
    checked, ran = command("check", "digits", *words), command("run", "digits", *words)
    assert checked.returncode == ran.returncode == 2, checked.stdout
    assert checked.stderr.splitlines()[1:] == ran.stderr.splitlines()[1:]
    assert CANNOT[override] in checked.stderr
    assert list(tmp_path.iterdir()) == []


def test_check_says_what_it_has_tried(command: Command) -> None:
    said = command("check", "digits").stdout.splitlines()[-1]
    assert said == "an image of 1x8x8 passes through digits_cnn, by its shape alone"


def test_nothing_is_computed_or_kept_by_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load("digits", smoke=True)
    assert faults_here(given) == []
    assert network_faults(given.model, 3, 8) != []  # it was made for grey images
    assert training_faults("ann", TrainSpec(epochs=1, momentum=0.0)) != []
    assert training_faults("ann", TrainSpec(epochs=1, optimizer="adamw")) == []
    assert run  # what is refused above is what it would die of


def test_rows_of_a_larger_head_are_no_fault_of_the_network() -> None:
    rows = ModelSpec("digits_cnn", classes=2, channels=1, pretrained=True, rows=(4, 20))
    assert network_faults(rows, 1, 8) == []
