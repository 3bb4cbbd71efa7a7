"""The page of the study, from stored rows alone: tables, sentences that are computed, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from mt_convert.evaluation.analysis import Analysis
from mt_convert.evaluation.peers.converters import PEERS, calls
from mt_convert.evaluation.settings import PeerSetting, Setting
from mt_convert.report import pictures
from mt_convert.report.columns import share_text
from mt_convert.report.records import csv_of
from mt_convert.report.rows import Row
from mt_convert.report.tables import accuracy_lines
from mt_convert.system.storage import atomic

SUBSET = 2000
TRAINING_FREE = ("qcfs", "signed_if", "mt_uniform")
FURTHER = "one epoch more"
PICTURES = ("float", "baselines", "trained")
LTB = ("spikingjelly_ltb", "spikingjelly_ltb_delayed")


def write(rows: list[Row], missing: list[str], analyses: Sequence[Analysis], folder: Path) -> None:
    """README.md, and tables, data and pictures beside it."""
    groups = group_rows(rows)
    for name in PICTURES:
        if groups[name]:
            draw = partial(pictures.accuracy_over_time, groups[name])
            pictures.draw_forms(draw, folder / f"{name}.png")
    for number, item in enumerate(analyses, 1):
        n, T = layers_setting(item)
        pictures.error_by_layer(item.errors, n, T, folder / f"errors_{number}.png")
        pictures.histograms(item.errors, n, T, folder / f"rates_{number}.png")
    head = (folder / "head.md").read_text()
    for name, content in files(head, rows, missing, analyses).items():
        with atomic(folder / name) as temporary:
            temporary.write_text(content)


def files(
    head: str, rows: Sequence[Row], missing: Sequence[str], analyses: Sequence[Analysis]
) -> dict[str, str]:
    """All that is written: the page of two screens, the tables, and all of it as data."""
    return {
        "README.md": text(head, rows, missing, analyses),
        "tables.md": tables_text(rows),
        "other_packages.md": "\n".join(["# Other packages", "", *calls_section()]).rstrip() + "\n",
        "errors.md": "\n".join(causes(analyses)).strip() + "\n",
        "results.csv": csv_of(records(rows)),
        "errors.csv": csv_of(
            [
                {"analysis": item.title, **record}
                for item in analyses
                for record in item.errors.records()
            ]
        ),
    }


def records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows, without columns in which none of them has anything."""
    used = [name for name in Row.fields() if any(getattr(row, name) is not None for row in rows)]
    return [{name: getattr(row, name) for name in used} for row in rows]


BESIDE = {
    "tables.md": "every table: baselines and other packages, calibrations, noise, trained networks",
    "errors.md": "errors by cause, layer by layer, and energy, with their pictures",
    "other_packages.md": "how other packages were called",
    "method.md": "how it was measured",
    "results.csv": "every row and column (`results.json` with its schema)",
    "errors.csv": "every error of every layer (`errors.json` with rates and energy)",
}


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each section."""
    small = [row for row in rows if row.images == SUBSET]
    floats = [row for row in small if row.weight_bits is None]
    trained = [row for row in small if row.weight_bits is not None]
    plain = [row for row in floats if row.calibration == "none" and row.method in TRAINING_FREE]
    calibrated = [row for row in floats if row.method in TRAINING_FREE]
    return {
        "float": plain,
        "baselines": [row for row in floats if row.method not in TRAINING_FREE],
        "calibrated": calibrated,
        "trained": [row for row in trained if FURTHER not in row.model],
        "noise": [row for row in trained if FURTHER in row.model],
        "all": [row for row in rows if row.images > SUBSET],
    }


def text(
    head: str, rows: Sequence[Row], missing: Sequence[str], analyses: Sequence[Analysis]
) -> str:
    """The page: what was reached, one table, and what lies beside it."""
    lines = [head.rstrip(), "", "## What was reached", "", *(f"- {line}" for line in aims(rows))]
    lines += section("Without training: the float network", group_rows(rows)["float"], "float")
    lines += ["", "## Beside this page", ""]
    lines += [f"- [{name}]({name}): {about}" for name, about in BESIDE.items()]
    if missing:
        lines += ["", "## Not made", "", f"{len(missing)} cells of the sweep are not made yet:", ""]
        lines += ["<details><summary>which</summary>", ""]
        lines += [*(f"- {line}" for line in dict.fromkeys(missing)), "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def tables_text(rows: Sequence[Row]) -> str:
    """Every table of accuracies."""
    groups = group_rows(rows)
    settled = [row for row in groups["trained"] if row.calibration == "none"]
    lines = ["# Every table", ""]
    lines += section("Baselines and other packages", groups["baselines"], "baselines")
    lines += ["", "## Calibration of the float network", ""]
    lines += gains(groups["calibrated"], "calibration", "none")
    lines += section("Trained quantized networks, the image once", settled, "trained")
    if len(groups["trained"]) > len(settled):
        lines += ["With calibration:", "", *gains(groups["trained"], "calibration", "none")]
    lines += ["", "## Noise while training", "", *noise_words(groups["noise"]), ""]
    lines += gains(groups["noise"], "qat_noise", "none")
    lines += section("All 10,000 test images", groups["all"], None)
    return "\n".join(lines).rstrip() + "\n"


def setting_words(setting: Setting | PeerSetting) -> str:
    """A setting as the list of missing cells calls it."""
    times = ", ".join(map(str, setting.time_steps))
    if isinstance(setting, PeerSetting):
        return f"{setting.method}, T = {times}"
    sign = "signed" if setting.signed else "unsigned"
    calibration = setting.calibration_name
    return f"{setting.method}, {sign}, {calibration}, n = {setting.ladder.n}, T = {times}"


def section(title: str, rows: Sequence[Row], picture: str | None) -> list[str]:
    """A heading, the accuracies over T, and their picture."""
    lines = ["", f"## {title}", ""]
    if not rows:
        return [*lines, "No cell of this part is made yet.", ""]
    lines += [*accuracy_lines(rows), ""]
    if picture is not None:
        lines += [f"![accuracy over time steps]({picture}.png)", ""]
        lines += [f"For print: [PDF]({picture}.pdf), [SVG]({picture}.svg).", ""]
    return lines


def find(rows: Iterable[Row], **columns: object) -> Row | None:
    """The first row with these values."""
    for row in rows:
        if all(getattr(row, name) == value for name, value in columns.items()):
            return row
    return None


def best(rows: Iterable[Row]) -> Row | None:
    """The row of highest accuracy: for a sentence that says which it was, not to choose by."""
    return max(rows, key=lambda row: row.snn_accuracy, default=None)


def in_words(row: Row) -> str:
    """A row in words."""
    name = row.method if row.calibration == "none" else f"{row.method}, {row.calibration}"
    sign = "signed" if row.signed else "unsigned"
    return f"{name} ({sign}, n = {row.n}, T = {row.T}): {row.snn_accuracy:.2f} %"


def aims(rows: Sequence[Row]) -> list[str]:
    """What was aimed at against what was reached, each on the same images."""
    small = [row for row in rows if row.images == SUBSET]
    return [*training_free(small), *one_threshold(small), *close_to_qann(rows), *settling(rows)]


def training_free(rows: Sequence[Row]) -> list[str]:
    """n = 3 at T = 4 above LTB at T = 32."""
    ours = [row for row in rows if row.weight_bits is None and (row.n, row.T) == (3, 4)]
    ours = [row for row in ours if row.method == "mt_uniform"]
    lines = []
    for name in LTB:
        theirs = find(rows, method=name, T=32)
        for signed in (False, True):
            plain = find(ours, calibration="none", signed=signed)
            top = best(row for row in ours if row.signed == signed)
            if theirs is None or plain is None or top is None:
                continue
            verdict = "above" if plain.snn_accuracy > theirs.snn_accuracy else "not above"
            also = "" if top is plain else f"; with the best of the calibrations {in_words(top)}"
            lines.append(
                f"Training-free, {in_words(plain)}, {verdict} {name} at T = 32, "
                f"{theirs.snn_accuracy:.2f} %{also} (ANN {plain.ann_accuracy:.2f} %)."
            )
    return lines


def one_threshold(rows: Sequence[Row]) -> list[str]:
    """n = 1 with each calibration against LTB at every T up to 16."""
    ours = [
        row
        for row in rows
        if row.weight_bits is None and row.n == 1 and row.method in ("qcfs", "signed_if")
    ]
    lines = []
    for name in LTB:
        theirs = {row.T: row.snn_accuracy for row in rows if row.method == name and row.T <= 16}
        kinds: dict[tuple[str, bool], dict[int, float]] = {}
        for row in ours:
            if row.T in theirs:
                kinds.setdefault((row.calibration, row.signed), {})[row.T] = row.snn_accuracy
        whole_kinds = {
            kind: accuracies for kind, accuracies in kinds.items() if set(accuracies) == set(theirs)
        }
        above = [
            kind
            for kind, accuracies in whole_kinds.items()
            if all(accuracies[T] > theirs[T] for T in theirs)
        ]
        if theirs and whole_kinds:
            names = [f"{text} ({'signed' if signed else 'unsigned'})" for text, signed in above]
            figures = ", ".join(f"T = {T}: {value:.2f}" for T, value in theirs.items())
            lines.append(
                f"n = 1, above {name} at every T up to 16 ({figures}): "
                f"{', '.join(names) if names else 'none of the calibrations'}."
            )
    return lines


def close_to_qann(rows: Sequence[Row]) -> list[str]:
    """The trained route, n = 3 at T = 4, against its quantized network."""
    lines = []
    for row in rows:
        if row.method != "mt_signed" or (row.n, row.T) != (3, 4) or row.calibration != "none":
            continue
        if row.images == SUBSET or FURTHER in row.model:
            continue
        gap = row.snn_accuracy - row.qann_accuracy
        within = "within" if abs(gap) <= 0.3 else "not within"
        lines.append(
            f"W{row.weight_bits:g}, L = {row.levels}, {row.images:,} images: signed n = 3 at T = 4 "
            f"is at {row.snn_accuracy:.2f} %, {gap:+.2f} points from the QANN, {within} 0.3; "
            f"{share_text(row.exact_share)} % of the images are exact in every activation."
        )
    return lines


def settling(rows: Sequence[Row]) -> list[str]:
    """From which step on trained networks are exact."""
    last_steps = {
        (row.weight_bits, row.levels, row.n): row.settling_T
        for row in rows
        if row.method == "mt_signed"
        and row.calibration == "none"
        and row.images == SUBSET
        and row.weight_bits is not None
        and FURTHER not in row.model
    }
    lines: dict[tuple[float | None, int], list[str]] = {}
    for (weight_bits, L, n), T in last_steps.items():
        said = f"T = {T} (n = {n})" if T else f"no T up to 32 (n = {n})"
        lines.setdefault((weight_bits, L), []).append(said)
    return [
        f"W{weight_bits:g}, L = {L}: every activation of all images exact "
        f"from {', '.join(said)} on."
        for (weight_bits, L), said in lines.items()
    ]


def gains(rows: Sequence[Row], column: str, usual: str) -> list[str]:
    """Points that each value of a column gains over the usual one, by kind, n and T."""
    alike = ("model", "weight_bits", "levels", "method", "presentation", "signed", "n", "T")
    if column == "qat_noise":
        alike = (*alike, "calibration")
    base = {
        tuple(getattr(row, name) for name in alike): row.snn_accuracy
        for row in rows
        if getattr(row, column) == usual
    }
    times = sorted({row.T for row in rows})
    table: dict[tuple[str, ...], dict[str, dict[int, str]]] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in alike)
        sign = "signed" if row.signed else "unsigned"
        weights = "float" if row.weight_bits is None else f"W{row.weight_bits:g}, L = {row.levels}"
        place = (weights, row.presentation.replace("_", " "), sign, str(row.n))
        value = getattr(row, column)
        figure = f"{row.snn_accuracy:.2f}"
        if value != usual:
            figure = f"{row.snn_accuracy - base[key]:+.2f}" if key in base else f"({figure})"
        table.setdefault(place, {}).setdefault(value, {})[row.T] = figure
    head = ["weights", "presented", "neurons", "n", column.replace("qat_", "")]
    head += [f"T = {T}" for T in times]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for place, kinds in table.items():
        if len(kinds) == 1:
            continue
        for name, values in sorted(kinds.items(), key=lambda item: item[0] != usual):
            lines.append(
                "| " + " | ".join([*place, name, *(values.get(T, "") for T in times)]) + " |"
            )
    if len(lines) == 2:
        return ["No cell of this part is made yet.", ""]
    legend = f"Rows of {usual} are accuracies in percent, the others points above them; in brackets"
    return [*lines, "", f"{legend} accuracies for which the row of {usual} is not made yet.", ""]


def noise_words(rows: Sequence[Row]) -> list[str]:
    """What noise did to the quantized networks themselves."""
    accuracies: dict[tuple[float | None, int], dict[str, float]] = {}
    for row in rows:
        accuracies.setdefault((row.weight_bits, row.levels), {})[row.qat_noise] = row.qann_accuracy
    return [
        f"- W{weight_bits:g}, L = {L}: the QANN itself after the epoch with "
        + ", ".join(f"{name} {value:.2f} %" for name, value in values.items())
        for (weight_bits, L), values in accuracies.items()
    ]


def calls_section() -> list[str]:
    """How other packages were called."""
    lines = ["How other packages were called:", ""]
    for name, peer in PEERS.items():
        lines += [f"<details><summary>{name}: {peer.about}</summary>", "", "```python"]
        lines += [calls(name).rstrip(), "```", "", "</details>", ""]
    return lines


def layers_setting(item: Analysis) -> tuple[int, int]:
    """Which n and T of an analysis are shown layer by layer."""
    settings = item.errors.settings
    return (3, 4) if (3, 4) in settings else settings[-1]


def causes(analyses: Sequence[Analysis]) -> list[str]:
    """Errors by cause and energy, and their pictures."""
    lines = ["# Errors by cause, and energy", ""]
    for number, item in enumerate(analyses, 1):
        n, T = layers_setting(item)
        lines += [f"## {item.title}", "", item.errors.markdown(shown=[(n, T)])]
        lines += [f"![errors by layer](errors_{number}.png)", ""]
        lines += [f"![firing rates and residual potentials](rates_{number}.png)", ""]
        lines += [f"Energy, n = {n}:", "", item.energy[n]["page"]]
    return lines if analyses else [*lines, "No cell of this part is made yet.", ""]
