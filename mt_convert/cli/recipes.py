"""``ls``, ``cp``, ``check``: recipes, before anything is run."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OutputError
from ..experiments.models.names import CIFAR_MODELS
from ..experiments.recipes import catalogue
from .shared import AsCsv, AsJson, Overrides, RecipeName, Smoke, app, form_of

READABLE = 40
"""Columns that a sentence needs."""


@app.command("ls")
def list_(json_: AsJson = False, csv_: AsCsv = False) -> None:
    """List the recipes, and the networks that come with this package.

    \b
    Every network of timm can be named in a recipe too (timm.list_models() lists them).
    \b
    Example:
      mt-convert ls
    """
    recipes = {name: catalogue.headline(path) for name, path in catalogue.shipped_recipes().items()}
    if (form := form_of(json_, csv_)) is not None:
        _print_names({"recipes": recipes, "networks": CIFAR_MODELS}, form)
        return
    wide = max(map(len, (*recipes, *CIFAR_MODELS)))
    for title, rows in (("Recipes", recipes), ("Networks", CIFAR_MODELS)):
        typer.echo(title)
        for name, text in rows.items():
            typer.echo(_entry(name, text, wide))


def _entry(name: str, text: str, wide: int) -> str:
    """A name and what it is: in a terminal within its columns, elsewhere in one line."""
    head = f"  {name:<{wide}}  "
    if not sys.stdout.isatty():
        return head + text
    columns = shutil.get_terminal_size().columns
    indent = len(head) if columns - len(head) >= READABLE else 6
    lines = textwrap.wrap(text, max(READABLE, columns - indent))
    if indent != len(head):
        return "\n".join([head.rstrip(), *(" " * indent + line for line in lines)])
    return head + f"\n{' ' * indent}".join(lines)


def _print_names(names: dict[str, dict[str, str]], form: str) -> None:
    """What `ls` lists, as JSON or CSV."""
    if form == "json":
        typer.echo(json.dumps(names, indent=1))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("kind", "name", "about"))
    for kind, rows in names.items():
        writer.writerows((kind.removesuffix("s"), name, text) for name, text in rows.items())


@app.command("cp")
def copy(
    recipe: RecipeName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A new file, or a folder.")],
) -> None:
    """Copy a recipe, to make it yours.

    \b
    Example:
      mt-convert cp digits mine.yaml
      mt-convert run mine.yaml
    """
    source = catalogue.find_recipe(recipe)
    target = destination / source.name if destination.is_dir() else destination
    try:
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError as error:
        raise OutputError(f"{target} exists already: name another file, or remove it") from error
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    typer.echo(f"wrote {target}; run it with: mt-convert run {target}")


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Smoke = False,
    target: Annotated[
        str | None,
        typer.Option(help="Also whether the network would leave to tables, c, onnx or qonnx."),
    ] = None,
) -> None:
    """Show everything that is wrong with a recipe, without running it.

    Misspelt keys, wrong values, unknown networks, files that are not here. If all is well, show the
    stages with every value, defaults included.

    \b
    Example:
      mt-convert check digits quantize.weight_bits=3
      mt-convert check digits_vit --target qonnx
    """
    catalogue.find_recipe(recipe)  # a wrong name is reported at once
    from ..experiments.recipes import from_scratch as recipes

    loaded = recipes.load(recipe, overrides or (), smoke)
    from ..experiments.run import check as check_run

    check_run(loaded)
    if target is not None:
        from ..experiments.export import check as check_export

        check_export(loaded, target)
    typer.echo(f"ok: {loaded.name}{'' if target is None else f', leaves as {target}'}")
    for stage, values in loaded.model_dump(mode="json", by_alias=True).items():
        if stage != "name":
            typer.echo(f"  {stage:<9} {_one_line(values)}")
    typer.echo(recipes.describe_trial(loaded))


def _one_line(values: Any) -> str:
    """The values of a block in one line."""
    if values is None:
        return "none"
    if not isinstance(values, dict):
        return _plain(values)
    return "  ".join(f"{key}={_plain(value)}" for key, value in values.items() if value != {})


def _plain(value: Any) -> str:
    """A value as it could be typed after ``key=``."""
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)
