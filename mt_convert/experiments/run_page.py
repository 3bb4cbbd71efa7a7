"""``report.html`` of a run of either kind, or of a fine-tuning, from its stored files. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, many
from ..report.html.page import PageContent, render
from ..report.html.parts import PAGE, downloads
from ..report.records import csv_text
from ..report.rows import Row, results_from_json
from ..report.tables import finetune_sentence, title
from ..system.network_files import EARLIER, NAMES
from ..system.storage import atomic, digest, read_json, reading
from .bench import pages as bench_pages
from .bench import rows as bench_rows

TRAINED = {"ann": "float network", "train": "quantized network", "control": "control"}
BENCH = "bench"
"""The folder in a run in which ``mt-convert bench RUN --out RUN/bench`` leaves its times."""
LOGS = {"spiking/learn": "spiking network", "finetune": "fine-tuning", "learn": "fine-tuning"}


def _files(stage: str, what: str) -> dict[str, str]:
    """The files of a stored network, by their names now and before."""
    parts = ("its graph", "its numbers")
    return {
        f"{stage}/{name}": f"{what}: {part}"
        for names in (NAMES, EARLIER)
        for name, part in zip(names, parts, strict=True)
    }


FILES = {
    "results.json": "the table, every number",
    "results.csv": "the table for a spreadsheet",
    "recipe.yaml": "the experiment, complete",
    "versions.json": "software, machine, images",
    "report/report.md": "the table as Markdown",
    "README.md": "the table as Markdown",
    **_files("convert", "the converted network"),
    "convert/report.json": "what was converted, and the verdict",
    **_files("train", "the quantized network"),
    **_files("spiking", "the spiking network"),
    **_files("network", "the fine-tuned network"),
    "learn/log.jsonl": "the training, epoch by epoch",
    "inspect/inspection.json": "spikes, errors by cause and energy behind this page",
    f"{BENCH}/results.json": "the times",
}


def write_page(run: Path) -> Path:
    """Make the page of a finished run again; return its file, or that of a table as it stands.

    Raises:
        CheckpointError: the run is not finished, or a file of it is damaged.
        OutputError: it cannot be written.
    """
    run = Path(run)
    if (run / PAGE).is_file() and not (run / "recipe.yaml").is_file():
        return run / PAGE  # of a table or a benchmark, which made it
    if not (run / "results.json").is_file():
        raise CheckpointError(f"{run} holds no finished run (results.json): finish it first")
    rows: list[Row] = read_json(run / "results.json", results_from_json)
    write_csv(rows, run / "results.csv")
    content = content_of(run, rows)
    with reading(run / "convert" / "report.json"):
        page = render(replace(content, inspection=None))
    if content.inspection:
        with reading(run / "inspect" / "inspection.json"):
            page = render(content)
    with atomic(run / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run / PAGE


def content_of(run: Path, rows: Sequence[Row]) -> PageContent:
    """All that a run stored, for its page."""
    converted = _json(run / "convert" / "report.json", _object) or {}
    with reading(run / "versions.json"):
        facts, command = _facts(run, rows), _command(run)
    recipe = _text(run / "recipe.yaml")
    name = _name(recipe) or run.name
    return PageContent(
        rows=rows,
        name=name,
        heading=title(rows),
        report=converted.get("report"),
        inspection=_json(run / "inspect" / "inspection.json"),
        training=_training(run),
        command=command or f"mt-convert run recipe.yaml --out runs/{name}",
        recipe=recipe,
        facts=facts,
        downloads=downloads(run, FILES),
        speed=_speed(run / BENCH / "results.json"),
        sentence=finetune_sentence(rows) if is_finetuning(run) else _training_sentence(rows),
    )


def _speed(path: Path) -> Mapping[str, Any] | None:
    """What a benchmark in the run's folder measured, if there is one."""
    if not path.is_file() or read_json(path).get("schema") != bench_rows.SCHEMA:
        return None
    return bench_pages.speed_of(read_json(path, bench_rows.benchmark_from_json))


def is_finetuning(folder: Path) -> bool:
    """Whether a folder is what ``mt-convert finetune`` leaves."""
    return (folder / "learn").is_dir() and not (folder / "spiking").is_dir()


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows, a line each, with all columns."""
    with atomic(path) as temporary:
        temporary.write_text(csv_text(Row, rows), encoding="utf-8")


def _training_sentence(rows: Sequence[Row]) -> str:
    """What a network trained from scratch is, in a sentence; empty for others."""
    if not rows or rows[0].qann_accuracy is not None:
        return ""
    row = rows[-1]
    return (
        f"Trained as a spiking network by {row.algorithm} for "
        f"{many(row.epochs or 0, 'epoch', 'epochs')}: "
        f"{row.snn_accuracy:.2f} % of {row.images} test images after T = {row.T} "
        f"({row.method}, {row.mode}, n = {row.n}). There is no quantized network to equal."
    )


def _training(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The log of each training."""
    logs = {words: run / stage / "log.jsonl" for stage, words in (TRAINED | LOGS).items()}
    logs |= {f"fine-tuning, {path.parent.name}": path for path in run.glob("finetune/*/log.jsonl")}
    return {words: _lines(path) for words, path in logs.items() if path.is_file()}


def _facts(run: Path, rows: Sequence[Row]) -> dict[str, str]:
    """What the numbers depend on."""
    versions = _json(run / "versions.json", _object) or {}
    packages: Mapping[str, str] = versions.get("packages", {})
    machine: Mapping[str, Any] = versions.get("machine", {})
    facts = {}
    if rows:
        facts["seed"] = "unknown" if rows[0].seed is None else str(rows[0].seed)
        facts["images"] = f"{rows[0].dataset}, {rows[0].images} test images"
    if "data" in versions:
        facts["digest of the images"] = digest(versions["data"])[:16]
    if packages:
        facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    if machine:
        facts["machine"] = ", ".join(
            f"{name} {value}" for name, value in machine.items() if value is not None
        )
    return facts


def _command(run: Path) -> str:
    """The command that made it, where it was stored."""
    return str((_json(run / "versions.json", _object) or {}).get("command", ""))


def _name(recipe: str) -> str:
    """The recipe's own name, from its text."""
    for line in recipe.splitlines():
        if line.startswith("name:"):
            return line.removeprefix("name:").strip().strip("'\"")
    return ""


def _json(path: Path, convert: Callable[[Any], Any] | None = None) -> Any:
    """A stored file; None where there is none."""
    return read_json(path, convert) if path.is_file() else None


def _object(stored: Any) -> Mapping[str, Any]:
    """What has keys."""
    if not isinstance(stored, dict):
        raise TypeError(f"a {type(stored).__name__}")
    return stored


def _text(path: Path) -> str:
    """A stored text; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """A log, a line each."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): train again") from error
