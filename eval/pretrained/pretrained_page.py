"""Rows, page and pictures of the study of a pretrained network, from its stored cells alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from pretrained_cells import (
    FEW,
    MODEL,
    SETS,
    Answer,
    Cell,
    Way,
    difference,
    names,
    peers_of,
    title,
)

from mt_convert.neurons.ladder import Radix
from mt_convert.report.pictures import draw_forms, draw_grid, make_figure, write
from mt_convert.report.rows import Row, results_to_json
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.pretrained/2"
PICTURES = ("accuracy.png", "photograph.png")


def rows_of(cells: Mapping[str, Cell]) -> list[Row]:
    """All ways of all cells as rows of results."""
    rows = []
    for cell in cells.values():
        for way in cell.ways:
            answers = cell.answers or [way.answer]
            for answer in answers if way.T == 1 and cell.answers else [way.answer]:
                rows.append(_row(cell, way, answer, cells))
    return rows


def _row(cell: Cell, way: Way, answer: Answer, cells: Mapping[str, Cell]) -> Row:
    """One way of one cell on one set of images."""
    same = [item for item in cells["float"].answers if item.images == answer.images]
    ann = same[0].right[: len(answer.right)] if same else ""
    base = cells.get(cell.name.removesuffix(" steps"), cell)
    quantized = [item for item in base.answers if item.images == answer.images]
    qann = quantized[0].right[: len(answer.right)] if quantized else None
    ours = cell.bits is not None
    agree = None if qann is None else sum(map(str.__eq__, qann, answer.right)) / len(answer.right)
    exact = float(cell.notes["exact"]) if "exact" in cell.notes else None
    paid = way.paid
    spikes = answer.spikes if answer.spikes is not None else paid.spikes if paid else 0.0
    packets = answer.packets if answer.packets is not None else paid.packets if paid else None
    radix = way.ladder == "radix"
    return Row(
        model=MODEL,
        dataset=SETS[answer.images][1],
        images=len(answer.right),
        presentation="once" if ours else "every_step",
        mode="parallel",
        signed=ours and not radix and way.n < (cell.levels or 0),
        n=way.n,
        T=way.T,
        ann_accuracy=100 * ann.count("1") / len(ann) if ann else None,
        qann_accuracy=100 * qann.count("1") / len(qann) if qann else None,
        snn_accuracy=answer.accuracy,
        agreement=agree if ours else None,
        exact_share=exact,
        spikes_per_neuron=spikes,
        ladder=way.ladder if ours else "uniform",
        levels=cell.levels or 0,
        weight_bits=cell.bits[0] if cell.bits else None,
        whole_window=radix,
        settling_T=None,
        seed=0,
        method=f"mt_{way.ladder}" if ours else " ".join((cell.name, way.ladder)).strip(),
        run=cell.name,
        digest=cell.network,
        packets_per_neuron=packets,
        act_bits=cell.bits[1] if cell.bits else None,
        control_accuracy=cell.notes.get("control_accuracy"),
    )


def page(head: str, cells: Mapping[str, Cell]) -> str:
    """The page of the stored cells."""
    text = [head.rstrip(), ""]
    if "float" not in cells:
        return "\n".join([*text, "No cells are stored yet.", ""])
    float_answers = {item.images: item for item in cells["float"].answers}
    said = "; ".join(
        f"{SETS[word][1]}: {item.accuracy:.2f} % of {len(item.right):,}"
        for word, item in float_answers.items()
    )
    text += [f"The float network: {said}.", ""]
    if any(cell.ways for cell in cells.values()):
        text += [f"![accuracy over time steps]({PICTURES[0]})", ""]
    if "photograph" in cells:
        notes = cells["photograph"].notes
        text += [
            f"![what a channel emits]({PICTURES[1]})",
            "",
            f"What channel {notes['channel']} of `{notes['layer']}` emits on one photograph: its "
            "levels in one step with 255 thresholds, and as digits in four steps with three. "
            "On it, levels of the integer engine that are not the quantized network's: "
            + ", ".join(f"{share:.1e} in `{key}`" for key, share in notes["different"].items())
            + f" (first and largest), {notes['of all']['whole numbers']:.1e} of all. The quantized "
            f"network has {notes['of all']['float64']:.1e} other levels where it is computed in "
            "float64: so much hangs on the last bit of float32 sums behind each other.",
            "",
        ]
    text += list(_networks(cells, float_answers))
    text += ["", "## In several steps", "", *_steps(cells, float_answers)]
    text += ["", "## Other packages on the same photographs", "", *_peers(cells, float_answers)]
    missing = [name for name in names() if name not in cells]
    if missing:
        text += ["", f"Not made yet: {'; '.join(missing)}."]
    return "\n".join([*text, ""])


def _networks(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """Quantized and spiking at T = 1, beside the float network."""
    yield (
        "| network | images | float % | quantized = spiking, n = L, T = 1, % | difference, points "
        "(95 %) | only float right / only this | within | equal: float simulation; "
        "integer engine, levels that differ | spikes, packets "
        "a neuron | MACs fed by spikes | energy beside the quantized network: sums / with memory |"
    )
    yield "| --- | --- | ---: | ---: | --- | --- | --- | --- | --- | ---: | --- |"
    for name in names():
        cell = cells.get(name)
        if cell is None or not cell.answers or name == "float":
            continue
        control = cell.notes.get("control_accuracy")
        for place, answer in enumerate(cell.answers):
            own = floats[answer.images]
            change = difference(own.right, answer.right)
            bound = aim(cell)
            paid = cell.ways[0].paid if cell.ways and not place else None
            shown = own.right[: len(answer.right)]
            yield " | ".join(
                [
                    f"| {describe(cell)}",
                    f"{SETS[answer.images][1]}, {len(answer.right):,}",
                    f"{100 * shown.count('1') / len(shown):.2f}"
                    + (f" (control {control:.2f})" if control is not None else ""),
                    f"{answer.accuracy:.2f}",
                    f"{change.points:+.2f} ({change.low:+.2f} … {change.high:+.2f})",
                    f"{change.only_first} / {change.only_second}",
                    "" if bound is None else f"{bound:g}: {change.within(bound)}",
                    exactness(cell, answer),
                    f"{answer.spikes}, {answer.packets}",
                    f"{paid.fed:.4f}" if paid else "",
                    f"{paid.compute:.2f} / {paid.total:.2f} |" if paid else " |",
                ]
            )


def exactness(cell: Cell, answer: Answer) -> str:
    """What is equal to the quantized network, on how many photographs."""
    count = cell.notes.get("verified", 0)
    first = f"{count} of {count}" if cell.notes.get("exact") else f"not on {count}"
    share = 0.0 if answer.different is None else answer.different
    return f"{first}; {answer.equal} of {answer.compared}, {share:.1e}"


def describe(cell: Cell) -> str:
    """A network in words."""
    assert cell.bits is not None
    if "trained" in cell.name:
        return f"{title(cell.bits)}, trained"
    words = f"`{', '.join(cell.after)}`" if cell.after else "calibrated alone"
    return f"{title(cell.bits)}, {words}"


def aim(cell: Cell) -> float | None:
    """How far below the float network it may be, where something was asked."""
    wanted = {(8, 8): 0.5, (4, 8): 5.0, (4, 4): 1.5 if "trained" in cell.name else None}
    return wanted.get(cell.bits) if cell.bits else None


def _steps(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """Fewer thresholds than levels, over several steps."""
    made = [cells[name] for name in names() if name in cells and name.endswith("steps")]
    if not made:
        yield "Not made yet."
        return
    yield (
        "| network | thresholds | T | images | % | against T = 1, n = L: points (95 %) | spikes, "
        "packets a neuron | energy beside the quantized network: sums / with memory |"
    )
    yield "| --- | --- | ---: | ---: | ---: | --- | --- | --- |"
    for cell in made:
        base = cells.get(cell.name.removesuffix(" steps"))
        for way in cell.ways:
            own = base.answers[0].right if base else ""
            change = difference(own, way.answer.right) if own else None
            paid = way.paid
            yield " | ".join(
                [
                    f"| {describe(cell)}",
                    f"{way.ladder} {way.n}",
                    str(way.T),
                    str(len(way.answer.right)),
                    f"{way.answer.accuracy:.2f}",
                    f"{change.points:+.2f} ({change.low:+.2f} … {change.high:+.2f})"
                    if change
                    else "",
                    f"{paid.spikes}, {paid.packets}" if paid else "",
                    f"{paid.compute:.2f} / {paid.total:.2f} |" if paid else " |",
                ]
            )


def _peers(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """What other packages make of the float network."""
    made = [cells[name] for name in names() if name in cells and peers_of(name)]
    if not made:
        yield "Not made yet."
        return
    yield "| package | network given | T | images | % | against float, points (95 %) | said |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- |"
    for cell in made:
        (peer,) = peers_of(cell.name)
        form = cell.name[len(peer) + 1 :]
        if cell.refused is not None:
            yield f"| {peer} | {form} | – | – | – | – | {cell.refused.replace('|', '/')} |"
        for way in cell.ways:
            change = difference(floats["imagenette"].right, way.answer.right)
            left = ", ".join(f"{n} {kind}" for kind, n in cell.notes.get("left", {}).items())
            yield (
                f"| {peer} {cell.version} {way.ladder} | {form} | {way.T} | "
                f"{len(way.answer.right)} | {way.answer.accuracy:.2f} | {change.points:+.2f} "
                f"({change.low:+.2f} … {change.high:+.2f}) | "
                f"{f'activations left as they were: {left}' if left else ''} |"
            )


def stored_cells(out: Path = HERE) -> dict[str, Cell]:
    """What results.json holds, by name."""
    path = out / "results.json"
    stored = read_json(path)["cells"] if path.is_file() else []
    return {cell.name: cell for cell in map(Cell.from_json, stored)}


def draw_accuracy(cells: Mapping[str, Cell], path: Path) -> None:
    """Accuracy over T on the same photographs of Imagenette: ours, and other packages' networks."""
    figure, (axes,) = make_figure((6.2, 3.4), (1, 1))
    count = min(
        (len(way.answer.right) for cell in cells.values() for way in cell.ways), default=FEW
    )
    lines: dict[str, list[tuple[int, float]]] = {}
    for name in names():
        cell = cells.get(name)
        for way in cell.ways if cell else ():
            right = way.answer.right[:count]
            ladder = "n = L" if way.T == 1 and cell.answers else f"{way.ladder} n = {way.n}"
            word = f"{title(cell.bits)}, {ladder}" if cell.bits else f"{name} {way.ladder}".strip()
            lines.setdefault(word, []).append((way.T, 100 * right.count("1") / len(right)))
    for word, points in lines.items():
        times, values = zip(*sorted(points), strict=True)
        ours = word.startswith("W")
        axes.plot(times, values, "o-" if ours else "x--", ms=5, lw=1.2, label=word)
    own = [item.right[:count] for item in cells["float"].answers if item.images == "imagenette"]
    axes.axhline(100 * own[0].count("1") / len(own[0]), color="0.4", lw=0.8, label="float network")
    axes.set_xscale("log", base=2)
    ticks = sorted({time for points in lines.values() for time, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xlabel("time steps T", fontsize=9)
    axes.set_ylabel(f"right of {count} photographs, %", fontsize=9)
    axes.set_ylim(0, 103)
    draw_grid(axes)
    figure.legend(loc="outside right center", fontsize=7.5, frameon=False)
    write(figure, path)


def draw_photograph(cell: Cell, path: Path) -> None:
    """What one channel emits on one photograph: its levels in one step of n = L thresholds, and the
    same in four steps of three thresholds, digit by digit."""
    levels = torch.tensor(cell.notes["levels"])
    steps = Radix(3).digits(255)
    digits = [(levels.abs() // 4 ** (steps - 1 - t)) % 4 * levels.sign() for t in range(steps)]
    figure, panels = make_figure((9.0, 2.5), (1, 1 + steps))
    most = int(levels.abs().max())
    panels[0].imshow(levels, cmap="RdBu_r", vmin=-most, vmax=most)
    panels[0].set_title(f"n = 255, T = 1\n{int(levels.abs().sum()):,} thresholds", fontsize=8.5)
    for t, (axes, digit) in enumerate(zip(panels[1:], digits, strict=True)):
        axes.imshow(digit, cmap="RdBu_r", vmin=-3, vmax=3)
        crossed = int(digit.abs().sum())
        worth = 4 ** (steps - 1 - t)
        axes.set_title(f"n = 3, step {t + 1} (worth {worth})\n{crossed:,} thresholds", fontsize=8.5)
    for axes in panels:
        axes.set_axis_off()
    write(figure, path)


def store(cells: Mapping[str, Cell], out: Path = HERE) -> None:
    """Rows in the schema of all results; cells, of which they are made, beside them."""
    known = {name: cells[name] for name in names() if name in cells}
    rows = results_to_json(rows_of(known)) if "float" in known else results_to_json([])
    plain_cells = [dataclasses.asdict(cell) for cell in known.values()]
    write_json(out / "results.json", {**rows, "cells_schema": SCHEMA, "cells": plain_cells})
    if any(cell.ways for cell in known.values()) and "float" in known:
        draw_forms(partial(draw_accuracy, known), out / PICTURES[0])
    if "photograph" in known:
        draw_forms(partial(draw_photograph, known["photograph"]), out / PICTURES[1])
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page((HERE / "head.md").read_text(), known))
