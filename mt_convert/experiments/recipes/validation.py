"""Recipes of any kind from YAML: the smoke block, overrides, and every fault in one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...data.class_map import head_faults
from ...errors import DataError, Fault, RecipeError, many
from ...system.storage import check_regular
from ...training.spec import StepGroup, TrainSpec
from . import bounds, yaml_tree
from . import faults as recipe_faults
from .catalogue import find_recipe
from .yaml_tree import Path, Tree, to_dotted

R = TypeVar("R", bound=BaseModel)

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""How every block of a recipe is read."""
LONGEST = 2**17  # bytes of a recipe: seconds of reading
Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""


@dataclass(frozen=True)
class RecipeType(Generic[R]):
    """A kind of recipe: its type, what is filled in before it is read, and what must agree."""

    type: type[R]
    fill_seeds: Callable[[Tree], Tree]
    mismatches: Callable[[R, Tree], Iterable[Fault]]


def tree_of(path_or_name: str | FilePath) -> tuple[FilePath, Tree]:
    """A recipe's file, and what it says.

    Raises:
        RecipeError: no such recipe; unreadable, not YAML, or no blocks.
    """
    path = find_recipe(path_or_name)
    tree = yaml_tree.parse(_read_text(path), str(path))
    if not isinstance(tree.value, dict):
        raise RecipeError(f"{path} holds no blocks: a recipe starts with name, model, data")
    return path, tree


def read(
    path: FilePath, tree: Tree, overrides: Sequence[str], smoke: bool, kind: RecipeType[R]
) -> R:
    """The recipe with its overrides, or with its ``smoke`` block put over it, which is validated
    in any case.

    Raises:
        RecipeError: every fault of the file and the overrides, with line and nearest valid key.
    """
    plain, small = _variants(tree)
    chosen, other = (small, plain) if smoke else (plain, small)
    recipe, own_faults = _validate(kind.fill_seeds(yaml_tree.override(chosen, overrides)), kind)
    faults: dict[tuple[str, str], Fault] = {}
    for fault in (
        *own_faults,
        *_validate(kind.fill_seeds(other), kind)[1],
    ):  # the same key counts once
        faults.setdefault((fault.where.split("  ")[-1], fault.what), fault)
    if recipe is None or faults:
        raise RecipeError(f"{many(faults, 'fault', 'faults')} in {path}", faults.values())
    return recipe


def _read_text(path: FilePath) -> str:
    """The text of a recipe file."""
    try:
        check_regular(path)
        if path.stat().st_size > LONGEST:
            raise OSError(f"it has {path.stat().st_size} bytes, at most {LONGEST} are a recipe")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error


def _variants(tree: Tree) -> tuple[Tree, Tree]:
    """The recipe as it stands, and with its smoke block put over it; both without that block."""
    value = {key: item for key, item in tree.value.items() if key != "smoke"}
    plain = Tree(value, tree.places, tree.faults)
    inner = {path[1:]: place for path, place in tree.places.items() if path[:1] == ("smoke",)}
    small = tree.value.get("smoke") or {}
    if not isinstance(small, dict):
        what, hint = "is no block of keys", "write keys below it, as at the top of the recipe"
        fault = Fault(f"{tree.place(('smoke',))}  smoke", what, hint)
        return replace(plain, faults=(*plain.faults, fault)), plain
    return plain, yaml_tree.merge(plain, Tree(small, inner))


def _validate(tree: Tree, kind: RecipeType[R]) -> tuple[R | None, list[Fault]]:
    """The recipe, or everything that is wrong with it.

    What is wrong hides other faults of the same block, so it is taken out and the rest read again.
    """
    faults: dict[Fault, None] = dict.fromkeys(tree.faults)
    removed: set[Path] = set()
    value: Any = tree.value
    if outside := bounds.findings(tree, kind.type):
        faults |= dict.fromkeys(item.fault for item in outside)
        removed = {item.path for item in outside}
        value = recipe_faults.without(value, removed)
    while True:
        try:
            recipe = kind.type.model_validate_json(json.dumps(value, default=repr))
        except ValidationError as error:
            new_findings = recipe_faults.findings(error.errors(), tree, kind.type)
        else:
            if not removed:  # else defaults stand for what was taken out
                faults |= dict.fromkeys(kind.mismatches(recipe, tree))
            return recipe, list(faults)
        new = [item for item in new_findings if not (item.missing and item.path in removed)]
        faults |= dict.fromkeys(item.fault for item in new)
        wrong = {item.path for item in new} - removed
        if not wrong:
            return None, list(faults)
        removed |= wrong | {item.meant for item in new if item.meant}
        value = recipe_faults.without(value, wrong)


def disagreements(tree: Tree, model: Any, expected: Mapping[str, int], block: str) -> list[Fault]:
    """What the model and the data of ``block`` must agree on, and do not."""
    return [
        Fault(
            f"{tree.place(('model', name))}  model.{name}",
            f"is {getattr(model, name)}, but {block}.{name} is {other}",
            "both must be what the images have",
        )
        for name, other in expected.items()
        if getattr(model, name) != other
    ]


def head_disagreements(tree: Tree, data: Any, head: int, path: Path) -> list[Fault]:
    """What is wrong with the classes for the network's head; a missing file is no fault here."""
    if isinstance(data.class_map, str) and not FilePath(data.class_map).expanduser().exists():
        return []
    try:
        faults = head_faults(data, head)
    except DataError as error:
        headline = Fault("class_map", error.headline, "")
        faults = [replace(item, where="class_map") for item in error.faults] or [headline]
    return [
        replace(item, where=f"{tree.place((*path, item.where))}  {to_dotted((*path, item.where))}")
        for item in faults
    ]


def step_faults(tree: Tree, trainings: Mapping[Path, TrainSpec | None]) -> list[Fault]:
    """Trainings of networks without learned steps that say how such steps are learned."""
    hint = "nothing is quantized here: steps are learned by train beside quantize; leave it out"
    return [
        Fault(f"{tree.place(place)}  {to_dotted(place)}", "is set without learned steps", hint)
        for path, spec in trainings.items()
        for place in [(*path, "steps")]
        if spec is not None and spec.steps != StepGroup()
    ]


def fill_seeds(tree: Tree, blocks: Sequence[str]) -> dict[str, Any]:
    """These blocks of trainings, with the recipe's seed where they name none of their own."""
    seed = tree.value.get("seed", 0)
    return {
        name: {"seed": seed, **block}
        for name, block in tree.value.items()
        if name in blocks and isinstance(block, dict)
    }
