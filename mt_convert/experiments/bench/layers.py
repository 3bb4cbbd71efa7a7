"""``mt-convert bench --layers``: where the time of the integer network goes, layer by layer.

Each layer's microseconds, multiply-adds, bytes, and its share of the int8 multiply-adds that the
machine did in the same rounds; worst first, by the time that lies above that limit. Leaves
``layers.json`` and ``layers.md``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from ...errors import many
from ...integer_engine.int8 import int8_layers
from ...integer_engine.model import IntegerModel, integer
from ...integer_engine.program import Accumulate
from ...report.records import of_schema, with_schema
from ...system.progress import progress
from ...system.storage import atomic, read_json, write_json
from .limits import measure_machine, product
from .network import Network, thresholds_for
from .rows import LAYERS_SCHEMA
from .timing import Clock, clock_of

SCHEMA = LAYERS_SCHEMA
HEAD = """# Where the time goes

Written by `mt-convert bench --layers`: the integer network by its native kernels, layer by layer,
neurons included, the median of the rounds. "of limit" is the share of the int8 multiply-adds
that the machine does at best, measured in the same rounds; the layers that lose most time to it
come first. "sums by oneDNN": the layer's sums alone, by torch's int8 kernels where they are exact,
of bytes that lie ready, in rounds of the same run; no neurons fire there.
"""
SHOWN = 15  # on a terminal


@dataclass(frozen=True)
class LayerRow:
    """A layer, or what runs between layers.

    Units: microseconds per image over all T steps; multiply-adds of one step; bytes of weights, and
        read and written of an image. ``of_limit`` None without multiply-adds. ``library``: of the
        sums alone, by torch's int8 kernels; None where they are not exact.
    """

    network: str
    T: int
    n: int
    batch: int
    layer: str
    kind: str
    microseconds: float
    share: float
    macs: int
    weights: int
    moved: int
    of_limit: float | None
    lost: float
    library: float | None = None


@dataclass(frozen=True)
class LayerTimes:
    """All rows, worst first within a network, and how they were taken."""

    rows: tuple[LayerRow, ...]
    threads: int
    int8_macs_per_s: float

    def to_json(self) -> dict[str, Any]:
        """The content of ``layers.json``."""
        return with_schema(SCHEMA, self)


def layer_times_from_json(stored: Any) -> LayerTimes:
    """What `LayerTimes.to_json` described.

    Raises:
        CheckpointError: another schema, or a column missing or of another type.
    """
    return of_schema(SCHEMA, LayerTimes, "times by layer", stored)


def time_layers(
    networks: Sequence[Network],
    time_steps: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    clock: Clock | None = None,
) -> LayerTimes:
    """Time the layers of every network, each T and batch in so many rounds.

    Raises:
        SpecError: the native kernels cannot run here.
    """
    device = torch.device("cpu")
    clock = clock or clock_of(device)
    best = measure_machine(device)["int8_by"]
    work, amount = product(best, device)
    rows: list[LayerRow] = []
    rates: list[float] = []
    for network in networks:
        for T in time_steps:
            n = thresholds_for(network.levels, T)
            model = integer(network.spiking(n), backend="native")
            for batch in batches:
                images = network.images(batch, torch.Generator().manual_seed(0))
                notes = [note for note, _ in model.layer_times(images, T)]
                library = _in_library(model, batch)
                theirs: dict[str, list[float]] = {name: [] for name in library}
                taken: list[list[float]] = []
                here: list[float] = []
                for _ in progress(range(rounds), f"{network.name}: T={T}, batch {batch}"):
                    taken.append([seconds for _, seconds in model.layer_times(images, T)])
                    begun = clock.now()
                    work()
                    here.append(amount / (clock.now() - begun))
                    for name, run in library.items():
                        begun = clock.now()
                        run()
                        theirs[name].append(clock.now() - begun)
                rates += here
                rate = statistics.median(here)
                columns = zip(*taken, strict=True)
                micro = [1e6 * statistics.median(column) / batch for column in columns]
                beside = {
                    name: round(1e6 * T * statistics.median(once) / batch, 2)
                    for name, once in theirs.items()
                }
                found = [
                    _row(network.name, (T, n, batch), note, own, sum(micro), rate, beside)
                    for note, own in zip(notes, micro, strict=True)
                ]
                rows += sorted(found, key=lambda row: -row.lost)
    return LayerTimes(tuple(rows), torch.get_num_threads(), statistics.median(rates))


@torch.inference_mode()
def _in_library(model: IntegerModel, batch: int) -> dict[str, Callable[[], Tensor]]:
    """The sums of each layer by torch's int8 kernels, of bytes that lie ready; none where those
    cannot be used, or are not exact.
    """
    program = model.program()
    found: dict[str, Callable[[], Tensor]] = {}
    items = {item.out: item for item in program.instructions if isinstance(item, Accumulate)}
    for out, layer in int8_layers.layers(program).items():
        shape = program.values[items[out].value].shape
        levels = torch.randint(0, 16, (batch, *shape)).float() + layer.low
        run = partial(layer.sums, layer.prepare(levels))
        run()  # what is made at first use is not timed
        found[items[out].name] = run
    return found


def _row(
    network: str,
    case: tuple[int, int, int],
    note: Any,
    own: float,
    total: float,
    rate: float,
    library: Mapping[str, float],
) -> LayerRow:
    """A layer of ``own`` microseconds of ``total``, at ``rate`` multiply-adds a second at best."""
    least = 1e6 * note.macs * case[0] / rate
    of_limit = round(least / own, 3) if note.macs and own else None
    return LayerRow(
        network,
        *case,
        note.name,
        note.kind,
        round(own, 2),
        round(own / max(total, 1e-9), 4),
        note.macs,
        note.weights,
        note.moved,
        of_limit,
        round(own - least, 2),
        library.get(note.name),
    )


# ------------------------------------------------------------------------------------------- page

HEADINGS = (
    *("layer", "kind", "µs", "share", "M mult-adds", "KiB moved", "of limit"),
    "sums by oneDNN, µs",
)
PAGES_ONLY = ("KiB moved", HEADINGS[-1])


def cells(row: LayerRow) -> list[str]:
    """A row as text, under `HEADINGS`."""
    return [
        row.layer,
        row.kind,
        f"{row.microseconds:.1f}",
        f"{100 * row.share:.1f} %",
        f"{row.macs / 1e6:.2f}" if row.macs else "–",
        f"{(row.weights + row.moved) / 1024:.0f}",
        "–" if row.of_limit is None else f"{100 * row.of_limit:.0f} %",
        "–" if row.library is None else f"{row.library:.1f}",
    ]


def kinds(rows: Sequence[LayerRow]) -> dict[str, tuple[float, float | None]]:
    """For each kind of layer its microseconds and share of the limit, most time first.

    Example:
        >>> row = LayerRow("net", 1, 15, 1, "a", "conv 3x3", 8.0, 1.0, 100, 9, 9, 0.5, 4.0)
        >>> from dataclasses import replace
        >>> kinds([row, replace(row, layer="b", microseconds=2.0, lost=0.0)])
        {'conv 3x3': (10.0, 0.6)}
    """
    found = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        same = [row for row in rows if row.kind == kind]
        own = sum(row.microseconds for row in same)
        counted_here = any(row.macs for row in same) and own > 0
        least = own - sum(row.lost for row in same)
        found[kind] = (round(own, 2), round(least / own, 3) if counted_here else None)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def groups(times: LayerTimes) -> Iterator[tuple[str, list[LayerRow]]]:
    """The rows of each network, T and batch, under a title."""
    for case in dict.fromkeys((row.network, row.T, row.n, row.batch) for row in times.rows):
        rows = [row for row in times.rows if (row.network, row.T, row.n, row.batch) == case]
        name, T, n, batch = case
        total = sum(row.microseconds for row in rows)
        yield f"{name}, T = {T}, n = {n}, batch {batch}: {total:,.0f} µs an image", rows


def findings(times: LayerTimes) -> Iterator[str]:
    """What the rows say, computed."""
    for title, rows in groups(times):
        parts = [
            f"{kind} {own:,.0f} µs" + ("" if share is None else f" ({100 * share:.0f} %)")
            for kind, (own, share) in kinds(rows).items()
        ]
        yield f"{title}; by kind, with the share of the limit: {', '.join(parts)}"


def markdown(times: LayerTimes, head: str = HEAD) -> str:
    """The page."""
    rate = times.int8_macs_per_s / 1e9
    lines = [
        head.rstrip(),
        "",
        f"{many(times.threads, 'thread', 'threads')}; the machine does {rate:.0f} ",
    ]
    lines[-1] += "thousand million int8 multiply-adds a second."
    for title, rows in groups(times):
        lines += ["", f"## {title}", "", f"| {' | '.join(HEADINGS)} |"]
        lines.append("|" + " --- |" * len(HEADINGS))
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {text}" for text in findings(times))]) + "\n"


def profile(runs: Mapping[str, LayerTimes]) -> str:
    """A page of where the time went in several stored runs, by kind of layer: most time of the last
    run first.

    Example:
        >>> row = LayerRow("net", 1, 15, 1, "a", "conv 3x3", 8.0, 1.0, 100, 9, 9, 0.5, 4.0)
        >>> from dataclasses import replace
        >>> new = replace(row, microseconds=5.0, lost=1.0)
        >>> before, now = (LayerTimes((one,), 1, 1e9) for one in (row, new))
        >>> print(profile({"before": before, "now": now}))
        ## net, T = 1, n = 15, batch 1
        <BLANKLINE>
        | kind | before, µs | of limit | now, µs | of limit | share now | sums by oneDNN, µs |
        | --- | ---: | ---: | ---: | ---: | ---: | ---: |
        | conv 3x3 | 8.0 | 50 % | 5.0 | 80 % | 100 % | – |
        | all | 8.0 | | 5.0 | | 100 % | |
        <BLANKLINE>
    """
    *_, last = runs
    heads = [f"{name}, µs | of limit" for name in runs]
    lines = []
    for case in dict.fromkeys(_case(row) for times in runs.values() for row in times.rows):
        found = [
            kinds([row for row in times.rows if _case(row) == case]) for times in runs.values()
        ]
        now = found[-1]
        names = [*now, *(kind for one in found for kind in one if kind not in now)]
        totals = [sum(own for own, _ in one.values()) for one in found]
        name, T, n, batch = case
        lines += [f"## {name}, T = {T}, n = {n}, batch {batch}", ""]
        lines.append(f"| kind | {' | '.join(heads)} | share {last} | {HEADINGS[-1]} |")
        lines.append("| --- |" + " ---: |" * (2 * len(runs) + 2))
        mine = [row for row in runs[last].rows if _case(row) == case]
        for kind in dict.fromkeys(names):
            text = [_of_kind(one.get(kind)) for one in found]
            own = now[kind][0] / totals[-1] if kind in now and totals[-1] else 0
            library = _by_library([row for row in mine if row.kind == kind])
            lines.append(f"| {kind} | {' | '.join(text)} | {100 * own:.0f} % | {library} |")
        sums = [f"{total:,.1f} |" for total in totals]
        lines += [f"| all | {' | '.join(sums)} | 100 % | |", ""]
    return "\n".join(lines)


def _by_library(rows: Sequence[LayerRow]) -> str:
    """What the sums of these layers take in torch's int8 kernels, if those are exact for each."""
    times = [row.library for row in rows if row.library is not None]
    return f"{sum(times):,.1f}" if rows and len(times) == len(rows) else "–"


def _case(row: LayerRow) -> tuple[str, int, int, int]:
    return row.network, row.T, row.n, row.batch


def _of_kind(cell: tuple[float, float | None] | None) -> str:
    """Microseconds and share of the limit, as two columns."""
    if cell is None:
        return "– | –"
    own, share = cell
    return f"{own:,.1f} | {'–' if share is None else f'{100 * share:.0f} %'}"


def rich_tables(times: LayerTimes) -> Iterator[Table]:
    """The worst rows for a terminal, a table for each network."""
    for title, rows in groups(times):
        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        places = [k for k, heading in enumerate(HEADINGS) if heading not in PAGES_ONLY]
        for k in places:
            words = k < 2
            table.add_column(
                HEADINGS[k], justify="left" if words else "right", no_wrap=k > 0, overflow="fold"
            )
        for row in rows[:SHOWN]:
            table.add_row(*(cells(row)[k] for k in places))
        yield table


def publish(times: LayerTimes, out: Path, head: str = HEAD) -> LayerTimes:
    """Write table and page."""
    write_json(out / "layers.json", times.to_json())
    with atomic(out / "layers.md") as temporary:
        temporary.write_text(markdown(times, head), encoding="utf-8")
    return times


def read(out: Path) -> LayerTimes:
    """What `publish` wrote."""
    return read_json(out / "layers.json", layer_times_from_json)
