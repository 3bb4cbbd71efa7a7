"""Errors name every fault, in aligned lines, and can be caught by their base."""

from __future__ import annotations

import pickle

import pytest

from mt_convert import errors
from mt_convert.errors import Fault, MTConvertError, SpecError

NARROW = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MTConvertError) and kind is not MTConvertError
]


def test_there_are_six_narrow_errors_and_each_is_caught_by_the_base() -> None:
    assert len(NARROW) == 6
    for kind in NARROW:
        with pytest.raises(MTConvertError, match="headline"):
            raise kind("headline")


def test_a_spec_error_is_a_value_error_too() -> None:
    assert issubclass(SpecError, ValueError)


def test_an_error_without_faults_is_its_headline() -> None:
    assert str(MTConvertError("only this")) == "only this"


def test_faults_stand_below_the_headline_in_columns() -> None:
    error = MTConvertError("two", [Fault("a", "long what", "x"), Fault("layer1", "b", "")])
    assert str(error).splitlines() == ["two", "  a       long what  x", "  layer1  b"]
    assert error.faults[0].where == "a"


def test_faults_may_come_from_a_generator() -> None:
    error = MTConvertError("head", (Fault(name, "x", "y") for name in "abc"))
    assert [fault.where for fault in error.faults] == ["a", "b", "c"]
    assert len(str(error).splitlines()) == 4


@pytest.mark.parametrize("kind", NARROW)
def test_errors_travel_between_processes(kind: type[MTConvertError]) -> None:
    error = pickle.loads(pickle.dumps(kind("head", [Fault("a", "b", "c")])))
    assert type(error) is kind
    assert (error.headline, error.faults) == ("head", (Fault("a", "b", "c"),))
