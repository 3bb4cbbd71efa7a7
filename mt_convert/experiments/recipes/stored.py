"""The recipe that a run has stored, beside the one that is to be run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...data.fingerprint import without_place
from ...errors import Fault, MTConvertError
from .from_scratch import load
from .yaml_tree import Path as KeyPath
from .yaml_tree import to_dotted

_MOST = 8


def differences_from_finished(folder: Path, recipe: BaseModel) -> list[Fault]:
    """`differences`, where the run in the folder is finished; otherwise none."""
    return differences(folder, recipe) if (folder / "results.json").exists() else []


def differences(folder: Path, recipe: BaseModel) -> list[Fault]:
    """The settings in which the run in a folder is another than ``recipe``; a few of many.

    Example:
        >>> import tempfile
        >>> from .conversion import dump, load_recipe
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "recipe.yaml").write_text(dump(load_recipe("digits")))
        >>> [str(item) for item in differences(folder, load_recipe("digits", ["seed=3"]))][0]
        'seed  is 0 there  3 here'
    """
    path = folder / "recipe.yaml"
    try:
        stored = load(path)
    except MTConvertError as error:
        return [Fault(str(path), "cannot be read", error.headline)]
    if type(stored) is not type(recipe):
        return [Fault("spiking", "is a block of one alone", "two kinds of recipes")]
    there, here = (without_place(one.model_dump(mode="json")) for one in (stored, recipe))
    pairs = list(_pairs(there, here))
    faults = [
        Fault(to_dotted(key), f"is {_short(old)} there", f"{_short(new)} here")
        for key, old, new in pairs[:_MOST]
    ]
    if len(pairs) > _MOST:
        faults.append(Fault("...", f"and {len(pairs) - _MOST} more", ""))
    return faults


def _pairs(there: Any, here: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any, Any]]:
    """What differs, key by key."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from _pairs(there.get(key), here.get(key), (*path, key))
    elif there != here:
        yield path, there, here


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
