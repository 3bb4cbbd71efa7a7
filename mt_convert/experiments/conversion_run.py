"""One recipe from start to end: ann, quantize, train, convert, evaluate, report.

How stages are kept and resumed is said in `stages`. A recipe with a ``spiking`` block
is trained instead of converted, by `from_scratch_run`. Under ``accelerate launch`` training and
evaluation are shared by all processes, the other stages run in the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..data import DataSpec, Splits, batches, images, open_data
from ..data.image_spec import data_labels
from ..data.splits import select_test_images
from ..errors import CheckpointError, Fault, RecipeError
from ..evaluation.energy.prices import EnergySpec
from ..evaluation.evaluate import convert_for
from ..evaluation.inspection import inspect
from ..evaluation.row_cache import RowCache
from ..evaluation.subject import Subject
from ..evaluation.truncation import Truncation, markdown, truncations
from ..neurons.ladder import Radix
from ..quantization.quantize import QuantizedModel, quantize
from ..report import tables
from ..report.rows import Row, results_from_json, results_to_json
from ..spiking import archive
from ..spiking.conversion_report import ConversionReport
from ..spiking.model import SpikingModel
from ..system.devices import device, device_of
from ..system.network_files import files_of, holds_network
from ..system.plain_data import as_type
from ..system.progress import notice
from ..system.storage import (
    atomic,
    json_text,
    load_tensors,
    read_json,
    reading,
    save_tensors,
    write_json,
)
from ..training.accuracy import accuracy
from ..training.loop import fit
from ..training.spec import TrainSpec, without_quantizers
from ..training.state import load_weights_, separate
from .finetune import run_finetune
from .models import code
from .models.build import build_described, has_random_weights, load_ann, weights_path
from .recipes.conversion import Recipe, load_recipe
from .show import conversion_sentence
from .stages import StageRun, rows_of_stage
from .subjects import calibrates_on_images, convert_as, subject

PROBE_IMAGES = 32
CONTROL = "model.safetensors"


def _read_report(folder: Path) -> dict[str, Any]:
    """The report of the conversion in a folder, as plain data."""
    report: ConversionReport = read_json(
        folder / "report.json", lambda content: ConversionReport.from_json(content["report"])
    )
    if report.verdict is None:
        raise CheckpointError(f"{folder / 'report.json'} has no verdict: convert again")
    return report.to_json()


def _load_start(folder: Path) -> QuantizedModel:
    """The trained quantized network of another run."""
    network = archive.load(folder / "train")
    if not isinstance(network, QuantizedModel):
        raise CheckpointError(f"{folder / 'train'} holds no quantized network")
    return network


def _check_start(recipe: Recipe, folder: Path) -> None:
    """Refuse to start from a run that is not finished, or of another network, before hours are
    spent.

    Raises:
        CheckpointError: no trained quantized network there.
        RecipeError: each setting of the network that differs.
    """
    for there, what in (
        ((folder / "recipe.yaml").is_file(), "recipe.yaml"),
        (holds_network(folder / "train"), "trained network (train)"),
    ):
        if not there:
            hint = f"finish it: mt-convert run RECIPE --out {folder} --resume"
            raise CheckpointError(f"model.from_run: {folder} holds no {what}; {hint}")
    other = load_recipe(folder / "recipe.yaml")
    pairs = {
        "model.architecture": (recipe.model.architecture, other.model.architecture),
        "model.classes": (recipe.model.classes, other.model.classes),
        "model.channels": (recipe.model.channels, other.model.channels),
        "model.kwargs": (recipe.model.kwargs, other.model.kwargs),
        "data.image_size": (recipe.data.image_size, other.data.image_size),
        "quantize.batch_norm": (recipe.quantize.batch_norm, other.quantize.batch_norm),
    }
    faults = [
        Fault(key, f"is {own}", f"{folder} has {there}: take a run of the same network")
        for key, (own, there) in pairs.items()
        if own != there
    ]
    if faults:
        raise RecipeError(f"model.from_run: {folder} is a run of another network", faults)


def _check_control(folder: Path) -> None:
    """Refuse a run without a control arm to go on from.

    Raises:
        RecipeError: there is none.
    """
    if not (folder / "control" / CONTROL).is_file():
        words = f"--out {folder} --resume --overwrite"
        hint = f"run it with control=true first ({words}), or set control: false"
        fault = Fault("control", f"{folder} has no control arm to go on from", hint)
        raise RecipeError("the control arm of this run cannot start", [fault])


def _accuracies(stored: Any) -> dict[str, float]:
    """The control arm's accuracy on each data set."""
    accuracies: dict[str, float] = as_type(dict[str, float], stored["accuracy"])
    return accuracies


def _account(stored: Any) -> dict[str, Any]:
    """The account of what a network costs; nothing where none was made."""
    return as_type(dict[str, Any], stored.get("account", {}))


def _digits_table(stored: Any) -> str:
    """The curves of a network of digits."""
    return markdown(as_type(list[Truncation], stored))


class Conversion(StageRun):
    """One run of a recipe that converts."""

    NAMES: ClassVar[Sequence[str]] = (
        *("ann", "quantize", "train", "convert", "evaluate", "control", "control_accuracy"),
        *("calibrate", "finetune", "inspect", "report"),
    )
    BLOCKS: ClassVar[dict[str, Sequence[str]]] = {
        "ann": ("seed", "model", "data", "ann"),
        "quantize": ("quantize",),
        "train": ("train",),
        "convert": ("convert",),
        "evaluate": ("evaluate",),
        "control": ("control", "train"),
        "control_accuracy": ("evaluate",),
        "calibrate": ("calibrate",),
        "finetune": ("calibrate", "finetune"),
        "inspect": ("evaluate",),
        "report": ("name",),
    }
    AFTER: ClassVar[Mapping[str, Sequence[str]]] = {  # others are no reason to train again
        "control": ("ann",),
        "calibrate": ("convert",),
        "finetune": ("convert", "calibrate"),
    }

    def __init__(self, recipe: Recipe, out: Path, resume: bool, overwrite: bool = False) -> None:
        super().__init__(recipe, out, resume, overwrite)
        self.recipe = recipe
        self._splits: Splits | None = None

    @property
    def stages(self) -> Sequence[str]:
        left_out = {
            "control": not self.recipe.control,
            "control_accuracy": not self.recipe.control,
            "calibrate": self.recipe.calibrate is None,
            "finetune": self.recipe.finetune is None,
        }
        return tuple(name for name in self.NAMES if not left_out.get(name))

    def check_starts(self) -> None:
        if self.recipe.quantize.checkpoint is not None:
            archive.load_quantized(self.recipe.quantize.checkpoint, self.recipe.quantize.spec())
        if self.recipe.model.from_run is not None:
            _check_start(self.recipe, Path(self.recipe.model.from_run))
            if self.recipe.control:
                _check_control(Path(self.recipe.model.from_run))

    def shared(self, name: str) -> bool:
        trains = (name == "ann" and self.recipe.ann) or (name == "train" and self.recipe.train)
        with_images = ("evaluate", "control", "control_accuracy", "calibrate", "finetune")
        return bool(trains) or name in with_images

    def checkpoint(self, name: str) -> str | None:
        start = self.recipe.model.from_run
        described = None if start is None else str(files_of(Path(start) / "train")[0])
        checkpoints = {
            "ann": weights_path(self.recipe.model),
            "quantize": self.recipe.quantize.checkpoint
            or described,  # it names its tensors' digest
            "control": None if start is None else str(Path(start) / "control" / CONTROL),
        }
        return checkpoints.get(name)

    def sources(self, name: str) -> Sequence[DataSpec]:
        sources = {"ann": (self.recipe.data,), "evaluate": self.recipe.evaluate.data}
        return sources.get(name, ())

    def _inputs(self, name: str) -> list[Any]:
        inputs = super()._inputs(name)
        if name == "ann":  # does not look at the run that the quantization starts from
            for block in inputs:
                if isinstance(block, dict):
                    block.pop("from_run", None)
        if name in ("calibrate", "finetune"):  # on so many test images
            inputs.append([self.recipe.evaluate.images, self.recipe.evaluate.batch_size])
        if (
            name == "inspect" and self.recipe.energy != EnergySpec()
        ):  # runs before had no such block
            inputs.append(self.recipe.energy.to_json())
        return inputs

    def rows_text(self) -> str:
        """The rows of the evaluation, and of calibration and fine-tuning behind them."""
        names = [name for name in ("evaluate", "calibrate", "finetune") if name in self.stages]
        rows = list(dict.fromkeys(row for name in names for row in rows_of_stage(self.at[name])))
        if self.recipe.control:
            control = read_json(self.at["control_accuracy"] / "accuracy.json", _accuracies)
            with reading(self.at["control_accuracy"] / "accuracy.json"):
                own = control[data_labels((self.recipe.data,))[0]]
            rows = [replace(row, control_accuracy=control.get(row.dataset, own)) for row in rows]
        path = self.at["inspect"] / "inspection.json"
        paid = read_json(path, _account) if "inspect" in self.stages and path.is_file() else {}
        more = {key: paid[key] for key in ("neurobench",) if key in paid}
        return json_text(results_to_json(rows) | more)

    # ----------------------------------------------------------------------------------- stages

    @property
    def splits(self) -> Splits:
        """The images, opened once."""
        if self._splits is None:
            settings = self.recipe.settings()
            quantizes = self.recipe.quantize.checkpoint is None or self.recipe.calibrate is not None
            calibrates = quantizes or any(calibrates_on_images(item) for item in settings)
            self._splits = open_data(self.recipe.data, calibrates=calibrates)
        return self._splits

    def _fit(
        self, model: nn.Module, spec: TrainSpec, folder: Path, teacher: nn.Module | None
    ) -> None:
        """Train in place; only a distillation looks at the teacher."""
        used = teacher if spec.distillation_weight else None
        fit(model, self.splits, spec, folder, classes=self.recipe.model.classes, teacher=used)

    def _ann(self, folder: Path) -> None:
        """The float network: built, loaded, trained if the recipe says so."""
        size = self.recipe.data.image_size
        ann, source = build_described(self.recipe.model, seed=self.recipe.seed, image_size=size)
        if self.recipe.ann is not None:
            self._fit(ann, self.recipe.ann, folder, None)
        elif has_random_weights(self.recipe.model):
            notice("the float network has random weights: no checkpoint, no pretrained, no ann")
        if self.first:
            write_json(folder / "weights.json", source)
            code.store(self.recipe.model.code_files, folder)
            save_tensors(folder / "model.safetensors", separate(ann.state_dict()))

    def _load_ann(self) -> nn.Module:
        """The float network of the first stage."""
        return load_ann(self.recipe.model, self.recipe.data.image_size, self.at["ann"])

    def _quantize(self, folder: Path) -> None:
        """The quantized network, calibrated; or a stored one that was quantized in the same way."""
        spec, stored = self.recipe.quantize.spec(), self.recipe.quantize.checkpoint
        if stored is not None:
            qann = archive.load_quantized(stored, spec)
        else:
            calibration = images(self.splits.calibration, self.recipe.data.calibration_images)
            folder_of_start = self.recipe.model.from_run
            start = None if folder_of_start is None else _load_start(Path(folder_of_start))
            qann = quantize(self._load_ann(), spec, calibration=calibration, start=start)
        archive.save(qann, folder)

    def _load_qann(self, stage: str) -> QuantizedModel:
        """The quantized network that a stage left."""
        return archive.load_quantized(self.at[stage], self.recipe.quantize.spec())

    def _train(self, folder: Path) -> None:
        """Quantization-aware training, or the calibrated network as it is."""
        qann = self._load_qann("quantize")
        if self.recipe.train is not None:
            self._fit(qann, self.recipe.train, folder, self._load_ann())
        if self.first:
            archive.save(qann, folder)

    def _convert(self, folder: Path) -> None:
        """The spiking network, its report, and the proof on a probe batch that T = 1 is exact."""
        calibration = self.splits.calibration
        probe = images(calibration, min(PROBE_IMAGES, len(calibration)))
        snn = convert_as(self.recipe, self._load_qann("train"), verify=probe)
        archive.save(snn, folder)
        write_json(folder / "report.json", {"report": snn.report.to_json()})

    def _evaluate(self, folder: Path) -> None:
        """The table on the test images of every data set."""
        block = self.recipe.evaluate
        cache = RowCache(folder, block.batch_size, self.processes)
        rows: list[Row] = []
        self._truncate(folder)
        settings = self.recipe.settings()
        calibrates = any(calibrates_on_images(item) for item in settings)
        sources = (self.recipe.data, *block.data)
        for data, label in zip(sources, data_labels(sources), strict=True):
            own = data is self.recipe.data
            splits = self.splits if own else open_data(data, calibrates=calibrates)
            shown = self._subject(data, splits)
            shown = replace(shown, describe={**shown.describe, "dataset": label})
            rows += cache.rows(shown, settings, "evaluate")
        self._write_rows(folder, rows)

    def _calibrate(self, folder: Path) -> None:
        """The converted network calibrated and stored; its rows before and after."""
        setting = self.recipe.calibrated_setting()
        plain = replace(setting, calibration=(), calibrated_T=None)
        shown = self._subject(self.recipe.data, self.splits)
        cache = RowCache(folder, self.recipe.evaluate.batch_size, self.processes)
        before = cache.rows(shown, [plain], "converted")
        snn, report = convert_for(shown.qann, setting, shown.calibration)
        after = cache.rows_of(shown, snn, setting)
        if self.first:
            assert report is not None
            archive.save(snn, folder / "network")
            write_json(folder / "calibration.json", report.to_json())
        self._write_rows(folder, [*before, *after])

    def _truncate(self, folder: Path) -> None:
        """What a network of digits says before all digits are there, on the test images."""
        block = self.recipe.evaluate
        if self.recipe.convert.ladder != Radix.kind or not self.first:
            return
        shown = self._subject(self.recipe.data, self.splits)
        snn = archive.load(self.at["convert"]).to(device_of(shown.qann))
        points = truncations(snn, batches(shown.test, block.batch_size))
        write_json(folder / "truncation.json", [point.to_json() for point in points])

    def _control(self, folder: Path) -> None:
        """The float network trained by the same schedule without quantizers.

        Where the quantized network started from another run's, it starts from that run's control.
        """
        assert self.recipe.train is not None
        network, teacher = self._load_ann(), self._load_ann()
        if self.recipe.model.from_run is not None:
            file = Path(self.recipe.model.from_run) / "control" / CONTROL
            load_weights_(network, load_tensors(file), str(file))
        self._fit(network, without_quantizers(self.recipe.train), folder, teacher)
        if self.first:
            save_tensors(folder / CONTROL, separate(network.state_dict()))

    def _control_accuracy(self, folder: Path) -> None:
        """What the control arm reaches on each data set."""
        network = self._load_ann()
        file = self.at["control"] / CONTROL
        load_weights_(network, load_tensors(file), str(file))
        block, accuracies = self.recipe.evaluate, {}
        sources = (self.recipe.data, *block.data)
        for data, label in zip(sources, data_labels(sources), strict=True):
            own = data is self.recipe.data
            splits = self.splits if own else open_data(data, calibrates=False)
            test = select_test_images(data, block.images, splits)
            size = block.batch_size
            accuracies[label] = accuracy(network.to(device()), test, size, processes=self.processes)
        if self.first:
            write_json(folder / "accuracy.json", {"accuracy": accuracies})

    def _finetune(self, folder: Path) -> None:
        """The converted or calibrated network fine-tuned, and its rows before and after."""
        shown = self._subject(self.recipe.data, self.splits)
        start = self.at["calibrate"] / "network" if self.recipe.calibrate is not None else None
        rows, _ = run_finetune(self.recipe, shown, self.splits, folder, start=start)
        self._write_rows(folder, rows)

    def _inspect(self, folder: Path) -> None:
        """What the page of the run shows beside its rows, from a few test images."""
        built = archive.load(self.at["convert"])
        assert isinstance(built, SpikingModel)
        shown = self._subject(self.recipe.data, self.splits)
        content = inspect(shown, self.recipe.own_settings(), built, self.recipe.energy)
        write_json(folder / "inspection.json", content)

    def _subject(self, data: DataSpec, splits: Splits) -> Subject:
        """The trained networks on the test images of a data set."""
        networks = self._load_ann(), self._load_qann("train")
        shown = subject(self.recipe, data, splits, networks, self.recipe.evaluate.images)
        return replace(shown, describe={**shown.describe, "run": self.recipe.name})

    def _write_rows(self, folder: Path, rows: Sequence[Row]) -> None:
        """The rows of a stage."""
        if self.first:
            write_json(folder / "rows.json", results_to_json(rows))

    def _report(self, folder: Path) -> None:
        """The page, from the stored rows alone."""
        rows = results_from_json(json.loads(self.rows_text()))
        report = _read_report(self.at["convert"])
        page = tables.markdown_page(
            rows, conversion_sentence(self.out, self.at["convert"], rows), report
        )
        stored = self.at["evaluate"] / "truncation.json"
        if stored.is_file():
            page += f"\nDigits that are not there yet:\n\n{read_json(stored, _digits_table)}"
        with atomic(folder / "report.md") as temporary:
            temporary.write_text(page)
