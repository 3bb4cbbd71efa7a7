"""``mt-convert bench``: networks timed beside everything else that runs them on this machine.

Leaves ``results.json``, ``README.md``, ``benchmark`` as PNG, PDF and SVG, and ``report.html``, all
written at the end: what an earlier benchmark left stays until then. ``networks/`` keeps quantized
networks, and what the children that measure memory had to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ...errors import Fault, SpecError, many
from ...report.html.parts import PAGE
from ...report.pictures import draw_forms
from ...report.records import csv_text
from ...system.devices import device as accelerator_or_cpu
from ...system.folder_lock import folder_lock
from ...system.progress import progress
from ...system.storage import atomic, json_text, read_json, sweep, write_json
from ..run_page import BENCH, write_page
from . import layers, pages, picture, threads, training
from .contenders.contender import Case, Contender
from .contenders.registry import choose_contenders
from .limits import measure_machine, product
from .measure import Group
from .memory import Place, peaks
from .network import Network, open_network, thresholds_for
from .rows import Absent, Benchmark, BenchRow, benchmark_from_json, merge
from .timing import LEAST_ROUNDS
from .training import TrainingSpeed

HEAD = "# Benchmark\n\nWritten by `mt-convert bench`.\n"


@dataclass(frozen=True)
class BenchOptions:
    """What is to be timed; the fields are the options of ``mt-convert bench``.

    ``levels``: thresholds n, each with every T; None for the fewest with which T steps emit all.
    ``every``: those too that take minutes to compile; where contenders are named these alone count.

    Raises:
        SpecError: nothing named, unknown contenders, too few rounds, a device that is not here; all
            of them at once.
    """

    networks: tuple[str, ...]
    batches: tuple[int, ...] = (1, 32)
    time_steps: tuple[int, ...] = (1, 4)
    levels: tuple[int, ...] | None = None
    contenders: tuple[str, ...] = ()
    rounds: int = LEAST_ROUNDS
    threads: int | None = None
    device: str | None = None
    memory: bool = False
    every: bool = False

    def __post_init__(self) -> None:
        faults = []
        if not self.networks:
            hint = "name the folder of a run, or an architecture: mt-convert bench resnet20_cifar"
            faults.append(Fault("RUN|MODEL", "missing", hint))
        if self.rounds < LEAST_ROUNDS:
            faults.append(Fault("--rounds", str(self.rounds), f"allowed: {LEAST_ROUNDS} or more"))
        try:
            choose_contenders(self.contenders)
        except SpecError as error:
            faults += error.faults
        if (reason := _device_fault(self.device)) is not None:
            faults.append(Fault("--device", str(self.device), reason))
        if faults:
            raise SpecError(f"{many(faults, 'fault', 'faults')} in what is to be timed", faults)

    def steps(self, network: Network) -> list[tuple[int, int]]:
        """Pairs of T and n."""
        if self.levels is None:
            return [(T, thresholds_for(network.levels, T)) for T in self.time_steps]
        return [(T, n) for T in self.time_steps for n in self.levels]

    def left_out(self, network: Network, batch: int) -> list[Absent]:
        """What nobody asked for, and how to."""
        if self.contenders or self.every:
            return []
        reason = "takes minutes to compile; --all times it too"
        slow = [item.name for item in choose_contenders(()) if item.slow]
        return [Absent(network.name, name, f"batch {batch}", reason) for name in slow]

    def entries(self, network: Network, batch: int) -> list[tuple[Contender, Case]]:
        """Everything that is timed together."""
        return [
            (contender, case)
            for contender in choose_contenders(self.contenders, every=self.every)
            for case in contender.cases(batch, self.steps(network), network.levels)
        ]


def run_training(options: BenchOptions, out: Path) -> TrainingSpeed:
    """Time training steps, of batches of the largest size; write table and page to ``out``.

    Raises:
        MTConvertError: whatever the user can mend; what stood in ``out`` stays.
    """
    device = accelerator_or_cpu() if options.device is None else torch.device(options.device)
    with folder_lock(out), _threads(options.threads):
        sweep(out, deep=False)
        speeds = [
            training.time_training(
                open_network(word, out / "networks").on(device),
                options.time_steps,
                max(options.batches),
                options.rounds,
            )
            for word in options.networks
        ]
        return training.publish(speeds, out)


def show_training(out: Path, console: Console) -> None:
    """Print what `run_training` wrote."""
    speed = training.read(out)
    lines = (*training.findings(speed), *training.missing(speed))
    _show(training.rich_tables(speed), lines, f"page: {out}/training.md", console)


def run_layers(options: BenchOptions, out: Path) -> layers.LayerTimes:
    """Time the native kernels layer by layer; write table and page to ``out``.

    Raises:
        MTConvertError: whatever the user can mend; what stood in ``out`` stays.
    """
    with folder_lock(out), _threads(options.threads):
        sweep(out, deep=False)
        networks = [open_network(word, out / "networks") for word in options.networks]
        times = layers.time_layers(networks, options.time_steps, options.batches, options.rounds)
        return layers.publish(times, out)


def show_layers(out: Path, console: Console) -> None:
    """Print what `run_layers` wrote."""
    times = layers.read(out)
    last = f"all layers: {out}/layers.md"
    _show(layers.rich_tables(times), layers.findings(times), last, console)


def run_threads(options: BenchOptions, out: Path) -> threads.ThreadTimes:
    """Time one thread and several, on free cores and on busy ones; write table and page to ``out``.

    Raises:
        SpecError: there is one thread alone.
        MTConvertError: whatever the user can mend; what stood in ``out`` stays.
    """
    count = torch.get_num_threads() if options.threads is None else options.threads
    if count < 2:
        hint = "one thread is compared with several: give --threads 2 or more"
        raise SpecError("nothing to compare", [Fault("--threads", str(count), hint)])
    chosen = replace(options, contenders=options.contenders or threads.CONTENDERS)
    with folder_lock(out), _threads(count):
        sweep(out, deep=False)
        networks = [open_network(word, out / "networks") for word in options.networks]
        times = threads.time_threads(
            networks, chosen.entries, options.batches, count, options.rounds
        )
        return threads.publish(times, out)


def show_threads(out: Path, console: Console) -> None:
    """Print what `run_threads` wrote."""
    times = threads.read(out)
    _show(threads.rich_tables(times), threads.findings(times), f"page: {out}/busy.md", console)


def _show(tables: Iterable[Table], lines: Iterable[str], last: str, console: Console) -> None:
    """Tables, what they say, and where all of it stands."""
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(f"- {line}", highlight=False, markup=False)
    console.print(last, highlight=False, soft_wrap=True)


def run(options: BenchOptions, out: Path) -> Benchmark:
    """Time everything; write table, page and picture to ``out`` when all is done.

    Raises:
        MTConvertError: whatever the user can mend; what stood in ``out`` stays.
    """
    with folder_lock(out):
        sweep(out, deep=False)
        benchmark = time_networks(options, out / "networks")
        write_json(out / "results.json", benchmark.to_json())
        publish(HEAD, benchmark, out)
        with atomic(out / PAGE) as temporary:
            temporary.write_text(pages.html(benchmark), encoding="utf-8")
    if out.name == BENCH and (out.parent / "recipe.yaml").is_file():
        write_page(out.parent)  # of the run that it lies in, which shows its times too
    return benchmark


def publish(head: str, benchmark: Benchmark, folder: Path) -> None:
    """The page and its picture, also in the forms for print."""
    if benchmark.rows:
        draw_forms(partial(picture.draw, benchmark), folder / "benchmark.png")
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(pages.markdown(head, benchmark))


def time_networks(options: BenchOptions, store: Path) -> Benchmark:
    """The rows of all networks and batches, and the limits of the machine."""
    device = accelerator_or_cpu() if options.device is None else torch.device(options.device)
    with _threads(options.threads):
        machine = measure_machine(device)
        best = machine["int8_by"]
        limit = product(best, device) if best else None
        parts = [Benchmark((), machine=machine)]
        for word in options.networks:
            network = open_network(word, store).on(device)
            sizes = {network.name: network.size}
            place = Place(word, store, str(device), torch.get_num_threads())
            for batch in options.batches:
                group = Group(network, options.entries(network, batch), options.rounds, limit)
                group.absent += options.left_out(network, batch)
                rows = _rows(group, place, memory=options.memory)
                parts.append(Benchmark(tuple(rows), tuple(group.absent), networks=sizes))
    return merge(parts)


def _rows(group: Group, place: Place, *, memory: bool) -> list[BenchRow]:
    """The rows of one network and batch; with ``memory`` each contender's alone."""
    rows = group.rows()
    if not memory or not rows:
        return rows
    entries = [(row.contender, Case(row.batch, row.T, row.n)) for row in rows]
    name = group.network.name
    label = f"{name}, batch {rows[0].batch}: memory"
    measurements: Iterable[tuple[tuple[str, Case], float | None, str]] = progress(
        peaks(place, entries), label, total=len(entries)
    )
    for k, ((contender, case), mib, reason) in enumerate(measurements):
        rows[k] = replace(rows[k], peak_mib=mib)
        if reason:
            group.absent.append(Absent(name, contender, f"{case}, memory alone", reason))
    return rows


def plain(out: Path, form: str, kind: str = "results") -> str:
    """What a finished benchmark stored, as ``json``, or its rows as ``csv``; ``kind`` says which of
    its files: results, training, layers or busy."""
    if kind == "layers" and form == "csv":
        return csv_text(layers.LayerRow, layers.read(out).rows)
    if kind == "busy" and form == "csv":
        return csv_text(threads.ThreadRow, threads.read(out).rows)
    if kind != "results":
        return json_text(read_json(out / f"{kind}.json"))
    benchmark = read_json(out / "results.json", benchmark_from_json)
    return json_text(benchmark.to_json()) if form == "json" else csv_text(BenchRow, benchmark.rows)


def _device_fault(name: str | None) -> str | None:
    """What is wrong with a device; None if it is here."""
    if name in (None, "cpu"):
        return None
    here = [accelerator_or_cpu().type, "cpu"]
    return (
        None if str(name).split(":")[0] in here else f"here are: {', '.join(dict.fromkeys(here))}"
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
