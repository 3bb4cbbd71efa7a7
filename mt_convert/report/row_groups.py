"""Which rows of results belong together: they differ in n and T alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .rows import Row

_WORDS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "dataset": lambda row: row.dataset,
    "images": lambda row: f"{row.images:,} images",
    "weight_bits": lambda row: f"W{row.weight_bits}" if row.weight_bits else "float weights",
    "levels": lambda row: f"L = {row.levels}",
    "seed": lambda row: "seed unknown" if row.seed is None else f"seed {row.seed}",
    "qat_noise": lambda row: f"QAT noise {row.qat_noise}",
    "method": lambda row: row.method,
    "presentation": lambda row: f"presented {row.presentation.replace('_', ' ')}",
    "ladder": lambda row: f"{row.ladder} ladder",
    "mode": lambda row: row.mode,
    "signed": lambda row: "signed" if row.signed else "unsigned",
    "whole_window": lambda row: "whole window" if row.whole_window else "synchronous",
    "calibration": lambda row: (
        "uncalibrated" if row.calibration == "none" else f"by {row.calibration}"
    ),
}
"""The columns that tell one kind of rows from another, in words."""
_SUBJECT = ("model", "dataset", "images", "weight_bits", "levels", "seed")


def kinds_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each kind, in order, under what tells it from the others.

    The T that a calibration was for does not part rows: it follows from T.

    Example:
        >>> kinds_of([])
        {}
    """
    differing = [name for name in _WORDS if len({getattr(row, name) for row in rows}) > 1]
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        title = "\n".join(_WORDS[name](row) for name in differing)
        kinds.setdefault(title, []).append(row)
    return kinds


def subject(rows: Sequence[Row]) -> str:
    """What all rows share of network and data, in words.

    Example:
        >>> subject([])
        ''
    """
    if not rows:
        return ""
    shared = [name for name in _SUBJECT if len({getattr(row, name) for row in rows}) == 1]
    return ", ".join(_WORDS[name](rows[0]) for name in shared)
