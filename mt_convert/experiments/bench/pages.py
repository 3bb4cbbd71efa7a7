"""A benchmark as text: a table for the terminal, a Markdown page, sentences that are computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ...report.html.charts import bars
from ...report.html.page import PageContent, render
from ...report.html.parts import PAGE
from ...report.html.svg import number
from ...system.storage import read_json
from .rows import BINARY, KINDS, Benchmark, BenchRow, ContenderKind, benchmark_from_json, moving_us

HEADINGS = ("contender", "T", "n", "µs per image", "range", "× best float")
MORE = ("of the limit", "peak MiB", "checked")
NARROW = {  # on a terminal of 80 columns
    "contender": "contender",
    "T": "T",
    "n": "n",
    "median µs": "µs per image",
    "least": "fastest",
    "× float": "× best float",
    "limit": "of the limit",
    "MiB": "peak MiB",
    "checked": "checked",
}
ONNX_INT8 = ("onnxruntime_int8", "onnxruntime_int8_sums")
LEGEND = (
    "µs per image: the median of the rounds, in each of which every contender had its turn; range: "
    "the fastest and the slowest round; × best float: how many times as fast as the fastest float "
    "network here, the median of the ratios within rounds; of the limit: the time in which this "
    "machine's fastest int8 product, which had its turn too, does the multiply-adds of one step, "
    "as a share of the time taken; peak: memory in a process of its own, what is kept and what "
    "is needed while running; checked: ours against the reference backend bit by bit, others "
    "by the share of images with the class of the network they stand for and the difference of "
    "their logits from its (0 the same, 1 nothing in common; with random weights the least "
    "difference grows large, and classes seldom change)"
)


def groups(rows: Sequence[BenchRow]) -> dict[tuple[str, int], list[BenchRow]]:
    """The rows that were timed together: those of one network and batch."""
    rows_of: dict[tuple[str, int], list[BenchRow]] = {}
    for row in rows:
        rows_of.setdefault((row.network, row.batch), []).append(row)
    return rows_of


def kind_of(row: BenchRow) -> ContenderKind | None:
    """What a row's contender computes; None of one that is no longer known."""
    return KINDS.get(row.contender)


def cells(row: BenchRow) -> list[str]:
    """A row as text, under `HEADINGS` and `MORE`."""
    return [
        row.contender,
        "–" if row.T is None else str(row.T),
        "–" if row.n is None else str(row.n or "∞"),
        _short(row.us_per_image),
        f"{_short(row.us_low)}–{_short(row.us_high)}",
        "–" if row.ratio_to_best_float is None else f"{row.ratio_to_best_float:.2f}",
        "–" if row.share_of_limit is None else f"{100 * row.share_of_limit:.0f} %",
        "–" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        _check_text(row),
    ]


def _check_text(row: BenchRow) -> str:
    """What the check before timing found."""
    if row.bit_equal:
        return "bit-equal"
    words = [] if row.bit_equal is None else ["not bit-equal"]
    if row.agreement is not None and row.difference is not None:
        words.append(f"{100 * row.agreement:.0f} %, {row.difference:.2g}")
    return ", ".join(words) or "–"


def _short(us: float) -> str:
    """Three digits that count.

    Example:
        >>> [_short(value) for value in (0.5, 12.34, 123.4, 12345.6)]
        ['0.50', '12.3', '123', '12,346']
    """
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def speed_of(benchmark: Benchmark) -> dict[str, Any]:
    """What a page shows of a benchmark: for each network and batch a bar for each contender.

    Example:
        >>> speed_of(Benchmark(()))["parts"]
        []
    """
    parts = []
    for (network, batch), rows in groups(benchmark.rows).items():
        order = sorted(rows, key=lambda row: row.us_per_image)
        shown = [(_label(row), [("time", row.us_per_image)]) for row in order]
        label = "; ".join(f"{name} {sizes[0][1]:.4g} µs" for name, sizes in shown)
        parts.append(
            {
                "title": f"{network}, batch {batch}",
                "chart": bars(shown, "µs", f"Time per image: {label}"),
                "heads": [*HEADINGS, *MORE],
                "rows": [cells(row) for row in order],
            }
        )
    absent = [
        f"not timed: {item.contender} ({item.network}, {item.case}): {item.reason}"
        for item in benchmark.absent
    ]
    return {"parts": parts, "legend": LEGEND, "notes": [*findings(benchmark), *absent]}


def html(benchmark: Benchmark) -> str:
    """The page for a browser.

    Example:
        >>> html(Benchmark(())).splitlines()[0]
        '<!DOCTYPE html>'
    """
    facts = {
        name.replace("_", " "): _fact(value)
        for name, value in benchmark.machine.items()
        if value is not None
    }
    heading = ", ".join(benchmark.networks) or "no networks"
    return render(
        PageContent((), "Benchmark", heading=heading, speed=speed_of(benchmark), facts=facts)
    )


def _fact(value: Any) -> str:
    """What was measured of a machine, as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_fact(item)}" for name, item in value.items())
    return number(value) if isinstance(value, float) else str(value)


def _label(row: BenchRow) -> str:
    """A contender with its steps and thresholds."""
    return row.contender if row.T is None else f"{row.contender}, T = {row.T}, n = {row.n}"


def rich_tables(benchmark: Benchmark) -> list[Table]:
    """A table for each network and batch."""
    tables = []
    for (network, batch), rows in groups(benchmark.rows).items():
        table = Table(
            title=f"{network}, batch {batch}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for heading, name in NARROW.items():
            left = name in ("contender", "checked")
            table.add_column(heading, justify="left" if left else "right", no_wrap=not left)
        for row in rows:
            text = dict(zip((*HEADINGS, *MORE), cells(row), strict=True))
            text["fastest"] = _short(row.us_low)
            table.add_row(*(text[name] for name in NARROW.values()))
        tables.append(table)
    return tables


def markdown(head: str, benchmark: Benchmark) -> str:
    """The page: what was found, the machine, a table for each network and batch, who is absent."""
    lines = [
        head.rstrip(),
        "",
        "## What was found",
        "",
        *(f"- {line}" for line in findings(benchmark)),
    ]
    lines += [
        "",
        "![speed, growth over T and over size](benchmark.png)",
        "",
        *machine_lines(benchmark),
    ]
    for (network, batch), rows in groups(benchmark.rows).items():
        lines += ["", f"## {network}, batch {batch}", ""]
        lines += ["| " + " | ".join((*HEADINGS, *MORE)) + " |", "|" + " --- |" * 9]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", LEGEND + ".", "", "## Contenders", ""]
    from .contenders.registry import all_contenders

    present = {row.contender for row in benchmark.rows}
    lines += [
        f"- `{name}`: {item.kind}; {item.about}."
        for name, item in all_contenders().items()
        if name in present
    ]
    if benchmark.absent:
        lines += ["", "## Not timed", ""]
        lines += [
            f"- {item.network}, {item.contender}, {item.case}: {item.reason}"
            for item in benchmark.absent
        ]
    return "\n".join(lines) + "\n"


def machine_lines(benchmark: Benchmark) -> list[str]:
    """The machine, its limits and the versions."""
    machine = benchmark.machine
    if not machine:
        return []
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    kernels = machine.get("instruction_set")  # not in what earlier versions stored
    built = f" Kernels of the integer engine: {kernels}." if kernels else ""
    lines = [
        "## The machine",
        "",
        f"{machine['name']} ({machine['device']}), {machine['threads']} threads; {versions}."
        f"{built}",
        "",
        f"Its limits, measured: float32 products {machine['fp32_macs_per_s'] / 1e9:.3g} billion "
        f"multiply-adds a second, copying {machine['bytes_per_s'] / 1e9:.3g} GB a second (read and "
        "written).",
    ]
    if machine["int8_by"]:
        others = ", ".join(
            f"{name} {rate / 1e9:.3g}" for name, rate in machine["int8_tried"].items()
        )
        lines.append(f"int8 products, billion multiply-adds a second: {others}; the most counts.")
    sizes = benchmark.networks
    moved = ", ".join(
        f"{network}, batch {batch}: {_short(moving_us(machine, sizes[network], batch))}"
        for network, batch in groups(benchmark.rows)
        if network in sizes
    )
    return [*lines, f"To copy weights (int8) and images once takes, µs per image: {moved}."]


def findings(benchmark: Benchmark) -> list[str]:
    """Sentences on what the gain is, what it is due to, and where it ends."""
    lines = []
    for (network, batch), rows in groups(benchmark.rows).items():
        lines += _gain(f"{network}, batch {batch}", rows)
    return [*lines, *_over_time(benchmark), *_over_size(benchmark)]


def fastest(rows: Sequence[BenchRow], *kinds: ContenderKind) -> BenchRow | None:
    """The fastest row of these kinds."""
    among = [row for row in rows if kind_of(row) in kinds]
    return min(among, key=lambda row: row.us_per_image, default=None)


def _gain(where: str, rows: Sequence[BenchRow]) -> list[str]:
    """What ours gains at each T against the best float network, and how much of it int8 gives."""
    best = fastest(rows, ContenderKind.FLOAT)
    int8 = min(
        (row for row in rows if row.contender in ONNX_INT8),
        key=lambda row: row.us_per_image,
        default=None,
    )
    lines = []
    ours = sorted(
        {(row.T, row.n) for row in rows if row.T and kind_of(row) is ContenderKind.INTEGER}
    )
    kinds = [(T, n, binary) for T, n in ours for binary in (False, True)]
    for T, n, binary in kinds:
        same = [row for row in rows if (row.T, row.n) == (T, n) and is_binary(row) == binary]
        own = fastest(same, ContenderKind.INTEGER)
        if own is None or best is None or own.ratio_to_best_float is None:
            continue
        text = (
            f"{where}, T = {T}, n = {own.n}: {own.contender} takes {_short(own.us_per_image)} µs "
            f"per image, {own.ratio_to_best_float:.2f} times as fast as the best float network "
            f"({best.contender}, {_short(best.us_per_image)} µs)"
        )
        if int8 is not None and int8.ratio_to_best_float is not None:
            ahead = own.ratio_to_best_float / int8.ratio_to_best_float
            text += (
                f" and {ahead:.2f} times as fast as {int8.contender}, whose int8 arithmetic "
                f"alone gains {int8.ratio_to_best_float:.2f}"
            )
        share = cells(own)[HEADINGS.index("× best float") + 1]
        lines.append(text + ("." if share == "–" else f"; {share} of the machine's limit."))
    return lines


def is_binary(row: BenchRow) -> bool:
    """Whether its thresholds are the bits of a level."""
    return row.contender in BINARY


def _over_time(benchmark: Benchmark) -> list[str]:
    """How time grows with T in the group with most of them."""
    rows = most_steps(benchmark.rows)
    own = [row for row in rows if row.contender == "integer_native"] or [
        row for row in rows if kind_of(row) is ContenderKind.INTEGER
    ]
    line = {row.T: row for row in own if own and row.contender == own[0].contender}
    if len(line) < 2:
        return []
    start = line[min(line, key=lambda T: T or 0)]
    grown = ", ".join(
        f"{row.us_per_image / start.us_per_image:.2f} at T = {T}" for T, row in sorted(line.items())
    )
    slower = [T for T, row in sorted(line.items()) if (row.ratio_to_best_float or 1) < 1]
    ends = (
        f"from T = {slower[0]} on the best float network is faster"
        if slower
        else "at no T of these is a float network faster"
    )
    where = f"{start.network}, batch {start.batch}, {start.contender}"
    return [f"Growth over T ({where}): {grown} times the time of T = {start.T}; {ends}."]


def _over_size(benchmark: Benchmark) -> list[str]:
    """How the gain at T = 1 changes with the size of the network."""
    rows = by_size(benchmark)
    if len({row.network for row in rows}) < 2:
        return []
    sizes = benchmark.networks
    gains = ", ".join(
        f"{row.network} ({sizes[row.network]['macs'] / 1e6:,.0f} million multiply-adds, "
        f"batch {row.batch}) {row.ratio_to_best_float:.2f}"
        for row in rows
    )
    return [f"Growth over size, gain at T = 1 over the best float network: {gains}."]


def most_steps(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The group with the most different T."""
    networks = groups(rows).values()
    return max(networks, key=lambda group: len({row.T for row in group}), default=[])


def by_size(benchmark: Benchmark) -> list[BenchRow]:
    """Our fastest row at T = 1 of each network, at its largest batch, smallest network first."""
    chosen: dict[str, BenchRow] = {}
    for (network, batch), rows in groups(benchmark.rows).items():
        own = fastest([row for row in rows if row.T == 1], ContenderKind.INTEGER)
        if own is None or own.ratio_to_best_float is None or network not in benchmark.networks:
            continue
        if network not in chosen or batch > chosen[network].batch:
            chosen[network] = own
    return sorted(chosen.values(), key=lambda row: float(benchmark.networks[row.network]["macs"]))


def show(out: Path, console: Console) -> None:
    """Print the tables of a finished benchmark."""
    benchmark = read_json(out / "results.json", benchmark_from_json)
    for table in rich_tables(benchmark):
        console.print(table)
    for line in findings(benchmark):
        console.print(f"- {line}", highlight=False)
    for item in benchmark.absent:
        text = f"not timed: {item.contender} ({item.network}, {item.case}): {item.reason}"
        console.print(text, highlight=False, markup=False)
    console.print(f"all columns: {out}/README.md", highlight=False, soft_wrap=True)
    if (out / PAGE).is_file():
        console.print(f"page: {out / PAGE}", highlight=False, soft_wrap=True)
