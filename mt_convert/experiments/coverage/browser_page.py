"""The page of a sweep for a browser, from its table alone. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...report.html.parts import (
    PAGE,
    Answer,
    Cell,
    Part,
    PartsContent,
    Verdict,
    downloads,
    render_parts,
)
from ...system.storage import atomic
from .families import COLUMNS, settles
from .pages import ENOUGH, summary
from .rows import CoverageRow, Table

FILES = {
    "results.json": "all rows, every number",
    "README.md": "the same as Markdown",
    "architectures.md": "all architectures as Markdown",
    "families.png": "the families as a picture",
    "families.pdf": "the same for print",
    "families.svg": "the same for print, as SVG",
}


def write_html(table: Table, folder: Path, command: str = "") -> Path:
    """Write ``report.html`` into a folder; return its file.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic(folder / PAGE) as temporary:
        temporary.write_text(html(table, folder, command), encoding="utf-8")
    return folder / PAGE


def html(table: Table, folder: Path, command: str = "") -> str:
    """The page: a summary, the families, what did not convert, all architectures.

    Example:
        >>> row = CoverageRow("vgg11", "vgg", error="no rule")
        >>> "no rule" in html(Table({}, {}, (row,)), Path("runs/coverage"))
        True
    """
    versions = table.settings.get("versions", {})
    return render_parts(
        PartsContent(
            name="Coverage",
            heading="Which architectures of timm convert",
            parts=[part for part in _parts(table) if part.rows or part.items],
            verdict=_verdict(table),
            glance=_glance(table),
            command=command or "mt-convert coverage",
            facts={name: str(text) for name, text in versions.items()},
            downloads=downloads(folder, FILES),
        )
    )


def _verdict(table: Table) -> Verdict:
    """Whether everything that was tried converts and is exact."""
    proven = sum(row.proven for row in table.rows)
    whole = proven == len(table.rows) > 0
    first, *more = summary(table)
    words = f"{'✓ ' * whole}{proven} of {len(table.rows)} architectures convert, exact at T = 1"
    note = "Exact: every neuron and all logits bit-equal to the quantized network, also next to "
    note += "thresholds, with random weights on a few random images."
    return Verdict("yes" if whole else "unknown", words, [first, *more[2:]], note)


def _glance(table: Table) -> list[Answer]:
    """How much is fed by spikes, what stays analog most often, what failed."""
    done = [row for row in table.rows if row.converted]
    kinds: Counter[str] = Counter()
    for row in done:
        kinds.update(row.analog.keys())
    failed = [row.architecture for row in table.rows if not row.converted]
    shares = sorted(row.spike_fed_mac_share or 0.0 for row in done)
    said = []
    if shares:
        middle = shares[len(shares) // 2]
        answer = f"median {int(1000 * middle) / 10:g} %, least {int(1000 * shares[0]) / 10:g} %"
        said.append(Answer("spike-share", "Multiply-accumulates fed by spikes", answer))
    if kinds:
        most = ", ".join(f"{name} ({count})" for name, count in kinds.most_common(3))
        said.append(Answer("analog", "What stays analog in most architectures", most))
    answer = ", ".join(failed[:4]) + " …" * (len(failed) > 4) if failed else "none"
    said.append(Answer("failed", "What does not convert", answer))
    return said


def _parts(table: Table) -> list[Part]:
    """Families, failures, what is not exact or hardly spikes, and everything."""
    rows = table.rows
    inexact = [row for row in rows if row.converted and not row.exact_t1]
    low = [row for row in rows if row.converted and (row.spike_fed_mac_share or 0) < ENOUGH]
    return [
        _families(table),
        Part(
            "failed-list",
            "Not converted",
            items=[f"{row.architecture} ({row.family}): {row.error}" for row in rows if row.error],
        ),
        Part(
            "inexact",
            "Converted, not exact at T = 1",
            items=[f"{row.architecture}: differs in {', '.join(row.differs)}" for row in inexact],
        ),
        Part(
            "low",
            "Less than 95 % of multiply-accumulates fed by spikes",
            link="Hardly fed by spikes",
            heads=["architecture", "fed by spikes", "what is not"],
            text_columns=(0, 2),
            rows=[
                [
                    Cell(row.architecture),
                    _share(row.spike_fed_mac_share),
                    Cell("; ".join(row.not_spike_fed[:3]), classes="wrap"),
                ]
                for row in low
            ],
            folded=f"{len(low)} architectures",
        ),
        _architectures(rows),
    ]


def _families(table: Table) -> Part:
    """The heat map as a table: a line for each family."""
    lines = []
    for family, rows in table.families.items():
        cells = [Cell(family), Cell(str(len(rows)), len(rows))]
        latest = max((row.settling_t or 0 for row in rows), default=0)
        for measure in COLUMNS.values():
            share, text = measure(rows)
            bad = "bad" if not share else "heat"
            dark = None if not share else round(max(0.0, (share - 0.5) / 0.5), 3)
            value = latest if measure is settles else round(share, 4)
            cells.append(Cell(text, value, classes=bad, dark=dark))
        lines.append(cells)
    heads = ["family", "tried", *(name.replace("\n", " ") for name in COLUMNS)]
    note = "How many of the architectures tried; the latest T at which one settles with a quarter "
    note += "of the thresholds; the smallest share of multiply-accumulates that spikes feed."
    return Part("families", "Families", heads=heads, rows=lines, note=note)


def _architectures(rows: Sequence[CoverageRow]) -> Part:
    """A line for each architecture."""
    heads = ["architecture", "family", "parameters", "side", "spiking layers", "fed by spikes"]
    heads += ["exact", "settles at T", "digits exact", "analog", "seconds"]
    lines = [
        [
            Cell(row.architecture),
            Cell(row.family),
            _number(row.params),
            _number(row.input_size),
            _number(row.spiking_layers if row.converted else None),
            _share(row.spike_fed_mac_share),
            _yes(row.exact_t1),
            _number(row.settling_t),
            _yes(row.radix_exact),
            Cell(", ".join(f"{name} {count}" for name, count in sorted(row.analog.items()))),
            Cell(f"{row.seconds:.0f}", round(row.seconds, 1)),
        ]
        for row in rows
    ]
    title = f"All {len(rows)} architectures tried"
    return Part("all", title, link="All", heads=heads, rows=lines, text_columns=(0, 1, 9))


def _number(value: int | None) -> Cell:
    """A number that may be unknown, which is sorted first."""
    return Cell("–", -1) if value is None else Cell(f"{value:,}", value)


def _share(value: float | None) -> Cell:
    """A share in percent, cut and not rounded."""
    return Cell("–", -1) if value is None else Cell(f"{int(1000 * value + 1e-9) / 10:.1f} %", value)


def _yes(value: bool | None) -> Cell:
    """A yes or no, or that it is not known."""
    if value is None:
        return Cell("–", -1)
    return Cell("yes" if value else "no", int(value), classes="good" if value else "bad")
