"""The page PEERS.md, from peers.json (and results.json, where it exists) alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from mt_convert.system.storage import atomic, read_json

Row = Mapping[str, Any]

TITLES = {
    "spikingjelly_rate": "SpikingJelly rate coding",
    "spikingjelly_ltb": "SpikingJelly LTB",
    "spikingjelly_sta": "SpikingJelly STA",
    "spikingjelly_td": "SpikingJelly TD",
    "sinabs": "sinabs",
}
NO_NEURONS = ("spikingjelly_td",)
CAUSES = 6
HEAD = """# The same architectures through the peers

{architectures} architectures, the smallest of each of {families} of timm's families: random
weights, evaluation mode, square images of the size in the table by family, {images} at a time. Each
peer was called as its own documentation and examples call it ([below](#how-they-were-called)), in a
process of its own with {seconds:g} s and {gigabytes:g} GB. Versions: {versions}.

A peer converts an architecture
- **fully**: there are spiking layers, and in one forward pass of the converted network no
  point-wise activation (ReLU, GELU, SiLU, sigmoid, …; module or function) ran outside them;
- **partly, in silence**: there are spiking layers, but activations are left, or several of them
  now share one spiking layer and its membrane, and nothing says so;
- **nothing, in silence**: no error, no spiking layer;
- **cannot run**: no error in the conversion, but one in the first forward pass;
- or it **raises**, the honest way to fail; exceeding time or memory counts here too.

Softmax, norms, pooling and products of activations are not held against a peer that leaves them
analog. Whether the spikes compute the right thing is not asked here, only whether there are any.

"""
BY_DESIGN = """
SpikingJelly's TD recipe puts operators over time in the place of modules and inserts no neuron, as
its documentation says. Those operators are counted for it in place of spiking layers, so *fully*
is no claim that anything spikes. sinabs documents that it converts `nn.ReLU` and nothing else.
"""
KEY = """
Cells name the outcome, the spiking layers there are, the activations left over and the spiking
layers that several activations share.

"""
TAIL = """
Regenerate with

    python eval/coverage/peers.py

and only this page, from `peers.json`, with `python eval/coverage/peers.py --page`.
"""


class Outcome(StrEnum):
    """What became of one architecture with one peer, in the page's words."""

    FULLY = "fully"
    PARTLY = "partly, in silence"
    NOTHING = "nothing, in silence"
    CANNOT_RUN = "cannot run"
    RAISES = "raises"


def outcome(row: Row) -> Outcome:
    """The one place where a row is judged.

    Example:
        >>> row = {"peer": "sinabs", "converted": True, "forward": True, "spiking_layers": 2}
        >>> str(outcome({**row, "shared_neurons": 0, "operators_left": {"gelu": 1}}))
        'partly, in silence'
    """
    if not row["converted"]:
        return Outcome.RAISES
    if not layers(row):
        return Outcome.NOTHING
    if not row["forward"]:
        return Outcome.CANNOT_RUN
    return Outcome.PARTLY if row["operators_left"] or row["shared_neurons"] else Outcome.FULLY


def layers(row: Row) -> int:
    """Spiking layers; of a recipe that inserts none by design, its operators over time."""
    return int(row["time_operators" if row["peer"] in NO_NEURONS else "spiking_layers"])


def smallest(rows: Iterable[Row]) -> dict[str, int]:
    """Architecture and image size of the smallest architecture of each family of results.json."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row["params"], row["architecture"])):
        if row["input_size"]:
            best.setdefault(row["family"], row)
    return {row["architecture"]: int(row["input_size"]) for row in best.values()}


def write(folder: Path) -> None:
    """Write ``folder``/PEERS.md from the JSON files of the folder."""
    ours = folder / "results.json"
    text = page(read_json(folder / "peers.json"), read_json(ours)["rows"] if ours.exists() else ())
    with atomic(folder / "PEERS.md") as temporary:
        temporary.write_text(text)


def page(peers: Mapping[str, Any], ours: Sequence[Row] = ()) -> str:
    """The page as Markdown.

    Shapes: ``peers`` is the content of peers.json, ``ours`` the rows of results.json.
    """
    timm_rows = [row for row in peers["rows"] if "/" not in row["architecture"]]
    rows = [row for row in timm_rows if row["stage"] != "build"]
    controls = [row for row in peers["rows"] if "/" in row["architecture"]]
    settings = peers["settings"]
    head = HEAD.format(
        architectures=len({row["architecture"] for row in rows}),
        families=len({row["family"] for row in rows}),
        images=settings["images"],
        versions=", ".join(f"{name} {v}" for name, v in settings["versions"].items()),
        **settings["limits"],
    )
    mine = {row["architecture"]: row for row in ours}
    parts = [
        head,
        counts(rows),
        not_built(timm_rows),
        BY_DESIGN,
        relu_only(rows),
        our_counts(rows, mine),
    ]
    parts += [
        "\n## Why they fail\n\n",
        causes(rows),
        "\n## By family\n",
        KEY,
        by_family(rows, mine),
    ]
    if controls:
        parts.append("\n## Control\n\nThe same calls on networks of the peers' own examples.\n\n")
        parts.append(by_family(controls, {}))
    parts += ["\n## How they were called\n", sources(peers["calls"]), TAIL]
    return "".join(parts)


def counts(rows: Sequence[Row]) -> str:
    """One line per peer: how many architectures came to which outcome."""
    lines = [("peer", *Outcome)]
    for peer in peers_of(rows):
        numbers = Counter(outcome(row) for row in rows if row["peer"] == peer)
        lines.append((TITLES.get(peer, peer), *(str(numbers[kind]) for kind in Outcome)))
    return table(lines)


def relu_only(rows: Sequence[Row]) -> str:
    """The same counts over architectures that the peers' classical recipes are made for."""
    chosen = [row for row in rows if set(row["activations"] or ("unknown",)) == {"relu"}]
    if not chosen:
        return ""
    number = len({row["architecture"] for row in chosen})
    text = f"\nThe {number} architectures among them whose only activation is ReLU:\n\n"
    return text + counts(chosen)


def not_built(rows: Sequence[Row]) -> str:
    """Names what no peer can be blamed for, because timm's own network did not run."""
    names = sorted({row["architecture"] for row in rows if row["stage"] == "build"})
    return f"\nNot built or not run by timm itself, and left out: {', '.join(names)}.\n" * bool(
        names
    )


def our_counts(rows: Sequence[Row], mine: Mapping[str, Row]) -> str:
    """A sentence on the same architectures from our own coverage run."""
    tried = [mine[name] for name in {row["architecture"]: 0 for row in rows} if name in mine]
    if not tried:
        return "\nNo coverage run of ours is stored beside this page yet.\n"
    converted = [row for row in tried if row["converted"]]
    exact = sum(bool(row["exact_t1"]) for row in converted)
    empty = sum(not row["spiking_layers"] for row in converted)
    return (
        f"\n`mt_convert` on the {len(tried)} of these that its stored coverage run holds: "
        f"{len(converted)} convert, {exact} of them exactly at T = 1, {empty} without a spiking "
        f"layer; {len(tried) - len(converted)} raise.\n"
    )


def causes(rows: Sequence[Row]) -> str:
    """The most frequent errors of each peer, names of single layers left out."""
    lines: list[tuple[str, ...]] = [("peer", "error", "architectures")]
    for peer in peers_of(rows):
        errors = [general(row["error"]) for row in rows if row["peer"] == peer and row["error"]]
        for text, number in Counter(errors).most_common(CAUSES):
            lines.append((TITLES.get(peer, peer), cell(text), str(number)))
        rest = len(errors) - sum(number for _, number in Counter(errors).most_common(CAUSES))
        if rest:
            lines.append((TITLES.get(peer, peer), "other errors", str(rest)))
    return table(lines)


def general(error: str) -> str:
    """An error without what belongs to one network alone: layer names and source lines.

    Example:
        >>> general("ValueError: no rule for 'blocks.0.act' of type GELU [timm/models/a.py:3]")
        "ValueError: no rule for '…' of type GELU"
    """
    return re.sub(r"'[^']*'", "'…'", re.sub(r" \[timm/[^\]]*\]$", "", error))


def by_family(rows: Sequence[Row], mine: Mapping[str, Row]) -> str:
    """One line per architecture, in the order of families' names; ours first where it is known."""
    peers = peers_of(rows)
    titles = [TITLES.get(peer, peer) for peer in peers]
    lines = [("family", "architecture", "px", *(["`mt_convert`"] if mine else []), *titles)]
    by_trial = {(row["architecture"], row["peer"]): row for row in rows}
    sizes = {(row["family"], row["architecture"]): row["input_size"] for row in rows}
    for (family, name), size in sorted(sizes.items()):
        theirs = [
            summary(by_trial[name, peer]) if (name, peer) in by_trial else "" for peer in peers
        ]
        own = [our_cell(mine.get(name))] if mine else []
        lines.append((family, name, str(size), *own, *theirs))
    return table(lines)


def summary(row: Row) -> str:
    """One cell: the outcome, the spiking layers and how many activations are left."""
    kind = outcome(row)
    left = sum((row["operators_left"] or row["modules_left"] or {}).values())
    match kind:
        case Outcome.FULLY:
            return f"**fully**, {layers(row)}"
        case Outcome.PARTLY:
            both = {"left": left, "shared": row["shared_neurons"]}
            rest = ", ".join(f"{number} {word}" for word, number in both.items() if number)
            return f"partly: {layers(row)}, {rest}"
        case Outcome.NOTHING:
            return f"nothing: {left} left"
        case Outcome.CANNOT_RUN:
            return f"cannot run ({layers(row)})"
    return "raises"


def our_cell(row: Row | None) -> str:
    """One cell of our column; the error in one line where there is one."""
    if row is None:
        return "not run"
    if not row["converted"]:
        return f"raises: {cell(row['error'] or 'no reason stored')}"
    share = row["spike_fed_mac_share"]
    fed = "" if share is None else f", {100 * share:.1f} % of MACs"
    return f"{'**exact**' if row['exact_t1'] else 'not exact'}, {row['spiking_layers']}{fed}"


def sources(calls: Mapping[str, str]) -> str:
    """The code that ran, as `peers.py` read it from its own functions."""
    return "".join(
        f"\n{TITLES.get(name, name)}:\n\n```python\n{code}```\n" for name, code in calls.items()
    )


def peers_of(rows: Sequence[Row]) -> list[str]:
    """The peers of the rows, in the order of `TITLES`."""
    present = {row["peer"] for row in rows}
    return [*(p for p in TITLES if p in present), *sorted(present - set(TITLES))]


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table whose first line is the header."""
    header, *body = lines
    rule = " | ".join("---" for _ in header)
    return "".join(f"| {line} |\n" for line in [" | ".join(header), rule, *map(" | ".join, body)])


def cell(text: str) -> str:
    """Text that cannot break out of its cell of a table."""
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
