"""The error of a conversion by cause: clipping, quantization, unevenness, layer by layer."""

from __future__ import annotations

from .rows import CAUSES, VIEWS, ErrorRow, LogitRow, RateRow
from .table import ErrorTable

__all__ = [
    "CAUSES",
    "VIEWS",
    "ErrorRow",
    "ErrorTable",
    "LogitRow",
    "RateRow",
]
