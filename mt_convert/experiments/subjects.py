"""What an evaluation is about: networks and images named by runs and recipes, and the settings.

A run folder gives its trained quantized network, its float one and its images; a recipe
gives its float network, converted without training. Images of other data sets come from the
``data`` block of other recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DataSpec, EventSpec, Splits, images, open_data
from ..data.class_map import head_faults
from ..data.fingerprint import identity_of
from ..data.image_spec import dataset_name
from ..data.splits import select_test_images
from ..errors import CheckpointError, Fault, RecipeError
from ..evaluation.energy.prices import EnergySpec
from ..evaluation.settings import PeerSetting, Setting
from ..evaluation.stored import StoredNetwork
from ..evaluation.subject import Subject
from ..quantization.quantize import QuantizedModel, quantize
from ..quantization.spec import QuantSpec
from ..spiking import archive
from ..spiking.convert import convert
from ..spiking.model import SpikingModel
from ..system.devices import device
from ..system.network_files import holds_network
from ..system.progress import notice
from .models.build import build, has_random_weights, load_ann
from .recipes.conversion import Recipe, load_recipe, load_stored
from .recipes.from_scratch import load as load_any


def float_spec(act_bits: int) -> QuantSpec:
    """What a network is quantized to for conversion without training: its activations alone.

    Example:
        >>> float_spec(8).weight_bits is None, float_spec(8).levels
        (True, 255)
    """
    return QuantSpec(
        weight_bits=None, act_bits=act_bits, first_bits=None, last_bits=None, input_bits=None
    )


def subjects_of(
    name: str,
    data: Sequence[Recipe],
    overrides: Sequence[str],
    act_bits: int | None = None,
    count: int | None = None,
    *,
    calibrates: bool = True,
) -> list[Subject]:
    """The network of a run folder, a recipe, or a folder that `archive.save` wrote, with each data
    set: its own, or those of ``data``. What was saved has neither data nor a float original.

    ``act_bits``: take the float network, its activations quantized to so many bits, its weights as
    they are. A recipe always is taken so, with 8 bits by default. ``count``: the first
    so many test images of a seeded order. Where nothing ``calibrates``, a run's data may have fewer
    calibration images than they ask for. A network that nothing was loaded into is called so.

    Raises:
        CheckpointError: the run is not finished up to its trained network, or damaged.
        RecipeError: none of these; images of another size, channels or classes; a stored network
            without ``data``.
    """
    folder = Path(name)
    if holds_network(folder):
        return _load_subjects(folder, [item.data for item in data], act_bits, count, calibrates)
    is_run = (folder / "recipe.yaml").is_file()
    recipe = load_stored(folder, overrides) if is_run else load_recipe(name, overrides)
    if is_run:
        check_finished(folder)
        ann = load_ann(recipe.model, recipe.data.image_size, folder / "ann")
    else:
        ann = build(recipe.model, seed=recipe.seed, image_size=recipe.data.image_size).eval()
    subjects = []
    for source in [item.data for item in data] or [recipe.data]:
        _check_fits(recipe.data, source, name, recipe.model.classes)
        stored = is_run and act_bits is None
        splits = open_data(source, calibrates=calibrates or not stored)
        if stored:
            qann = archive.load_quantized(folder / "train", recipe.quantize.spec())
        else:
            qann = quantize(
                ann, float_spec(act_bits or 8), calibration=_calibration(source, splits)
            )
        shown = subject(recipe, source, splits, (ann, qann), count)
        if not is_run and has_random_weights(recipe.model):
            called = f"{recipe.model.short_name} (random weights)"
            notice(f"{name} names no checkpoint: {called} is evaluated, which was never trained")
            shown = replace(shown, describe={**shown.describe, "model": called})
        subjects.append(shown)
    return subjects


def own_prices(name: str, overrides: Sequence[str]) -> EnergySpec:
    """The ``energy`` block of the recipe that a word of ``mt-convert eval`` names or that its run,
    or its stored network, lies beside.

    Example:
        >>> own_prices("digits", ["energy.prices=int32"]).prices
        'int32'
    """
    folder = Path(name)
    if not folder.is_dir():
        return load_recipe(name, overrides).energy
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "recipe.yaml").is_file():
            return load_any(place / "recipe.yaml", overrides).energy
    return EnergySpec()


def check_finished(folder: Path) -> None:
    """Raise `CheckpointError` unless a run is finished up to its trained network."""
    for stage, there in (
        ("ann", (folder / "ann" / "model.safetensors").is_file()),
        ("train", holds_network(folder / "train")),
    ):
        if not there:
            hint = f"finish it: mt-convert run RECIPE --out {folder} --resume"
            raise CheckpointError(f"{folder} holds no finished stage {stage!r}; {hint}")


def load_trained(folder: Path, recipe: Recipe) -> tuple[nn.Module, QuantizedModel]:
    """The float and the trained quantized network of a run.

    Raises:
        CheckpointError: the run is not finished up to there, or damaged.
    """
    check_finished(folder)
    ann = load_ann(recipe.model, recipe.data.image_size, folder / "ann")
    return ann, archive.load_quantized(folder / "train", recipe.quantize.spec())


def run_subject(folder: Path, recipe: Recipe, splits: Splits) -> Subject:
    """The trained network of a run on all its test images.

    Raises:
        CheckpointError: the run is not finished up to its trained network, or damaged.
    """
    return subject(recipe, recipe.data, splits, load_trained(folder, recipe), None)


def _load_subjects(
    folder: Path,
    data: Sequence[DataSpec],
    act_bits: int | None,
    count: int | None,
    calibrates: bool,
) -> list[Subject]:
    """A stored network, quantized or spiking, on the images of other recipes."""
    network = archive.load(folder)
    qann = StoredNetwork(network) if isinstance(network, SpikingModel) else network
    faults = []
    if not data:
        faults.append(Fault("--data", "missing", "name a recipe whose images are to be evaluated"))
    if act_bits is not None:
        faults.append(Fault("--act-bits", str(act_bits), f"{folder} holds no float network"))
    for source in data:
        faults += misfits(source, qann)
    if faults:
        raise RecipeError(f"{folder} cannot be evaluated", faults)
    subjects = []
    for source in data:
        splits = open_data(source, calibrates=calibrates)
        describe = {"model": folder.name, "dataset": dataset_name(source), "seed": None}
        shown = select_test_images(source, count, splits)
        calibration = _calibration(source, splits)
        plain = identity_of(source)
        subjects.append(
            Subject(qann.to(device()).eval(), None, shown, calibration, describe, plain)
        )
    return subjects


def misfits(source: DataSpec | EventSpec, network: Any) -> list[Fault]:
    """What keeps a network, called on images alone, from images of another shape or classes."""
    shape, expected = (source.channels, source.image_size, source.image_size), network.image_shape
    label = dataset_name(source) if isinstance(source, DataSpec) else source.dataset
    if shape != tuple(expected):
        what = f"images are {shape}, the network's {tuple(expected)}"
        return [Fault(label, what, "name a recipe of such images")]
    with torch.no_grad():
        head = int(network(torch.zeros(1, *expected)).shape[-1])
    if isinstance(source, DataSpec):
        return head_faults(source, head)
    if source.number_of_classes == head:
        return []
    what = f"has {source.number_of_classes} classes, the head has {head} rows"
    return [Fault(label, what, "name recordings of as many classes")]


def subject(
    recipe: Recipe,
    data: DataSpec,
    splits: Splits,
    networks: tuple[nn.Module, QuantizedModel],
    count: int | None,
) -> Subject:
    """A recipe's networks, float and quantized, on the test images of one data set."""
    ann, qann = (network.to(device()).eval() for network in networks)
    assert isinstance(qann, QuantizedModel)
    return Subject(
        qann=qann,
        ann=ann,
        test=select_test_images(data, count, splits),
        calibration=_calibration(data, splits),
        describe={
            "model": recipe.model.short_name,
            "dataset": dataset_name(data),
            "seed": recipe.seed,
        },
        data=identity_of(data),
    )


def convert_as(
    recipe: Recipe, qann: QuantizedModel, *, verify: Tensor | bool = False
) -> SpikingModel:
    """A quantized network as the ``convert`` block of a recipe says."""
    block = recipe.convert
    return convert(
        qann,
        ladder=block.ladder_for(recipe.quantize.levels),
        firing=block.firing,
        signed=block.signed,
        presentation=block.presentation,
        whole_window=block.waits,
        verify=verify,
    )


def calibrates_on_images(setting: Setting | PeerSetting) -> bool:
    """Whether a setting looks at calibration images."""
    return isinstance(setting, PeerSetting) or bool(setting.calibration)


def _calibration(data: DataSpec, splits: Splits) -> Tensor:
    """The calibration images, or what there is; whoever needs all of them opened the data so."""
    return images(splits.calibration, min(data.calibration_images, len(splits.calibration)))


def _check_fits(own: DataSpec, other: DataSpec, name: str, head: int) -> None:
    """Raise unless a network takes the images of another data set."""
    faults = [
        Fault(f"data.{key}", f"is {getattr(other, key)}", f"{name} needs {getattr(own, key)}")
        for key in ("image_size", "channels")
        if getattr(own, key) != getattr(other, key)
    ]
    faults += [replace(item, where=f"data.{item.where}") for item in head_faults(other, head)]
    if (own.mean, own.std) != (other.mean, other.std):
        notice(
            f"images of {dataset_name(other)} are normalised by mean {other.mean} and std "
            f"{other.std}, those of {name} by mean {own.mean} and std {own.std}"
        )
    if faults:
        raise RecipeError(f"{name} does not take the images of {dataset_name(other)}", faults)
