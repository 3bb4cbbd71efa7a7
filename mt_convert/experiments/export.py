"""`mt-convert export`: the converted network of a run, or a stored one, written for a target."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Splits, images, open_data
from ..errors import CheckpointError, Fault, SpecError
from ..export.approximation import FILE as QDQ_FILE
from ..export.approximation import Difference, check_qdq, check_request, write_qdq
from ..export.hub import save_pretrained
from ..export.targets import TARGETS, check_target, export, form_for, steps_written
from ..export.verdict import Verdict
from ..quantization.quantize import QuantizedModel, quantize
from ..report.html.export import stored_verdicts, write_page
from ..spiking import archive
from ..spiking.conversion_report import ConversionReport
from ..spiking.convert import convert
from ..spiking.model import SpikingModel
from ..system.network_files import holds_network
from ..system.storage import read_json
from ..training.archive import load
from .models.build import build
from .recipes.conversion import Recipe, load_stored
from .subjects import convert_as

IMAGES = 1000
HUB, QDQ = "hub", "qdq"


def run(
    name: str,
    target: str,
    out: Path,
    *,
    count: int = IMAGES,
    time_steps: int | None = None,
    approximate: bool = False,
    again: bool = False,
) -> Verdict:
    """Write a network into ``out`` and check it on at least ``count`` images: the run's test
    images, then its other ones, then random ones. ``time_steps``: one, or a whole window, unless
    given. ``approximate``: take what the target computes in floats of its own, and measure it.
    ``again``: check what stands there.

    Raises:
        CheckpointError: no finished run and no stored network; what stands in ``out`` is damaged,
            or does not answer as the network.
        UnsupportedLayerError: what of the network has no exact form.
    """
    check_target(target)
    snn, shown = _network(Path(name), count)
    file = TARGETS[target].file
    path = out if file is None else out / file

    def tell() -> None:
        words = ["mt-convert", "export", name, "--to", target, "--out", str(out)]
        if (steps := time_steps or steps_written(target, path) or 1) > 1:
            words += ["--time-steps", str(steps)]
        words += ["--approximate"] if approximate else []
        write_page(out, Path(name).name, shlex.join([*words, "--images", str(count)]))

    try:
        verdict = export(
            snn,
            target,
            path,
            images=shown,
            time_steps=time_steps,
            approximate=approximate,
            again=again,
        )
    except CheckpointError:
        if again and stored_verdicts(out):  # the page tells that it turned red
            tell()
        raise
    tell()
    return verdict


def run_qdq(
    name: str, out: Path, *, count: int = IMAGES, approximate: bool = False, again: bool = False
) -> Difference:
    """Write a network into ``out`` with QDQ nodes, not exact, and measure it on such images as
    `run` compares on; ``again``: measure what stands there.

    Raises:
        SpecError: an approximation was not asked for.
        UnsupportedLayerError: what has no QDQ nodes.
    """
    check_request(approximate=approximate)
    snn, shown = _network(Path(name), count)
    return write_qdq(snn, out / QDQ_FILE, images=shown, approximate=True, again=again)


def run_hub(name: str, out: Path, *, again: bool = False) -> str:
    """Write a network of any kind into ``out`` as the Hub knows models, with a card of the run's
    results; or, ``again``, compare what stands there. Returns a line that says what was found.

    Raises:
        CheckpointError: no finished run and no stored network; what stands in ``out`` is damaged,
            or another network.
        OutputError: it cannot be written there.
    """
    folder, rows, settings = Path(name), [], None
    place = folder
    if (folder / "recipe.yaml").is_file():
        places = (folder / stage for stage in ("convert", "network", "spiking"))
        place = next((one for one in places if holds_network(one)), folder)
    network = load(place)
    if place != folder:
        recipe = load_stored(folder)
        if isinstance(recipe, Recipe):
            settings = _data_settings(recipe)
        if (folder / "results.json").is_file():
            rows = read_json(folder / "results.json", lambda content: list(content["rows"]))
        if isinstance(network, SpikingModel) and (place / "report.json").is_file():
            stored = read_json(place / "report.json", lambda content: content["report"])
            network.report = ConversionReport.from_json(stored)
    if not again:
        head = {"model_name": folder.resolve().name}
        save_pretrained(network, out, rows=rows, card=head, data_settings=settings)
    here, there = (one.layers.state_dict() for one in (network, load(out)))
    if here.keys() != there.keys() or not all(torch.equal(here[key], there[key]) for key in here):
        raise CheckpointError(f"{out} holds another network than {name}: export it again")
    sizes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return f"hub: equal when read back, all {len(here)} tensors; bytes {sizes}"


def _data_settings(recipe: Recipe) -> dict[str, Any]:
    """How a recipe's images are prepared, in timm's words."""
    data = recipe.data
    settings = {
        "input_size": [data.channels, data.image_size, data.image_size],
        "mean": data.mean and list(data.mean),
        "std": data.std and list(data.std),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }
    return {key: value for key, value in settings.items() if value is not None}


def check_one_pass(target: str, time_steps: int | None) -> None:
    """Raise `SpecError` where steps are asked for of a target that has none."""
    if time_steps is not None:
        hint = f"{target} writes no time steps: leave --time-steps out"
        raise SpecError("nothing to unroll", [Fault("--time-steps", str(time_steps), hint)])


def check(recipe: Any, target: str) -> None:
    """Raise unless a recipe's network would leave to a target: tried with random weights, before
    any training. What depends on trained numbers is seen by the export alone.

    Raises:
        SpecError: no such target; a recipe that converts nothing.
        UnsupportedLayerError: what has no exact form, all of it.
    """
    if target == HUB:
        return  # whatever a recipe makes
    if target != QDQ:
        check_target(target)
    if not isinstance(recipe, Recipe):
        hint = "trained from scratch: it is not converted, and leaves to no target"
        raise SpecError("nothing to export", [Fault("--target", recipe.name, hint)])
    ann = build(recipe.model, seed=recipe.seed, image_size=recipe.data.image_size).eval()
    random = torch.Generator().manual_seed(recipe.seed)
    shape = (recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    some = torch.randn(4, *shape, generator=random)
    qann = quantize(ann, recipe.quantize.spec(), calibration=some)
    snn = convert_as(recipe, qann)
    if target == QDQ:
        check_qdq(snn)
    else:
        form_for(snn, target)


def _network(folder: Path, count: int) -> tuple[SpikingModel, Tensor]:
    """The network, and images for it."""
    parts: list[Tensor] = []
    if (folder / "recipe.yaml").is_file():
        recipe = load_stored(folder)
        if not holds_network(folder / "convert"):
            hint = f"finish it: mt-convert run RECIPE --out {folder} --resume"
            if holds_network(folder / "network"):
                hint = f"name its fine-tuned one: {folder / 'network'}"
            raise CheckpointError(f"{folder} holds no converted network; {hint}")
        network: Any = archive.load(folder / "convert")
        parts = _images(open_data(recipe.data, calibrates=False), count)
    else:
        network = archive.load(folder)
    snn = convert(network) if isinstance(network, QuantizedModel) else network
    have = sum(map(len, parts))
    if have < count:
        random = torch.Generator().manual_seed(1)
        parts.append(torch.randn(count - have, *snn.image_shape, generator=random))
    return snn, torch.cat(parts)


def _images(splits: Splits, count: int) -> list[Tensor]:
    """Images of a run, as many as there are, its test images first."""
    parts: list[Tensor] = []
    for split in (splits.test, splits.train):
        more = min(len(split), count - sum(map(len, parts)))
        if more > 0:
            parts.append(images(split, more))
    return parts
