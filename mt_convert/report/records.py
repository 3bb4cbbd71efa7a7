"""Results as records: for a notebook, a spreadsheet, a data frame. No torch."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import escape

from ..errors import CheckpointError, SpecError
from ..system.plain_data import as_type
from ..system.storage import atomic

T = TypeVar("T")
SHOWN = 60
"""Rows that a notebook shows; the others are counted."""


class Records:
    """What is a table too: give `records`, and it can be written, framed and shown."""

    def records(self) -> list[dict[str, Any]]:
        """The rows of its table, each by the names of its columns; plain numbers and names."""
        raise NotImplementedError

    def to_csv(self, path: str | Path | None = None) -> str:
        """Its rows as comma-separated values, which are written to ``path`` too where it is given.

        Raises:
            OutputError: the file cannot be written.
        """
        text = csv_of(self.records())
        if path is not None:
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return text

    def to_frame(self) -> Any:
        """Its rows as a data frame of pandas.

        Raises:
            SpecError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            hint = "pip install pandas, or take records() or to_csv()"
            raise SpecError(f"to_frame needs pandas, which is not installed: {hint}") from error
        return pandas.DataFrame(self.records())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_of(self.records(), f"{self!r}")


def csv_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as comma-separated values, headed by all names that any of them has.

    Example:
        >>> csv_of([{"layer": "a", "rate": 0.5}, {"layer": "b"}])
        'layer,rate\\na,0.5\\nb,\\n'
    """
    names = list(dict.fromkeys(name for row in records for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def csv_text(kind: Any, rows: Iterable[Any]) -> str:
    """Rows of one dataclass, a line each, headed by its fields; None is an empty cell.

    Example:
        >>> from .rows import Row
        >>> csv_text(Row, [])[:20]
        'model,dataset,images'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [item.name for item in dataclasses.fields(kind)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def with_schema(schema: str, table: Any) -> dict[str, Any]:
    """The content of a file that holds one dataclass of rows and numbers.

    Example:
        >>> from dataclasses import make_dataclass
        >>> with_schema("speeds/1", make_dataclass("Speeds", ["threads"])(2))
        {'schema': 'speeds/1', 'threads': 2}
    """
    return {"schema": schema, **dataclasses.asdict(table)}


def of_schema(schema: str, kind: type[T], what: str, stored: Any) -> T:
    """What `with_schema` described; ``what`` says in an error what the file should hold.

    Raises:
        CheckpointError: another schema, or a column missing or of another type.

    Example:
        >>> from dataclasses import make_dataclass
        >>> of_schema("speeds/1", make_dataclass("Speeds", [("threads", int)]), "speeds", {})
        Traceback (most recent call last):
        mt_convert.errors.CheckpointError: not a file of speeds: its schema must be speeds/1
    """
    if not isinstance(stored, dict) or stored.get("schema") != schema:
        raise CheckpointError(f"not a file of {what}: its schema must be {schema}")
    table: T = as_type(kind, stored)
    return table


def html_of(records: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Records as a table for a notebook.

    Example:
        >>> html_of([{"layer": "<a>"}], "layers").count("&lt;a&gt;")
        1
    """
    names = list(dict.fromkeys(name for row in records for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in records[:SHOWN]
    ]
    left = len(records) - SHOWN
    more = f"<p>and {left} more: to_csv() has all</p>" if left > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<p>{escape(caption)}</p>{table if records else ''}{more}"


def figures(value: float) -> str:
    """Four digits that count, thousands apart; powers of ten for the very small and large alone.

    Example:
        >>> figures(193245.7), figures(0.01), figures(12.0), figures(1.5e-7), figures(0)
        ('193,200', '0.01', '12', '1.5e-07', '0')
    """
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.4g}"
    short = float(f"{value:.4g}")
    return f"{short:,.0f}" if abs(short) >= 1e3 else f"{short:g}"


def _cell(value: Any) -> str:
    """A number with the digits that count, or a name."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
