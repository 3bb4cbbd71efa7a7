"""The pages of a sweep, from its table alone: Markdown, and the heat map beside it. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ...report.records import csv_text
from ...system.storage import atomic, json_text
from .rows import CoverageRow, Extent, Table

ENOUGH = 0.95
PICTURE = "families.png"


def plain(table: Table, form: str) -> str:
    """The rows of a sweep as ``json`` or ``csv``.

    Example:
        >>> plain(Table({}, {}, ()), "csv").split(",")[0]
        'architecture'
    """
    return json_text(table.to_json()) if form == "json" else csv_text(CoverageRow, table.rows)


def write_pages(table: Table, folder: Path) -> None:
    """``README.md``, ``architectures.md`` and the picture as PNG, PDF and SVG, in ``folder``.

    Raises:
        OutputError: the folder cannot be written.
    """
    from ...report.pictures import draw_forms  # matplotlib, which a terminal does not need
    from .heat_map import draw

    pages = {"README.md": page(table), "architectures.md": architectures_page(table)}
    for name, text in pages.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text)
    draw_forms(partial(draw, table), folder / PICTURE)


def summary(table: Table) -> list[str]:
    """What was tried and what came of it, one sentence each.

    Example:
        >>> row = CoverageRow("vgg11", "vgg", converted=True, exact_t1=True)
        >>> for line in summary(Table({}, {"families": 98, "architectures": 1371}, (row,))):
        ...     print(line)
        1 of 98 families and 1 of 1,371 architectures of timm's registry were tried.
        1 of 1 families (100.0 %) convert, exact at T = 1, with every architecture tried.
        1 of 1 architectures (100.0 %) convert, 1 of these are exact at T = 1.
        0 of 1 converted architectures have 95 % or more of their MACs fed by spikes.
    """
    rows, families = table.rows, table.families
    whole = sum(all(row.proven for row in group) for group in families.values())
    converted = [row for row in rows if row.converted]
    proven = sum(row.proven for row in rows)
    fed = sum((row.spike_fed_mac_share or 0) >= ENOUGH for row in converted)
    total = table.known
    return [
        f"{len(families)} of {total.get('families', len(families))} families and {len(rows)} of "
        f"{total.get('architectures', len(rows)):,} architectures of timm's registry were tried.",
        f"{_of(whole, len(families))} convert, exact at T = 1, with every architecture tried.",
        f"{_of(len(converted), len(rows), 'architectures')} convert, {proven} of these are exact "
        "at T = 1.",
        f"{fed} of {len(converted)} converted architectures have 95 % or more of their MACs fed by "
        "spikes.",
        *_in_digits(converted),
        *_with_ladders(converted),
    ]


def _in_digits(converted: list[CoverageRow]) -> list[str]:
    """How many are exact in digits with one threshold, where that was tried."""
    tried = [row for row in converted if row.radix_exact is not None]
    steps = sorted({row.radix_steps for row in tried if row.radix_steps is not None})
    if not tried:
        return []
    exact = sum(row.radix_exact is True for row in tried)
    return [
        f"{exact} of {len(tried)} converted architectures are exact in digits with one threshold, "
        f"in windows of T = {', '.join(map(str, steps))}."
    ]


def _with_ladders(converted: list[CoverageRow]) -> list[str]:
    """How far spikes and whole numbers reach, and how far where functions are kept analog."""
    pairs = _extents(converted)
    if not pairs:
        return []
    now, kept = zip(*pairs, strict=True)
    first = [sum(item.maxima_only for item in items) for items in (now, kept)]
    whole = [sum(item.all_integer for item in items) for items in (now, kept)]
    return [
        f"Functions as ladders, tried on {len(pairs)}: in {first[0]} nothing but the first layer "
        f"and maxima is analog ({first[1]} with analog functions), {whole[0]} are whole numbers "
        f"throughout ({whole[1]})."
    ]


def _extents(rows: Iterable[CoverageRow]) -> list[tuple[Extent, Extent]]:
    """With ladders and without, of the architectures where both were tried."""
    pairs = [(row.extent, row.extent_without_ladders) for row in rows if row.converted]
    return [(now, kept) for now, kept in pairs if now is not None and kept is not None]


def _ladder_section(rows: Sequence[CoverageRow]) -> list[str]:
    """Analog operators and whole numbers with functions kept analog, and as ladders."""
    pairs = _extents(rows)
    if not pairs:
        return []
    lines = [
        "\n## Functions as ladders\n",
        f"The {len(pairs)} architectures on which it was tried, quantized twice: with every "
        "function kept analog (`functions: analog`), and as by default. *Whole numbers*: the "
        "share of MACs in layers and products that `mt.integer` runs in integers.\n",
        "| | functions analog | as ladders |",
        "| --- | ---: | ---: |",
    ]
    now, kept = zip(*pairs, strict=True)
    measures: tuple[tuple[str, Callable[[Extent], float], str], ...] = (
        ("analog operators", lambda item: sum(item.analog.values()), ""),
        ("operators on real numbers", lambda item: sum(item.real.values()), ""),
        ("only the first layer is analog", lambda item: item.first_layer_only, ""),
        ("only it and maxima, which pick among spikes", lambda item: item.maxima_only, ""),
        ("whole numbers throughout", lambda item: item.all_integer, ""),
        ("MACs fed by spikes", lambda item: item.spike_fed_mac_share, "%"),
        ("MACs in whole numbers", lambda item: item.integer_mac_share or 0.0, "%"),
    )
    for name, measure, unit in measures:
        sums = [sum(map(measure, items)) for items in (kept, now)]
        cells = [_percent(one / len(pairs)) + " %" if unit else f"{one:,}" for one in sums]
        lines.append(f"| {name}{', mean' if unit else ''} | {cells[0]} | {cells[1]} |")
    lines += [
        "\n| architecture | analog with functions analog | analog as ladders | spike-fed MACs % | "
        "MACs in whole numbers % |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for row in rows:
        for after, before in _extents([row]):
            fed, whole = (
                f"{_percent(getattr(before, name))} → {_percent(getattr(after, name))}"
                for name in ("spike_fed_mac_share", "integer_mac_share")
            )
            kinds = [_counts(item.analog) for item in (before, after)]
            lines.append(f"| {row.architecture} | {kinds[0]} | {kinds[1]} | {fed} | {whole} |")
    return lines


def _counts(kinds: Mapping[str, int]) -> str:
    """Operators and how often each occurs."""
    return ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())) or "–"


def _of(part: int, whole: int, what: str = "families") -> str:
    """A share as a sentence has it; never rounded up to all."""
    share = min(100 * part / max(1, whole), 100.0 if part == whole else 99.9)
    return f"{part} of {whole} {what} ({share:.1f} %)"


def show(table: Table, console: Console) -> None:
    """The rows, then the summary, on a terminal."""
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = (
        "architecture",
        "size",
        "neurons",
        "spike-fed",
        "exact",
        "settles",
        "digits",
        "seconds",
    )
    for name in heads:
        grid.add_column(name, justify="left" if name == "architecture" else "right", no_wrap=True)
    for row in table.rows:
        if row.converted:
            share = f"{_percent(row.spike_fed_mac_share)} %"
            cells = [_number(row.spiking_layers), share, _yes(row.exact_t1)]
            cells.append("–" if row.settling_t is None else f"T = {row.settling_t}")
            cells.append(f"T = {row.radix_steps}" if row.radix_exact else _yes(row.radix_exact))
            style = "green" if row.proven else "red"
        else:
            cells, style = ["not converted", "", "", "", ""], "red"
        size, seconds = _number(row.input_size), f"{row.seconds:.0f}"
        grid.add_row(row.architecture, size, *cells, seconds, style=style)
    console.print(grid)
    for row in table.rows:
        if not row.converted:
            console.print(f"{row.architecture}: {row.error}", markup=False, highlight=False)
    for line in summary(table):
        console.print(line, markup=False, highlight=False)


def page(table: Table) -> str:
    """The whole page: summary, how it was measured, families, failures, what spikes do not feed."""
    rows = table.rows
    inexact = [row for row in rows if row.converted and not row.exact_t1]
    no_digits = [row for row in rows if row.radix_exact is False]
    restless = [row for row in rows if row.proven and row.settling_t is None]
    low = [row for row in rows if row.converted and (row.spike_fed_mac_share or 0) < ENOUGH]
    parts = [
        "# Which architectures of timm convert\n",
        *(f"- {line}" for line in summary(table)),
        f"\n![converted, exact, settled and spike-fed, by family]({PICTURE})\n",
        "How many of the architectures tried; the latest T at which one settles; the smallest "
        "share of MACs fed by spikes. Dark blue: all, paler: some, orange: none.\n",
        "All architectures: [architectures.md](architectures.md). All numbers: results.json.",
        "\n## How\n",
        _how(table),
        "\n## Families\n",
        *_families(table),
        "\n## Not converted\n",
        *_list_reasons((row for row in rows if not row.converted), lambda row: str(row.error)),
        "\n## Converted, not exact at T = 1\n",
        *_list_reasons(inexact, lambda row: "differs: " + ", ".join(row.differs[:5])),
        "\n## Exact at T = 1, not settled with few thresholds\n",
        *_list_reasons(
            restless, lambda row: f"n = {row.thresholds}: not within {row.time_steps} steps"
        ),
        *_digit_section(no_digits),
        "\n## Less than 95 % of MACs fed by spikes\n",
        *_list_reasons(low, _unfed_text),
        "\n## Analog operators\n",
        *_analog(rows),
        *_ladder_section(rows),
        "",
    ]
    return "\n".join(parts)


def _digit_section(rows: list[CoverageRow]) -> list[str]:
    """What is not exact in windows of digits, if anything is not."""
    if not rows:
        return []
    named = _list_reasons(rows, lambda row: "differs: " + ", ".join(row.radix_differs[:5]))
    return ["\n## Not exact in digits\n", *named]


def _how(table: Table) -> str:
    """How every architecture was tried, in a paragraph."""
    settings: dict[str, Any] = table.settings
    size = settings.get("size")
    images = f"{settings.get('images')} random images"
    side = f"{size} pixels a side" if size else "the smallest side from 64 pixels up that runs"
    limits = settings.get("limits", {})
    versions = ", ".join(f"{name} {text}" for name, text in settings.get("versions", {}).items())
    return (
        f"Each architecture was built with random weights (seed {settings.get('seed')}) in a "
        f"process of its own ({limits.get('memory', 0):g} GiB, "
        f"{limits.get('seconds', 0) / 60:g} minutes at most), on {images} of {side}. Fresh "
        "networks hide blocks behind layer scales of 1e-6 or "
        "gains of 0, so parameters that are constant or nowhere above 0.001 were drawn anew, and "
        "batch norms took their statistics from the images. Quantized to "
        f"W{settings.get('weight_bits')}A{settings.get('act_bits')} (first and last layer 8 bits), "
        "converted with `convert(qann, verify=images)`: at T = 1 every neuron and all logits must "
        "be bit-equal to the quantized network, also next to thresholds; with a quarter of the "
        "thresholds, signed, all totals must settle on the same numbers. MACs are torch's count "
        "for one image at that size: on small images the first convolution, which sees the "
        f"encoded image, weighs more than on large ones. Versions: {versions}."
    )


def _families(table: Table) -> list[str]:
    """One line per family."""
    lines = [
        "| family | tried | converted | exact at T = 1 | settles at T | spiking layers | "
        "spike-fed MACs % | smallest tried | analog operators |",
        "| --- |" + " ---: |" * 6 + " --- | --- |",
    ]
    for family, rows in table.families.items():
        done = [row for row in rows if row.converted]
        steps = [row.settling_t for row in done if row.settling_t is not None]
        shares = [100 * (row.spike_fed_mac_share or 0) for row in done]
        kinds: Counter[str] = Counter()
        for row in done:
            kinds.update(row.analog.keys())
        lines.append(
            f"| {family} | {len(rows)} | {len(done)} | {sum(row.proven for row in rows)} | "
            f"{_span(steps)} | {_span([row.spiking_layers for row in done])} | "
            f"{_span(shares, '.1f')} | {rows[0].architecture} | {', '.join(sorted(kinds))} |"
        )
    return lines


def _span(values: Sequence[float], form: str = "d") -> str:
    """Smallest to largest, or the one value, or a dash."""
    if not values:
        return "–"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


def _list_reasons(rows: Iterable[CoverageRow], reason: Any) -> list[str]:
    """Architectures with a reason each, or that there are none."""
    lines = [
        f"| {row.architecture} | {row.family} | {row.input_size or '–'} | {_cell(reason(row))} |"
        for row in rows
    ]
    head = ["| architecture | family | size | reason |", "| --- | --- | ---: | --- |"]
    return [*head, *lines] if lines else ["None."]


def _cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _unfed_text(row: CoverageRow) -> str:
    """The share that spikes feed, and what they do not feed."""
    more = f"; and {len(row.not_spike_fed) - 3} more" if len(row.not_spike_fed) > 3 else ""
    what = "; ".join(row.not_spike_fed[:3])
    return f"{_percent(row.spike_fed_mac_share)} %: {what}{more}"


def _analog(rows: Sequence[CoverageRow]) -> list[str]:
    """How many architectures keep each kind of operator analog, and how many there are of it."""
    networks: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for row in rows:
        if row.converted:
            networks.update(row.analog.keys())
            places.update(row.analog)
    if not networks:
        return ["None."]
    return [
        "| operator | architectures | places |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {count} | {places[name]} |" for name, count in networks.most_common()),
    ]


def architectures_page(table: Table) -> str:
    """One line for each architecture."""
    known = any(row.radix_exact is not None for row in table.rows)
    head, rule = ("exact in digits | ", " --- |") if known else ("", "")
    lines = [
        "# All architectures tried\n",
        "| architecture | family | parameters | size | converted | spiking layers | "
        f"spike-fed MACs % | exact at T = 1 | settles at T | {head}seconds |",
        f"| --- | --- | ---: | ---: | --- | ---: | ---: | --- | ---: |{rule} ---: |",
    ]
    for row in table.rows:
        lines.append(
            f"| {row.architecture} | {row.family} | {_number(row.params)} | "
            f"{_number(row.input_size)} | {_yes(row.converted)} | {row.spiking_layers} | "
            f"{_percent(row.spike_fed_mac_share)} | {_yes(row.exact_t1)} | "
            f"{_number(row.settling_t)} | "
            + (f"{_yes(row.radix_exact)} | " if known else "")
            + f"{row.seconds:.0f} |"
        )
    return "\n".join([*lines, ""])


def _percent(share: float | None) -> str:
    """A share in percent, cut and not rounded, so that 95.0 is reached and 100.0 is all."""
    return "–" if share is None else format(int(1000 * share + 1e-9) / 10, ".1f")


def _yes(value: bool | None) -> str:
    """A yes or no, or that it is not known."""
    return "–" if value is None else "yes" if value else "no"


def _number(value: int | None) -> str:
    """A number with thousands apart, or a dash."""
    return "–" if value is None else f"{value:,}"
