"""Every value of every key that lists its values is run, alone and with those it can meet; what
cannot meet is refused by `load`, with the reason, and by nothing that comes later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

import every_value
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_keys import enumerated
from tiny_recipes import COMMON, SPIKING

from mt_convert.calibration.spec import NAMES
from mt_convert.calibration.text import parse
from mt_convert.errors import Fault, RecipeError
from mt_convert.experiments.recipes.conversion import Recipe
from mt_convert.experiments.recipes.from_scratch import SpikingRecipe, load
from mt_convert.experiments.run import run
from mt_convert.quantization.spec import ActNoise, BatchNorm, Rounding, Scale, Spacing, WeightCode

CONVERSION = "quantize: {act_bits: 2}\nevaluate: {thresholds: [3], time_steps: [2], batch_size: 8}"
FILES = {Recipe: COMMON + CONVERSION, SpikingRecipe: COMMON + SPIKING}

COMPANIONS: dict[str, tuple[str, ...]] = {
    "ann.": ("ann.epochs=1", "ann.batch_size=8"),
    "calibrate.": ("calibrate.calibration=mse",),
    "control=true": ("ann.epochs=1", "ann.batch_size=8"),
    "finetune.progressive=true": (
        *("finetune.algorithm=tandem", "finetune.learns=[weights]", "finetune.train.patience=1"),
    ),
    "finetune.": ("finetune.train.epochs=1", "finetune.train.batch_size=8"),
    "finetune.algorithm=tandem": ("finetune.learns=[weights]",),
    "spiking.algorithm=dsr": ("spiking.read_out_tau=2.0",),
    "spiking.delayed": ("spiking.time_steps=6",),
    "spiking.ladder=binary": ("spiking.mode=cascade",),
    "spiking.learn_read_out=true": ("spiking.read_out_tau=2.0",),
    "spiking.tensor_train.form": ("spiking.tensor_train.rank=2",),
    "spiking.tensor_train.rank": ("spiking.tensor_train.form=stt",),
}
"""What a value needs beside it."""

REFUSED = {
    "Recipe ann.steps.relative=true": "without learned steps",
    "Recipe data.augmentation=imagenet": "needs image files",
    "Recipe finetune.train.steps.relative=true": "without learned steps",
    "SpikingRecipe spiking.algorithm=tandem": "allowed: bptt",
    "SpikingRecipe spiking.ladder=radix": "allowed: None, uniform",
    "SpikingRecipe train.steps.relative=true": "without learned steps",
}
"""Values that no recipe of this kind can have."""

ELSEWHERE = ("events.", "model.pretrained", "compile")
"""Recordings, downloads and compilers: tests of their own."""

OFTEN = (
    *(
        "quantize.spacing",
        "quantize.rounding",
        "quantize.weights",
        "quantize.scale",
        "finetune.algorithm=tandem",
    ),
    *("spiking.algorithm", "spiking.tensor_train.form"),
)
"""Keys of which `make test` runs every value but the default."""


def text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '"no"' if value == "no" else str(value)


def values() -> Iterator[Any]:
    """Each kind of recipe with each of its values."""
    for kind in (Recipe, SpikingRecipe):
        for key, allowed in enumerated(kind):
            shared = kind is SpikingRecipe and key.split(".")[0] in ("model", "data", "ann")
            if shared or any(word in key for word in ELSEWHERE):
                continue
            for value in allowed:
                override = f"{key}={text(value)}"
                often = override.startswith(OFTEN) and value != allowed[0]
                marks = [pytest.mark.slow] if often else [pytest.mark.long]
                name = f"{kind.__name__} {override}"
                marks = [] if name in REFUSED else marks
                yield pytest.param(kind, override, marks=marks, id=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of this file go: a stage of equal inputs is there already."""
    folder = tmp_path_factory.mktemp("values")
    for kind, content in FILES.items():
        (folder / f"{kind.__name__}.yaml").write_text(content)
    return folder


def run_here(folder: Path, kind: type, overrides: Sequence[str]) -> None:
    """Read the recipe and run it, in one process."""
    recipe = load(folder / f"{kind.__name__}.yaml", overrides)
    out = run(recipe, folder / kind.__name__, resume=False, overwrite=True)
    assert (out / "results.json").is_file()


@pytest.mark.parametrize(("kind", "override"), list(values()))
def test_every_value_of_every_key_runs_or_is_refused_with_the_reason(
    folder: Path, kind: type, override: str
) -> None:
    beside = [
        item for start, items in COMPANIONS.items() if override.startswith(start) for item in items
    ]
    key = override.split("=")[0]
    overrides = [item for item in beside if not item.startswith(f"{key}=")]
    if (name := f"{kind.__name__} {override}") in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[name]):
            load(folder / f"{kind.__name__}.yaml", [*overrides, override])
        return
    run_here(folder, kind, [*overrides, override])


def test_the_stored_list_names_every_value() -> None:
    """`python tests/helpers/every_value.py` makes it again; seconds may be others."""
    stored = every_value.PAGE.read_text()
    names = [str(item.id) for item in values()]
    lines = every_value.page(dict.fromkeys(names, 1.0), REFUSED).splitlines()
    seconds = re.compile(r"(?<=\s)[0-9.]+(?= [|·])")
    found = [seconds.sub("", line) for line in stored.splitlines()]
    assert found == [seconds.sub("", line) for line in lines]


def test_calibrations_are_tried_in_each_of_their_kinds_and_words() -> None:
    tried = dict(enumerated(Recipe))["calibrate.calibration"]
    kinds = [parse(text)[0] for text in tried]
    assert {type(item) for item in kinds} == set(NAMES.values())
    for kind in NAMES.values():
        for name, hint in get_type_hints(kind).items():
            if isinstance(hint, type) and issubclass(hint, StrEnum):
                own = [getattr(item, name) for item in kinds if type(item) is kind]
                assert set(own) == set(hint), (kind, name)


def _choice(key: str, *words: str) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{key}={word}" for word in words])


PAIRS = st.tuples(
    _choice("quantize.spacing", *Spacing),
    _choice("quantize.rounding", *Rounding),
    _choice("quantize.weights", *WeightCode),
    _choice("quantize.act_noise", *ActNoise),
    _choice("quantize.scale", *Scale),
    _choice("quantize.batch_norm", *BatchNorm),
    _choice("quantize.normalize_weights", "true", "false"),
    _choice("convert.firing", "null", "parallel", "cascade"),
    _choice("convert.thresholds", "null", "1"),
    _choice("convert.presentation", "once", "every_step"),
    _choice("convert.whole_window", "true", "false"),
    _choice("evaluate.methods", "[]", "[mt_binary]", "[mt_power_of_two]", "[rate]", "[mt_signed]"),
    _choice("evaluate.presentations", "[once]", "[every_step]", "[once,every_step]"),
    _choice("evaluate.modes", "[parallel]", "[cascade]", "[parallel,cascade]"),
    _choice("evaluate.signed", "[true]", "[false]"),
    _choice("evaluate.whole_window", "[true]", "[false]"),
    st.one_of(
        st.just("finetune=null"),
        st.builds(
            "finetune={{algorithm: {}, surrogate: {}, learns: [{}], presentation: {}, firing: {}, "
            "thresholds: {}, train: {{epochs: 1, batch_size: 8}}}}".format,
            st.sampled_from(["bptt", "ottt_a", "ottt_o", "dsr", "tandem"]),
            st.sampled_from(["null", "null", "atan", "stdb", "straight_through"]),
            st.sampled_from(["weights", "weights, thresholds", "weights, potentials"]),
            st.sampled_from(["once", "every_step"]),
            st.sampled_from(["null", "parallel", "cascade"]),
            st.sampled_from(["null", "1"]),
        ),
    ),
)
FROM_SCRATCH = st.tuples(
    _choice("spiking.neuron", "if", "lif", "plif"),
    _choice("spiking.mode", "parallel", "cascade"),
    _choice("spiking.ladder", "null", "uniform", "binary", "power_of_two"),
    _choice("spiking.n", "1", "3"),
    _choice("spiking.reset", "soft", "hard"),
    _choice("spiking.decay_input", "true", "false"),
    _choice("spiking.signed", "true", "false"),
    _choice("spiking.detach_reset", "true", "true", "false"),
    _choice("spiking.surrogate", "atan", "straight_through", "rectangular"),
    _choice("spiking.algorithm", "bptt", "bptt_every_step", "ottt_a", "ottt_o", "dsr"),
    _choice("spiking.read_out_tau", "null", "2.0"),
    _choice("spiking.learn_read_out", "false", "true"),
    _choice("spiking.start", "random", "ann"),
    _choice("spiking.tensor_train", "null", "{form: stt, rank: 2}", "{form: htt, rank: 2}"),
)
QUIET = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def meet(folder: Path, kind: type, chosen: Sequence[str]) -> None:
    """Run what was drawn, or have it refused before anything runs."""
    refused: tuple[Fault, ...] = ()
    try:
        load(folder / f"{kind.__name__}.yaml", chosen)
    except RecipeError as error:
        refused = tuple(error.faults)
    if not refused:
        run_here(folder, kind, chosen)
    assert all(row.where and row.what and row.hint for row in refused), refused


@pytest.mark.slow
@settings(QUIET, max_examples=8)
@given(PAIRS)
def test_values_of_a_conversion_meet_or_are_refused(folder: Path, chosen: tuple[str, ...]) -> None:
    meet(folder, Recipe, chosen)


@pytest.mark.slow
@settings(QUIET, max_examples=5)
@given(FROM_SCRATCH)
def test_values_of_a_training_meet_or_are_refused(folder: Path, chosen: tuple[str, ...]) -> None:
    meet(folder, SpikingRecipe, chosen)


@pytest.mark.long
@settings(QUIET, max_examples=100)
@given(PAIRS)
def test_many_conversions_meet_or_are_refused(folder: Path, chosen: tuple[str, ...]) -> None:
    meet(folder, Recipe, chosen)


@pytest.mark.long
@settings(QUIET, max_examples=60)
@given(FROM_SCRATCH)
def test_many_trainings_meet_or_are_refused(folder: Path, chosen: tuple[str, ...]) -> None:
    meet(folder, SpikingRecipe, chosen)
