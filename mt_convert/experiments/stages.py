"""Work in stages: each leaves one folder and is entered again only if its inputs have changed.

What a stage depends on are its own blocks of the recipe, the stages before it, the content of the
checkpoints it reads, and the files of its images (names, sizes and times; content where the recipe
says ``compare: content``). Where images are not here, what was finished on them is kept and said.

A stage works in ``STAGE.partial`` and is renamed when it is done: to ``STAGE``, or to ``STAGE.new``
where an earlier run's stands. When all stages are done, a folder with the new ones, the kept ones,
``results.json``, ``recipe.yaml`` and ``versions.json`` and the page ``report.html`` takes the place
of the old one by one rename (`publication`); until then, and if a stage fails, everything an
earlier run left is as it was. One process at a time works in a folder, and a finished run is
replaced by one with other settings only where that is asked for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..data import DataSpec, EventSpec, Splits, open_data, open_events
from ..data.fingerprint import describe_files, without_place
from ..errors import CheckpointError, DataError, OutputError, RecipeError, many
from ..report.html.parts import PAGE
from ..report.rows import Row, results_from_json
from ..system.processes import Processes, alone_in
from ..system.progress import notice
from ..system.storage import append_line, atomic, check_folder, digest, read_json, sweep, write_json
from ..training import spec as train_spec
from .publication import NEW, PARTIAL, publish, recover, remove, replace_stage
from .recipes.conversion import dump
from .recipes.from_scratch import AnyRecipe, faults_here
from .recipes.stored import differences_from_finished
from .run_page import write_page

_ENDS = ("", NEW, PARTIAL)

LATER: Mapping[str, Any] = {
    **{"import": None, "rows": None, "after": []},
    **train_spec.LATER,
    **{"coding": "direct", "delayed": False, "fires_at": 1.0, "standardize_weights": False},
    **{"learn_thresholds": False, "norm_by_step": False, "rounding": "half_even"},
}
"""Keys that recipes have had only since runs were stored, with the values that change nothing."""


class StageRun(ABC):
    """One run of a recipe: its folder, its stages, and which of them stand finished.

    A stage NAME is the method ``_NAME``, which is handed the folder to fill.
    """

    NAMES: ClassVar[Sequence[str]]
    """All stages there can be, in order."""
    BLOCKS: ClassVar[Mapping[str, Sequence[str]]]
    """The blocks of the recipe that each stage depends on."""
    AFTER: ClassVar[Mapping[str, Sequence[str]]] = {}
    """What a stage goes on from, where that is not all before it: the last of these there is."""

    def __init__(self, recipe: AnyRecipe, out: Path, resume: bool, overwrite: bool = False) -> None:
        self.settings, self.out, self.resume, self.overwrite = recipe, out, resume, overwrite
        self.processes = Processes()
        self.first, self.wait = self.processes.first, self.processes.wait
        self.fingerprint = ""
        self.fingerprints: dict[str, str] = {}
        self.at: dict[str, Path] = {}
        self.changed = False
        self.files: dict[str, list[dict[str, Any]]] = {}

    @property
    def stages(self) -> Sequence[str]:
        """Those that the recipe asks for, in order."""
        return self.NAMES

    def check_inputs(self) -> None:
        """Raise if something is missing here; images may be, once the first stage is done."""
        kept = (self.out / "ann").is_dir()
        faults = [
            item
            for item in faults_here(self.settings)
            if not kept or item.where not in ("data.root", "events.root")
        ]
        if faults:
            raise RecipeError(
                f"{many(faults, 'fault', 'faults')}: this recipe cannot run here", faults
            )

    @abstractmethod
    def check_starts(self) -> None:
        """Raise if what the run is to start from, and which is here, is of another network."""

    @abstractmethod
    def shared(self, name: str) -> bool:
        """Whether all processes take part in a stage; in the others only the first does."""

    @abstractmethod
    def checkpoint(self, name: str) -> str | None:
        """The file or folder, not of this run, that a stage reads."""

    @abstractmethod
    def sources(self, name: str) -> Sequence[DataSpec | EventSpec]:
        """The images that a stage is the first to read."""

    @abstractmethod
    def rows_text(self) -> str:
        """The content of ``results.json``, from the finished stages."""

    def run_stages(self) -> Path:
        """Run what is not there yet, and put it in its place; return the folder.

        Raises:
            MTConvertError: whatever the user can mend; finished stages stay as they are.
        """
        self.check()
        with self._alone():
            if self.first and not (self.out / "results.json").exists():
                self._describe(self.out)
            for name in self.stages:
                self.run_stage(name)
            if self.first:
                self.publish()
            self.wait()
        return self.out

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The folder, for the processes of this run alone; what earlier ones left is cleared up."""
        with alone_in(self.out, self.processes):
            if self.first:
                recover(self.out, self.NAMES)
                sweep(self.out, deep=False)
                for name in self.NAMES:
                    for end in _ENDS:
                        sweep(self.out / f"{name}{end}")
            yield

    def check(self) -> None:
        """Look for what is missing or in the way, before hours are spent and a folder is made."""
        check_folder(self.out)
        self.check_inputs()
        self.check_starts()
        for path in (self.out / f"{name}{end}" for name in self.NAMES for end in _ENDS):
            if path.exists() and not path.is_dir():
                raise OutputError(f"{path} is a file: move it away")
        if not self.overwrite and (other := differences_from_finished(self.out, self.settings)):
            hint = f"--overwrite replaces it; or keep it and name another folder: {self.out}-2"
            raise OutputError(f"{self.out} holds a finished run with other settings; {hint}", other)

    def publish(self) -> None:
        """Put the new stages in the places of the old ones, and the results beside them."""
        rows, published = self.rows_text(), self.out / "results.json"
        moved = {self.at[name]: name for name in self.stages if self.at[name] != self.out / name}
        stale = any(
            not path.is_file() or path.read_bytes() != text.encode()
            for path, text in ((published, rows), (self.out / "recipe.yaml", dump(self.settings)))
        )
        if not (self.changed or moved or stale):
            if not (self.out / PAGE).is_file():  # of a run before there were pages
                write_page(self.out)
            return

        def describe(folder: Path) -> None:
            self._describe(folder)
            with atomic(folder / "results.json") as temporary:
                temporary.write_text(rows)
            write_page(folder)

        if moved or published.exists():
            publish(self.out, self.NAMES, moved, describe)
        else:
            describe(self.out)
        for name in self.NAMES:  # of a recipe that was tried in between
            remove(self.out / f"{name}{NEW}")

    def run_stage(self, name: str) -> None:
        """Run one stage, unless it stands finished with the same inputs."""
        before = self.fingerprint
        starts = [self.fingerprints[one] for one in self.AFTER.get(name, ()) if one in self.stages]
        self.fingerprint = digest([name, self._inputs(name), starts[-1] if starts else before])
        self.fingerprints[name] = self.fingerprint
        self._run_stage(name)
        if starts:  # what comes behind depends on this one, and on those it does not depend on
            self.fingerprint = digest([before, self.fingerprint])

    def _run_stage(self, name: str) -> None:
        folder, new, partial = (self.out / f"{name}{end}" for end in _ENDS)
        for stands in (folder, new):
            if self._same(stands):
                self.at[name] = stands
                self._log(name, "kept")
                return
        self._say_other_files(name, (folder, new))
        self.at[name] = new if folder.exists() else folder
        started, self.changed = time.monotonic(), True
        self._log(name, "started")
        if self.first and partial.exists() and not (self.resume and self._same(partial)):
            self._check_unfinished(partial)
            remove(partial)
        self.wait()
        if self.first and not partial.exists():
            files = {"files": self.files[name]} if self.files.get(name) else {}
            write_json(partial / "inputs.json", {"fingerprint": self.fingerprint, **files})
        self.wait()
        if self.first or self.shared(name):
            step: Callable[[Path], None] = getattr(self, f"_{name}")
            step(partial)
        self.wait()
        if self.first:
            replace_stage(partial, self.at[name])
        self.wait()
        self._log(name, "finished", seconds=round(time.monotonic() - started, 1))

    def _say_other_files(self, name: str, folders: Sequence[Path]) -> None:
        """Say that a stage which stands finished is made again because its images are others."""
        due = without_place(self.files[name])
        stored = [without_place(self._stored_files(folder)) for folder in folders]
        if any(files and files != due for files in stored):
            notice(
                f"stage {name!r} is made again, and those behind it: names, sizes or times of its "
                "images are not those it saw (copies have other times; a run that is made with "
                "data.compare=content looks at what the files hold, wherever they lie)"
            )

    def _check_unfinished(self, partial: Path) -> None:
        """Raise if resuming would throw away a training that was cut short."""
        if self.resume and not self.overwrite and any(partial.glob("checkpoint/*")):
            raise OutputError(
                f"{partial} holds an unfinished training with other settings or images: give the "
                "same ones to go on; --overwrite, or no --resume, begins it anew"
            )

    def _describe(self, folder: Path) -> None:
        """What is run, and on what."""
        with atomic(folder / "recipe.yaml") as temporary:
            temporary.write_text(dump(self.settings))
        data = {"data": self.files} if any(self.files.values()) else {}
        write_json(folder / "versions.json", {**versions(), **data})

    def _same(self, folder: Path) -> bool:
        """Whether a folder is there and was begun with these inputs."""
        try:
            return bool(read_json(folder / "inputs.json")["fingerprint"] == self.fingerprint)
        except (CheckpointError, KeyError, TypeError):
            return False

    def _inputs(self, name: str) -> list[Any]:
        """The blocks of the recipe, and the files, that a stage depends on."""
        recipe = self.settings.model_dump(mode="json", by_alias=True)
        self.files[name] = [item for item in self._describe_sources(name) if item]
        inputs = [*(recipe[key] for key in self.BLOCKS[name]), _content(self.checkpoint(name))]
        inputs = [without_place(_without_unused(block)) for block in inputs]
        if name == "ann":
            inputs += [_content(path) for path in self.settings.model.code_files.values()]
        return [*inputs, without_place(self.files[name])] if self.files[name] else inputs

    def _describe_sources(self, name: str) -> list[dict[str, Any]]:
        """The files of a stage's images; where they are not here, as a finished stage saw them."""
        try:
            described = []
            for spec in self.sources(name):
                if spec.download:
                    open_splits(spec)  # fetches what is not here yet
                described.append(describe_files(spec))
        except DataError as error:
            for folder in (self.out / name, self.out / f"{name}{NEW}"):
                stored = self._stored_files(folder)
                if stored:
                    notice(f"{error.headline}; stage {name!r} is kept as it saw them")
                    return stored
            return [{"not_compared": error.headline}]
        for item in described:
            if "not_compared" in item:
                notice(f"whether images have changed is not seen: {item['not_compared']}")
        return described

    def _stored_files(self, folder: Path) -> list[dict[str, Any]]:
        """The files that a finished stage was made from."""
        try:
            return list(read_json(folder / "inputs.json").get("files", []))
        except (CheckpointError, AttributeError, TypeError):
            return []

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
        append_line(self.out / "log.jsonl", json.dumps(line))


def rows_of_stage(folder: Path) -> list[Row]:
    """The rows that a stage stored.

    Raises:
        CheckpointError: they are damaged, or there are none.
    """
    path = folder / "rows.json"
    rows: list[Row] = read_json(path, results_from_json)
    if not rows:
        raise CheckpointError(f"{path} has no rows: remove {folder} to make it again")
    return rows


def _without_unused(block: Any) -> Any:
    """A block without keys of `LATER` that are not used: what a run stored before they were there
    stays what it is."""
    if not isinstance(block, dict):
        return block
    return {
        name: value for name, value in block.items() if name not in LATER or value != LATER[name]
    }


def open_splits(spec: DataSpec | EventSpec) -> Splits:
    """Images or recordings."""
    return open_data(spec, calibrates=False) if isinstance(spec, DataSpec) else open_events(spec)


def _content(path: str | None) -> str | None:
    """A digest of a checkpoint's bytes, or of a folder's files."""
    if path is None:
        return None
    where = Path(path)
    sha = hashlib.sha256()
    for file in sorted(where.rglob("*")) if where.is_dir() else [where]:
        if file.is_file():
            sha.update(file.name.encode())
            sha.update(file.read_bytes())
    return sha.hexdigest()


def versions() -> dict[str, Any]:
    """The software and the machine that numbers depend on."""
    packages = ("mt-convert", "torch", "torchvision", "timm", "brevitas", "numpy", "accelerate")
    installed = {}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed as a distribution"
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"packages": installed, "machine": machine}
