"""`run`: everything of one recipe, whichever kind it is; `show`: what a finished run says."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from rich.console import Console

from ..errors import CheckpointError
from ..report import tables
from ..report.columns import legend
from ..report.rows import Row, results_from_json
from ..spiking import archive
from ..spiking.model import SpikingModel
from ..system.progress import notice
from ..system.storage import check_folder, read_json
from . import from_scratch_run
from .conversion_run import Conversion, _sentence
from .recipes.from_scratch import AnyRecipe, SpikingRecipe
from .recipes.stored import differences_from_finished


def run(recipe: AnyRecipe, out: Path, *, resume: bool, overwrite: bool = False) -> Path:
    """Run all stages of a recipe into ``out``; return ``out``.

    Finished stages with the same inputs are kept. ``resume`` continues a training that was cut
    off in its middle, to the same numbers; without it such a stage starts again. A finished run
    with other settings is replaced only to ``overwrite`` it, and in one moment at the end.

    Raises:
        MTConvertError: whatever the user can mend; finished stages stay as they are.
    """
    if isinstance(recipe, SpikingRecipe):
        return from_scratch_run.SpikingRun(recipe, Path(out), resume, overwrite).run_stages()
    return Conversion(recipe, Path(out), resume, overwrite).run_stages()


def free_folder(folder: Path, recipe: AnyRecipe) -> Path:
    """The folder, or one beside it with a number, where no finished run has other settings.

    Example:
        >>> free_folder(Path("nowhere"), None)
        PosixPath('nowhere')
    """
    for number in itertools.count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        check_folder(free)
        if not differences_from_finished(free, recipe):
            break
    if free != folder:
        notice(
            f"{folder} holds a finished run with other settings: this one is in {free} "
            "(--overwrite would replace it)"
        )
    return free


def check(recipe: AnyRecipe) -> None:
    """Raise what `run` into a new folder would refuse before it starts, in its words.

    Raises:
        MTConvertError: all that this machine lacks, or a start of another network.
    """
    kind = from_scratch_run.SpikingRun if isinstance(recipe, SpikingRecipe) else Conversion
    planned = kind(recipe, Path(os.devnull), False)  # type: ignore[arg-type]
    planned.check_inputs()
    planned.check_starts()


def show(path: Path, console: Console) -> None:
    """Print the table of a run, or the conversion report of a converted network.

    Raises:
        CheckpointError: ``path`` holds neither.
    """
    path = Path(path)
    if (path / "results.json").is_file():
        rows = read_json(path / "results.json", results_from_json)
        if not rows:
            raise CheckpointError(f"{path / 'results.json'} has no rows: run the recipe again")
        console.print(tables.rich_table(rows))
        console.print(legend(rows) + ".\n", style="dim")
        console.print(_closing_sentence(path, rows), highlight=False, soft_wrap=True)
        return
    if (path / "network.json").is_file():
        network = archive.load(path)
        if isinstance(network, SpikingModel):
            for table in tables.conversion_table(network.report.to_json()):
                console.print(table)
            console.print(str(network.report).splitlines()[0])
            warnings = network.report.warnings
        else:
            console.print(f"a quantized network: {network.spec}", soft_wrap=True)
            warnings = network.warnings
        for text in warnings:
            console.print(f"warning: {text}", soft_wrap=True, style="yellow")
        return
    partial = sorted(item.name for item in path.glob("*.partial")) if path.is_dir() else []
    hint = f"; unfinished: {', '.join(partial)}, continue with run --resume" if partial else ""
    raise CheckpointError(
        f"{path} holds no finished run (results.json) and no network (network.json){hint}"
    )


def _closing_sentence(out: Path, rows: list[Row]) -> str:
    """The closing sentence of a run of either kind."""
    if (out / "spiking").is_dir():
        return f"{from_scratch_run.sentence(rows, out / 'spiking')} All artefacts are in {out}."
    return _sentence(out, out / "convert", rows)
