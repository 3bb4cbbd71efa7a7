"""A recipe that trains a spiking network directly; `load` tells the two kinds of recipes apart.

A recipe with a ``spiking`` block is of this kind: nothing is quantized or converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator, model_validator

from ...data import DataSpec, EventSpec
from ...errors import Fault, SpecError, many
from ...evaluation.energy.prices import FLOAT_STATE, EnergySpec
from ...training.from_scratch.spec import SpikingSpec
from ...training.spec import TrainSpec
from ..models.build import ModelSpec
from .conversion import CONVERSION, Recipe, class_map_file, missing_inputs
from .conversion import faults_here as conversion_faults
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
from .yaml_tree import Tree, override


class SpikingEvaluateBlock(BaseModel):
    """The rows of the table: behind which steps, null for all up to the network's last; ``images``
    null means all, else the first of a seeded order."""

    model_config = STRICT
    time_steps: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    images: Count | None = None
    batch_size: Count = 128


class SpikingRecipe(BaseModel):
    """One experiment without conversion: a network, its neurons, its training.

    The images are those of ``data``, or the recordings of ``events``. ``seed`` draws untrained
    weights and is the seed of all trainings that name none. ``ann`` trains the float network of the
    same architecture first: it stands beside in the table, is the teacher of a distillation, and
    with ``spiking.start`` "ann" its weights are where the spiking network starts. ``energy``: the
    prices and the model of memory of the account, potentials of 32 bits where it does not say.
    """

    model_config = STRICT
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSpec
    data: DataSpec | None = None
    events: EventSpec | None = None
    spiking: SpikingSpec
    ann: TrainSpec | None = None
    train: TrainSpec
    evaluate: SpikingEvaluateBlock = SpikingEvaluateBlock()
    energy: EnergySpec = FLOAT_STATE

    @field_validator("energy", mode="before")
    @classmethod
    def _hold_floats(cls, block: Any) -> Any:
        """Potentials are floats, unless the block says their bits."""
        return {"state_bits": FLOAT_STATE.state_bits, **block} if isinstance(block, dict) else block

    @model_validator(mode="after")
    def _goes_together(self) -> SpikingRecipe:
        faults = []
        if (self.data is None) == (self.events is None):
            faults.append(Fault("data", "must stand alone", "give either data or events, not both"))
        if self.events is not None:
            if self.events.time_steps != self.spiking.time_steps:
                what = f"is {self.spiking.time_steps}, events.time_steps {self.events.time_steps}"
                faults.append(Fault("spiking", what, "both are the frames of a recording"))
            if self.ann is not None or self.spiking.start == "ann":
                hint = "it takes images, not frames: leave ann out and spiking.start random"
                faults.append(Fault("ann", "has no images", hint))
        if self.train.distillation_weight and not self.has_float_network:
            hint = "give ann, model.checkpoint or model.pretrained; or distillation_weight: 0"
            faults.append(Fault("train", "asks a float network that is not trained", hint))
        if self.model.from_run is not None:
            hint = "nothing is quantized here: leave model.from_run out"
            faults.append(Fault("model", "starts from a quantized network", hint))
        last = max(self.evaluate.time_steps or (1,))
        if last > self.spiking.time_steps:
            hint = f"the network is trained for {self.spiking.time_steps}"
            faults.append(Fault("evaluate", f"asks for step {last}", hint))
        if faults:
            raise SpecError(
                f"{many(faults, 'part', 'parts')} of the recipe that do not go together",
                faults,
            )
        return self

    @property
    def images(self) -> DataSpec | EventSpec:
        """What the network looks at."""
        source = self.data or self.events
        assert source is not None
        return source

    @property
    def has_float_network(self) -> bool:
        """Whether the float network is worth a look: trained here, or loaded, and for images."""
        loaded = self.model.pretrained or self.model.checkpoint is not None
        return self.events is None and (self.ann is not None or loaded)


AnyRecipe = Recipe | SpikingRecipe


def load(path_or_name: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> AnyRecipe:
    """Read a recipe of either kind, as `load_recipe` reads those of conversions.

    Raises:
        RecipeError: every fault of the file and the overrides, with line and nearest valid key.

    Example:
        >>> load("digits_plif").spiking.neuron
        'plif'
    """
    path, tree = tree_of(path_or_name)
    if "spiking" in override(tree, overrides).value:
        return read(path, tree, overrides, smoke, SPIKING)
    return read(path, tree, overrides, smoke, CONVERSION)


def faults_here(recipe: AnyRecipe) -> list[Fault]:
    """What this machine lacks to run the recipe: files, folders, architectures unknown to timm."""
    if isinstance(recipe, Recipe):
        return conversion_faults(recipe)
    files = {"model.checkpoint": recipe.model.checkpoint}
    if not recipe.images.download:
        files[f"{_block(recipe)}.root"] = recipe.images.root
    if recipe.data is not None:
        files["data.class_map"] = class_map_file(recipe.data)
    image = (recipe.images.channels, recipe.images.image_size)
    return missing_inputs(recipe.model, image, {"ann": recipe.ann, "train": recipe.train}, files)


def describe_trial(recipe: AnyRecipe) -> str:
    """What `faults_here` has tried, in words."""
    images = recipe.images if isinstance(recipe, SpikingRecipe) else recipe.data
    shape = f"{images.channels}x{images.image_size}x{images.image_size}"
    if recipe.model.code_files or ":" in recipe.model.architecture:
        return f"{recipe.model.architecture} was not built"
    return f"an image of {shape} passes through {recipe.model.architecture}, by its shape alone"


def _block(recipe: SpikingRecipe) -> str:
    return "data" if recipe.data is not None else "events"


def _fill_seeds(tree: Tree) -> Tree:
    return replace(tree, value={**tree.value, **fill_seeds(tree, ("ann", "train"))})


def _mismatches(recipe: SpikingRecipe, tree: Tree) -> list[Fault]:
    images = recipe.images
    classes = images.classes if isinstance(images, DataSpec) else images.number_of_classes
    expected = {"classes": classes, "channels": images.channels}
    faults = step_faults(tree, {("ann",): recipe.ann, ("train",): recipe.train})
    if isinstance(images, DataSpec) and images.class_map is not None:
        del expected["classes"]
        faults += head_disagreements(tree, images, recipe.model.classes, ("data",))
        return [*faults, *disagreements(tree, recipe.model, expected, "data")]
    return [*faults, *disagreements(tree, recipe.model, expected, _block(recipe))]


SPIKING = RecipeType(SpikingRecipe, _fill_seeds, _mismatches)
