"""``eval``, ``bench``, ``coverage``: tables of many networks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError
from ..system.progress import speaks
from .shared import AsCsv, AsJson, app, console, form_of, numbers, print_stored, stoppable


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
    from ..experiments import eval_table

    form = form_of(json_, csv_)
    options = eval_table.EvalOptions(
        names=tuple(word for word in words if "=" not in word),
        overrides=tuple(word for word in words if "=" in word),
        data=tuple(data or ()),
        time_steps=numbers("--time-steps", time_steps),
        levels=numbers("--levels", levels),
        methods=tuple(method or ("mt_signed",)),
        calibrations=("none", *(calibrate or ())),
        calibrated_for=None
        if calibrated_for is None
        else numbers("--calibrated-for", calibrated_for),
        act_bits=act_bits,
        images=images,
        errors=errors,
        batch_size=batch_size,
    )
    with stoppable("the same command continues with what is left"):
        eval_table.run(options, out)
    if speaks():
        print_stored(out, form, eval_table.show)


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
    ] = "1,32",
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
        list[str] | None,
        typer.Option(help="Time these alone; may be repeated. [default: all but those of --all]"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender, 5 or more.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every contender. [default: torch's]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. [default: the accelerator if there is one]")
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Measure peak memory too, each in a process of its own."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Time those too that take minutes to compile.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option(
            "--training",
            help="Time training steps instead: float, quantized and spiking, eager and compiled, "
            "in float32 and bfloat16.",
        ),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Time the layers of the integer network instead, worst first: multiply-adds, "
            "bytes, share of what the machine can do.",
        ),
    ] = False,
    busy: Annotated[
        bool,
        typer.Option(
            "--busy",
            help="Time one thread and --threads instead, with nothing beside and with a busy "
            "process on every core.",
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
      mt-convert bench mobilenetv2_100 --layers --batch 1 --time-steps 1
      mt-convert bench runs/r20 --busy --batch 1 --time-steps 1 --threads 2
    """
    from ..experiments.bench import command, pages

    form = form_of(json_, csv_)
    asked = {"training": training, "layers": layers, "busy": busy}
    kinds = [name for name, is_asked in asked.items() if is_asked]
    if len(kinds) > 1:
        words = " and ".join(f"--{name}" for name in kinds)
        raise SpecError(f"{words} time different things: give one of them")
    if training and csv_:
        raise SpecError("--csv: --training leaves tables of several kinds; use --json")
    kind = kinds[0] if kinds else "results"
    run, show = {
        "training": (command.run_training, command.show_training),
        "layers": (command.run_layers, command.show_layers),
        "busy": (command.run_threads, command.show_threads),
        "results": (command.run, pages.show),
    }[kind]
    options = command.BenchOptions(
        networks=tuple(networks),
        batches=numbers("--batch", batch),
        time_steps=numbers("--time-steps", time_steps),
        levels=None if levels is None else numbers("--levels", levels),
        contenders=tuple(contender or ()),
        rounds=rounds,
        threads=threads,
        device=device,
        memory=memory,
        every=every,
    )
    with stoppable(f"earlier results in {out} are unchanged"):
        run(options, out)
    if form is not None:
        typer.echo(command.plain(out, form, kind), nl=False)
        return
    show(out, console())


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
    from ..experiments.coverage import browser_page, pages, sweep
    from ..experiments.coverage.rows import Settings
    from ..system.bounded import Limits
    from ..system.folder_lock import folder_lock

    form = form_of(json_, csv_)
    settings = Settings(size=size, modules=tuple(modules or ()))
    plans = sweep.Sweep(out, settings, Limits(memory, minutes * 60, workers))
    with stoppable("the same command continues with what is left"), folder_lock(out):
        chosen = sweep.plan(plans, patterns or (), every=every)
        table = sweep.run(plans, chosen, again=again)
        pages.write_pages(table, out)
        browser_page.write_html(
            table, out, _coverage_command(patterns or [], size, out, every=every)
        )
    asked = table.only(item.name for item in chosen)
    if form is not None:
        typer.echo(pages.plain(asked, form), nl=False)
        return
    pages.show(asked, console())
    typer.echo(f"all {len(table.rows)} rows and the pages are in {out}")
    typer.echo(f"page: {out / 'report.html'}")


def _coverage_command(patterns: list[str], size: int | None, out: Path, *, every: bool) -> str:
    """The command that makes a sweep again."""
    words = ["mt-convert", "coverage", *patterns, *(["--size", str(size)] if size else [])]
    return shlex.join([*words, *(["--all"] if every else []), "--out", str(out)])
