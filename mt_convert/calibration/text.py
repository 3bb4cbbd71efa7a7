"""Calibrations as a line of text: what recipes, the command line and tables call them. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from ..errors import Fault, SpecError, did_you_mean, many, near_names
from .spec import NAMES, Calibration


def parse(text: str) -> tuple[Calibration, ...]:
    """The calibrations that a line of text names, in order; none for ``none``.

    Values stand in brackets, in the order of the fields or as ``name=value``.

    Raises:
        SpecError: all names and values that are wrong, with what is allowed.

    Example:
        >>> parse("percentile(99)+membrane_mean(rounds=2)")
        (Percentile(percent=99.0), MembraneMean(rounds=2, per=<Per.CHANNEL: 'channel'>))
        >>> parse("none")
        ()
    """
    if text.strip() == "none":
        return ()
    faults: list[Fault] = []
    steps = [_parse_one(part.strip(), faults) for part in re.split(r"\+(?![^(]*\))", text)]
    if faults:
        raise SpecError(f"calibration {text!r}: {many(faults, 'fault', 'faults')}", faults)
    return tuple(step for step in steps if step is not None)


def name_of(steps: Sequence[Calibration]) -> str:
    """The line of text that `parse` reads as these calibrations; what is default is left out.

    Example:
        >>> from .spec import LayerWise, Maximum, Percentile
        >>> name_of([Percentile(), Maximum(0.7), LayerWise(epochs=2)])
        'percentile+maximum(0.7)+layer_wise(epochs=2)'
    """
    return "+".join(map(_name, steps)) or "none"


def _name(step: Calibration) -> str:
    """One calibration: its value alone where it has one field, else ``name=value``."""
    fields = dataclasses.fields(step)
    values = [
        (item.name, _text(getattr(step, item.name)))
        for item in fields
        if getattr(step, item.name) != item.default
    ]
    inner = ",".join(value if len(fields) == 1 else f"{name}={value}" for name, value in values)
    return f"{step.kind}({inner})" if inner else step.kind


def _text(value: Any) -> str:
    """A number or word, whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse_one(part: str, faults: list[Fault]) -> Calibration | None:
    """One calibration, or None and its faults."""
    match = re.fullmatch(r"(\w+)\s*(?:\(([^()]*)\))?", part)
    kind = NAMES.get(match[1]) if match else None
    if match is None or kind is None:
        name = part.partition("(")[0].strip()
        faults.append(Fault(part or "nothing", "is no calibration", _nearest(name, NAMES)))
        return None
    values = _values(part, match[2] or "", kind, faults)
    if values is None:
        return None
    try:
        return kind(**values)
    except SpecError as error:
        faults += [Fault(part, f"{row.where}={row.what}", row.hint) for row in error.faults]
        return None


def _values(
    part: str, inner: str, kind: type[Calibration], faults: list[Fault]
) -> dict[str, Any] | None:
    """The values in brackets by field, or None and what is wrong with them."""
    fields = {item.name: item.default for item in dataclasses.fields(kind)}
    order, values, before = list(fields), {}, len(faults)
    for index, item in enumerate(filter(None, map(str.strip, inner.split(",")))):
        name, equals, text = (word.strip() for word in item.partition("="))
        if not equals:
            name, text = order[index] if index < len(order) else "", name
        if name not in fields:
            hint = _nearest(name, fields) if fields else "it takes no values"
            faults.append(Fault(part, item, hint))
        elif name in values:
            faults.append(Fault(part, item, f"{name} is given twice"))
        else:
            values[name] = _value(text, fields[name])
    return values if len(faults) == before else None


def _value(text: str, default: Any) -> Any:
    """A value of the kind of the default; other text stays text, for the checks to refuse."""
    if isinstance(default, StrEnum):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        return text


def _nearest(word: str, allowed: Iterable[str]) -> str:
    """What is allowed, and what was probably meant."""
    names = list(allowed)
    guess = did_you_mean(near_names(word, names, most=1))
    return f"{guess} allowed: {', '.join(names)}".lstrip()
