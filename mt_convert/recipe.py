"""A Recipe, one experiment complete, read from YAML with every fault in one error.

Floor 9. Blocks *are* the frozen dataclasses of the verbs (`ModelSpec`, `DataSpec`, `QuantSpec`,
`TrainSpec`), so a field is declared once, where it is used; nothing below ever sees a Recipe.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from . import recipe_faults, recipe_text
from .calibrate import name_of, parse
from .catalogue import find_recipe
from .data import DataSpec
from .errors import Fault, RecipeError
from .finetuning import ALGORITHMS, PARTS, SURROGATES, TEACHERS, FinetuneJob
from .ladder import Firing, Uniform
from .models import ModelSpec, architecture_fault
from .peers import PEERS
from .quant_spec import QuantSpec
from .recipe_text import Path, Tree
from .settings import METHODS, Setting
from .spiking import Presentation
from .train.spec import TrainSpec

Count = Annotated[int, Field(ge=1)]
CalibrationText = Annotated[str, AfterValidator(lambda text: name_of(parse(text)))]

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class QuantizeBlock(QuantSpec):
    """A `QuantSpec`, and optionally a folder with a quantized model to start from."""

    checkpoint: str | None = None

    def spec(self) -> QuantSpec:
        """The `QuantSpec` alone, which is what `quantize` takes and the sidecar file keeps."""
        names = [item.name for item in dataclasses.fields(QuantSpec)]
        return QuantSpec(**{name: getattr(self, name) for name in names})


class ConvertBlock(BaseModel):
    """The spiking network that is stored: null thresholds mean L, exact in a single step."""

    model_config = _STRICT
    presentation: Presentation = Presentation.ONCE
    thresholds: Count | None = None
    firing: Firing | None = None
    signed: bool = False
    whole_window: bool = False


FINETUNE_TRAIN: dict[str, Any] = {"epochs": 2, "lr": 0.005, "weight_decay": 0.0}
"""A converted network is near its end: a tenth of the usual rate."""


class FinetuneBlock(BaseModel):
    """Fine-tuning of the converted network for T ``time_steps``, evaluated beside the conversion.

    ``thresholds`` null means L. ``algorithm`` makes gradients, through ``surrogate`` (null:
    straight-through, or rectangular for learned gaps); ``learns`` says which parts; ``teacher`` is
    asked where ``train.distillation_weight`` is above 0. What ``train`` does not name is that of
    `FINETUNE_TRAIN` first.
    """

    model_config = _STRICT
    thresholds: Count | None = 1
    time_steps: Count = 2
    presentation: Presentation = Presentation.ONCE
    firing: Firing | None = None
    signed: bool = True
    algorithm: Literal[tuple(ALGORITHMS)] = "bptt"  # type: ignore[valid-type]
    surrogate: Literal[tuple(SURROGATES)] | None = None  # type: ignore[valid-type]
    learns: tuple[Literal[PARTS], ...] = ("weights", "thresholds")  # type: ignore[valid-type]
    teacher: Literal[TEACHERS] = "qann"  # type: ignore[valid-type]
    train: TrainSpec = TrainSpec(**FINETUNE_TRAIN)

    @model_validator(mode="after")
    def _goes_together(self) -> FinetuneBlock:
        self.job(1)
        return self

    def job(self, levels: int) -> FinetuneJob:
        """The job of a network with so many levels."""
        setting = Setting(
            Uniform(levels if self.thresholds is None else self.thresholds),
            (self.time_steps,),
            firing=self.firing,
            signed=self.signed,
            presentation=self.presentation,
        )
        return FinetuneJob(
            setting, self.algorithm, self.train, self.surrogate, self.learns, self.teacher
        )


class EvaluateBlock(BaseModel):
    """The rows of the table: every combination of these lists, and with ``iso_level`` the rows
    {n=1, T=L}, {n=L, T=1} and between, presented in every step. ``images`` null means all, else
    the first of a seeded order.

    ``methods`` names known methods (`settings.METHODS`, `peers.PEERS`) in place of combinations;
    ``calibrations`` such as "none" or "mse+membrane_mean" are each applied to all of them, for the
    steps of ``calibrated_for``: [2, 8] calibrates once for T up to 2 and once for those above;
    null: for each T on its own. ``data`` adds data sets on which the same networks are evaluated.
    """

    model_config = _STRICT
    thresholds: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 3, 7, 15)
    time_steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    presentations: Annotated[tuple[Presentation, ...], Field(min_length=1)] = (Presentation.ONCE,)
    modes: Annotated[tuple[Firing, ...], Field(min_length=1)] = (Firing.PARALLEL,)
    signed: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    whole_window: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    iso_level: bool = True
    images: Count | None = None
    batch_size: Count = 128
    methods: tuple[Literal[(*METHODS, *PEERS)], ...] = ()  # type: ignore[valid-type]
    calibrations: Annotated[tuple[CalibrationText, ...], Field(min_length=1)] = ("none",)
    calibrated_for: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    data: tuple[DataSpec, ...] = ()


class Recipe(BaseModel):
    """One experiment: what each stage needs.

    ``seed`` draws untrained weights and is the seed of all trainings that name none;
    the split of the images has its own, ``data.seed``. ``ann`` null: no training before
    quantization; ``train`` null: calibration alone. ``finetune`` null: the converted network as
    it is.
    """

    model_config = _STRICT
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSpec
    data: DataSpec
    ann: TrainSpec | None = None
    quantize: QuantizeBlock = QuantizeBlock()
    train: TrainSpec | None = None
    convert: ConvertBlock = ConvertBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    finetune: FinetuneBlock | None = None


def load_recipe(
    path_or_name: str | FilePath, overrides: Sequence[str] = (), smoke: bool = False
) -> Recipe:
    """Read a recipe file or a shipped recipe, with ``dotted.key=value`` overrides.

    Args:
        smoke: put the recipe's ``smoke`` block over the rest: made-up data, seconds instead of
            hours. It is validated in any case.

    Raises:
        RecipeError: every fault of the file and the overrides, with line and nearest valid key.

    Example:
        >>> load_recipe("digits", ["quantize.weight_bits=3"]).quantize.weight_bits
        3
    """
    path = find_recipe(path_or_name)
    tree = recipe_text.parse(_read(path), str(path))
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{path} holds no blocks: a recipe starts with name, model, data")
    plain, small = _variants(tree)
    chosen, other = (small, plain) if smoke else (plain, small)
    recipe, found = _validate(_seeded(recipe_text.override(chosen, overrides)))
    faults: dict[tuple[str, str], Fault] = {}
    for fault in (*found, *_validate(_seeded(other))[1]):  # the same key counts once
        faults.setdefault((fault.where.split("  ")[-1], fault.what), fault)
    if recipe is None or faults:
        raise RecipeError(f"{len(faults)} fault(s) in {path}", faults.values())
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads it back.

    Example:
        >>> "weight_bits: 4" in dump(load_recipe("digits"))
        True
    """
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def here_faults(recipe: Recipe) -> list[Fault]:
    """What this machine lacks to run the recipe: files, folders, architectures unknown to timm."""
    named = {
        "model.checkpoint": recipe.model.checkpoint,
        "quantize.checkpoint": recipe.quantize.checkpoint,
        "data.root": None if recipe.data.download else recipe.data.root,
    }
    faults = [
        Fault(key, f"{value} is not here", f"put it there, or give {key}=PATH")
        for key, value in named.items()
        if value is not None and not FilePath(value).exists()
    ]
    unknown = architecture_fault(recipe.model.architecture)
    if unknown is not None:
        faults.insert(0, Fault(f"model.{unknown.where}", unknown.what, unknown.hint))
    return faults


def _read(path: FilePath) -> str:
    """The text of a recipe file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error


def _variants(tree: Tree) -> tuple[Tree, Tree]:
    """The recipe as it stands, and with its smoke block put over it; both without that block."""
    value = {key: item for key, item in tree.value.items() if key != "smoke"}
    plain = Tree(value, tree.places, tree.faults)
    inner = {path[1:]: place for path, place in tree.places.items() if path[:1] == ("smoke",)}
    return plain, recipe_text.merge(plain, Tree(tree.value.get("smoke") or {}, inner))


def _seeded(tree: Tree) -> Tree:
    """Training takes the recipe's seed where it names none of its own."""
    seed = tree.value.get("seed", 0)
    blocks = {
        name: {"seed": seed, **block}
        for name, block in tree.value.items()
        if name in ("ann", "train") and isinstance(block, dict)
    }
    block = tree.value.get("finetune")
    train = block.get("train", {}) if isinstance(block, dict) else None
    if isinstance(train, dict):
        blocks["finetune"] = {**block, "train": {"seed": seed, **FINETUNE_TRAIN, **train}}
    return replace(tree, value={**tree.value, **blocks})


def _validate(tree: Tree) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or everything that is wrong with it.

    What is wrong hides other faults of the same block, so it is taken out and the rest read again.
    """
    faults: dict[Fault, None] = dict.fromkeys(tree.faults)
    removed: set[Path] = set()
    value = tree.value
    while True:
        try:
            recipe = Recipe.model_validate_json(json.dumps(value, default=repr))
        except ValidationError as error:
            found = recipe_faults.findings(error.errors(), tree, Recipe)
        else:
            faults |= dict.fromkeys(_mismatches(recipe, tree))
            return recipe, list(faults)
        new = [item for item in found if not (item.missing and item.path in removed)]
        faults |= dict.fromkeys(item.fault for item in new)
        wrong = {item.path for item in new} - removed
        if not wrong:
            return None, list(faults)
        removed |= wrong | {item.meant for item in new if item.meant}
        value = recipe_faults.without(value, wrong)


def _mismatches(recipe: Recipe, tree: Tree) -> list[Fault]:
    """What the model and the data must agree on."""
    pairs = {
        name: (getattr(recipe.model, name), getattr(recipe.data, name))
        for name in ("classes", "channels")
    }
    return [
        Fault(
            f"{tree.place(('model', name))}  model.{name}",
            f"is {model}, but data.{name} is {data}",
            "both must be what the images have",
        )
        for name, (model, data) in pairs.items()
        if model != data
    ]
