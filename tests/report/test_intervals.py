"""Intervals of shares."""

from __future__ import annotations

import pytest

from mt_convert.report.intervals import Z95, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (354, 359)])
def test_the_ends_are_where_the_score_test_just_rejects(right: int, count: int) -> None:
    """Wilson's ends p solve (share - p)^2 = z^2 p (1 - p) / n."""
    share = right / count
    for end in wilson(share, count):
        assert (share - end) ** 2 == pytest.approx(Z95**2 * end * (1 - end) / count, abs=1e-12)


def test_it_lies_around_the_share_and_inside_0_and_1() -> None:
    for right in range(8):
        low, high = wilson(right / 7, 7)
        assert 0 <= low <= right / 7 <= high <= 1
        assert low < high
