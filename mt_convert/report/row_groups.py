"""Which rows of results belong together: they differ in n and T alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .rows import Row

_WORDS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "dataset": lambda row: row.dataset,
    "images": lambda row: f"{row.images:,} images",
    "weight_bits": lambda row: f"W{row.weight_bits:g}" if row.weight_bits else "float weights",
    "weights": lambda row: f"{row.weights} weights",
    "levels": lambda row: f"L = {row.levels}",
    "spacing": lambda row: f"{row.spacing} spacing",
    "rounding": lambda row: f"ties {row.rounding.replace('_', ' ')}",
    "functions": lambda row: f"functions: {row.functions}",
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
_SUBJECT = (
    *("model", "dataset", "images", "weight_bits", "weights", "levels", "spacing", "rounding"),
    *("functions", "seed"),
)
_USUAL = {
    "weights": "uniform",
    "spacing": "equal",
    "rounding": "half_even",
    "functions": "none",
}  # which needs no word
_NETWORK = (*_SUBJECT, "qat_noise", "algorithm", "run")  # not how it is run
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
    return _group(rows, differing)


def networks_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each network, however it is run, under what tells it from the others.

    Example:
        >>> networks_of([])
        {}
    """
    differing = [name for name in _NETWORK if len({getattr(row, name) for row in rows}) > 1]
    return _group(rows, differing)


def _group(rows: Sequence[Row], differing: Sequence[str]) -> dict[str, list[Row]]:
    """The rows that are alike in some columns, under these in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = "\n".join(_WORDS[name](row) for name in differing)
        groups.setdefault(title, []).append(row)
    return groups


def working_point(rows: Sequence[Row]) -> Row:
    """The row that stands for a network: of those where every activation is the quantized
    network's that of fewest steps; where there is none, the most accurate, of fewest steps.

    Example:
        >>> from dataclasses import replace
        >>> values = dict.fromkeys(Row.fields(), 0) | {"exact_share": 0.5, "T": 4, "n": 1}
        >>> row = Row(**values)
        >>> working_point([row, replace(row, exact_share=1, T=8)]).T
        8
    """
    exact = [row for row in rows if row.exact_share == 1]
    if exact:
        return min(exact, key=lambda row: (row.T, row.n))
    return max(rows, key=lambda row: (row.snn_accuracy, -row.T, -row.n))


def bits_of(row: Row) -> str:
    """The bits of weights and activations, in a word or two.

    Example:
        >>> values = dict.fromkeys(Row.fields(), 0) | {"weight_bits": 4, "levels": 15}
        >>> bits_of(Row(**values)), bits_of(Row(**values | {"qann_accuracy": None}))
        ('W4A4', 'W4')
    """
    weights = "float" if row.weight_bits is None else f"W{row.weight_bits:g}"
    if row.qann_accuracy is None:
        return weights
    bits = (row.levels + 1).bit_length() - 1
    return f"{weights}A{bits}" if row.weight_bits is not None else f"{weights} A{bits}"


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
