"""Several runs on one page: each a row, and which of them none other beats. No torch.

``mt-convert show RUN RUN`` leaves ``report.html``, ``comparison.csv`` and ``comparison.json``, from
what the runs stored. Energy is there for runs whose networks were looked into.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ...errors import CheckpointError, Fault, OutputError, many
from ...report.html.pareto import KINDS, pareto_chart
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
from ...report.records import figures
from ...system.folder_lock import folder_lock
from ...system.storage import atomic, write_json
from .compared_runs import (
    SCHEMA,
    Compared,
    ComparedNetwork,
    Comparison,
    energy_points,
    mark_unbeaten,
    networks_in,
    short_names,
    step_points,
)

OUT = Path("runs/comparison")
FILES = {
    "comparison.csv": "the runs, a line each",
    "comparison.json": "the same, for a program",
}


def compare(folders: Sequence[Path], out: Path = OUT) -> Comparison:
    """Read what runs stored, and leave the page and its data in ``out``.

    Raises:
        CheckpointError: folders that hold no finished run, all of them at once; damaged files.
        OutputError: ``out`` cannot be written.
    """
    missing = [item for item in folders if not (item / "results.json").is_file()]
    if missing:
        hint = "finish it, or leave it out"
        faults = [Fault(str(item), "holds no finished run", hint) for item in missing]
        raise CheckpointError(f"{many(faults, 'folder', 'folders')} cannot be compared", faults)
    if (out / PAGE).is_file() and not (out / "comparison.json").is_file():
        raise OutputError(f"{out} holds the page of something else: choose another --out folder")
    networks: list[ComparedNetwork] = []
    for folder, name in zip(folders, short_names(folders), strict=True):
        networks += networks_in(folder, name)
    command = shlex.join(["mt-convert", "show", *map(str, folders), "--out", str(out)])
    comparison = Comparison(tuple(mark_unbeaten(networks)), command, out)
    with folder_lock(out):
        with atomic(out / "comparison.csv") as temporary:
            temporary.write_text(comparison.plain("csv"), encoding="utf-8")
        write_json(out / "comparison.json", {"schema": SCHEMA, "runs": _json(comparison)})
        with atomic(out / PAGE) as temporary:
            temporary.write_text(page(comparison), encoding="utf-8")
    return comparison


def _json(comparison: Comparison) -> list[dict[str, Any]]:
    return [row.to_json() for row in comparison.rows]


# ----------------------------------------------------------------------------------------- page


def page(comparison: Comparison) -> str:
    """The page for a browser."""
    rows = comparison.rows
    content = PartsContent(
        name="Comparison of runs",
        heading=_heading(rows),
        parts=[_pictures(comparison), _table(comparison)],
        verdict=_verdict(rows),
        warnings=_warnings(rows),
        glance=_glance(comparison.networks),
        command=comparison.command,
        downloads=downloads(comparison.out, FILES),
    )
    return render_parts(content)


def _heading(rows: Sequence[Compared]) -> str:
    """The runs, and what all share."""
    names = ", ".join(row.name for row in rows)
    shared = {f"{row.model}, {row.dataset}, {row.images:,} test images" for row in rows}
    return f"{names}: {shared.pop()}" if len(shared) == 1 else names


def _verdict(rows: Sequence[Compared]) -> Verdict:
    """Whether all of them are exact."""
    exact = [row.name for row in rows if row.exact]
    if len(exact) == len(rows):
        words = f"✓ All {len(rows)} spiking networks equal their quantized networks"
        return Verdict("yes", words, ["Every activation of every test image, at the step shown."])
    others = [row for row in rows if not row.exact]
    return Verdict(
        "unknown",
        f"{len(exact)} of {len(rows)} spiking networks equal their quantized networks",
        ["The others: " + ", ".join(f"{row.name} ({_why(row)})" for row in others) + "."],
    )


def _why(row: Compared) -> str:
    """Why a network is not exact."""
    if row.qann_accuracy is None:
        return "trained as a spiking network, there is none to equal"
    return f"not every activation at n = {row.n}, T = {row.T}"


def _warnings(rows: Sequence[Compared]) -> list[str]:
    """What a reader must not compare."""
    said = []
    if len({(row.dataset, row.images) for row in rows}) > 1:
        said.append(
            "Not all are on the same images: accuracies are compared within a data set alone, "
            "in pictures of its own."
        )
    without = [row.name for row in rows if row.spiking_nj is None]
    if without:
        said.append(
            f"Energy was not counted for {', '.join(without)}: run the recipe again, or it was "
            "not converted."
        )
    if len({row.prices for row in rows if row.prices}) > 1:
        said.append(
            "Energies are at the prices of the narrowest arithmetic that holds each network's "
            "numbers, which differ: see the table."
        )
    return said


def _glance(networks: Sequence[ComparedNetwork]) -> list[Answer]:
    """What a reader asks first, for each data set."""
    said = []
    groups = _by_images(networks)
    for number, ((dataset, images), alike) in enumerate(groups.items(), 1):
        end = "" if len(groups) == 1 else f"-{number}"
        where = "" if len(groups) == 1 else f" on {dataset}"
        rows = [item.row for item in alike]
        best = max(rows, key=lambda row: row.snn_accuracy)
        said.append(
            Answer(
                f"best{end}",
                f"The most accurate{where}",
                f"{best.name}: {best.snn_accuracy:.2f} % of {images:,} images "
                f"({best.low:.2f} to {best.high:.2f}), n = {best.n}, T = {best.T}",
            )
        )
        near = [row for row in rows if row.high >= best.low]
        if len(near) > 1:
            names = ", ".join(row.name for row in near if row is not best)
            said.append(Answer(f"near{end}", "Intervals that meet its own", names))
        paid = [(row.spiking_nj, row) for row in rows if row.spiking_nj is not None]
        if paid:
            cost, cheapest = min(paid, key=lambda pair: pair[0])
            answer = f"{cheapest.name}: {figures(cost)} nJ per image ({cheapest.energy_way})"
            said.append(Answer(f"cheapest{end}", f"The cheapest{where}", answer))
        beside = [row for _, row in paid if row.ratio is not None]  # none of those from scratch
        if beside:
            pays = [row.name for row in beside if row.ratio is not None and row.ratio < 1]
            answer = f"{len(pays)} of {len(beside)}" + (f": {', '.join(pays)}" if pays else "")
            question = f"Cheaper than their quantized networks{where}"
            said.append(Answer(f"pays{end}", question, answer))
    return said


def _by_images(networks: Sequence[ComparedNetwork]) -> dict[tuple[str, int], list[ComparedNetwork]]:
    """Networks that answer the same images."""
    groups: dict[tuple[str, int], list[ComparedNetwork]] = {}
    for item in networks:
        groups.setdefault(item.images, []).append(item)
    return groups


def _pictures(comparison: Comparison) -> Part:
    """Both pictures of each data set, side by side."""
    figures = []
    for (dataset, images), alike in _by_images(comparison.networks).items():
        names = [item.row.name for item in alike]
        where = f"{dataset}, {images:,} test images"
        if points := energy_points(alike):
            chart = pareto_chart(points, names, "energy per image, nJ")
            figures.append((f"Against energy: {where}", chart))
        points = step_points(alike)
        marks = sorted({point.cost for point in points})
        marks = marks if len(marks) <= 8 else [2.0**k for k in range(12)]
        chart = pareto_chart(points, names, "time steps T", marks)
        figures.append((f"Against time steps: {where}", chart))
    return Part(
        "pareto",
        "Accuracy against energy and against time",
        link="Accuracy against cost",
        keys=[(f"of-{kind}", words) for kind, words in KINDS.items()],
        figures=figures,
        note="The broad line: no network here is both cheaper, or faster, and more accurate. Large "
        "points stand for their run; the small ones beside them are its other numbers of steps, "
        "joined. Energy: compute, neurons and memory per image, counted as each run's own page "
        "says. Steps: for each run and T the best of its thresholds n, told when pointed at.",
        wide=True,
    )


def _table(comparison: Comparison) -> Part:
    """A line for each network."""
    rows = comparison.rows
    control = any(row.control_accuracy is not None for row in rows)
    network = len({row.model for row in rows}) > 1
    images = len({(row.dataset, row.images) for row in rows}) > 1
    named = ["run", *["network"] * network, "bits", *["images"] * images]
    heads = [*named, "float %", *["control %"] * control]
    heads += ["quantized %", "spiking %", "95 % interval", "n", "T", "exact", "spikes"]
    heads += ["spiking nJ", "quantized nJ", "fp32 nJ", "× quantized", "prices", "not beaten in"]
    lines = []
    for row in rows:
        unbeaten = ["energy"] * bool(row.unbeaten_in_energy) + ["steps"] * row.unbeaten_in_steps
        cells = [
            Cell(row.name, address=_address(row, comparison.out)),
            *[Cell(row.model)] * network,
            Cell(row.bits),
            *[Cell(f"{row.dataset}, {row.images:,}")] * images,
            _number(row.ann_accuracy),
            *[_number(row.control_accuracy)] * control,
            _number(row.qann_accuracy),
            _number(row.snn_accuracy),
            Cell(f"{row.low:.2f} … {row.high:.2f}", row.low),
            Cell(str(row.n or "∞"), row.n),
            Cell(str(row.T), row.T),
            Cell("yes" if row.exact else "no", classes="good" if row.exact else ""),
            _number(row.spikes_per_neuron, "{:.3g}".format),
            _number(row.spiking_nj, figures),
            _number(row.quantized_nj, figures),
            _number(row.float_nj, figures),
            _number(row.ratio),
            Cell(row.prices or "–"),
            Cell(", ".join(unbeaten) or "–"),
        ]
        lines.append(cells)
    text = (*range(len(named)), len(heads) - 2, len(heads) - 1)
    note = (
        "Each at the point that stands for it: where every activation is the quantized network's "
        "the fewest steps, else its most accurate row, which is the best of the test images "
        "themselves. Wilson's interval; it speaks of these images, not of other seeds. spikes: per "
        "neuron and image. Energy is of the network as it was converted. Not beaten: among the "
        "spiking networks here."
    )
    return Part("runs", "The runs", heads=heads, rows=lines, text_columns=text, note=note)


def _address(row: Compared, out: Path) -> str:
    """The page of a run, as seen from that of the comparison; empty where there is none."""
    page = Path(row.folder) / PAGE
    return Path(os.path.relpath(page, out)).as_posix() if page.is_file() else ""


def _number(value: float | None, form: Callable[[float], str] = "{:.2f}".format) -> Cell:
    """A number that may be unknown, which is sorted first."""
    return Cell("–", -1) if value is None else Cell(form(value), value)


# ------------------------------------------------------------------------------------- terminal


def show(comparison: Comparison, console: Console) -> None:
    """Print a line for each network, for 80 columns: what all share stands in the title."""
    rows = comparison.rows
    shared = {(row.model, row.dataset, row.images) for row in rows}
    title = [f"{row.model}, {row.dataset}, {row.images:,} test images" for row in rows[:1]]
    table = Table(
        title=title[0] if len(shared) == 1 else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    control = any(row.control_accuracy is not None for row in rows)
    for head in ("run", *["network"] * (len(shared) > 1), "bits"):
        table.add_column(head, overflow="fold")
    heads = ["ANN %", *["control %"] * control, "QANN %", "SNN %", "n", "T", "exact", "nJ"]
    for head in (*heads, "× QANN"):
        table.add_column(head, justify="right")
    for row in rows:
        values = (row.ann_accuracy, *[row.control_accuracy] * control, row.qann_accuracy)
        table.add_row(
            row.name,
            *[f"{row.model}, {row.dataset}, {row.images:,}"] * (len(shared) > 1),
            row.bits,
            *(_number(value).text for value in (*values, row.snn_accuracy)),
            str(row.n or "∞"),
            str(row.T),
            "yes" if row.exact else "no",
            _number(row.spiking_nj, figures).text,
            _number(row.ratio).text,
            style="green" if row.exact else None,
        )
    console.print(table)
    for text in _warnings(rows):
        console.print(text, style="yellow", highlight=False)
    console.print(f"page: {comparison.out / PAGE}", highlight=False, soft_wrap=True)
