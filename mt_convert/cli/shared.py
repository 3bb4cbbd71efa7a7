"""What the commands share: the application, options of several of them, how they print and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ..errors import SpecError
from ..system import stopping
from ..system.progress import speaks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's file, or a name that `ls` shows.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Other values for this time: quantize.weight_bits=3"
    ),
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="The recipe's tiny variant: synthetic images, seconds.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the rows as JSON, nothing else.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV, nothing else.")]


@app.callback()
def _describe() -> None:
    """Turn a trained network into a multi-threshold spiking network that computes the same.

    \b
    One recipe (a YAML file) is one experiment:
      quantize, train, convert, evaluate, report.
    \b
    Start here:
      mt-convert ls
      mt-convert run digits --out runs/digits
      mt-convert show runs/digits
    """


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    items = [item.strip() for item in text.split(",")]
    if all(item.isdecimal() and int(item) > 0 for item in items):
        return tuple(dict.fromkeys(map(int, items)))
    raise SpecError(f"{option} is {text!r}: allowed are whole numbers from 1, such as 1,2,4")


def form_of(json_: bool, csv_: bool) -> str | None:
    """How rows are to be printed; None as a table for people."""
    if json_ and csv_:
        raise SpecError("--json and --csv: one of them, not both")
    return "json" if json_ else "csv" if csv_ else None


def print_stored(out: Path, form: str | None, show_table: Callable[[Path, Console], None]) -> None:
    """Print a finished table, for people or as JSON or CSV."""
    from ..experiments.show import plain

    if form is None:
        show_table(out, console())
    else:
        typer.echo(plain(out, form), nl=False)


def console() -> Console:
    """A console that prints names as they are, whatever brackets they have."""
    return Console(markup=False)


@contextmanager
def stoppable(hint: str) -> Iterator[None]:
    """Work that Ctrl-C or a signal ends with a hint."""
    try:
        yield
    except KeyboardInterrupt:
        stop(hint)


def stop(hint: str) -> NoReturn:
    """End a command that was stopped; one of several processes says what comes next."""
    if speaks():
        typer.echo(f"\nstopped; {hint}", err=True)
    raise typer.Exit(stopping.exit_code()) from None
