"""What an evaluation is about: networks and images named by runs and recipes, and the settings.

Floor 9.2. A run folder gives its trained quantized network, its float one and its images; a recipe
gives its float network, converted without training. Images of other data sets come from the
``data`` block of other recipes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..calibration.text import parse
from ..data import DataSpec, ImageSet, Splits, images, open_data
from ..errors import CheckpointError, Fault, RecipeError
from ..evaluation.peers.converters import PEERS
from ..evaluation.row_cache import Subject
from ..evaluation.settings import METHODS, PeerSetting, Setting, iso_level
from ..neurons.ladder import Uniform
from ..quantization.quantize import QuantizedModel, quantize
from ..quantization.spec import QuantSpec
from ..spiking import archive
from ..system.storage import load_tensors
from .models.build import ModelSpec, build
from .recipes.conversion import EvaluateBlock, Recipe, load_recipe


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
) -> list[Subject]:
    """The network of a run folder, a recipe, or a folder that `archive.save` wrote, with each data
    set: its own, or those of ``data``. What was saved has neither data nor a float original.

    ``act_bits``: take the float network, its activations quantized to so many bits, its weights as
    they are. A recipe always is taken so, with 8 bits unless told otherwise. ``count``: the first
    so many test images of a seeded order.

    Raises:
        CheckpointError: the run is not finished up to its trained network, or damaged.
        RecipeError: none of these; images of another size, channels or classes; a stored network
            without ``data``.
    """
    folder = Path(name)
    if (folder / "network.json").is_file():
        return _stored(folder, [item.data for item in data], act_bits, count)
    is_run = (folder / "recipe.yaml").is_file()
    recipe = load_recipe(folder / "recipe.yaml" if is_run else name, overrides)
    if is_run:
        for stage, file in (("ann", "model.safetensors"), ("train", "network.json")):
            if not (folder / stage / file).is_file():
                hint = f"finish it: mt-convert run RECIPE --out {folder} --resume"
                raise CheckpointError(f"{folder} holds no finished stage {stage!r}; {hint}")
        ann = load_ann(recipe.model, recipe.data.image_size, folder / "ann")
    else:
        ann = build(recipe.model, seed=recipe.seed, image_size=recipe.data.image_size).eval()
    found = []
    for source in [item.data for item in data] or [recipe.data]:
        _check_fits(recipe.data, source, name)
        splits = open_data(source)
        calibration = images(splits.calibration, source.calibration_images)
        if is_run and act_bits is None:
            qann = archive.load_quantized(folder / "train", recipe.quantize.spec())
        else:
            qann = quantize(ann, float_spec(act_bits or 8), calibration=calibration)
        found.append(subject(recipe, source, splits, (ann, qann), count))
    return found


def _stored(
    folder: Path, data: Sequence[DataSpec], act_bits: int | None, count: int | None
) -> list[Subject]:
    """A stored quantized network on the images of other recipes."""
    qann = archive.load(folder)
    if not isinstance(qann, QuantizedModel):
        hint = "name the folder of the quantized network that it was converted from"
        raise CheckpointError(f"{folder} holds a spiking network: {hint}")
    faults = []
    if not data:
        faults.append(Fault("--data", "missing", "name a recipe whose images are to be looked at"))
    if act_bits is not None:
        faults.append(Fault("--act-bits", str(act_bits), f"{folder} holds no float network"))
    for source in data:
        shape = (source.channels, source.image_size, source.image_size)
        if shape != qann.image_shape:
            what = f"images are {shape}, the network's {tuple(qann.image_shape)}"
            faults.append(Fault(dataset_name(source), what, "name a recipe of such images"))
    if faults:
        raise RecipeError(f"{folder} cannot be evaluated", faults)
    found = []
    for source in data:
        splits = open_data(source)
        told = {"model": folder.name, "dataset": dataset_name(source), "seed": None}
        shown = images_tested(source, count, splits)
        calibration = images(splits.calibration, source.calibration_images)
        plain = dataclasses.asdict(source)
        found.append(Subject(qann.to(device()).eval(), None, shown, calibration, told, plain))
    return found


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
        test=images_tested(data, count, splits),
        calibration=images(splits.calibration, data.calibration_images),
        describe={
            "model": recipe.model.architecture,
            "dataset": dataset_name(data),
            "seed": recipe.seed,
        },
        data=dataclasses.asdict(data),
    )


def load_ann(spec: ModelSpec, image_size: int, folder: Path) -> nn.Module:
    """The float network that the first stage of a run left in ``folder``."""
    fresh = dataclasses.replace(spec, checkpoint=None, pretrained=False)
    ann = build(fresh, image_size=image_size)
    ann.load_state_dict(load_tensors(folder / "model.safetensors"))
    return ann.eval()


def _check_fits(own: DataSpec, other: DataSpec, name: str) -> None:
    """Raise unless a network can look at the images of another data set."""
    faults = [
        Fault(f"data.{key}", f"is {getattr(other, key)}", f"{name} needs {getattr(own, key)}")
        for key in ("image_size", "channels", "classes")
        if getattr(own, key) != getattr(other, key)
    ]
    if faults:
        raise RecipeError(f"{name} cannot look at the images of {dataset_name(other)}", faults)


def settings_of(block: EvaluateBlock, levels: int) -> list[Setting | PeerSetting]:
    """The combinations of an evaluate block, then iso-level rows, then peers."""
    plain = [
        Setting(Uniform(n), block.time_steps, mode, signed, presentation, whole_window=whole_window)
        for presentation in block.presentations
        for mode in block.modes
        for signed in block.signed
        for whole_window in block.whole_window
        for n in block.thresholds
    ]
    own = [METHODS[name] for name in block.methods if name in METHODS]
    if block.methods:
        named = (method.setting(n, block.time_steps) for method in own for n in block.thresholds)
        plain = list(dict.fromkeys(named))  # a method of one threshold is there once
    found: list[Setting | PeerSetting] = [
        setting
        for text in dict.fromkeys(block.calibrations)
        for setting in plain
        for setting in calibrated(setting, text, block.calibrated_for)
    ]
    found += iso_level(levels) if block.iso_level else []
    peers = (name for name in block.methods if name in PEERS)
    return [*found, *(PeerSetting(name, block.time_steps) for name in peers)]


def calibrated(setting: Setting, text: str, calibrated_for: Sequence[int] | None) -> list[Setting]:
    """A setting with calibrations behind its own, once for each window of steps it is made for."""
    added = parse(text)
    if not added:
        return [setting]
    windows: dict[int, list[int]] = {}
    ends = sorted(calibrated_for or setting.time_steps)
    for T in setting.time_steps:
        end = next((end for end in ends if end >= T), ends[-1])
        windows.setdefault(end, []).append(T)
    chain = (*setting.calibration, *added)
    return [
        dataclasses.replace(setting, time_steps=tuple(steps), calibration=chain, calibrated_T=end)
        for end, steps in windows.items()
    ]


def device() -> torch.device:
    """Where evaluation runs: the accelerator if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def dataset_name(spec: DataSpec) -> str:
    """What the tables call the images: the name given, or the data set's, or its folder's."""
    return spec.name or spec.dataset or Path(spec.root or "images").name


def images_tested(data: DataSpec, wanted: int | None, splits: Splits) -> ImageSet:
    """The images that are evaluated: all, or the first ``wanted`` of a seeded order.

    Files lie sorted by class, so that the first as they stand would be of one class.
    """
    if wanted is None or wanted >= len(splits.test):
        return splits.test
    return open_data(dataclasses.replace(data, test_images=wanted)).test
