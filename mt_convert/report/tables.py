"""Tables from stored results alone: Markdown pages and what the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from ..errors import CheckpointError, many
from .columns import COLUMNS, IF_SEVERAL, LEGEND, cells, columns, markdown_table
from .row_groups import kinds_of
from .rows import Row

PAGES_ALONE = ("packets_per_neuron",)
"""Columns that 80 characters have no room for."""


def rich_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal of 80 columns: what all of them share stands in the title. Rows on
    which every activation of every image is the quantized network's are green.

    Example:
        >>> rich_table([]).columns[0].header
        'presented'
    """
    plain = all(row.method == f"mt_{row.ladder}" for row in rows)  # else said twice
    digits = plain and {row.ladder for row in rows} == {"uniform", "radix"}  # as presented says
    wide = {*PAGES_ALONE, *(["method"] * plain), *(["ladder"] * digits)}
    names = [name for name in columns(rows) if name not in wide]

    def texts_of(row: Row, names: Sequence[str]) -> list[str]:
        in_digits = digits and row.ladder == "radix"
        return [
            "in digits" if in_digits and name == "presentation" else cells(row, [name])[0]
            for name in names
        ]

    texts = {name: [texts_of(row, [name])[0] for row in rows] for name in names}
    same = {name for name in names if len(set(texts[name])) == 1}
    left = (*IF_SEVERAL, "presentation", "ladder", "mode", "signed")
    shared = [name for name in (*left, "ann_accuracy", "qann_accuracy") if name in same]
    heading = title(rows)
    if shared:
        heading += "\n" + ", ".join(f"{COLUMNS[name]} {texts[name][0]}" for name in shared)
    table = Table(
        title=heading,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        min_width=64,  # a narrow table would break its title into a column of words
    )
    shown = [name for name in names if name not in shared]
    for name in shown:
        table.add_column(COLUMNS[name], justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*texts_of(row, shown), style="green" if row.exact_share == 1 else None)
    return table


ACCURACY_LEGEND = "SNN % after T steps; =: every activation of every image is the QANN's"


def accuracy_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line for each kind of row and n: the SNN's accuracy after each T.

    Example:
        >>> accuracy_cells([])
        (['n', 'ANN %', 'QANN %'], [])
    """
    kinds, times = kinds_of(rows), sorted({row.T for row in rows})
    several = len(kinds) > 1
    trained_on = any(row.control_accuracy is not None for row in rows)
    control = ("control_accuracy",) * trained_on
    references = ("ann_accuracy", *control, "qann_accuracy")
    lines = []
    for words, alike in kinds.items():
        for n in dict.fromkeys(row.n for row in alike):
            shown = [row for row in alike if row.n == n]
            at = {row.T: f"{row.snn_accuracy:.2f}{'=' * (row.exact_share == 1)}" for row in shown}
            head = [words.replace("\n", ", ")] if several else []
            same = cells(shown[0], ("n", *references))
            lines.append([*head, *same, *(at.get(T, "") for T in times)])
    head = ["network and method"] if several else []
    return [
        *head,
        "n",
        *(COLUMNS[name] for name in references),
        *(f"T = {T}" for T in times),
    ], lines


def accuracy_lines(rows: Sequence[Row]) -> list[str]:
    """`accuracy_cells` as the lines of a Markdown page, headed by what all rows share."""
    head, lines = accuracy_cells(rows)
    marks = ["---" if name.startswith("network") else "---:" for name in head]
    table = [f"| {' | '.join(line)} |" for line in (head, marks, *lines)]
    return [f"{title(rows)}. {ACCURACY_LEGEND}.", "", *table]


def accuracy_table(rows: Sequence[Row]) -> Table:
    """`accuracy_cells` for a terminal."""
    head, lines = accuracy_cells(rows)
    table = Table(title=title(rows), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = ACCURACY_LEGEND, "left"
    for name in head:
        table.add_column(name, justify="left" if name.startswith("network") else "right")
    for line in lines:
        table.add_row(*line)
    return table


def title(rows: Sequence[Row]) -> str:
    """What all rows share: network, data, images, bits, seed."""
    if not rows:
        return "no rows"
    row, several = rows[0], columns(rows)
    weights = "float weights" if row.weight_bits is None else f"W{row.weight_bits:g}"
    joined = ", " if row.weight_bits is None else ""
    bits = (row.levels + 1).bit_length() - 1
    levels = f"{joined}A{bits} (L = {row.levels})"
    shows_levels = "levels" not in several and row.qann_accuracy is not None
    if row.weights != "uniform" and "weights" not in several:
        weights += f" {row.weights}"
        joined = ", "
    if row.spacing != "equal" and "spacing" not in several:
        levels += f", {row.spacing} thresholds"
    if row.rounding != "half_even" and "rounding" not in several:
        levels += f", ties {row.rounding.replace('_', ' ')}"
    parts = {
        "model": row.model,
        "dataset": row.dataset,
        "weight_bits": weights + levels * shows_levels,
    }
    words = [text for name, text in parts.items() if name not in several]
    if len({row.images for row in rows}) == 1:
        words.insert(min(2, len(words)), f"{row.images:,} test images")
    if len({row.seed for row in rows}) == 1 and row.seed is not None:
        words.append(f"seed {row.seed}")
    return ", ".join(words)


def summary(rows: Sequence[Row], report: dict[str, Any], where: str) -> str:
    """One sentence: what was converted, whether T = 1 is exact, where the artefacts lie."""
    row, verdict = rows[0], report["verdict"]
    spiking = many(report["neurons"], "layer", "layers")
    fed = sum(item["spike_fed"] for item in report["weighted"])
    claim = (
        "equals its quantized network bit for bit at T = 1 "
        f"(checked on {verdict['images']} images, {verdict['neurons']} activations and all logits)"
        if verdict["exact_t1"]
        else f"DIFFERS from its quantized network at T = 1 in {', '.join(verdict['differs'])}"
    )
    return (
        f"{row.model} became {spiking} of multi-threshold neurons ({fed} of "
        f"{len(report['weighted'])} weighted layers are fed by spikes), {claim}; "
        f"all artefacts are in {where}"
    )


def finetune_sentence(rows: Sequence[Row]) -> str:
    """What fine-tuning gave back of what conversion took: the first row is the conversion's."""
    before, after = rows[0], rows[-1]
    if before.qann_accuracy is None or after.qann_accuracy is None:
        raise CheckpointError("rows of a fine-tuning without a quantized network: make them again")
    lost = before.qann_accuracy - before.snn_accuracy
    gained = after.snn_accuracy - before.snn_accuracy
    share = f", {100 * gained / lost:.0f} % of what conversion had taken" if lost > 0 else ""
    return (
        f"{after.algorithm} over {many(after.epochs or 0, 'epoch', 'epochs')}: "
        f"{before.snn_accuracy:.2f} % to {after.snn_accuracy:.2f} % of {after.images:,} test "
        f"images (quantized network {after.qann_accuracy:.2f} %): {gained:+.2f} points{share}."
    )


def markdown_page(rows: Sequence[Row], sentence: str, report: dict[str, Any]) -> str:
    """The page of a run: table, what was converted, what stays analog."""
    neurons = [
        f"| {item['name']} | {item['ladder']} | {item['firing']} | "
        f"{'yes' if item['signed'] else 'no'} | {item['levels'][0]} … {item['levels'][1]} | "
        f"{item['scale']:.6g} |"
        for item in report["neurons"]
    ]
    weighted = [
        f"| {item['name']} | {item['layer']} | {'yes' if item['spike_fed'] else 'no'} | "
        f"{', '.join(item['fed_by'])} |"
        for item in report["weighted"]
    ]
    analog = [
        f"- {item['name']} ({item['operator']}): {item['reason']}" for item in report["analog"]
    ]
    return "\n".join(
        [
            f"# {title(rows)}",
            "",
            sentence + ".",
            "",
            markdown_table(rows),
            LEGEND + ".",
            "",
            "## Neurons",
            "",
            "| layer | ladder | firing | signed | levels | step |",
            "| --- | --- | --- | --- | --- | --- |",
            *neurons,
            "",
            "## Weighted layers",
            "",
            "| layer | kind | fed by spikes | fed by |",
            "| --- | --- | --- | --- |",
            *weighted,
            "",
            "## Analog",
            "",
            *(analog or ["Nothing."]),
            "",
        ]
    )


def scratch_table(summary: dict[str, Any]) -> Table:
    """The neurons of a network trained from scratch, for a terminal."""
    table = Table(title="Neurons", title_justify="left")
    for heading in ("layer", "neuron", "ladder"):
        table.add_column(heading)
    for item in summary["neurons"]:
        table.add_row(item["name"], item["neuron"], item["ladder"])
    return table


def conversion_table(report: dict[str, Any]) -> list[Table]:
    """The conversion report for a terminal."""
    neurons = Table(title="Neurons", title_justify="left")
    for heading in ("layer", "ladder", "firing", "signed", "levels", "step"):
        neurons.add_column(heading)
    for item in report["neurons"]:
        low, high = item["levels"]
        signed = "yes" if item["signed"] else "no"
        neurons.add_row(
            item["name"],
            item["ladder"],
            item["firing"],
            signed,
            f"{low} … {high}",
            f"{item['scale']:.6g}",
        )
    weighted = Table(title="Weighted layers", title_justify="left")
    for heading in ("layer", "kind", "fed by spikes", "fed by"):
        weighted.add_column(heading)
    for item in report["weighted"]:
        fed = "yes" if item["spike_fed"] else "no"
        weighted.add_row(item["name"], item["layer"], fed, ", ".join(item["fed_by"]))
    analog = Table(title="Analog", title_justify="left")
    for heading in ("layer", "operator", "reason"):
        analog.add_column(heading)
    for item in report["analog"]:
        analog.add_row(item["name"], item["operator"], item["reason"])
    return [neurons, weighted, analog]
