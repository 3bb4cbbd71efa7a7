"""`run`: everything of one recipe, whichever kind it is."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from ..system.progress import notice
from ..system.storage import check_folder
from .conversion_run import Conversion
from .from_scratch_run import SpikingRun
from .recipes.from_scratch import AnyRecipe, SpikingRecipe
from .recipes.stored import differences_from_finished
from .stages import StageRun


def run(recipe: AnyRecipe, out: Path, *, resume: bool, overwrite: bool = False) -> Path:
    """Run all stages of a recipe into ``out``; return ``out``.

    Finished stages with the same inputs are kept. ``resume`` continues a training that was cut
    off in its middle, to the same numbers; without it such a stage starts again. A finished run
    with other settings is replaced only to ``overwrite`` it, and in one moment at the end.

    Raises:
        MTConvertError: whatever the user can mend; finished stages stay as they are.
    """
    return _plan(recipe, Path(out), resume, overwrite).run_stages()


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
    plan = _plan(recipe, Path(os.devnull))
    plan.check_inputs()
    plan.check_starts()


def _plan(recipe: AnyRecipe, out: Path, resume: bool = False, overwrite: bool = False) -> StageRun:
    """The stages of a recipe in a folder."""
    if isinstance(recipe, SpikingRecipe):
        return SpikingRun(recipe, out, resume, overwrite)
    return Conversion(recipe, out, resume, overwrite)
