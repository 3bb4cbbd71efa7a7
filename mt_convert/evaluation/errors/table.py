"""The table of conversion errors by cause: as JSON, as a Markdown page, for a terminal.

`layer_errors` measures it, `pictures` draws it; what its numbers are stands in `rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import CheckpointError, SpecError
from ...system.plain_data import as_type
from .rows import (
    CAUSES,
    RATE_EDGES,
    RESIDUAL_EDGES,
    VIEWS,
    WHOLE,
    ErrorRow,
    LogitRow,
    RateRow,
)

if TYPE_CHECKING:
    from rich.table import Table

ERRORS_SCHEMA = "mt_convert.errors/1"

NETWORK_COLUMNS: dict[str, str] = {
    "n": "thresholds per step",
    "T": "time steps",
    "ANN %": "images that the ANN classifies rightly",
    "QANN %": "images that the quantized network classifies rightly",
    "SNN %": "images that the spiking network classifies rightly",
    "agree": "percent of images where SNN and QANN predict the same class",
    "agree ANN": "percent of images where SNN and ANN predict the same class",
    "logits": "squared error of the SNN's logits, in percent of the mean square of the QANN's",
}
SHARED_COLUMNS: dict[str, str] = {
    **{name: f"{text}; squared, in percent of the power of a" for name, text in CAUSES.items()},
    "occasional": "percent of the QANN's zeros where a spike was fired, even if taken back since",
    "missing": "percent of the QANN's other activations where all that was fired adds up to 0",
    "negative": "percent of events that are negative",
    "rate": "events per neuron and step",
}
LAYER_COLUMNS: dict[str, str] = {
    "layer": "layer of neurons",
    "own q": "quantization, teacher-forced (view: forced), as below",
    "own u": "unevenness, teacher-forced (view: forced), as below",
    "arrived u": "unevenness of what arrived (view: arrived), as below",
}
_IN_TITLE = ("ANN %", "QANN %")  # of a terminal's table, where all rows share them
_WIDE = (*_IN_TITLE, "agree ANN", "logits", "own q")  # on the page alone: a terminal has 80 columns
_CAPTION = "errors: mean square in percent of the activation's"
_SHORT = {
    **{"arrived u": "arr u", "clipping": "clip", "quantization": "quant", "unevenness": "uneven"},
    **{"occasional": "occas", "missing": "miss", "negative": "neg"},
}
NOTE = (
    "Errors without a view are propagated; a is the analog activation. The causes add up to the "
    "whole in every neuron, but they can cancel: their squares need not add up."
)


@dataclass(frozen=True)
class ErrorTable:
    """What `layer_errors` measured on ``images`` images: rows of layers, then one of `WHOLE`.

    Example:
        >>> from .rows import ErrorSize
        >>> table = ErrorTable(2, (), (), (LogitRow(3, 1, ErrorSize(0, 0, 0, 0), agreement=1),))
        >>> table.settings, ErrorTable.from_json(table.to_json()) == table
        ([(3, 1)], True)
    """

    images: int
    errors: tuple[ErrorRow, ...]
    rates: tuple[RateRow, ...]
    logits: tuple[LogitRow, ...]

    @property
    def settings(self) -> list[tuple[int, int]]:
        """Every n and T, in order."""
        return [(row.n, row.T) for row in self.logits]

    @property
    def layers(self) -> list[str]:
        """The layers in order of execution, without `WHOLE`."""
        return [layer for layer in dict.fromkeys(row.layer for row in self.rates) if layer != WHOLE]

    def error(self, layer: str, view: str, n: int, T: int) -> ErrorRow:
        """One row of errors.

        Raises: SpecError: there is none.
        """
        return _row_of(self.errors, {"layer": layer, "view": view, "n": n, "T": T})

    def rate(self, layer: str, n: int, T: int) -> RateRow:
        """One row of rates.

        Raises: SpecError: there is none.
        """
        return _row_of(self.rates, {"layer": layer, "n": n, "T": T})

    def to_json(self) -> dict[str, Any]:
        """The content of ``errors.json``."""
        edges = {"rate_edges": list(RATE_EDGES), "residual_edges": list(RESIDUAL_EDGES)}
        return {"schema": ERRORS_SCHEMA, **edges, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, stored: Any) -> ErrorTable:
        """The table of an ``errors.json``; columns added by later versions are passed over.

        Raises:
            CheckpointError: another schema, or a row without a column.
        """
        if not isinstance(stored, Mapping) or stored.get("schema") != ERRORS_SCHEMA:
            raise CheckpointError(f"not a table of errors: its schema must be {ERRORS_SCHEMA}")
        try:
            return cls(
                as_type(int, stored["images"]),
                tuple(_row(ErrorRow, row) for row in stored["errors"]),
                tuple(_row(RateRow, row) for row in stored["rates"]),
                tuple(_row(LogitRow, row) for row in stored["logits"]),
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the table of errors lacks {error}: make it again") from error

    def markdown(self, shown: Sequence[tuple[int, int]] | None = None) -> str:
        """A page: the whole network, the layers for each (n, T) of ``shown``, and the legend.

        ``shown=None`` is each n at its largest T.
        """
        picked = list({n: (n, T) for n, T in self.settings}.values()) if shown is None else shown
        lines = [f"Errors on {self.images} images.", "", *_lines(*self._network())]
        for n, T in picked:
            where = f"n = {n}, T = {T}"
            lines += ["", f"Layers, {where}:", "", *_lines(*self._layers(n, T))]
            lines += ["", f"Mean / RMS / maximum, {where}:", "", *_lines(*self._sizes(n, T))]
        legend = {**NETWORK_COLUMNS, **LAYER_COLUMNS, **SHARED_COLUMNS}
        views = [f"- view {name}: {text}" for name, text in VIEWS.items()]
        columns = [f"- {name}: {text}" for name, text in legend.items()]
        return "\n".join([*lines, "", NOTE, "", *views, *columns, ""])

    def rich(self, n: int | None = None, T: int | None = None) -> list[Table]:
        """Tables for 80 columns: the whole network, and the layers at n and T, by default the last.

        Raises: SpecError: an n and T that were not measured.
        """
        from rich import box
        from rich.table import Table

        last = self.settings[-1] if self.settings else (0, 0)
        n, T = last[0] if n is None else n, last[1] if T is None else T
        columns, rows = self._network()
        same = [k for k in range(len(columns)) if len({row[k] for row in rows}) == 1]
        shared = "".join(f", {columns[k]} {rows[0][k]}" for k in same if columns[k] in _IN_TITLE)
        named = {f"Errors on {self.images} images{shared}": (columns, rows)}
        if self.settings:
            named[f"Layers, n = {n}, T = {T}"] = self._layers(n, T)
        tables = []
        for title, (columns, rows) in named.items():
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
            table.caption, table.caption_justify = _CAPTION, "left"
            kept = [k for k, column in enumerate(columns) if column not in _WIDE]
            for k in kept:
                left = columns[k] == "layer"
                table.add_column(
                    _SHORT.get(columns[k], columns[k]), justify="left" if left else "right"
                )
            for row in rows:
                table.add_row(*(row[k] for k in kept))
            tables.append(table)
        return tables

    # ------------------------------------------------------------------------- headings and cells

    def _network(self) -> tuple[list[str], list[list[str]]]:
        """A line for each n and T; columns that were not measured are left out."""
        rows = [
            [
                *(str(row.n), str(row.T)),
                *map(_number, (row.ann_accuracy, row.qann_accuracy, row.snn_accuracy)),
                *map(percent, (row.agreement, row.ann_agreement, row.error.relative)),
                *self._shared_cells(WHOLE, row.n, row.T),
            ]
            for row in self.logits
        ]
        names = [*NETWORK_COLUMNS, *SHARED_COLUMNS]
        kept = [k for k in range(len(names)) if any(row[k] != "–" for row in rows)]
        return [names[k] for k in kept], [[row[k] for k in kept] for row in rows]

    def _layers(self, n: int, T: int) -> tuple[list[str], list[list[str]]]:
        """A line for each layer, then the network."""
        rows = []
        for layer in [*self.layers, WHOLE]:
            own, arrived = (self.error(layer, view, n, T) for view in ("forced", "arrived"))
            sizes = (own.quantization, own.unevenness, arrived.unevenness)
            relative = [percent(size.relative) for size in sizes]
            rows.append([layer, *relative, *self._shared_cells(layer, n, T)])
        return [*LAYER_COLUMNS, *SHARED_COLUMNS], rows

    def _sizes(self, n: int, T: int) -> tuple[list[str], list[list[str]]]:
        """Mean, RMS and maximum by layer, view and cause."""
        rows = []
        for layer in [*self.layers, WHOLE]:
            for view in VIEWS:
                row = self.error(layer, view, n, T)
                sizes = [getattr(row, cause) for cause in CAUSES]
                cells = [f"{size.mean:.3g} / {size.rms:.3g} / {size.maximum:.3g}" for size in sizes]
                rows.append([layer, view, *cells])
        return ["layer", "view", *CAUSES], rows

    def _shared_cells(self, layer: str, n: int, T: int) -> Iterator[str]:
        """The cells of `SHARED_COLUMNS`."""
        errors, rates = self.error(layer, "propagated", n, T), self.rate(layer, n, T)
        yield from (percent(getattr(errors, cause).relative) for cause in CAUSES)
        yield from map(percent, (rates.occasional, rates.missing, rates.negative))
        yield f"{rates.firing_rate:.3g}"


Row = TypeVar("Row", ErrorRow, RateRow, LogitRow)


def _row_of(rows: Iterable[Row], columns: dict[str, Any]) -> Row:
    """The row with these values."""
    for row in rows:
        if all(getattr(row, name) == value for name, value in columns.items()):
            return row
    asked = ", ".join(f"{name}={value!r}" for name, value in columns.items())
    raise SpecError(f"the table of errors has no row with {asked}: see its layers and settings")


def _row(kind: type[Row], stored: Mapping[str, Any]) -> Row:
    """A row from its stored columns."""
    row: Row = as_type(kind, {item.name: stored[item.name] for item in dataclasses.fields(kind)})
    return row


def percent(share: float | None) -> str:
    """A share in percent as it is printed: what is not 0 or 1 is never printed as if it were.

    Example:
        >>> [percent(share) for share in (None, 0, 1e-6, 0.5, 0.99999, 1)]
        ['–', '0', '0.0001', '50.00', '99.99', '100.00']
    """
    if share is None or share == 0:
        return "–" if share is None else "0"
    text = f"{100 * share:.2f}" if share >= 0.001 else f"{100 * share:.2g}"
    return "99.99" if text == "100.00" and share < 1 else text


def _number(value: float | None) -> str:
    """An accuracy, or that there is none."""
    return "–" if value is None else f"{value:.2f}"


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows)]
