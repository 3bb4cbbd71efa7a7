"""Recipes: the shipped ones are valid, and every fault is told with its line and nearest key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import yaml

from mt_convert.errors import Fault, RecipeError
from mt_convert.evaluation.inspection import pick_setting
from mt_convert.evaluation.settings import OwnThresholds, Setting
from mt_convert.experiments.recipes import yaml_tree
from mt_convert.experiments.recipes.catalogue import (
    find_recipe,
    headline,
    recipe_folder,
    shipped_recipes,
)
from mt_convert.experiments.recipes.conversion import Recipe, dump, faults_here, load_recipe
from mt_convert.neurons.ladder import Firing
from mt_convert.quantization.spec import Override, QuantSpec

ALL = sorted(recipe_folder().rglob("*.yaml"))
SHIPPED = [path for path in ALL if "\nspiking:" not in path.read_text()]  # that convert
NAMES = [
    "cifar10_resnet18_noise_adaptor",
    "cifar10_resnet20_fatnn",
    "cifar10_resnet20_subbit",
    "cifar10_resnet20_w2a2",
    "cifar10_resnet20_w3a3",
    "cifar10_resnet20_w4a4",
    "cifar10_resnet56_w4a4",
    "cifar10_vgg16_dual_phase",
    "cifar10_vgg16_hybrid_stdb",
    "cifar10_vgg16_tandem",
    "cifar10_vgg16_ultra_low_latency",
    "digits",
    "digits_dual_phase",
    "digits_fatnn",
    "digits_hybrid_stdb",
    "digits_noise_adaptor",
    "digits_subbit",
    "digits_tandem",
    "digits_ultra_low_latency",
    "digits_vit",
    "imagenet_convnext_atto_w4a4",
    "imagenet_convnext_atto_w8a8",
    "imagenet_efficientnet_b0_w4a4",
    "imagenet_efficientnet_b0_w8a8",
    "imagenet_efficientnet_lite0_w4a4",
    "imagenet_efficientnet_lite0_w8a8",
    "imagenet_mobilenetv2_w4a4",
    "imagenet_mobilenetv2_w8a8",
    "imagenet_resnet18_w4a4",
    "imagenet_resnet34_w4a4",
    "imagenet_swin_tiny_w4a4",
    "imagenet_swin_tiny_w8a8",
    "imagenet_vit_tiny_w4a4",
    "imagenet_vit_tiny_w8a8",
]
SMALL = """\
name: small
model: {architecture: digits_cnn, classes: 10, channels: 1}
data:
  dataset: digits
  image_size: 8
  channels: 1
train:
  epochs: 2
smoke:
  train: {epochs: 1}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return to_file


def faults_of(path: Path, *overrides: str, smoke: bool = False) -> dict[str, Fault]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides, smoke)
    return {fault.where: fault for fault in error.value.faults}


def test_all_recipes_of_the_package_are_found() -> None:
    assert [path.stem for path in SHIPPED] == NAMES
    assert list(shipped_recipes()) == [path.stem for path in ALL]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_opens_with_command_time_and_accuracy(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    header = path.read_text().split("\nname:")[0]
    assert f"mt-convert run {path.stem}" in header
    assert "Machine and time:" in header
    assert "Expected accuracy:" in header
    assert headline(path)


@pytest.mark.sampled
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_has_a_small_variant_on_made_up_images(path: Path) -> None:
    small = load_recipe(path, smoke=True)
    assert small.data.dataset == "synthetic"
    assert small.data.limit is not None
    assert small.data.limit <= 64
    trained = [part for part in (small.ann, small.train) if part is not None]
    assert trained or "calibration alone" in path.read_text().split("\nname:")[0]
    assert {part.epochs for part in trained} <= {1}
    assert faults_here(small) == []


@pytest.mark.sampled
@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_recipe_reads_back_as_the_same(path: Path, smoke: bool, write: Write) -> None:
    recipe = load_recipe(path, smoke=smoke)
    text = dump(recipe)
    assert load_recipe(write(text)) == recipe
    assert set(yaml.safe_load(text)) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if "_w8a8" in path.stem], ids=lambda path: path.stem
)
def test_recipes_of_8_and_4_bits_differ_in_bits_training_and_thresholds_alone(path: Path) -> None:
    eight, four = load_recipe(path), load_recipe(path.stem.replace("w8a8", "w4a4"))
    assert (eight.quantize.weight_bits, eight.quantize.act_bits) == (8, 8)
    assert (four.quantize.weight_bits, four.quantize.act_bits) == (4, 4)
    assert (eight.evaluate.thresholds[-1], four.evaluate.thresholds[-1]) == (255, 15)
    assert (eight.model, eight.data) == (four.model, four.data)
    assert eight.model.pretrained


@pytest.mark.parametrize(
    "path",
    [path for path in SHIPPED if path.stem.startswith("imagenet")],
    ids=lambda path: path.stem,
)
def test_imagenet_recipes_normalise_and_crop_as_the_published_weights_ask(path: Path) -> None:
    recipe = load_recipe(path)
    published = timm.get_pretrained_cfg(recipe.model.architecture)
    assert published is not None
    assert (recipe.data.mean, recipe.data.std) == (published.mean, published.std)
    assert recipe.data.image_size == published.input_size[-1]
    assert (recipe.data.crop_pct, recipe.data.interpolation) == (
        published.crop_pct,
        published.interpolation,
    )


def test_a_recipe_is_found_by_name_file_name_or_path(write: Write) -> None:
    assert find_recipe("digits") == find_recipe("digits.yaml") == recipe_folder() / "digits.yaml"
    path = write(SMALL)
    assert find_recipe(path) == path
    with pytest.raises(RecipeError, match="did you mean digits"):
        find_recipe("digts")
    with pytest.raises(RecipeError, match="neither a file nor a shipped recipe"):
        find_recipe("elsewhere/digits")


def test_defaults_are_filled_in_and_blocks_are_the_values_the_verbs_take(write: Write) -> None:
    recipe = load_recipe(write(SMALL + "seed: 7\nann: {epochs: 1, seed: 3}\n"))
    assert recipe.quantize.spec() == QuantSpec()
    assert type(recipe.quantize.spec()) is QuantSpec
    assert recipe.ann is not None
    assert recipe.train is not None
    assert (recipe.train.seed, recipe.ann.seed, recipe.data.seed) == (7, 3, 0)
    assert recipe.evaluate.modes == (Firing.PARALLEL,)


def test_smoke_is_merged_key_by_key_and_overrides_win_over_it(write: Write) -> None:
    path = write(SMALL)
    small = load_recipe(path, smoke=True)
    assert small.train is not None
    assert small.train.epochs == 1
    assert small.data == load_recipe(path).data
    small = load_recipe(path, ["train.epochs=9"], smoke=True)
    assert small.train is not None
    assert small.train.epochs == 9


def test_overrides_are_read_as_yaml(write: Write) -> None:
    words = [
        "train.lr=1e-3",
        "train.label_smoothing=0",
        "quantize.overrides=[{pattern: 'layer3.*', act_bits: 8}]",
        "quantize.overrides.0.act_bits=6",
        "evaluate.modes=[parallel, cascade]",
        "convert.signed=true",
        "data.root=/a=b",
        "ann.epochs=4",
        "ann.epochs=5",
        "name=renamed",
    ]
    recipe = load_recipe(write(SMALL), words)
    assert recipe.train is not None
    assert recipe.train.lr == 0.001
    assert recipe.quantize.overrides == (Override("layer3.*", act_bits=6),)
    assert recipe.evaluate.modes == (Firing.PARALLEL, Firing.CASCADE)
    assert recipe.convert.signed is True
    assert recipe.data.root == "/a=b"
    assert recipe.ann is not None
    assert recipe.ann.epochs == 5
    assert recipe.name == "renamed"
    assert load_recipe(write(SMALL), ["train=null"]).train is None


def test_a_misspelt_key_is_told_with_line_path_and_nearest_key(write: Write) -> None:
    text = SMALL.replace("image_size", "image_sise").replace("  epochs", "  epoch")
    found = faults_of(write(text))
    assert set(found) == {"line 5  data.image_sise", "line 8  train.epoch"}
    assert found["line 5  data.image_sise"].hint.startswith("did you mean image_size? allowed: ")
    assert "did you mean epochs?" in found["line 8  train.epoch"].hint
    assert "label_smoothing" in found["line 8  train.epoch"].hint


def test_a_key_of_another_block_is_told_where_it_belongs(write: Write) -> None:
    hint = faults_of(write(SMALL), "label_smoothing=0.1")["override  label_smoothing"].hint
    assert "ann.label_smoothing or train.label_smoothing" in hint


def test_all_faults_are_told_at_once_also_those_that_hide_behind_others(write: Write) -> None:
    text = (
        SMALL.replace("epochs: 2", "epochs: two\n  lr: -1\n  momentun: 0.9")
        .replace("channels: 1}", "channels: true, pretrained: 1}")
        .replace("train: {epochs: 1}", "train: {epochs: 1, ema: 2}")
        .replace("image_size: 8", "image_size: 0")
    )
    text += (
        "quantize:\n  weight_bits: 99\n  act_bits: 4.5\nevaluate:\n  modes: [paralel, cascade]\n"
    )
    assert set(faults_of(write(text), "nonsense", "convert.thresholds=0", "convert.x=1")) == {
        "line 2  model.channels",
        "line 2  model.pretrained",
        "line 5  data.image_size",
        "line 8  train.epochs",
        "line 9  train.lr",
        "line 10  train.momentun",
        "line 12  train.ema",
        "line 14  quantize.weight_bits",
        "line 15  quantize.act_bits",
        "line 17  evaluate.modes.0",
        "nonsense",
        "override  convert.thresholds",
        "override  convert.x",
    }


def test_wrong_types_say_what_is_there_and_what_is_allowed(write: Write) -> None:
    words = {
        "seed=-1": ("is -1", "allowed: 0 to 4294967295"),
        "name=3": ("is 3", "allowed: text"),
        "train.epochs=true": ("is true", "allowed: a whole number"),
        "train.lr=.nan": ("is NaN", "allowed: a finite number"),
        "train.lr='0.1'": ('is "0.1"', "allowed: a number"),
        "train.steps.lr_scale=-0.1": ("is -0.1", "allowed: 0 to 1"),
        "train.steps.lr_scale=1.1": ("is 1.1", "allowed: 0 to 1"),
        "train.steps={weight_decay: -1}": ("is -1", "allowed: 0 to 1000"),
        "train.steps=0.02": ("is 0.02", "allowed: a block of keys"),
        "train.reestimate_bn=1": ("is 1", "allowed: 2 to 100000000, or none"),
        "train.reestimate_bn=2.5": ("is 2.5", "allowed: a whole number"),
        "quantize.narrow_range=1": ("is 1", "allowed: true or false"),
        "quantize.normalize_weights=yes_": ('is "yes_"', "allowed: true or false"),
        "model.from_run=3": ("is 3", "allowed: text"),
        "train.spike_weight=-0.1": ("is -0.1", "allowed: 0 to 1000"),
        "train.mse_weight=1.5": ("is 1.5", "allowed: 0 to 1"),
        "train.freeze_oscillating.momentum=0": ("is 0.0", "allowed: between 0 and 1"),
        "train.freeze_oscillating.momentum=1": ("is 1.0", "allowed: between 0 and 1"),
        "train.freeze_oscillating={bound: 0}": ("is 0.0", "allowed: above 0, up to 1"),
        "train.freeze_oscillating={bound: 1.5}": ("is 1.5", "allowed: 0 to 1"),
        "train.freeze_oscillating={final_bound: -1}": ("is -1", "allowed: 0 to 1"),
        "train.freeze_oscillating={final_bound: 0.2}": ("is 0.2", "at most bound = 0.1"),
        "train=5": ("is 5", "allowed: a block of keys"),
        "evaluate.modes=parallel": ('is "parallel"', "allowed: a list"),
        "evaluate.thresholds=[]": ("is []", "allowed: a list of one or more"),
        "convert.signed=1": ("is 1", "allowed: true or false"),
        "convert.presentation=twice": ('is "twice"', "'once' or 'every_step'"),
        "quantize.scale=big": ('is "big"', "'learned' or 'power_of_two'"),
        "quantize.act_bits=9": ("is 9", "allowed: 1 to 8"),
        "model.classes=0": ("is 0", "allowed: 1 to 1000000"),
    }
    for word, (what, hint) in words.items():
        fault = next(iter(faults_of(write(SMALL), word).values()))
        assert fault.what.startswith(what), (word, fault)
        assert hint in fault.hint, (word, fault)


def test_what_is_missing_is_named(write: Write) -> None:
    assert set(faults_of(write("seed: 1\nmodel: {architecture: a}\n"))) == {
        "line 1  name",
        "line 2  model.classes",
        "line 1  data",
    }


def test_model_and_data_must_agree(write: Write) -> None:
    found = faults_of(write(SMALL), "model.classes=7", "data.channels=3")
    assert found["override  model.classes"].what == "is 7, but data.classes is 10"
    assert found["line 2  model.channels"].what == "is 1, but data.channels is 3"


def test_faults_of_the_smoke_block_are_found_without_smoke(write: Write) -> None:
    path = write(SMALL.replace("{epochs: 1}", "{epochs: none}"))
    assert set(faults_of(path)) == {"line 10  train.epochs"}


def test_an_override_that_only_the_whole_recipe_can_take_is_no_fault_of_smoke(write: Write) -> None:
    recipe = load_recipe(write(SMALL), ["train.warmup_epochs=2"])
    assert recipe.train is not None
    assert recipe.train.warmup_epochs == 2


def test_a_key_set_twice_is_a_fault_and_not_a_choice(write: Write) -> None:
    found = faults_of(write(SMALL + "name: other\nsede: 1\n"))
    assert found["line 11  name"].hint == "first on line 1: keep one of them"
    assert "line 12  sede" in found


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "line 1, column 8"),
        ("name: &n x\nother: *n", "anchors are not allowed"),
        ("name: !!python/object/apply:os.system [echo]", "os.system"),
        ("[" * 5000, "nested too deeply"),
        ("- name", "holds no blocks"),
        ("", "holds no blocks"),
        ("name: \x00", "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe_is_refused(write: Write, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(text))
    assert said in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"cannot read .*recipe\.yaml"):
        load_recipe(path)


def test_numbers_are_read_as_people_write_them() -> None:
    for text, value in (("1e-4", 1e-4), ("5E3", 5e3), ("-2e+1", -20.0), ("1.5e-3", 1.5e-3)):
        assert yaml_tree.parse(text, "text").value == value
    assert yaml_tree.parse("2024-01-01", "text").value == "2024-01-01"
    assert yaml_tree.parse("layer1e5", "text").value == "layer1e5"


def test_no_is_a_word_and_true_is_a_truth(write: Write) -> None:
    for text in ("no", "yes", "on", "Off", "n"):
        assert yaml_tree.parse(text, "text").value == text
    for text, value in (("true", True), ("False", False)):
        assert yaml_tree.parse(text, "text").value is value
    training = load_recipe(write(SMALL), ["train.mixed_precision=no"]).train
    assert training is not None
    assert training.mixed_precision == "no"
    with pytest.raises(RecipeError) as error:
        load_recipe(write(SMALL), ["train.compile=no"])
    assert error.value.faults[0].hint == "allowed: true or false"


def test_here_faults_name_what_this_machine_lacks(write: Write) -> None:
    words = ["model.architecture=resnet19", "model.checkpoint=gone.pt", "data.root=/nowhere"]
    found = {fault.where: fault for fault in faults_here(load_recipe(write(SMALL), words))}
    assert "did you mean resnet" in found["model.architecture resnet19"].hint
    assert found["model.checkpoint"].what == "gone.pt is not here"
    assert found["data.root"].hint == "put it there, or give data.root=PATH"


def test_a_class_map_stands_for_the_classes_of_the_head(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = "[0,217,482,491,497,566,569,571,574,701]"
    recipe = load_recipe(write(SMALL), [f"data.class_map={rows}", "model.classes=1000"])
    assert recipe.data.class_map == (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    found = faults_of(write(SMALL), f"data.class_map={rows}", "model.classes=700")
    (fault,) = found.values()
    assert (fault.what, fault.hint) == ("holds row 701", "allowed: 0 to 699")
    found = faults_of(write(SMALL), "data.class_map=[1,2]", "model.classes=700")
    assert any("holds 2 rows" in fault.what for fault in found.values())
    gone = load_recipe(write(SMALL), ["data.class_map=gone.txt", "model.classes=700"])
    assert any(fault.where == "data.class_map" for fault in faults_here(gone))
    (tmp_path / "map.txt").write_text("x\n" * 10)
    found = faults_of(write(SMALL), f"data.class_map={tmp_path}/map.txt", "model.classes=700")
    assert all("is 'x'" in fault.what for fault in found.values())


def test_data_sets_of_an_evaluation_fit_the_network(write: Callable[[str], Path]) -> None:
    other = "{dataset: synthetic, image_size: 16, channels: 1, classes: 7}"
    found = faults_of(write(SMALL), f"evaluate.data=[{other}]")
    assert sorted(fault.what.split(",")[0] for fault in found.values()) == ["is 16", "is 7"]


def test_what_does_not_go_with_learned_thresholds_is_refused_by_key() -> None:
    wrong = (
        *("quantize.spacing=learned", "convert.firing=cascade", "convert.thresholds=15"),
        *("convert.presentation=every_step", "finetune={surrogate: stdb}"),
        *("evaluate.modes=[cascade]", "evaluate.iso_level=false"),
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", wrong)
    keys = [row.where.split("  ")[-1] for row in caught.value.faults]
    assert keys == [
        *("convert.thresholds", "convert.firing", "convert.presentation"),
        *("finetune.thresholds", "finetune.surrogate", "evaluate"),
    ]
    good = load_recipe("digits", ["quantize.spacing=learned"])
    assert {item.ladder for item in good.settings()} == {OwnThresholds(15)}


@pytest.mark.parametrize("spacing", ["equal", "learned"])
def test_a_recipe_of_other_packages_alone_has_settings_of_its_own_to_look_into(
    spacing: str,
) -> None:
    peers = ("evaluate.methods=[sinabs]", "evaluate.modes=[cascade]", "evaluate.iso_level=false")
    recipe = load_recipe("digits", [*peers, f"quantize.spacing={spacing}"])
    assert not any(isinstance(item, Setting) for item in recipe.settings())
    chosen = pick_setting(recipe.own_settings(), recipe.quantize.levels)
    assert chosen.time_steps[-1] > 1
    usual = load_recipe("digits", [f"quantize.spacing={spacing}"])
    assert usual.own_settings() == usual.settings()
