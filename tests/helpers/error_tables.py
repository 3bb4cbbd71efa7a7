"""Tables of errors with numbers that differ everywhere."""

from __future__ import annotations

from typing import Any

from mt_convert.evaluation.errors.rows import (
    CAUSES,
    RATE_EDGES,
    RESIDUAL_EDGES,
    VIEWS,
    WHOLE,
    ErrorRow,
    ErrorSize,
    LogitRow,
    RateRow,
)
from mt_convert.evaluation.errors.table import ErrorTable

SETTINGS = [(n, T) for n in (1, 15) for T in (2, 32)]


LAYERS = ("layer1.0.act1", "layer1.0.act2")


def size(seed: int) -> ErrorSize:
    """Some numbers, different for each seed."""
    return ErrorSize(seed / 7, (seed + 1) / 3, seed + 2.5, None if seed % 5 == 4 else seed / 1000)


def made(**answers: Any) -> ErrorTable:
    """A table of two layers."""
    errors, rates, logits = [], [], []
    for n, T in SETTINGS:
        for k, layer in enumerate((*LAYERS, WHOLE)):
            for view in VIEWS:
                sizes = {cause: size(n + T + k + j) for j, cause in enumerate(CAUSES)}
                errors.append(ErrorRow(layer, view, n, T, 1 / 3, **sizes))
            counts = (1, 2, *[0] * (len(RATE_EDGES) - 2)), tuple(range(len(RESIDUAL_EDGES) + 1))
            rates.append(RateRow(layer, n, T, 64, 0.5, 0.25, 1e-7, 1 / 3, n / 7, *counts))
        logits.append(LogitRow(n, T, size(n), **{"agreement": 0.99999, **answers}))
    return ErrorTable(1024, tuple(errors), tuple(rates), tuple(logits))
