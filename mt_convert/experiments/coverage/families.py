"""What is shown of a family of architectures: a share, by which it is coloured, and its words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .rows import CoverageRow

Family = Sequence[CoverageRow]


def _share(holds: Callable[[CoverageRow], bool]) -> Callable[[Family], tuple[float, str]]:
    """Share of a family's architectures for which something holds, and how many of how many."""

    def cell(rows: Family) -> tuple[float, str]:
        count = sum(map(holds, rows))
        return count / len(rows), f"{count}/{len(rows)}"

    return cell


def _in_digits(rows: Family) -> tuple[float, str]:
    """Share that is exact in windows of digits with one threshold, of what was tried with them;
    pale where nothing was."""
    tried = [row for row in rows if row.radix_exact is not None or not row.converted]
    if not tried:
        return 0.01, "–"
    count = sum(row.radix_exact is True for row in tried)
    return count / len(tried), f"{count}/{len(tried)}"


def settles(rows: Family) -> tuple[float, str]:
    """Share that settles; the latest T."""
    steps = [row.settling_t for row in rows if row.settling_t is not None]
    return len(steps) / len(rows), f"≤ {max(steps)}" if steps else "–"


def _fed_share(rows: Family) -> tuple[float, str]:
    """The smallest share of MACs that spikes feed, of what converted; cut, not rounded. Paler from
    100 % down to 80 %."""
    shares = [row.spike_fed_mac_share or 0 for row in rows if row.converted]
    if not shares:
        return 0.0, "–"
    return max(0.01, (min(shares) - 0.6) / 0.4), f"{int(1000 * min(shares)) / 10:g} %"


COLUMNS: dict[str, Callable[[Family], tuple[float, str]]] = {
    "converted": _share(lambda row: row.converted),
    "exact\nat T = 1": _share(lambda row: row.proven),
    "exact in\ndigits": _in_digits,
    "settles\nat T": settles,
    "spike-fed\nMACs": _fed_share,
}
