"""`run`: everything of one recipe, whichever kind it is."""

from __future__ import annotations

import os
from pathlib import Path

from . import from_scratch_run
from .conversion_run import Conversion
from .recipes.from_scratch import AnyRecipe, SpikingRecipe


def run(recipe: AnyRecipe, out: Path, *, resume: bool) -> Path:
    """Run all stages of a recipe into ``out``; return ``out``.

    Finished stages with the same inputs are kept. ``resume`` continues a training that was cut
    off in its middle, to the same numbers; without it such a stage starts again.

    Raises:
        MTConvertError: whatever the user can mend; finished stages stay as they are.
    """
    if isinstance(recipe, SpikingRecipe):
        return from_scratch_run.SpikingRun(recipe, Path(out), resume).run_stages()
    return Conversion(recipe, Path(out), resume).run_stages()


def check(recipe: AnyRecipe) -> None:
    """Raise what `run` into a new folder would refuse before it starts, in its words.

    Raises:
        MTConvertError: all that this machine lacks, or a start of another network.
    """
    kind = from_scratch_run.SpikingRun if isinstance(recipe, SpikingRecipe) else Conversion
    planned = kind(recipe, Path(os.devnull), False)  # type: ignore[arg-type]
    planned.check_inputs()
    planned.check_starts()
