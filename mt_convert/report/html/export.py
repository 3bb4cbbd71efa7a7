"""The page of an export: what a foreign runtime answered, node by node, from stored verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...system.storage import atomic, read_json, reading
from .parts import (
    PAGE,
    Answer,
    Cell,
    Download,
    Part,
    PartsContent,
    Verdict,
    downloads,
    render_parts,
)
from .rendering import count

VERDICT = "verdict.json"
FILES = {
    "network.c": "the network as one C99 file",
    "network.onnx": "the network for onnxruntime",
    "network.qonnx.onnx": "the network for FINN",
    "network.json": "the network: its graph",
    "network.safetensors": "the network: its whole numbers",
    "reader.py": "a reader in NumPy",
    VERDICT: "what was compared, every number",
    **{f"{name}.{VERDICT}": "what was compared" for name in ("network.c", "network.onnx")},
    f"network.qonnx.onnx.{VERDICT}": "what was compared",
}


def export_page(
    name: str,
    verdicts: Mapping[str, Mapping[str, Any]],
    command: str = "",
    files: Sequence[Download] = (),
) -> str:
    """The page, from the verdict on each file that was written, by the file's name.

    Example:
        >>> verdict = {"target": "c", "exact": True, "runtime": "cc", "images": 4, "neurons": 2}
        >>> verdict |= {"on_images": [], "by_node": [], "sizes": {}}
        >>> "Exact as c" in export_page("digits", {"network.c": verdict})
        True
    """
    return render_parts(
        PartsContent(
            name="Export",
            heading=f"{name} as {', '.join(item['target'] for item in verdicts.values())}",
            parts=[_part(file, item, len(verdicts) > 1) for file, item in verdicts.items()],
            verdict=_verdict(list(verdicts.values())),
            glance=[answer for item in verdicts.values() for answer in _answers(item)],
            command=command,
            facts={
                f"{item['target']}: compared by": f"{item['runtime']}, with the integer engine"
                for item in verdicts.values()
            },
            downloads=files,
        )
    )


def _verdict(verdicts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether all that was written answers as the network does."""
    states: dict[str, list[str]] = {"no": [], "unknown": [], "yes": []}
    for item in verdicts:
        states[_state(item)].append(item["target"])
    state = next(name for name, named in states.items() if named)
    targets = ", ".join(states[state])
    words = {
        "yes": f"✓ Exact as {targets}: every level and every logit is the network's",
        "unknown": f"≈ Approximate as {targets}: its floats are the runtime's own, its whole "
        "numbers the network's, node by node",
        "no": f"✗ Not exact as {targets}: it does not answer as the network",
    }[state]
    note = (
        "It would be red if one number of one node differed. Every node is also run by itself: "
        "neurons on accumulators at each threshold and one beside it, sums of products at the ends "
        "of their range."
    )
    return Verdict(state, words, [_comparison(item) for item in verdicts], note)


def _state(verdict: Mapping[str, Any]) -> str:
    """``yes`` for an exact one, ``unknown`` for an approximation that loses what it may."""
    if verdict["exact"] or verdict.get("other_class") is None:
        return "yes" if verdict["exact"] else "no"
    rows = verdict["by_node"]
    red = any(row.get("far") if row["op"] == "float" else row["different"] for row in rows)
    return "no" if red else "unknown"


def _comparison(verdict: Mapping[str, Any]) -> str:
    """On how much it was tried."""
    on_images, by_node = _sum(verdict, "on_images"), _sum(verdict, "by_node")
    beside = sum(row["next_to"] for row in verdict["by_node"])
    return (
        f"{verdict['target']}: {count(on_images)} levels and logits on {count(verdict['images'])} "
        f"images; {count(by_node)} numbers node by node, {count(beside)} of them from accumulators "
        "at a threshold or one beside it."
    )


def _sum(verdict: Mapping[str, Any], key: str, column: str = "compared") -> int:
    """A column of what was compared, over all nodes."""
    return sum(int(row[column]) for row in verdict[key])


def _answers(verdict: Mapping[str, Any]) -> list[Answer]:
    """Size and speed of one file."""
    target = verdict["target"]
    said = [
        Answer(f"size-{target}", f"Size, {target}", _sizes(verdict["sizes"]) or "–"),
        Answer(f"neurons-{target}", f"Neurons, {target}", count(verdict["neurons"])),
    ]
    if (steps := verdict.get("time_steps", 1)) != 1:
        said.append(Answer(f"steps-{target}", f"Time steps, {target}", count(steps)))
    if (others := verdict.get("other_class")) is not None:
        lost = f"{count(others)} of {count(verdict['images'])} images get another class"
        said.append(Answer(f"lost-{target}", f"Lost, {target}", lost))
    if (us := verdict.get("us_per_image")) is not None:
        answer = f"{us:,.0f} µs per image, on 64 at once; not a benchmark"
        said.append(Answer(f"speed-{target}", f"Speed, {target}", answer))
    return said


def _sizes(sizes: Mapping[str, int]) -> str:
    """Sizes in words."""
    return ", ".join(f"{name.replace('_', ' ')} {count(size)}" for name, size in sizes.items())


def _part(file: str, verdict: Mapping[str, Any], several: bool) -> Part:
    """The nodes of one file."""
    seen = {row["name"]: row for row in verdict["on_images"]}
    lines = []
    for place, row in enumerate(verdict["by_node"]):
        shown = seen.get(row["name"]) if row["op"] in ("fire", "emit", "read_out") else None
        differ = row["different"] + (shown["different"] if shown else 0)
        lines.append(
            [
                Cell(row["name"], place),
                Cell(row["op"]),
                Cell("–", -1) if shown is None else _number(shown["compared"]),
                _number(row["compared"]),
                _number(row["next_to"]),
                Cell(count(differ), differ, classes="bad" if differ else "good"),
            ]
        )
    heads = ["node", "operator", "on images", "by itself", "next to thresholds", "different"]
    return Part(
        f"nodes-{verdict['target']}",
        f"Node by node: {file}" if several else "Node by node",
        heads=heads,
        rows=lines,
        text_columns=(0, 1),
        note="Numbers compared on images, where the runtime shows them, and of each node by "
        "itself; nodes in the order of execution.",
    )


def _number(value: int) -> Cell:
    """A number of things."""
    return Cell(count(value), value)


# ------------------------------------------------------------------------------------- files


def stored_verdicts(folder: Path) -> dict[str, Any]:
    """The verdicts that lie in a folder, by the file each is about; none where nothing was exported
    to it.

    Raises:
        CheckpointError: one of them is damaged.
    """
    files = sorted(folder.glob(f"*{VERDICT}")) if folder.is_dir() else []
    return {
        path.name.removesuffix(VERDICT).rstrip(".") or "network.safetensors": read_json(
            path, _check
        )
        for path in files
    }


def _check(stored: Any) -> Any:
    """What a verdict must say."""
    for key in ("target", "exact", "runtime", "images", "neurons", "on_images", "by_node", "sizes"):
        stored[key]
    return stored


def sentences(folder: Path) -> list[str]:
    """What the verdicts of a folder say, a line each."""
    lines = []
    for file, item in stored_verdicts(folder).items():
        word = {"yes": "exact", "unknown": "approximate", "no": "NOT EXACT"}[_state(item)]
        lines.append(
            f"{file}: {word} as {item['target']} in {item['runtime']}, compared on "
            f"{item['images']:,} images and node by node"
        )
    return lines


def write_page(folder: Path, name: str, command: str) -> Path:
    """Write the page of all that was exported to a folder; return its file."""
    verdicts = stored_verdicts(folder)
    with reading(folder / VERDICT):
        page = export_page(name, verdicts, command, downloads(folder, FILES))
    path = page_of(folder)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def page_of(folder: Path) -> Path:
    """The page's file: a run's folder has one of its own already."""
    return folder / ("export.html" if (folder / "results.json").is_file() else PAGE)
