"""Which networks none other beats, and how they are drawn."""

from __future__ import annotations

import re
from itertools import product

import pytest

from mt_convert.report.html.pareto import Point, frontier, pareto_chart, steps_of


def points(*pairs: tuple[float, float], kind: str = "spiking") -> list[Point]:
    return [
        Point(cost, accuracy, k, kind, f"{cost}", stands=True)
        for k, (cost, accuracy) in enumerate(pairs)
    ]


def test_what_another_beats_in_cost_and_accuracy_is_not_in_the_frontier() -> None:
    grid = points(*product((1.0, 2.0, 5.0), (70.0, 80.0, 60.0)))
    kept = frontier(grid)
    beaten = [
        item
        for item in grid
        if any(
            other.cost <= item.cost
            and other.accuracy >= item.accuracy
            and (other.cost, other.accuracy) != (item.cost, item.accuracy)
            for other in grid
        )
    ]
    assert [item for item in grid if item not in beaten] == kept
    assert [(item.cost, item.accuracy) for item in frontier(points((1, 5), (2, 5), (3, 9)))] == [
        (1, 5),
        (3, 9),
    ]


def test_every_kind_of_network_has_a_shape_and_every_run_a_name_and_a_colour() -> None:
    drawn = [
        point
        for kind in ("spiking", "quantized", "control", "float")
        for point in points((3.0, 90.0), (40.0, 91.0), kind=kind)
    ]
    chart = pareto_chart(drawn, ["first", "a name that is far too long for its place"], "nJ")
    for kind in ("spiking", "quantized", "control", "float"):
        assert chart.count(f"of-{kind}") == 2
    assert ">first<" in chart
    assert "a name that is fa…" in chart
    assert 'class="dot s1 of-spiking"' in chart


def test_names_of_points_that_lie_together_do_not_cover_each_other() -> None:
    drawn = points((10.0, 90.0), (10.1, 90.02), (9.9, 89.98), (400.0, 70.0))
    chart = pareto_chart(drawn, ["one", "two", "three", "four"], "nJ")
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="axis halo', chart)
    assert len(texts) == 4
    for k, (x, y) in enumerate(texts):
        for a, b in texts[:k]:
            assert abs(float(x) - float(a)) > 18 or abs(float(y) - float(b)) >= 12


@pytest.mark.parametrize(("low", "high"), [(0.3, 7.0), (1e-3, 2e5), (5.0, 5.0), (64, 65)])
def test_marks_of_costs_lie_between_the_ends(low: float, high: float) -> None:
    marks = steps_of(low, high)
    assert 1 <= len(marks) <= 10
    assert marks == sorted(set(marks))
    assert all(low <= item <= high for item in marks)


def test_one_point_alone_is_drawn() -> None:
    assert 'class="frontier"' in pareto_chart(points((4.0, 100.0)), ["a"], "time steps T", [4])
