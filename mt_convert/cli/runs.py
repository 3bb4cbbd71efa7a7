"""``run``, ``finetune``, ``show``, ``export``: a run, and what comes of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError
from ..experiments.recipes import catalogue
from ..system.progress import speaks
from .shared import (
    AsCsv,
    AsJson,
    Overrides,
    RecipeName,
    Smoke,
    app,
    console,
    form_of,
    stop,
    stoppable,
)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results. [default: runs/NAME]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where an interrupted run stopped.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a finished run with other settings in --out."),
    ] = False,
    smoke: Smoke = False,
) -> None:
    """Run a recipe: quantize, train, convert, evaluate, report.

    One with a spiking block is trained as a spiking network instead, and evaluated.

    A stage whose inputs did not change is not run again. An interrupted run continues with
    --resume and ends with the same numbers. A finished run with other settings stays: without
    --out the next goes to runs/NAME-2.

    \b
    Examples:
      mt-convert run digits
      mt-convert run digits quantize.act_bits=2 seed=1 --out runs/digits_w4a2
      mt-convert run cifar10_resnet20_w4a4 data.root=/data/cifar10 --out runs/r20
      mt-convert run digits_plif spiking.mode=cascade spiking.time_steps=1
    """
    folder = out
    try:
        catalogue.find_recipe(recipe)
        from ..experiments.recipes.from_scratch import load

        loaded = load(recipe, overrides or (), smoke)
        from ..experiments.run import free_folder
        from ..experiments.run import run as run_recipe
        from ..experiments.show import show as show_run

        folder = out or Path("runs") / (f"{loaded.name}_smoke" if smoke else loaded.name)
        if out is None and not overwrite:
            folder = free_folder(folder, loaded)
        finished = run_recipe(loaded, folder, resume=resume, overwrite=overwrite)
        if speaks():
            show_run(finished, console())
    except KeyboardInterrupt:
        words = [recipe, *(overrides or []), *(["--smoke"] if smoke else [])]
        words += ["--overwrite"] if overwrite else []
        again = shlex.join([*words, *(["--out", str(folder)] if folder else []), "--resume"])
        stop(f"continue with: mt-convert run {again}")


@app.command()
def finetune(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Values of the recipe's finetune block: finetune.time_steps=4",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results. [default: one in RUN/finetuned]")
    ] = None,
) -> None:
    """Train the converted network of a run through time; show it before and after.

    It starts from exactly the converted network and keeps the weights that are best on validation
    images: it never ends below its start there. An interrupted command
    continues where it stopped.

    \b
    Examples:
      mt-convert finetune runs/digits
      mt-convert finetune runs/r20 finetune.thresholds=3 finetune.time_steps=1
      mt-convert finetune runs/r20 finetune.algorithm=dsr finetune.train.epochs=5
    \b
    Algorithms:
      bptt, bptt_every_step, ottt_a, ottt_o, dsr, tandem (with finetune.learns=[weights])
    """
    from ..experiments import finetune

    with stoppable("the same command continues where it stopped"):
        finished = finetune.run(run, overrides or (), out)
    if speaks():
        finetune.show(finished, console())


@app.command()
def show(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="The folder of a run, or of a converted model."),
    ],
    open_: Annotated[
        bool, typer.Option("--open", help="Make the page of the run again, and open it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page of several runs. [default: runs/comparison]"),
    ] = None,
    json_: AsJson = False,
    csv_: AsCsv = False,
) -> None:
    """Print the table of a finished run, or the conversion report of a converted model.

    Several runs are compared: a line each, and one page with their accuracies against energy and
    against time steps.

    \b
    Examples:
      mt-convert show runs/digits
      mt-convert show runs/digits --open
      mt-convert show runs/digits --csv > digits.csv
      mt-convert show runs/digits/convert
      mt-convert show runs/w4 runs/w3 runs/w2 --out runs/bits --open
    """
    form = form_of(json_, csv_)
    if len(paths) > 1:
        _compare(paths, out, form, open_=open_)
        return
    if out is not None:
        raise SpecError("--out: the page of one run is in its folder; name several to compare")
    from ..experiments.show import plain
    from ..experiments.show import show as show_run

    (path,) = paths
    if open_:
        from ..experiments.run_page import write_page

        _open(write_page(path), form)
    if form is not None:
        typer.echo(plain(path, form), nl=False)
    elif not open_:
        show_run(path, console())


def _compare(paths: list[Path], out: Path | None, form: str | None, *, open_: bool) -> None:
    """Several runs on one page."""
    from ..experiments.comparison import compare as comparison

    compared = comparison.compare(paths, out or comparison.OUT)
    if open_:
        _open(compared.out / comparison.PAGE, form)
    if form is not None:
        typer.echo(compared.plain(form), nl=False)
    else:
        comparison.show(compared, console())


def _open(page: Path, form: str | None) -> None:
    """Open a page in a browser; where rows are printed as data, its name is said apart."""
    typer.echo(f"the page is {page.resolve()}", err=form is not None)
    typer.launch(page.resolve().as_uri())


@app.command()
def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="The folder of a finished run, or of a stored network."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="What to write: one of the targets below.")],
    out: Annotated[Path, typer.Option(help="Folder for what is written and its verdict.")],
    images: Annotated[int, typer.Option(min=1, help="Compare on at least so many images.")] = 1000,
    time_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="T",
            help="So many steps, unrolled (onnx, torch). [default: 1; a whole window]",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: check again what stands there.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Take what is not exact (qdq; floats in onnx); what is lost is said.",
        ),
    ] = False,
) -> None:
    """Write a converted network for another world: exact, or refused by name.

    One time step of it, or with --time-steps several; layers that wait for their window leave as
    one pass.

    What was written is run there, on images and on accumulators at every threshold and one beside
    it; the verdict is left beside it. Nothing is kept that answers otherwise.

    \b
    Targets:
      tables  integers to take away: safetensors, JSON, golden vectors, a reader in NumPy
      c       one C99 file of integers alone
      onnx    whole numbers for onnxruntime
      qonnx   whole weights and MultiThreshold nodes, for FINN
      torch   a program of torch.export on whole numbers
      nir     integrate-and-fire neurons with scalar thresholds, for other simulators
      spikingjelly  a module of theirs, to be watched and trained there
      hub     config.json, model.safetensors and a card; networks of every kind, whole
      qdq     ONNX with QuantizeLinear and DequantizeLinear; not exact, with --approximate alone
    \b
    Examples:
      mt-convert export runs/digits --to tables --out runs/digits/tables
      mt-convert export runs/digits --to c --out runs/digits/c
      mt-convert export runs/digits --to c --out runs/digits/c --check
      mt-convert export runs/digits --to onnx --time-steps 4 --out runs/digits/onnx
    """
    from ..experiments import export as command
    from ..report.html.export import page_of

    if to in (command.QDQ, command.HUB):
        command.check_one_pass(to, time_steps)
    if to == command.QDQ:
        asked = {"approximate": approximate, "again": check}
        typer.echo(str(command.run_qdq(network, out, count=images, **asked)))
        typer.echo(f"{'measured' if check else 'wrote'} {out / command.QDQ_FILE}")
        return
    if to == command.HUB:
        typer.echo(command.run_hub(network, out, again=check))
    else:
        verdict = command.run(
            network,
            to,
            out,
            count=images,
            time_steps=time_steps,
            approximate=approximate,
            again=check,
        )
        typer.echo(str(verdict))
    typer.echo(f"{'checked' if check else 'wrote'} {out}")
    typer.echo(f"page: {page_of(out)}")
