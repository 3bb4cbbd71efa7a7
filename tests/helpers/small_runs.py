"""The digits' network on a few made-up images, run in a second or two; what its folder holds."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from mt_convert.experiments import conversion_run
from mt_convert.experiments.recipes.conversion import (
    Recipe,
    load_recipe,
)
from mt_convert.experiments.run import run as run_recipe
from mt_convert.experiments.show import show
from mt_convert.system.storage import load_tensors

STAGES = tuple(
    name
    for name in conversion_run.Conversion.NAMES
    if name not in ("control", "control_accuracy", "calibrate", "finetune")
)  # of recipes without one
SMALL = ["evaluate.thresholds=[1,15]", "evaluate.time_steps=[1,2]"]


def recipe(*overrides: str) -> Recipe:
    """The digits' network on a few made-up images, in a second or two."""
    return load_recipe("digits", [*SMALL, *overrides], smoke=True)


def run(given: Recipe, out: Path, *, resume: bool) -> Path:
    """A run that may take the place of an earlier one."""
    return run_recipe(given, out, resume=resume, overwrite=True)


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread of torch while it lasts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def files(folder: Path, *without: str) -> dict[str, tuple[str, int]]:
    """Digest and time of all files of a folder, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in paths
        if path.name not in without
    }


def events(folder: Path) -> list[tuple[str, str]]:
    """Stage and event of every line of the log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["event"]) for line in lines]


def entered(folder: Path, before: int) -> list[str]:
    """The stages that were run after the first ``before`` lines of the log."""
    return [stage for stage, event in events(folder)[before:] if event == "finished"]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that the stages left, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_tensors(path).items()
    }


def assert_equal_runs(one: Path, other: Path) -> None:
    """Two runs of one recipe came to the same, bit for bit."""
    for name in ("results.json", "recipe.yaml", "versions.json", "convert/report.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert len(first) > 50
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(path.name for path in one.iterdir()) == sorted(p.name for p in other.iterdir())


def printed(path: Path, width: int = 100) -> str:
    """What `show` prints of a path."""
    console = Console(file=io.StringIO(), width=width)
    show(path, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
