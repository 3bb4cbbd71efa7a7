"""The columns of a table that people read, and what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .row_groups import NAMES, needed_names
from .rows import Row

COLUMNS: dict[str, str] = {
    "run": "run",
    "digest": "network",
    "model": "model",
    "dataset": "images",
    "weight_bits": "W",
    "weights": "weights",
    "levels": "L",
    "spacing": "spacing",
    "rounding": "rounding",
    "functions": "functions",
    "qat_noise": "noise",
    "method": "method",
    "calibration": "calibrated",
    "algorithm": "trained by",
    "epochs": "epochs",
    "seconds_per_epoch": "s per epoch",
    "peak_mib": "MiB",
    "presentation": "presented",
    "ladder": "ladder",
    "mode": "mode",
    "signed": "signed",
    "n": "n",
    "T": "T",
    "ann_accuracy": "ANN %",
    "control_accuracy": "control %",
    "qann_accuracy": "QANN %",
    "snn_accuracy": "SNN %",
    "agreement": "agree %",
    "exact_share": "exact %",
    "spikes_per_neuron": "spikes",
    "packets_per_neuron": "packets",
    "settling_T": "settles",
}
"""The columns people read, in order, and what they are headed; `LEGEND` says what they mean."""


IF_SEVERAL = (
    *("run", "digest", "model", "dataset", "weight_bits", "weights", "levels", "spacing"),
    *(
        "rounding",
        "functions",
        "qat_noise",
        "method",
        "calibration",
        "algorithm",
        "epochs",
        "seconds_per_epoch",
        "peak_mib",
    ),
    "packets_per_neuron",
    "control_accuracy",
)


OF_A_QANN = ("qann_accuracy", "agreement", "exact_share", "settling_T")


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns that a table of these rows shows: those that only tell networks, images and
    methods apart are left out where all rows are alike, and comparisons where there are none. Runs
    and digests stand there where networks would be alike without.

    Example:
        >>> columns([])[0]
        'presentation'
    """
    named = needed_names(rows)
    shown = [
        name
        for name in COLUMNS
        if (name in named if name in NAMES else name not in IF_SEVERAL or _tells_apart(name, rows))
    ]
    if rows and all(row.qann_accuracy is None for row in rows):
        shown = [name for name in shown if name not in OF_A_QANN]
    return shown


def _tells_apart(name: str, rows: Sequence[Row]) -> bool:
    """Whether a column tells rows apart, or what was done to all of them."""
    texts = {_cell(name, getattr(row, name), row) for row in rows}
    usual = {item.name: item.default for item in dataclasses.fields(Row)}[name]
    plain = {"–" if usual is None else usual}
    return len(texts) > 1 or not (texts <= plain or usual is dataclasses.MISSING)


_LEGENDS = {
    "control_accuracy": "control: the float network trained on as long by the same schedule",
    "agreement": "agree: share of images where SNN and QANN predict the same class",
    "exact_share": "exact: share of images where every activation equals the QANN's",
    "spikes_per_neuron": "spikes: per neuron and image over all T steps",
    "packets_per_neuron": "packets: steps in which a neuron emits anything, per neuron and image",
    "settling_T": "settles: the step from which on every activation of every image is the QANN's",
}


LEGEND = "; ".join(text for name, text in _LEGENDS.items() if name not in IF_SEVERAL)


def legend(rows: Sequence[Row], *, left_out: Collection[str] = ()) -> str:
    """What the columns of these rows mean, where their heading does not say it; without those that
    a table leaves out.

    Example:
        >>> legend([]) == LEGEND
        True
    """
    shown = set(columns(rows)).difference(left_out)
    return "; ".join(text for name, text in _LEGENDS.items() if name in shown)


def cells(row: Row, names: Iterable[str] = COLUMNS) -> list[str]:
    """A row as text, one entry for each of these columns."""
    return [_cell(name, getattr(row, name), row) for name in names]


def _cell(name: str, value: Any, row: Row) -> str:
    """One number as it is printed."""
    if name == "presentation":
        return str(value).replace("_", " ") + (", whole window" if row.whole_window else "")
    if name == "calibration" and row.calibrated_T not in (None, row.T):
        return f"{value}, for T = {row.calibrated_T}"
    if name == "n" and value == 0:  # a peer whose neurons emit any number of spikes in a step
        return "∞"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if name in ("agreement", "exact_share"):
        return share_text(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def share_text(share: float) -> str:
    """A share in percent, without the sign: what is not all or nothing is never printed as if.

    Example:
        >>> [share_text(share) for share in (1.0, 0.99999, 0.25, 1e-6, 0.0)]
        ['100.00', '99.99', '25.00', '0.01', '0.00']
    """
    return f"{100 * share if share in (0, 1) else min(max(100 * share, 0.01), 99.99):.2f}"


def markdown_table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, with `columns`.

    Example:
        >>> markdown_table([]).splitlines()[0][:12]
        '| presented '
    """
    rows = list(rows)
    names = columns(rows)
    lines = ["| " + " | ".join(COLUMNS[name] for name in names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(cells(row, names)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
