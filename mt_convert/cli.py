"""The command line: ``mt-convert ls | cp | check | run | finetune | eval | bench | export | …``.

One function per command; prints and exits, nothing else. What takes seconds to import is
imported by the command that needs it.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from .errors import MTConvertError, OutputError, SpecError
from .experiments.models.names import CIFAR_MODELS
from .experiments.recipes import catalogue
from .system import stopping
from .system.progress import speaks

LAUNCHER_S = 10.0  # a launcher looks every few seconds whether a process has failed

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
    if (form := _form(json_, csv_)) is not None:
        _print_names({"recipes": recipes, "networks": CIFAR_MODELS}, form)
        return
    for title, rows in (("Recipes", recipes), ("Networks", CIFAR_MODELS)):
        typer.echo(title)
        for name, text in rows.items():
            typer.echo(f"  {name:<26} {text}")


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
    from .experiments.recipes import from_scratch as recipes

    loaded = recipes.load(recipe, overrides or (), smoke)
    from .experiments.run import check as check_run

    check_run(loaded)
    if target is not None:
        from .experiments.export import check as check_export

        check_export(loaded, target)
    typer.echo(f"ok: {loaded.name}{'' if target is None else f', leaves as {target}'}")
    for stage, values in loaded.model_dump(mode="json", by_alias=True).items():
        if stage != "name":
            typer.echo(f"  {stage:<9} {_one_line(values)}")
    typer.echo(recipes.describe_trial(loaded))


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
        from .experiments.recipes.from_scratch import load

        loaded = load(recipe, overrides or (), smoke)
        from .experiments.run import free_folder
        from .experiments.run import run as run_recipe
        from .experiments.show import show as show_run

        folder = out or Path("runs") / (f"{loaded.name}_smoke" if smoke else loaded.name)
        if out is None and not overwrite:
            folder = free_folder(folder, loaded)
        finished = run_recipe(loaded, folder, resume=resume, overwrite=overwrite)
        if speaks():
            show_run(finished, _console())
    except KeyboardInterrupt:
        words = [recipe, *(overrides or []), *(["--smoke"] if smoke else [])]
        words += ["--overwrite"] if overwrite else []
        again = shlex.join([*words, *(["--out", str(folder)] if folder else []), "--resume"])
        _stop(f"continue with: mt-convert run {again}")


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
    from .experiments import finetune

    with _stoppable("the same command continues where it stopped"):
        finished = finetune.run(run, overrides or (), out)
    if speaks():
        finetune.show(finished, _console())


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL|RECIPE|KEY=VALUE",
            help="Folders of runs, or of stored quantized networks (these need --data); recipes, "
            "whose float network is converted without training; data.root=/data and the like.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe whose images are evaluated; may be repeated. [default: the run's own]"
        ),
    ] = None,
    time_steps: Annotated[
        str, typer.Option(help="Numbers of steps T to report.", metavar="T,T,...")
    ] = "1,2,4,8",
    levels: Annotated[
        str,
        typer.Option(
            "--levels",
            help="Levels a neuron can emit in one step: its thresholds n.",
            metavar="n,n,...",
        ),
    ] = "1,3,15",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="rate, qcfs, signed_if, mt_uniform, mt_binary, mt_power_of_two, mt_signed; "
            "spikingjelly_rate, _max, _ltb, sinabs, sinabs_scaled where installed."
        ),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Calibrations, such as mse or alpha_beta+membrane_mean; beside none."),
    ] = None,
    calibrated_for: Annotated[
        str | None,
        typer.Option(help="Calibrate for these T only. [default: every T]", metavar="T,T,..."),
    ] = None,
    act_bits: Annotated[
        int | None,
        typer.Option(
            min=1, max=8, help="Take the float network of runs, activations of so many bits."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="The first so many test images of a seeded order.")
    ] = None,
    errors: Annotated[
        int, typer.Option(min=0, help="Test images on which errors are split by cause; 0: none.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    out: Annotated[Path, typer.Option(help="Folder for results, table, page and pictures.")] = Path(
        "runs/eval"
    ),
    json_: AsJson = False,
    csv_: AsCsv = False,
) -> None:
    """Conversion-error tables: networks, data sets, methods and calibrations side by side.

    Finished results are cached, so an interrupted command continues where it stopped. Under
    accelerate launch the images are shared by all processes.

    \b
    Examples:
      mt-convert eval runs/digits --time-steps 1,2,4 --levels 1,3,15
      mt-convert eval digits --method rate --method mt_signed --calibrate mse+membrane_mean
      mt-convert eval runs/a runs/b --data other.yaml data.root=/data --images 2000 --errors 200
    """
    from .experiments import eval_table

    form = _form(json_, csv_)
    options = eval_table.EvalOptions(
        names=tuple(word for word in words if "=" not in word),
        overrides=tuple(word for word in words if "=" in word),
        data=tuple(data or ()),
        time_steps=_numbers("--time-steps", time_steps),
        levels=_numbers("--levels", levels),
        methods=tuple(method or ("mt_signed",)),
        calibrations=("none", *(calibrate or ())),
        calibrated_for=None
        if calibrated_for is None
        else _numbers("--calibrated-for", calibrated_for),
        act_bits=act_bits,
        images=images,
        errors=errors,
        batch_size=batch_size,
    )
    with _stoppable("the same command continues with what is left"):
        eval_table.run(options, out)
    if speaks():
        _finish(out, form, eval_table.show)


@app.command()
def bench(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL",
            help="Folders of runs, or architectures of timm (random weights, quantized to 4 bits).",
        ),
    ],
    batch: Annotated[
        str, typer.Option("--batch", help="Images at once.", metavar="N,N,...")
    ] = "1,32,128",
    time_steps: Annotated[
        str, typer.Option(help="Numbers of steps T of spiking networks.", metavar="T,T,...")
    ] = "1,4",
    levels: Annotated[
        str | None,
        typer.Option(
            help="Thresholds n. [default: for each T the fewest that emit all levels]",
            metavar="n,n,...",
        ),
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Time these alone; may be repeated. [default: all]")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender, 5 or more.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every contender. [default: torch's]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. [default: the accelerator if there is one]")
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory too, each in a process of its own.")
    ] = True,
    training: Annotated[
        bool,
        typer.Option(
            "--training",
            help="Time training steps instead: float, quantized and spiking, eager and compiled, "
            "in float32 and bfloat16.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for table, page and picture.")] = Path(
        "runs/bench"
    ),
    json_: AsJson = False,
    csv_: AsCsv = False,
) -> None:
    """Time the integer network beside all else that runs the same network on this machine.

    Float networks, onnxruntime, Brevitas, other packages: all in turns within one run, each checked
    before it is timed. What cannot run here is named with the reason. An interrupted
    command leaves earlier results unchanged.

    \b
    Examples:
      mt-convert bench resnet20_cifar --batch 1,128 --threads 2
      mt-convert bench runs/r20 --time-steps 1,2,4,8,16 --batch 32
      mt-convert bench resnet18 --contender integer_native --contender fp32_compile
      mt-convert bench runs/r20 --training --batch 128 --time-steps 2
    """
    from .experiments.bench import command

    form = _form(json_, csv_)
    if training and csv_:
        raise SpecError("--csv: --training leaves tables of several kinds; use --json")
    options = command.BenchOptions(
        networks=tuple(networks),
        batches=_numbers("--batch", batch),
        time_steps=_numbers("--time-steps", time_steps),
        levels=None if levels is None else _numbers("--levels", levels),
        contenders=tuple(contender or ()),
        rounds=rounds,
        threads=threads,
        device=device,
        memory=memory,
    )
    with _stoppable(f"earlier results in {out} are unchanged"):
        (command.run_training if training else command.run)(options, out)
    if form is not None:
        typer.echo(command.plain(out, form, training=training), nl=False)
        return
    (command.show_training if training else command.show)(out, _console())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    items = [item.strip() for item in text.split(",")]
    if all(item.isdecimal() and int(item) > 0 for item in items):
        return tuple(dict.fromkeys(map(int, items)))
    raise SpecError(f"{option} is {text!r}: allowed are whole numbers from 1, such as 1,2,4")


@app.command()
def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="The folder of a finished run, or of a stored network."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="What to write: tables, c, onnx or qonnx.")],
    out: Annotated[Path, typer.Option(help="Folder for what is written and its verdict.")],
    images: Annotated[int, typer.Option(min=1, help="Compare on at least so many images.")] = 1000,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: check again what stands there.")
    ] = False,
) -> None:
    """Write one time step of a converted network for another world: exact, or refused by name.

    What was written is run there, on images and on accumulators at every threshold and one beside
    it; the verdict is left beside it. Nothing is kept that answers otherwise.

    \b
    Targets:
      tables  integers to take away: safetensors, JSON, golden vectors, a reader in NumPy
      c       one C99 file of integers alone
      onnx    whole numbers for onnxruntime
      qonnx   whole weights and MultiThreshold nodes, for FINN
    \b
    Examples:
      mt-convert export runs/digits --to tables --out runs/digits/tables
      mt-convert export runs/digits --to c --out runs/digits/c
      mt-convert export runs/digits --to c --out runs/digits/c --check
    """
    from .experiments import export as command

    typer.echo(str(command.run(network, to, out, count=images, again=check)))
    typer.echo(f"{'checked' if check else 'wrote'} {out}")


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The folder of a run, or of a converted model.")
    ],
    open_: Annotated[
        bool, typer.Option("--open", help="Make the page of the run again, and open it.")
    ] = False,
    json_: AsJson = False,
    csv_: AsCsv = False,
) -> None:
    """Print the table of a finished run, or the conversion report of a converted model.

    \b
    Examples:
      mt-convert show runs/digits
      mt-convert show runs/digits --open
      mt-convert show runs/digits --csv > digits.csv
      mt-convert show runs/digits/convert
    """
    from .experiments.show import plain
    from .experiments.show import show as show_run

    form = _form(json_, csv_)
    if open_:
        from .experiments.run_page import write_page

        page = write_page(path).resolve()
        typer.echo(f"the page is {page}", err=form is not None)
        typer.launch(page.as_uri())
    if form is not None:
        typer.echo(plain(path, form), nl=False)
    elif not open_:
        show_run(path, _console())


def _finish(out: Path, form: str | None, show_table: Callable[[Path, Console], None]) -> None:
    """Print a finished table, for people or as JSON or CSV."""
    from .experiments.show import plain

    if form is None:
        show_table(out, _console())
    else:
        typer.echo(plain(out, form), nl=False)


def _form(json_: bool, csv_: bool) -> str | None:
    """How rows are to be printed; None as a table for people."""
    if json_ and csv_:
        raise SpecError("--json and --csv: one of them, not both")
    return "json" if json_ else "csv" if csv_ else None


@app.command()
def coverage(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...", help="Architectures or families of timm, * and ? allowed."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the images. [default: the smallest that runs]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for rows, table and pages.")] = Path(
        "runs/coverage"
    ),
    every: Annotated[
        bool, typer.Option("--all", help="Every architecture, not the smallest of each family.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try again what did not convert before.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at once, of one core each.")] = 1,
    memory: Annotated[float, typer.Option(min=0.5, help="GiB that each trial may take.")] = 8,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes for each trial.")] = 10,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", help="A module that registers networks of yours with timm."),
    ] = None,
    json_: AsJson = False,
    csv_: AsCsv = False,
) -> None:
    """Try which architectures of timm convert exactly; of each that does not, show why.

    Each is built with random weights, quantized, converted and checked in a process of its own.
    Names given whole are tried; of families and patterns the smallest architecture of each family,
    with --all every one. An interrupted sweep continues where it stopped.

    \b
    Examples:
      mt-convert coverage vgg11 resnet18
      mt-convert coverage "vit_*" --size 96 --all --workers 2
      mt-convert coverage --memory 12 --minutes 20 --out runs/coverage
    """
    from .experiments.coverage import pages, sweep
    from .experiments.coverage.rows import Settings
    from .system.bounded import Limits
    from .system.folder_lock import folder_lock

    form = _form(json_, csv_)
    settings = Settings(size=size, modules=tuple(modules or ()))
    plans = sweep.Sweep(out, settings, Limits(memory, minutes * 60, workers))
    with _stoppable("the same command continues with what is left"), folder_lock(out):
        chosen = sweep.plan(plans, patterns or (), every=every)
        table = sweep.run(plans, chosen, again=again)
        pages.write_pages(table, out)
    asked = table.only(item.name for item in chosen)
    if form is not None:
        typer.echo(pages.plain(asked, form), nl=False)
        return
    pages.show(asked, _console())
    typer.echo(f"all {len(table.rows)} rows and the pages are in {out}")


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


def main() -> None:
    """Run the command line; an error the user can mend is one message and exit code 2."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime"
    try:
        with stopping.as_interrupts():
            app()
    except MTConvertError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        name = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        _fail(f"{name}{error.strerror}")
    except KeyboardInterrupt:
        sys.exit(stopping.exit_code())


_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.EISDIR),
)


def _console() -> Console:
    """A console that prints names as they are, whatever brackets they have."""
    return Console(markup=False)


@contextmanager
def _stoppable(hint: str) -> Iterator[None]:
    """Work that Ctrl-C or a signal ends with a hint."""
    try:
        yield
    except KeyboardInterrupt:
        _stop(hint)


def _stop(hint: str) -> NoReturn:
    """End a command that was stopped; one of several processes says what comes next."""
    if speaks():
        typer.echo(f"\nstopped; {hint}", err=True)
    raise typer.Exit(stopping.exit_code()) from None


def _fail(text: str) -> NoReturn:
    """Say what is wrong, once. Of several processes the first speaks; another one waits, because
    whoever launched them stops it as soon as the first has ended by the same fault."""
    if not speaks():
        time.sleep(LAUNCHER_S)
    typer.echo(f"error: {text}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
