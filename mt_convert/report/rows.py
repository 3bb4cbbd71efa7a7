"""Rows of results as plain numbers, with a versioned schema. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

RESULTS_SCHEMA = "mt_convert.results/1"


@dataclass(frozen=True)
class Row:
    """One line of the table: a converted network, run in one way for T steps.

    Units: accuracies in percent of ``images`` test images, all three networks on the same ones
        (``ann_accuracy`` None where the float network is not at hand; ``weight_bits`` None where
        weights are floats; ``qann_accuracy``, ``agreement`` and ``exact_share`` None for networks
        trained from scratch, which have no quantized network to compare with);
        ``agreement`` share of images where SNN and QANN predict the same class; ``exact_share``
        share of images on which every neuron's emission equals the QANN's activation;
        ``spikes_per_neuron`` events per neuron and image over all T steps; ``settling_T`` the first
        step from which on every activation of every image is the QANN's, None if that was not seen;
        ``calibration`` what was set after conversion, for ``calibrated_T`` steps; ``algorithm`` how
        the spiking network was trained, for so many ``epochs``, the median of
        ``seconds_per_epoch``; ``peak_mib`` of memory taken beyond what was held before, on the
        accelerator where there is one.

    Example:
        >>> Row.fields()[:3]
        ['model', 'dataset', 'images']
    """

    model: str
    dataset: str
    images: int
    presentation: str
    mode: str
    signed: bool
    n: int
    T: int
    ann_accuracy: float | None
    qann_accuracy: float | None
    snn_accuracy: float
    agreement: float | None
    exact_share: float | None
    spikes_per_neuron: float
    ladder: str
    levels: int
    weight_bits: int | None
    whole_window: bool
    settling_T: int | None
    seed: int | None
    method: str = "mt_uniform"
    calibration: str = "none"
    calibrated_T: int | None = None
    qat_noise: str = "none"
    algorithm: str = "none"
    epochs: int | None = None
    seconds_per_epoch: float | None = None
    peak_mib: float | None = None

    @classmethod
    def fields(cls) -> list[str]:
        """Names of the columns, in order."""
        return [item.name for item in dataclasses.fields(cls)]


def results_to_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {"schema": RESULTS_SCHEMA, "rows": [dataclasses.asdict(row) for row in rows]}


def results_from_json(stored: Any) -> list[Row]:
    """The rows of a ``results.json``; columns added by later versions are passed over.

    Raises:
        CheckpointError: another schema, or a row without a column.
    """
    if not isinstance(stored, Mapping) or stored.get("schema") != RESULTS_SCHEMA:
        raise CheckpointError(f"not a results file: its schema must be {RESULTS_SCHEMA}")
    try:
        return [Row(**_columns(row)) for row in stored["rows"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"a row of the results lacks {error}: make the file again") from error


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a stored row; those that came later have a value that says so."""
    late = {
        item.name for item in dataclasses.fields(Row) if item.default is not dataclasses.MISSING
    }
    known = {name: row[name] for name in Row.fields() if name in row or name not in late}
    if known["ladder"] == "poweroftwo":  # what rows of networks trained from scratch once wrote
        known["ladder"] = "power_of_two"
    return known


COLUMNS: dict[str, str] = {
    "model": "model",
    "dataset": "images",
    "weight_bits": "W",
    "levels": "L",
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
    "qann_accuracy": "QANN %",
    "snn_accuracy": "SNN %",
    "agreement": "agree",
    "exact_share": "exact",
    "spikes_per_neuron": "spikes",
    "settling_T": "settles",
}
"""The columns people read, in order, and what they are headed; `LEGEND` says what they mean."""

IF_SEVERAL = (
    *("model", "dataset", "weight_bits", "levels", "qat_noise", "method", "calibration"),
    *("algorithm", "epochs", "seconds_per_epoch", "peak_mib"),
)


OF_A_QANN = ("qann_accuracy", "agreement", "exact_share", "settling_T")


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns that a table of these rows shows: those that only tell networks, images and
    methods apart are left out where all rows are alike, and comparisons where there are none.

    Example:
        >>> columns([])[0]
        'presentation'
    """
    shown = [name for name in COLUMNS if name not in IF_SEVERAL or _telling(name, rows)]
    if rows and all(row.qann_accuracy is None for row in rows):
        shown = [name for name in shown if name not in OF_A_QANN]
    return shown


def _telling(name: str, rows: Sequence[Row]) -> bool:
    """Whether a column tells rows apart, or what was done to all of them."""
    found = {_cell(name, getattr(row, name), row) for row in rows}
    usual = {item.name: item.default for item in dataclasses.fields(Row)}[name]
    plain = {"–" if usual is None else usual}
    return len(found) > 1 or not (found <= plain or usual is dataclasses.MISSING)


_LEGENDS = {
    "agreement": "agree: share of images where SNN and QANN predict the same class",
    "exact_share": "exact: share of images where every activation equals the QANN's",
    "spikes_per_neuron": "spikes: per neuron and image over all T steps",
    "settling_T": "settles: the step from which on every activation of every image is the QANN's",
}
LEGEND = "; ".join(_LEGENDS.values())


def legend(rows: Sequence[Row]) -> str:
    """What the columns of these rows mean, where their heading does not say it.

    Example:
        >>> legend([]) == LEGEND
        True
    """
    return "; ".join(text for name, text in _LEGENDS.items() if name in columns(rows))


def cells(row: Row, names: Iterable[str] = COLUMNS) -> list[str]:
    """A row as text, one entry for each of these columns."""
    return [_cell(name, getattr(row, name), row) for name in names]


def _cell(name: str, value: Any, row: Row) -> str:
    """One number as it is printed: shares never round up to 1."""
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
        text = f"{value:.4f}"
        return "0.9999" if text == "1.0000" and value < 1 else text
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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
