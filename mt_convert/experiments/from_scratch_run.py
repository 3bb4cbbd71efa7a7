"""A recipe that trains a spiking network, from start to end: ann, spiking, evaluate, inspect,
report.

The stages of `SpikingRecipe`, kept and resumed as `stages` says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..data import DataSpec, EventSpec, Splits
from ..data import images as calibration_of
from ..data.image_spec import dataset_name
from ..data.splits import select_test_images
from ..evaluation.counter import percent
from ..evaluation.scratch_inspection import inspect_scratch
from ..evaluation.spiking_rows import rows_of
from ..report import tables
from ..report.columns import legend, markdown_table
from ..report.rows import results_from_json, results_to_json
from ..spiking.presentation import Presentation
from ..system.devices import device
from ..system.plain_data import as_type
from ..system.storage import atomic, json_text, read_json, reading, save_tensors, write_json
from ..training.accuracy import count_correct
from ..training.from_scratch import archive
from ..training.from_scratch.balance import balance_thresholds_
from ..training.from_scratch.spec import build_spiking, train_from_scratch
from ..training.loop import fit
from ..training.state import separate
from .models import code
from .models.build import build, build_described, load_ann, weights_path
from .recipes.from_scratch import SpikingRecipe
from .show import from_scratch_sentence
from .stages import StageRun, open_splits, rows_of_stage


class SpikingRun(StageRun):
    """One run of a `SpikingRecipe`."""

    NAMES: ClassVar[Sequence[str]] = ("ann", "spiking", "evaluate", "inspect", "report")
    BLOCKS: ClassVar[dict[str, Sequence[str]]] = {
        "ann": ("seed", "model", "data", "events", "ann"),
        "spiking": ("spiking", "train"),
        "evaluate": ("evaluate",),
        "inspect": ("energy",),
        "report": ("name",),
    }

    def __init__(
        self, recipe: SpikingRecipe, out: Path, resume: bool, overwrite: bool = False
    ) -> None:
        super().__init__(recipe, out, resume, overwrite)
        self.recipe = recipe
        self._splits: Splits | None = None

    def check_starts(self) -> None:
        """Nothing: it starts from no other run."""

    def shared(self, name: str) -> bool:
        trains = (name == "ann" and self.recipe.ann is not None) or name == "spiking"
        return trains or name == "evaluate"

    def checkpoint(self, name: str) -> str | None:
        return weights_path(self.recipe.model) if name == "ann" else None

    def sources(self, name: str) -> Sequence[DataSpec | EventSpec]:
        return (self.recipe.images,) if name == "ann" else ()

    def rows_text(self) -> str:
        more = {}
        path = self.at["inspect"] / "inspection.json"
        if path.is_file():
            with reading(path):
                paid = read_json(path).get("account", {})
                more = {"neurobench": paid["neurobench"]} if paid else {}
        return json_text(results_to_json(rows_of_stage(self.at["evaluate"])) | more)

    # ----------------------------------------------------------------------------------- stages

    @property
    def splits(self) -> Splits:
        """The images or recordings, opened once."""
        if self._splits is None:
            self._splits = open_splits(self.recipe.images)
        return self._splits

    def _ann(self, folder: Path) -> None:
        """The float network: built, loaded, trained if the recipe says so."""
        spec, recipe = self.recipe.model, self.recipe
        size = recipe.images.image_size
        ann, source = build_described(spec, seed=recipe.seed, image_size=size)
        if recipe.ann is not None:
            fit(ann, self.splits, recipe.ann, folder, classes=spec.classes)
        if self.first:
            write_json(folder / "weights.json", source)
            code.store(self.recipe.model.code_files, folder)
            save_tensors(folder / "model.safetensors", separate(ann.state_dict()))

    def _float(self) -> nn.Module:
        """The float network of the first stage."""
        return load_ann(self.recipe.model, self.recipe.images.image_size, self.at["ann"])

    def _spiking(self, folder: Path) -> None:
        """The spiking network, trained."""
        recipe, images = self.recipe, self.recipe.images
        if recipe.spiking.start == "ann":
            start = self._float()
        else:
            fresh = recipe.model.without_weights()
            start = build(fresh, seed=recipe.seed, image_size=images.image_size)
        example = torch.zeros(2, images.channels, images.image_size, images.image_size)
        network = build_spiking(start, recipe.spiking, example)
        if recipe.spiking.start == "ann":
            shown = self.splits.calibration
            balance_thresholds_(network, calibration_of(shown, min(512, len(shown))))
        history, columns = train_from_scratch(
            network,
            recipe.spiking,
            self.splits,
            recipe.train,
            folder / "learn",
            classes=recipe.model.classes,
            teacher=self._float() if recipe.train.distillation_weight else None,
        )
        if not self.first:
            return
        archive.save(network.merge_tensor_trains(), folder)
        content = {"columns": columns, "best_epoch": history.best_epoch}
        write_json(folder / "training.json", content)

    def _evaluate(self, folder: Path) -> None:
        """The rows on the test images."""
        recipe, block = self.recipe, self.recipe.evaluate
        network = archive.load(self.at["spiking"]).to(device())
        test = select_test_images(recipe.images, block.images, self.splits)
        ann = None
        if recipe.has_float_network:
            whole = self._float().to(device())
            right = count_correct(whole, test, block.batch_size, processes=self.processes)
            ann = percent(right, len(test))
        shared_columns = {
            "model": recipe.model.short_name,
            "dataset": _name(recipe),
            "run": recipe.name,
            "seed": recipe.seed,
            "ann_accuracy": ann,
            "presentation": "frames" if recipe.data is None else str(Presentation.EVERY_STEP),
            **_read_training(self.at["spiking"]).columns,
        }
        steps = block.time_steps or range(1, recipe.spiking.time_steps + 1)
        rows = rows_of(
            network,
            recipe.spiking,
            test,
            steps,
            shared_columns,
            batch_size=block.batch_size,
            processes=self.processes,
        )
        if self.first:
            write_json(folder / "rows.json", results_to_json(rows))

    def _inspect(self, folder: Path) -> None:
        """What the page of the run shows beside its rows, from a few test images."""
        network = archive.load(self.at["spiking"]).to(device())
        test = select_test_images(self.recipe.images, self.recipe.evaluate.images, self.splits)
        content = inspect_scratch(network, test, self.recipe.energy)
        write_json(folder / "inspection.json", content)

    def _report(self, folder: Path) -> None:
        """The page, from the stored rows alone."""
        rows = results_from_json(json.loads(self.rows_text()))
        page = [f"# {tables.title(rows)}", "", from_scratch_sentence(rows, self.at["spiking"]), ""]
        page += [markdown_table(rows), f"{legend(rows)}.", ""]
        with atomic(folder / "report.md") as temporary:
            temporary.write_text("\n".join(page))


@dataclass(frozen=True)
class _Training:
    """What the training left beside the network: columns of its rows, and which epoch was kept."""

    columns: dict[str, Any]
    best_epoch: int


def _read_training(folder: Path) -> _Training:
    training: _Training = read_json(folder / "training.json", partial(as_type, _Training))
    return training


def _name(recipe: SpikingRecipe) -> str:
    """What the tables call the images."""
    images = recipe.images
    return dataset_name(images) if isinstance(images, DataSpec) else images.dataset
