"""A Recipe, one experiment complete, read from YAML with every fault in one error.

Blocks *are* the frozen dataclasses of the verbs (`ModelSpec`, `DataSpec`, `QuantSpec`,
`TrainSpec`), so a field is declared once, where it is used; nothing below ever sees a Recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field

from ...data import DataSpec
from ...errors import Fault, RecipeError
from ...evaluation.energy.prices import EnergySpec
from ...evaluation.peers.converters import PEERS
from ...evaluation.settings import (
    METHODS,
    PeerSetting,
    Setting,
    iso_level,
    radix_level,
    with_calibration,
    with_own_thresholds,
)
from ...neurons.ladder import LADDERS, Firing, Ladder, Radix, Uniform
from ...quantization.spec import QuantSpec, Spacing
from ...spiking.presentation import Presentation
from ...training.spec import TrainSpec
from ..models.build import ModelSpec, model_faults
from .bounds import argument_faults
from .feasibility import network_faults, training_faults
from .finetune_job import (
    CONVERSION_KEYS,
    CalibrateBlock,
    CalibrationText,
    FinetuneBlock,
    FinetuneJob,
    fill_training,
)
from .validation import (
    STRICT,
    Count,
    RecipeType,
    disagreements,
    fill_seeds,
    head_disagreements,
    read,
    step_faults,
    tree_of,
)
from .yaml_tree import Path, Tree, override, to_dotted


@dataclass(frozen=True)
class QuantizeBlock(QuantSpec):
    """A `QuantSpec`, and optionally a folder with a quantized model to start from."""

    checkpoint: str | None = None

    def spec(self) -> QuantSpec:
        """The `QuantSpec` alone, which is what `quantize` takes and the sidecar file keeps."""
        names = [item.name for item in dataclasses.fields(QuantSpec)]
        return QuantSpec(**{name: getattr(self, name) for name in names})


class ConvertBlock(BaseModel):
    """The spiking network that is stored. Null thresholds mean as many as are exact in a single
    step: L, or the bits of L where ``ladder`` is binary or power_of_two; of a radix ladder one, a
    bit a step. ``whole_window`` null: only where the ladder needs it, which a radix ladder does.
    """

    model_config = STRICT
    presentation: Presentation = Presentation.ONCE
    thresholds: Count | None = None
    firing: Firing | None = None
    signed: bool = False
    whole_window: bool | None = None
    ladder: Literal[(*LADDERS,)] = "uniform"  # type: ignore[valid-type]

    @property
    def waits(self) -> bool:
        """Whether layers wait for their whole window."""
        return self.ladder == Radix.kind if self.whole_window is None else self.whole_window

    def ladder_for(self, levels: int) -> Ladder | None:
        """The ladder, None for as many equal thresholds as each layer has levels."""
        if self.ladder == Uniform.kind and self.thresholds is None:
            return None
        usual = 1 if self.ladder == Radix.kind else levels.bit_length()
        return LADDERS[self.ladder](usual if self.thresholds is None else self.thresholds)


class EvaluateBlock(BaseModel):
    """The rows of the table: every combination of these lists, and with ``iso_level`` the rows
    {n=1, T=L}, {n=L, T=1} and between, presented in every step, and those of digits with
    (n + 1)^T = L + 1. ``images`` null means all, else the first of a seeded order.

    ``methods`` names known methods (`settings.METHODS`, `peers.PEERS`) in place of combinations;
    ``calibrations`` such as "none" or "mse+membrane_mean" are each applied to all of them, for the
    steps of ``calibrated_for``: [2, 8] calibrates once for T up to 2 and once for those above;
    null: for each T on its own. ``data`` adds data sets on which the same networks are evaluated.
    """

    model_config = STRICT
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

    def settings(
        self, levels: int, spacing: Spacing = Spacing.EQUAL
    ) -> list[Setting | PeerSetting]:
        """The combinations of the block, then iso-level rows, then peers; of a network with learned
        thresholds those that it allows, with its own."""
        every = self._combinations(levels)
        return every if spacing is Spacing.EQUAL else with_own_thresholds(every, levels)

    def _combinations(self, levels: int) -> list[Setting | PeerSetting]:
        """What the block says, whatever network it is for."""
        plain = [
            Setting(
                Uniform(n), self.time_steps, mode, signed, presentation, whole_window=whole_window
            )
            for presentation in self.presentations
            for mode in self.modes
            for signed in self.signed
            for whole_window in self.whole_window
            for n in self.thresholds
        ]
        own = [METHODS[name] for name in self.methods if name in METHODS]
        if self.methods:
            named = (method.setting(n, self.time_steps) for method in own for n in self.thresholds)
            plain = list(dict.fromkeys(named))  # a method of one threshold is there once
        rows: list[Setting | PeerSetting] = [
            setting
            for text in dict.fromkeys(self.calibrations)
            for setting in plain
            for setting in with_calibration(setting, text, self.calibrated_for)
        ]
        rows += [*iso_level(levels), *radix_level(levels)] if self.iso_level else []
        peers = (name for name in self.methods if name in PEERS)
        return [*rows, *(PeerSetting(name, self.time_steps) for name in peers)]


class Recipe(BaseModel):
    """One experiment: what each stage needs.

    ``seed`` draws untrained weights and is the seed of all trainings that name none;
    the split of the images has its own, ``data.seed``. ``ann`` null: no training before
    quantization; ``train`` null: calibration alone. ``control``: the float network is trained by
    the same ``train`` block, and its accuracy stands in every row. ``energy``: the prices and the
    model of memory of the account. ``calibrate`` and ``finetune`` null: the converted network as it
    is; with both, the calibrated network is fine-tuned, and what
    ``finetune`` does not say of its conversion is that of ``calibrate``.
    """

    model_config = STRICT
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSpec
    data: DataSpec
    ann: TrainSpec | None = None
    quantize: QuantizeBlock = QuantizeBlock()
    train: TrainSpec | None = None
    control: bool = False
    convert: ConvertBlock = ConvertBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    energy: EnergySpec = EnergySpec()
    calibrate: CalibrateBlock | None = None
    finetune: FinetuneBlock | None = None

    def settings(self) -> list[Setting | PeerSetting]:
        """The rows that its evaluation asks for and its network allows."""
        return self.evaluate.settings(self.quantize.levels, self.quantize.spacing)

    def own_settings(self) -> list[Setting]:
        """Those of its rows that are no other package's; where there are none, the usual ones."""
        usual = EvaluateBlock().settings(self.quantize.levels, self.quantize.spacing)
        rows = [item for item in self.settings() if isinstance(item, Setting)]
        return rows or [item for item in usual if isinstance(item, Setting)]

    def calibrated_setting(self) -> Setting:
        """The network of its ``calibrate`` block."""
        assert self.calibrate is not None
        return self.calibrate.setting(self.quantize.levels, self.quantize.spacing)

    def finetune_job(self) -> FinetuneJob:
        """Its fine-tuning, which starts from the calibrated network where there is one."""
        assert self.finetune is not None
        job = self.finetune.job(self.quantize.levels, self.quantize.spacing)
        return job if self.calibrate is None else replace(job, setting=self.calibrated_setting())


def load_recipe(
    path_or_name: str | FilePath, overrides: Sequence[str] = (), smoke: bool = False
) -> Recipe:
    """Read a recipe file or a shipped recipe, with ``dotted.key=value`` overrides.

    Args:
        smoke: put the recipe's ``smoke`` block over the rest: synthetic data, seconds instead of
            hours. It is validated in any case.

    Raises:
        RecipeError: every fault of the file and the overrides, with line and nearest valid key.

    Example:
        >>> load_recipe("digits", ["quantize.weight_bits=3"]).quantize.weight_bits
        3
    """
    path, tree = tree_of(path_or_name)
    if "spiking" in override(tree, overrides).value:
        hint = "mt-convert run trains the spiking network, mt-convert show prints its table"
        fault = Fault(str(path_or_name), "has a spiking block", hint)
        raise RecipeError("this recipe converts nothing", [fault])
    return read(path, tree, overrides, smoke, CONVERSION)


def load_stored(folder: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the folder of a run, which has every value written out.

    Raises:
        RecipeError: as `load_recipe`; or the file ends early, so that defaults would stand for what
            was there.
    """
    path = FilePath(folder) / "recipe.yaml"
    recipe = load_recipe(path, overrides)
    stored: Any = tree_of(path)[1].value
    whole: Any = load_recipe(path).model_dump(mode="json", by_alias=True)
    last: list[str] = []
    while isinstance(whole, dict) and whole:
        last.append(list(whole)[-1])
        if not isinstance(stored, dict) or last[-1] not in stored:
            break
        stored, whole = stored[last[-1]], whole[last[-1]]
    else:
        if path.read_text(encoding="utf-8").endswith("\n"):
            return recipe
    raise RecipeError(
        f"{path} ends early: {'.'.join(last)} is missing or cut off, and a run writes out every "
        "value. Restore the file, or make the run again"
    )


def dump(recipe: BaseModel) -> str:
    """The recipe as YAML with every default written out; reading it gives the same.

    Example:
        >>> "weight_bits: 4" in dump(load_recipe("digits"))
        True
    """
    return yaml.safe_dump(
        recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True
    )


def faults_here(recipe: Recipe) -> list[Fault]:
    """What this machine lacks to run the recipe: files, folders, architectures unknown to timm."""
    trainings = {
        "ann": recipe.ann,
        "train": recipe.train,
        "finetune.train": None if recipe.finetune is None else recipe.finetune.train,
    }
    return missing_inputs(
        recipe.model,
        (recipe.data.channels, recipe.data.image_size),
        trainings,
        {
            "model.checkpoint": recipe.model.checkpoint,
            "model.from_run": recipe.model.from_run,
            "quantize.checkpoint": recipe.quantize.checkpoint,
            "data.root": None if recipe.data.download else recipe.data.root,
            "data.class_map": class_map_file(recipe.data),
        },
    )


def class_map_file(data: DataSpec) -> str | None:
    """The file that a ``class_map`` names, if it does."""
    return data.class_map if isinstance(data.class_map, str) else None


def missing_inputs(
    model: ModelSpec,
    image: tuple[int, int],
    trainings: Mapping[str, TrainSpec | None],
    files: Mapping[str, str | None],
) -> list[Fault]:
    """Which of these files and folders are not here, and whether timm knows the architecture; then
    whether the network takes images of so many channels and pixels, and optimizers their values."""
    faults = [
        Fault(key, f"{value} is not here", f"put it there, or give {key}=PATH")
        for key, value in files.items()
        if value is not None and not FilePath(value).exists()
    ]
    faults = [*model_faults(model), *faults]
    if not model.code_files:  # whose networks name their arguments themselves
        faults += argument_faults(model.architecture, model.kwargs)
    for block, spec in trainings.items():
        faults += training_faults(block, spec)
    return faults or network_faults(model, *image)


def _fill_seeds(tree: Tree) -> Tree:
    """Training takes the recipe's seed where it names none of its own."""
    blocks = fill_seeds(tree, ("ann", "train"))
    if "finetune" in tree.value:
        blocks["finetune"] = fill_training(tree.value["finetune"], tree.value.get("seed", 0))
        calibrate = tree.value.get("calibrate")
        if isinstance(calibrate, dict) and isinstance(blocks["finetune"], dict):
            shared = {key: calibrate[key] for key in CONVERSION_KEYS if key in calibrate}
            blocks["finetune"] = {**shared, **blocks["finetune"]}
    return replace(tree, value={**tree.value, **blocks})


def _mismatches(recipe: Recipe, tree: Tree) -> list[Fault]:
    expected = {"classes": recipe.data.classes, "channels": recipe.data.channels}
    faults = []
    if recipe.data.class_map is not None:
        del expected["classes"]
        faults = head_disagreements(tree, recipe.data, recipe.model.classes, ("data",))
    for index, data in enumerate(recipe.evaluate.data):
        path = ("evaluate", "data", index)
        faults += head_disagreements(tree, data, recipe.model.classes, path)
        faults += [
            Fault(
                f"{tree.place((*path, name))}  {to_dotted((*path, name))}",
                f"is {getattr(data, name)}, but data.{name} is {getattr(recipe.data, name)}",
                "one network takes one size of images",
            )
            for name in ("image_size", "channels")
            if getattr(data, name) != getattr(recipe.data, name)
        ]
    faults += _digit_faults(recipe.convert, tree)
    if recipe.model.from_run is not None and recipe.quantize.checkpoint is not None:
        where = f"{tree.place(('model', 'from_run'))}  model.from_run"
        what, hint = "and quantize.checkpoint both name a start", "leave one of them out"
        faults.append(Fault(where, what, hint))
    tuned = None if recipe.finetune is None else recipe.finetune.train
    faults += step_faults(tree, {("ann",): recipe.ann, ("finetune", "train"): tuned})
    faults += _spacing_faults(recipe, tree)
    faults += _chain_faults(recipe, tree)
    if recipe.control and recipe.train is None:
        where = f"{tree.place(('control',))}  control"
        hint = "the control arm is trained by the train block: give one, or set control: false"
        faults.append(Fault(where, "is true, but nothing is trained", hint))
    return [*disagreements(tree, recipe.model, expected, "data"), *faults]


def _chain_faults(recipe: Recipe, tree: Tree) -> Iterator[Fault]:
    """Where fine-tuning asks for another network than the calibrated one that it starts from."""
    if recipe.calibrate is None or recipe.finetune is None:
        return
    for key in CONVERSION_KEYS:
        own, other = getattr(recipe.finetune, key), getattr(recipe.calibrate, key)
        if own != other:
            where = f"{tree.place(('finetune', key))}  finetune.{key}"
            what = f"is {own}, but calibrate.{key} is {other}"
            yield Fault(where, what, "fine-tuning starts from the calibrated network: leave it out")


def _spacing_faults(recipe: Recipe, tree: Tree) -> Iterator[Fault]:
    """What does not go with learned thresholds, all of which fire in parallel, in one window."""
    if recipe.quantize.spacing is Spacing.EQUAL:
        return
    asked: dict[Path, tuple[object, object, str]] = {}
    for block in ("convert", "calibrate", "finetune"):
        part = getattr(recipe, block)
        if part is not None:
            asked |= {
                (block, "thresholds"): (part.thresholds, None, "its own are learned: write null"),
                (block, "firing"): (part.firing, Firing.PARALLEL, "write parallel, or null"),
                (block, "presentation"): (part.presentation, Presentation.ONCE, "write once"),
            }
    if recipe.finetune is not None:
        hint = "it moves no threshold: write null, or quantize.spacing=equal"
        surrogate = recipe.finetune.surrogate
        bad = surrogate in ("straight_through", "stdb")
        asked["finetune", "surrogate"] = (surrogate, surrogate if not bad else None, hint)
        asked["finetune", "detach_reset"] = (recipe.finetune.detach_reset, True, "write true")
        if recipe.finetune.algorithm in ("dsr", "tandem"):
            passing = "thresholds" in recipe.finetune.learns
            hint = f"{recipe.finetune.algorithm} passes nothing to them: write [weights]"
            learns = "thresholds" if passing else None
            asked["finetune", "learns"] = (learns, None, hint)
    for path, (value, allowed, hint) in asked.items():
        if value not in (None, allowed):
            where = f"{tree.place(path)}  {to_dotted(path)}"
            yield Fault(where, f"is {str(value).lower()}, and quantize.spacing is learned", hint)
    if not recipe.settings():
        where = f"{tree.place(('evaluate',))}  evaluate"
        what = "asks for nothing that goes with quantize.spacing learned"
        yield Fault(where, what, "let modes have parallel, presentations once; methods mt_signed")


def _digit_faults(block: ConvertBlock, tree: Tree) -> list[Fault]:
    """What a radix ladder does not go with."""
    if block.ladder != Radix.kind:
        return []
    where = f"{tree.place(('convert', 'ladder'))}  convert.ladder"
    checks = (
        (not block.waits, "and convert.whole_window false", "a level has digits once complete"),
        (
            block.presentation is Presentation.EVERY_STEP,
            "and convert.presentation every_step",
            "steps are worth different amounts: present the image once",
        ),
    )
    return [Fault(where, f"is radix, {what}", hint) for wrong, what, hint in checks if wrong]


CONVERSION = RecipeType(Recipe, _fill_seeds, _mismatches)
