"""Which rows of results belong together: they differ in n and T alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .rows import Row

_WORDS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "dataset": lambda row: row.dataset,
    "images": lambda row: f"{row.images:,} images",
    "weight_bits": lambda row: f"W{row.weight_bits}" if row.weight_bits else "float weights",
    "weights": lambda row: f"{row.weights} weights",
    "levels": lambda row: f"L = {row.levels}",
    "spacing": lambda row: f"{row.spacing} spacing",
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
    "algorithm": lambda row: (
        "as converted" if row.algorithm == "none" else f"trained by {row.algorithm}"
    ),
    "run": lambda row: str(row.run),
    "digest": lambda row: f"network {row.digest}",
}
"""The columns that tell one kind of rows from another, in words."""
_SUBJECT = ("model", "dataset", "images", "weight_bits", "weights", "levels", "spacing", "seed")
_USUAL = {"weights": "uniform", "spacing": "equal"}  # which needs no word
NAMES = ("run", "digest")
"""What tells networks apart that nothing else does."""


def needed_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of `NAMES` without which rows of different networks would look alike.

    Example:
        >>> needed_names([])
        ()
    """
    needed: tuple[str, ...] = ()
    columns = [name for name in _WORDS if name not in NAMES]
    for name in NAMES:
        networks: dict[tuple[object, ...], set[str | None]] = {}
        names: dict[tuple[object, ...], set[str | None]] = {}
        for row in rows:
            kind = tuple(getattr(row, column) for column in (*columns, *needed))
            networks.setdefault(kind, set()).add(row.digest)
            names.setdefault(kind, set()).add(getattr(row, name))
        if any(len(networks[kind]) > 1 and len(names[kind]) > 1 for kind in networks):
            needed += (name,)
    return needed


def kinds_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each kind, in order, under what tells it from the others.

    The T that a calibration was for does not part rows: it follows from T.

    Example:
        >>> kinds_of([])
        {}
    """
    named = needed_names(rows)
    differing = [
        name
        for name in _WORDS
        if (name in named if name in NAMES else len({getattr(row, name) for row in rows}) > 1)
    ]
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
    shared = [
        name
        for name in _SUBJECT
        if len({getattr(row, name) for row in rows}) == 1
        and getattr(rows[0], name) != _USUAL.get(name, "")
    ]
    return ", ".join(_WORDS[name](rows[0]) for name in shared)
