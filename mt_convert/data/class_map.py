"""Which rows of a head the classes of a data set are: ten folders, a head of a thousand."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..errors import DataError, Fault
from ..system.storage import check_regular
from .image_spec import DataSpec, row_faults

IMAGENET_ROWS = 1000


def head_rows(spec: DataSpec) -> tuple[int, ...] | None:
    """The row of the head for each class folder in alphabetical order; None: they are the rows.

    Raises:
        DataError: the file is missing, or has lines that are neither a number nor a WordNet id, or
            not one for each class; all of them at once.

    Example:
        >>> head_rows(DataSpec("digits", classes=2, class_map=(7, 1)))
        (7, 1)
    """
    if not isinstance(spec.class_map, str):
        return spec.class_map
    path = Path(spec.class_map).expanduser()
    rows, faults = [], []
    for number, line in _lines(path):
        if line.isdecimal():
            rows.append(int(line) if len(line) < 19 else 10**18)  # beyond any head
        elif line in _imagenet():
            rows.append(_imagenet()[line])
        else:
            hint = "allowed: a row of the head, or a WordNet id of ImageNet-1k such as n01440764"
            faults.append(Fault(f"line {number}", f"is {line[:40]!r}", hint))
    faults = faults or list(row_faults(tuple(rows), spec.classes))
    if faults:
        raise DataError(f"data.class_map {path} does not map {spec.classes} classes", faults[:20])
    return tuple(rows)


def head_faults(spec: DataSpec, head: int) -> list[Fault]:
    """What is wrong with the classes of ``spec`` for a head of so many rows.

    Raises:
        DataError: see `head_rows`.
    """
    if spec.class_map is None:
        if spec.classes == head:
            return []
        hint = f"set class_map to the rows of the {spec.classes} classes, or take other images"
        return [Fault("classes", f"is {spec.classes}, the head has {head} rows", hint)]
    faults = [
        Fault("class_map", f"holds row {row}", f"allowed: 0 to {head - 1}")
        for row in head_rows(spec) or ()
        if row >= head
    ]
    if isinstance(spec.class_map, str) and head != IMAGENET_ROWS and _names_ids(spec.class_map):
        what = f"holds WordNet ids, the head has {head} rows and not {IMAGENET_ROWS}"
        faults.append(Fault("class_map", what, "give the rows as numbers"))
    return faults


def _names_ids(path: str) -> bool:
    return any(not line.isdecimal() for _, line in _lines(Path(path).expanduser()))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"cannot read data.class_map {path} ({reason}): it must be a text file with a row of "
            "the head, or a WordNet id, a line, or else a list of rows"
        ) from error
    lines = enumerate(text.splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


@cache
def _imagenet() -> dict[str, int]:
    """Rows of ImageNet-1k by WordNet id."""
    from timm.data import ImageNetInfo  # reads a file

    return {name: row for row, name in enumerate(ImageNetInfo("imagenet1k").label_names())}
