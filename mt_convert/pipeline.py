"""One recipe from start to end: ann, quantize, train, convert, evaluate, report.

Each stage leaves one folder and is entered again only if what it depends on has changed: its own
blocks of the recipe, the stages before it, the content of the checkpoints it reads. A stage works
in ``STAGE.partial`` and is renamed when it is done: to ``STAGE``, or to ``STAGE.new`` where an
earlier run's stands. When all stages are done, the new ones take the places of the old ones, and
``results.json``, ``recipe.yaml`` and ``versions.json`` change with them; until then, and if a stage
fails, everything an earlier run left is as it was.
Under ``accelerate launch`` training and evaluation are shared by all processes, the other stages
run in the first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from . import archive, report, results
from .cells import Cells
from .convert import convert
from .data import Splits, images, open_data
from .errors import CheckpointError, OutputError, RecipeError
from .finetuning import finetuned
from .ladder import Uniform
from .models import build
from .processes import Processes
from .quantize import QuantizedModel, quantize
from .recipe import Recipe, dump, here_faults
from .spiking import SpikingModel
from .storage import atomic, digest, json_text, read_json, save_tensors, write_json
from .subjects import load_ann, settings_of, subject
from .train import TrainSpec, fit

STAGES = ("ann", "quantize", "train", "convert", "evaluate", "finetune", "report")
NEW = ".new"
PROBE_IMAGES = 32


def run(recipe: Recipe, out: Path, *, resume: bool) -> Path:
    """Run all stages of a recipe into ``out``; return ``out``.

    Finished stages with the same inputs are kept. ``resume`` goes on with a training that was cut
    off in its middle, to the same numbers; without it such a stage starts again.

    Raises:
        MTConvertError: whatever the user can mend; finished stages stay as they are.
    """
    work = _Work(recipe, Path(out), resume)
    work.open()
    for name in work.stages:
        work.stage(name)
    if work.first:
        work.publish()
    work.wait()
    return work.out


def show(path: Path, console: Console) -> None:
    """Print the table of a run, or the conversion report of a converted network.

    Raises:
        CheckpointError: ``path`` holds neither.
    """
    path = Path(path)
    if (path / "results.json").is_file():
        rows = results.results_from_json(read_json(path / "results.json"))
        if not rows:
            raise CheckpointError(f"{path / 'results.json'} has no rows: run the recipe again")
        console.print(report.rich_table(rows))
        console.print(results.LEGEND + ".\n", style="dim")
        console.print(_sentence(path, path / "convert", rows), highlight=False, soft_wrap=True)
        return
    if (path / "network.json").is_file():
        network = archive.load(path)
        if isinstance(network, SpikingModel):
            for table in report.conversion_table(network.report.to_json()):
                console.print(table)
            console.print(str(network.report).splitlines()[0])
            return
        console.print(f"a quantized network: {network.spec}", soft_wrap=True)
        return
    partial = sorted(item.name for item in path.glob("*.partial")) if path.is_dir() else []
    hint = f"; unfinished: {', '.join(partial)}, go on with run --resume" if partial else ""
    raise CheckpointError(
        f"{path} holds no finished run (results.json) and no network (network.json){hint}"
    )


def _sentence(out: Path, convert_folder: Path, rows: list[results.Row]) -> str:
    """The closing sentence of a run, from its artefacts."""
    converted = read_json(convert_folder / "report.json")
    return report.summary(rows, converted["report"], str(out)) + "."


@dataclass
class _Work:
    """One run of a recipe: its folder, and what the stages hand to each other."""

    recipe: Recipe
    out: Path
    resume: bool

    def __post_init__(self) -> None:
        self.processes = Processes()
        self.first, self.wait = self.processes.first, self.processes.wait
        self.fingerprint = ""
        self.at: dict[str, Path] = {}
        self.changed = False
        self._splits: Splits | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that the recipe asks for, in order."""
        return tuple(name for name in STAGES if name != "finetune" or self.recipe.finetune)

    # ------------------------------------------------------------------------------ bookkeeping

    def open(self) -> None:
        """Look for what is missing or in the way, before hours are spent; create the folder."""
        faults = [item for item in here_faults(self.recipe) if item.where != "data.root"]
        if faults:
            raise RecipeError(f"{len(faults)} fault(s): this recipe cannot run here", faults)
        if self.recipe.quantize.checkpoint is not None:
            archive.load_quantized(self.recipe.quantize.checkpoint, self.recipe.quantize.spec())
        names = [name + end for name in STAGES for end in ("", NEW, ".partial")]
        for path in (self.out, *(self.out / name for name in names)):
            if path.exists() and not path.is_dir():
                hint = "name a folder with --out" if path == self.out else "move it away"
                raise OutputError(f"{path} is a file: {hint}")
        if self.first and not (self.out / "results.json").exists():
            self._describe()

    def publish(self) -> None:
        """Put the new stages in the places of the old ones, and the results beside them."""
        rows, published = self._rows_text(), self.out / "results.json"
        moved = [name for name in self.stages if self.at[name] != self.out / name]
        stale = any(
            not path.is_file() or path.read_text() != wanted
            for path, wanted in ((published, rows), (self.out / "recipe.yaml", dump(self.recipe)))
        )
        if not (self.changed or moved or stale):
            return
        for name in moved:
            _replace(self.at[name], self.out / name)
        self._describe()
        with atomic(published) as temporary:
            temporary.write_text(rows)
        for name in STAGES:  # of a recipe that was tried in between
            _remove(self.out / f"{name}{NEW}")

    def _rows_text(self) -> str:
        """The rows of the evaluation, and of the fine-tuning behind them."""
        if self.recipe.finetune is None:
            return (self.at["evaluate"] / "rows.json").read_text()
        stored = [read_json(self.at[name] / "rows.json") for name in ("evaluate", "finetune")]
        rows = [row for item in stored for row in results.results_from_json(item)]
        return json_text(results.results_to_json(rows))

    def _describe(self) -> None:
        """What is run, and on what."""
        with atomic(self.out / "recipe.yaml") as temporary:
            temporary.write_text(dump(self.recipe))
        write_json(self.out / "versions.json", _versions())

    def stage(self, name: str) -> None:
        """Run one stage, unless it stands finished with the same inputs."""
        folder, new, partial = (self.out / f"{name}{end}" for end in ("", NEW, ".partial"))
        self.fingerprint = digest([name, self._inputs(name), self.fingerprint])
        for stands in (folder, new):
            if self._same(stands):
                self.at[name] = stands
                self._log(name, "kept")
                return
        self.at[name] = new if folder.exists() else folder
        started, self.changed = time.monotonic(), True
        self._log(name, "started")
        if self.first and partial.exists() and not (self.resume and self._same(partial)):
            _remove(partial)
        self.wait()
        if self.first and not partial.exists():
            write_json(partial / "inputs.json", {"fingerprint": self.fingerprint})
        self.wait()
        trains = (name == "ann" and self.recipe.ann) or (name == "train" and self.recipe.train)
        if self.first or trains or name in ("evaluate", "finetune"):
            step: Callable[[Path], None] = getattr(self, f"_{name}")
            step(partial)
        self.wait()
        if self.first:
            _replace(partial, self.at[name])
        self.wait()
        self._log(name, "finished", seconds=round(time.monotonic() - started, 1))

    def _same(self, folder: Path) -> bool:
        """Whether a folder is there and was begun with these inputs."""
        try:
            return bool(read_json(folder / "inputs.json")["fingerprint"] == self.fingerprint)
        except (CheckpointError, KeyError, TypeError):
            return False

    def _inputs(self, name: str) -> list[Any]:
        """The blocks of the recipe, and the files, that a stage depends on."""
        recipe = self.recipe.model_dump(mode="json")
        blocks = {
            "ann": ["seed", "model", "data", "ann"],
            "quantize": ["quantize"],
            "train": ["train"],
            "convert": ["convert"],
            "evaluate": ["evaluate"],
            "finetune": ["finetune"],
            "report": ["name"],
        }
        checkpoints = {
            "ann": self.recipe.model.checkpoint,
            "quantize": self.recipe.quantize.checkpoint,
        }
        return [*(recipe[key] for key in blocks[name]), _content(checkpoints.get(name))]

    def _log(self, stage: str, event: str, **more: Any) -> None:
        """A line in log.jsonl."""
        if not self.first:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stage": stage,
            "event": event,
            **more,
        }
        try:
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.out / 'log.jsonl'}: {error}") from error

    # ----------------------------------------------------------------------------------- stages

    @property
    def splits(self) -> Splits:
        """The images, opened once."""
        if self._splits is None:
            self._splits = open_data(self.recipe.data)
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
        ann = build(self.recipe.model, seed=self.recipe.seed, image_size=size)
        if self.recipe.ann is not None:
            self._fit(ann, self.recipe.ann, folder, None)
        if self.first:
            save_tensors(folder / "model.safetensors", _copied(ann.state_dict()))

    def _load_ann(self) -> nn.Module:
        """The float network of the first stage."""
        return load_ann(self.recipe, self.at["ann"])

    def _quantize(self, folder: Path) -> None:
        """The quantized network, calibrated; or a stored one that was quantized in the same way."""
        spec, stored = self.recipe.quantize.spec(), self.recipe.quantize.checkpoint
        if stored is not None:
            qann = archive.load_quantized(stored, spec)
        else:
            calibration = images(self.splits.calibration, self.recipe.data.calibration_images)
            qann = quantize(self._load_ann(), spec, calibration=calibration)
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
        qann, block = self._load_qann("train"), self.recipe.convert
        calibration = self.splits.calibration
        snn = convert(
            qann,
            ladder=None if block.thresholds is None else Uniform(block.thresholds),
            firing=block.firing,
            signed=block.signed,
            presentation=block.presentation,
            whole_window=block.whole_window,
            verify=images(calibration, min(PROBE_IMAGES, len(calibration))),
        )
        archive.save(snn, folder)
        write_json(folder / "report.json", {"report": snn.report.to_json()})

    def _evaluate(self, folder: Path) -> None:
        """The table on the test images of every data set, one cell after the other."""
        block = self.recipe.evaluate
        networks = self._load_ann(), self._load_qann("train")
        cells = Cells(folder, block.batch_size, self.processes)
        rows: list[results.Row] = []
        for data in (self.recipe.data, *block.data):
            splits = self.splits if data is self.recipe.data else open_data(data)
            shown = subject(self.recipe, data, splits, networks, block.images)
            wanted = settings_of(block, self.recipe.quantize.levels)
            rows += cells.rows(shown, wanted, "evaluate")
        if self.first:
            write_json(folder / "rows.json", results.results_to_json(rows))

    def _finetune(self, folder: Path) -> None:
        """The converted network fine-tuned, and its rows before and after."""
        block = self.recipe.finetune
        assert block is not None
        networks = self._load_ann(), self._load_qann("train")
        shown = subject(
            self.recipe, self.recipe.data, self.splits, networks, self.recipe.evaluate.images
        )
        rows, _ = finetuned(
            block.job(self.recipe.quantize.levels),
            shown,
            self.splits,
            folder,
            classes=self.recipe.model.classes,
        )
        if self.first:
            write_json(folder / "rows.json", results.results_to_json(rows))

    def _report(self, folder: Path) -> None:
        """The page, from the stored rows alone."""
        rows = results.results_from_json(json.loads(self._rows_text()))
        converted = read_json(self.at["convert"] / "report.json")
        page = report.markdown_page(
            rows, _sentence(self.out, self.at["convert"], rows)[:-1], converted["report"]
        )
        with atomic(folder / "report.md") as temporary:
            temporary.write_text(page)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _replace(partial: Path, folder: Path) -> None:
    """Put a finished stage in its place; an older one there stays whole while in sight."""
    older = folder.with_name(f"{folder.name}.old")
    _remove(older)
    try:
        if folder.exists():
            os.replace(folder, older)
        os.replace(partial, folder)
    except OSError as error:
        raise OutputError(f"cannot put {partial} in the place of {folder}: {error}") from error
    _remove(older)


def _remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error}; remove it yourself") from error


def _content(path: str | None) -> str | None:
    """A digest of a checkpoint's bytes, or of a folder's files."""
    if path is None:
        return None
    where = Path(path)
    found = hashlib.sha256()
    for file in sorted(where.rglob("*")) if where.is_dir() else [where]:
        if file.is_file():
            found.update(file.name.encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def _versions() -> dict[str, Any]:
    """The software and the machine that numbers depend on."""
    names = ("mt-convert", "torch", "torchvision", "timm", "brevitas", "numpy", "accelerate")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a distribution"
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"packages": versions, "machine": machine}
