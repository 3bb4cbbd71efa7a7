"""Progress goes to stderr, and never changes what is iterated over."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from mt_convert.system.progress import progress


def numbers(count: int) -> Iterator[int]:
    """An iterator without a length."""
    yield from range(count)


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves it: its one entry is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr("mt_convert.system.progress.time.monotonic", lambda: now[0])
    return now


def test_off_a_terminal_there_is_a_line_every_ten_seconds_on_stderr(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for item in progress(range(10), "reading"):
        found.append(item)
        clock[0] += 4
    assert found == list(range(10))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["reading: 3/10", "reading: 6/10", "reading: 9/10"]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_short_work_is_silent(
    count: int, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress(range(count), "reading")) == list(range(count))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "shown"), [(None, "?"), (2, "2")])
def test_work_without_a_length_shows_its_total_where_told(
    total: int | None, shown: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress(numbers(2), "walking", total=total):
        clock[0] += 11
    assert capsys.readouterr().err.splitlines() == [
        f"walking: 1/{shown}",
        f"walking: 2/{shown}",
    ]


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
