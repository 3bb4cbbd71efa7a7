"""What ships with the package, recipes and CIFAR networks, listed without importing torch.

`CIFAR_MODELS` names the networks that `models.cifar` adds to timm's registry.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import Fault, RecipeError, did_you_mean, near_names


def recipe_folder() -> Path:
    """The folder of shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that ship with the package, in alphabetical order.

    Example:
        >>> shipped_recipes()["digits"].name
        'digits.yaml'
    """
    return {path.stem: path for path in sorted(recipe_folder().rglob("*.yaml"))}


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe: a path as it stands, or the name of a shipped recipe.

    Raises:
        RecipeError: neither a file nor a shipped name; the nearest names are in the message.

    Example:
        >>> find_recipe("digits").name
        'digits.yaml'
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    name = path.name.removesuffix(".yaml")
    if path.parent == Path(".") and name in shipped:
        return shipped[name]
    guess = did_you_mean(near_names(name, shipped, cutoff=0.5))
    raise RecipeError(
        f"no recipe {path_or_name}",
        [
            Fault(
                str(path_or_name),
                "is neither a file nor a shipped recipe",
                f"{guess} mt-convert ls shows all {len(shipped)}".lstrip(),
            )
        ],
    )


def headline(recipe: Path) -> str:
    """The first comment line of a recipe: what it is, in a sentence.

    Example:
        >>> headline(shipped_recipes()["digits"]).startswith("Handwritten digits")
        True
    """
    with recipe.open() as lines:
        return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")
