"""Templates and the words of numbers in them; what all pages for a browser share."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, UndefinedError
from markupsafe import Markup

from ...errors import CheckpointError
from ..records import figures
from .svg import number

TEMPLATES = ("base.html", "macros.html", "page.html", "parts.html")


def render_template(name: str, **shown: Any) -> str:
    """A page from its template, with the style and the script of all pages inside.

    Raises:
        CheckpointError: a part of what it is made from is missing.
    """
    try:
        return _environment().get_template(name).render(shown)
    except UndefinedError as error:
        raise CheckpointError(f"what the page is made from lacks something: {error}") from error


@cache
def _environment() -> Environment:
    """The templates, and what they call."""
    folder = resources.files(__package__) / "templates"
    texts = {name: (folder / name).read_text("utf-8") for name in TEMPLATES}
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "count": count}
    environment.filters["figures"] = figures
    environment.globals |= {
        "style": Markup((folder / "page.css").read_text("utf-8")),
        "script": Markup((folder / "page.js").read_text("utf-8")),
    }
    return environment


def percent(share: float | None, places: int = 2) -> str:
    """A share in percent; what is not 0 or 1 is never printed as if it were.

    Example:
        >>> percent(0.5), percent(1), percent(0.99999), percent(1e-6), percent(None)
        ('50.00 %', '100 %', '99.99 %', '0.01 %', '–')
    """
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{int(share) * 100} %"
    smallest = 10.0**-places
    value = min(max(100 * share, smallest), 100 - smallest) if 0 < share < 1 else 100 * share
    return f"{value:.{places}f} %"


def count(value: float) -> str:
    """A number of things, with thin commas.

    Example:
        >>> count(1234567), count(0.125)
        ('1,234,567', '0.125')
    """
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
