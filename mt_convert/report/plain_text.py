"""Rows of any table as comma-separated values. No torch."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from typing import Any


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
