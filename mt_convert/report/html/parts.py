"""A page for a browser of any table: a verdict, answers at a glance, then parts.

What `export`, `coverage` and the comparison of several runs leave is shown so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .rendering import render_template

PAGE = "report.html"


@dataclass(frozen=True)
class Download:
    """A file beside the page."""

    name: str
    about: str
    size: int


@dataclass(frozen=True)
class Verdict:
    """What a page says first: ``yes`` is green, ``no`` red, ``unknown`` grey."""

    state: str
    words: str
    more: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer at a glance, under a name of its own."""

    id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Cell:
    """What stands in a table: by ``value`` it is sorted, ``dark`` (0 to 1) shades it.

    Example:
        >>> Cell("1,024", 1024).sorted, Cell("vgg").sorted
        (1024, 'vgg')
    """

    text: str
    value: float | None = None
    address: str = ""
    classes: str = ""
    dark: float | None = None

    @property
    def sorted(self) -> float | str:
        """What it is sorted by."""
        return self.text if self.value is None else self.value


@dataclass(frozen=True)
class Part:
    """A section: sentences, drawings with their captions, a table, a list; empty ones are left out.

    ``keys``: classes of the style and what they mean. ``text_columns`` stand at the left.
    ``folded``: what a table is called that is shown when asked for.
    """

    id: str
    title: str
    link: str = ""
    texts: Sequence[str] = ()
    keys: Sequence[tuple[str, str]] = ()
    figures: Sequence[tuple[str, Markup]] = ()
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    text_columns: Sequence[int] = (0,)
    folded: str = ""
    items: Sequence[str] = ()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class PartsContent:
    """All that a page of parts is made from."""

    name: str
    heading: str
    parts: Sequence[Part]
    verdict: Verdict | None = None
    warnings: Sequence[str] = ()
    glance: Sequence[Answer] = ()
    command: str = ""
    recipe: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    downloads: Sequence[Download] = ()


def render_parts(content: PartsContent) -> str:
    """The page.

    Example:
        >>> part = Part("nodes", "Nodes", heads=["node"], rows=[[Cell("conv")]])
        >>> page = render_parts(PartsContent("export", "digits", [part]))
        >>> page.splitlines()[0], '<td class="text" data-value="conv">conv</td>' in page
        ('<!DOCTYPE html>', True)
    """
    return render_template("parts.html", content=content, heading=content.heading)


def downloads(folder: Path, files: Mapping[str, str]) -> list[Download]:
    """Those of some files that are there, with what they are."""
    return [
        Download(file, about, path.stat().st_size)
        for file, about in files.items()
        if (path := folder / file).is_file()
    ]
