"""Tables, pages and pictures from plain numbers. No torch.

``mt.report.raster(run, layer)``, ``rates``, ``histogram`` and ``potential`` draw a simulation.
Names are imported on first use, so that a table does not wait for matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pictures import accuracy_map, accuracy_over_time
    from .spike_pictures import histogram, potential, raster, rates

_HOMES = {
    **dict.fromkeys(("accuracy_map", "accuracy_over_time"), "pictures"),
    **dict.fromkeys(("histogram", "potential", "raster", "rates"), "spike_pictures"),
}
__all__ = ["accuracy_map", "accuracy_over_time", "histogram", "potential", "raster", "rates"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
