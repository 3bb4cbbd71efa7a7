"""Stored spiking networks as subjects of ``mt-convert eval``: calibrated, fine-tuned, from scratch.

They have neither a quantized nor a float network beside them, so that their rows say what they do
on images, and how many spikes that takes; they are not converted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import DataSpec, EventSpec
from ..data import images as images_of
from ..data.image_spec import dataset_name
from ..data.splits import select_test_images
from ..errors import Fault, RecipeError
from ..evaluation.energy.account import FLOAT, QUANTIZED, Reference
from ..evaluation.energy.measure import energy
from ..evaluation.energy.report import EnergyReport
from ..evaluation.spiking_rows import rows_of_stored
from ..evaluation.stored import StoredNetwork
from ..report.rows import Row
from ..spiking.model import SpikingModel
from ..system.devices import device
from ..system.network_files import holds_network
from ..system.processes import Processes
from ..training.archive import kind_of, load
from ..training.from_scratch.network import ScratchNetwork
from .recipes.conversion import Recipe
from .recipes.from_scratch import AnyRecipe, SpikingRecipe
from .recipes.from_scratch import load as load_any
from .stages import open_splits
from .subjects import misfits


def stored_network(name: str) -> Path | None:
    """The folder of the spiking network that a word of ``mt-convert eval`` names, if it does: that
    of a calibration or a fine-tuning, or one from scratch, saved or in its run. A converted network
    that was saved is `evaluation.stored`'s.

    Example:
        >>> stored_network("digits") is None
        True
    """
    folder = Path(name)
    for place in (folder, folder / "network", folder / "spiking"):
        kinds = ("spiking",) if place == folder else ("snn", "spiking")
        if holds_network(place) and kind_of(place) in kinds:
            return place
    return None


def stored_rows(
    name: str,
    data: Sequence[Recipe],
    overrides: Sequence[str],
    time_steps: Sequence[int],
    *,
    run: str,
    count: int | None,
    batch_size: int,
) -> list[Row]:
    """Its rows on the images of ``data``, or of the recipe that it lies beside.

    A network from scratch is shown behind those of ``time_steps`` that it was trained for.

    Raises:
        RecipeError: no data; images of another shape or other classes.
    """
    where = stored_network(name)
    assert where is not None
    network = load(where)
    recipe = _recipe_beside(where, overrides)
    sources: list[DataSpec | EventSpec] = [item.data for item in data]
    if not sources and recipe is not None:
        sources = [_images_of(recipe)]
    if not sources:
        fault = Fault("--data", "missing", "name a recipe whose images are to be evaluated")
        raise RecipeError(f"{name} cannot be evaluated", [fault])
    steps = list(time_steps)
    if isinstance(network, ScratchNetwork):
        steps = steps_of(network, steps)
    columns: dict[str, Any] = {
        "model": Path(name).name if recipe is None else recipe.model.architecture,
        "seed": None if recipe is None else recipe.seed,
        "algorithm": _algorithm(network, where, recipe),
        "run": run,
    }
    shown = StoredNetwork(network) if isinstance(network, SpikingModel) else network.eval()
    faults = [fault for source in sources for fault in misfits(source, shown)]
    if faults:
        raise RecipeError(f"{name} cannot be evaluated", faults)
    rows: list[Row] = []
    for source in sources:
        label = dataset_name(source) if isinstance(source, DataSpec) else source.dataset
        test = select_test_images(source, count, open_splits(source))
        rows += rows_of_stored(
            network.to(device()),
            test,
            steps,
            {**columns, "dataset": label},
            batch_size=batch_size,
            processes=Processes(),
        )
    return rows


def stored_energy(
    name: str,
    data: Sequence[Recipe],
    overrides: Sequence[str],
    time_steps: Sequence[int],
    count: int,
) -> tuple[EnergyReport, Reference]:
    """What a stored network costs on the first so many images, and what it is compared with: one
    from scratch, counted behind those of ``time_steps`` that it was trained for, with the float
    network of its architecture."""
    where = stored_network(name)
    assert where is not None
    network, recipe = load(where), _recipe_beside(where, overrides)
    source = data[0].data if data else _images_of(recipe)
    test = select_test_images(source, count, open_splits(source))
    shown = images_of(test, len(test))
    if isinstance(network, SpikingModel):
        return energy(network, shown, time_steps=time_steps), QUANTIZED
    assert isinstance(network, ScratchNetwork)
    return energy(network, shown, time_steps=steps_of(network, time_steps)), FLOAT


def _images_of(recipe: AnyRecipe | None) -> DataSpec | EventSpec:
    """The images of a recipe, or its recordings; there are some, or there were no rows."""
    assert recipe is not None
    return recipe.images if isinstance(recipe, SpikingRecipe) else recipe.data


def steps_of(network: ScratchNetwork, time_steps: Sequence[int]) -> list[int]:
    """Those steps that it was trained for; its last where there are none."""
    return [T for T in time_steps if network.time_steps >= T] or [network.time_steps]


def _algorithm(network: Any, where: Path, recipe: AnyRecipe | None) -> str:
    """How it was trained, as far as what lies beside it says."""
    if isinstance(recipe, SpikingRecipe):
        return recipe.spiking.algorithm
    if recipe is not None and recipe.finetune is not None and (where.parent / "learn").is_dir():
        return recipe.finetune.algorithm
    return "none" if isinstance(network, SpikingModel) else "from scratch"


def _recipe_beside(where: Path, overrides: Sequence[str]) -> AnyRecipe | None:
    """The recipe of the folder, or of the run, that a network lies in."""
    for folder in (where, where.parent, where.parent.parent):
        if (folder / "recipe.yaml").is_file():
            return load_any(folder / "recipe.yaml", overrides)
    return None
