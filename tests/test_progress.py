"""Progress goes to stderr, and never changes what is iterated over."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from mt_convert.progress import progress


def numbers(count: int) -> Iterator[int]:
    """An iterator without a length."""
    yield from range(count)


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_off_a_terminal_each_tenth_is_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress(range(40), "reading")) == list(range(40))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"reading: {done}/40" for done in range(4, 41, 4)]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_short_work_is_silent(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(count), "reading")) == list(range(count))
    assert capsys.readouterr() == ("", "")


def test_work_of_unknown_length_is_silent_unless_told_its_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(list(progress(numbers(20), "a"))) == 20
    assert capsys.readouterr().err == ""
    assert len(list(progress(numbers(20), "b", total=20))) == 20
    assert capsys.readouterr().err.splitlines()[-1] == "b: 20/20"


def test_items_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []

    def source() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    iterator = progress(source(), "lazy", total=20)
    assert next(iterator) == 0
    assert taken == [0]


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress(range(30), "walking")) == list(range(30))
    assert "walking" in terminal.getvalue()
    assert "30/30" in terminal.getvalue()
