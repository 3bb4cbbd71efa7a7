"""Every exception that mt_convert raises for something the user can mend.

It imports nothing of the package. Inner code raises the narrow fact; the command line prints
the message and exits with code 2. An ``assert`` or a bare ``RuntimeError`` is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where it stands, what it is, and what the user can do about it.

    Example:
        >>> str(Fault("layer1.act", "Hardsigmoid", "no rule: pass rules={...}"))
        'layer1.act  Hardsigmoid  no rule: pass rules={...}'
    """

    where: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}  {self.what}  {self.hint}"


class MTConvertError(Exception):
    """Base of all errors: a headline, and below it one aligned line per fault.

    Example:
        >>> faults = [Fault("a", "wrong", "mend it"), Fault("bb", "gone", "find it")]
        >>> print(MTConvertError("2 faults", faults))
        2 faults
          a   wrong  mend it
          bb  gone   find it
    """

    def __init__(self, headline: str, faults: Iterable[Fault] = ()) -> None:
        self.headline = headline
        self.faults = tuple(faults)
        super().__init__(headline, self.faults)

    def __str__(self) -> str:
        return self._text().encode("utf-8", "backslashreplace").decode()  # any name can be printed

    def _text(self) -> str:
        if not self.faults:
            return self.headline
        where = max(len(fault.where) for fault in self.faults)
        what = max(len(fault.what) for fault in self.faults)
        lines = (
            f"  {fault.where:<{where}}  {fault.what:<{what}}  {fault.hint}" for fault in self.faults
        )
        return "\n".join([self.headline, *(line.rstrip() for line in lines)])


class UnsupportedLayerError(MTConvertError):
    """A model holds operators or layers that cannot be traced, quantized or converted."""


class CheckpointError(MTConvertError):
    """A file of weights is missing, damaged, unsafe, or made for another network."""


class RecipeError(MTConvertError):
    """A recipe has unknown keys, wrong types or values out of range."""


class DataError(MTConvertError):
    """Images or labels are missing, have the wrong shape, or hold NaN or infinity."""


class SpecError(MTConvertError, ValueError):
    """A value handed to the library is outside what is allowed."""


class OutputError(MTConvertError):
    """An artefact could not be written: no permission, no space, or a file in the way."""


def many(items: int | Sized, one: str, several: str) -> str:
    """How many there are, in words that agree with the number.

    Example:
        >>> many(1, "layer is", "layers are"), many(["a", "b"], "fault", "faults")
        ('1 layer is', '2 faults')
    """
    count = items if isinstance(items, int) else len(items)
    return f"{count} {one if count == 1 else several}"


def near_names(
    word: str, allowed: Iterable[str], *, most: int = 3, cutoff: float = 0.6
) -> list[str]:
    """The allowed names that ``word`` may have meant, nearest first.

    Example:
        >>> near_names("digts", ["digits", "digits_vit", "imagenet"], most=1)
        ['digits']
    """
    return difflib.get_close_matches(word, list(allowed), n=most, cutoff=cutoff)


def did_you_mean(names: Sequence[str]) -> str:
    """The question in a hint; empty without names.

    Example:
        >>> did_you_mean(["train.epochs", "ann.epochs"])
        'did you mean train.epochs or ann.epochs?'
    """
    return f"did you mean {' or '.join(names)}?" if names else ""


def error_line(error: BaseException) -> str:
    """Type and first line of an exception.

    Example:
        >>> error_line(ValueError("a\\nb"))
        'ValueError: a'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['no message'])[0]}"[:240]
