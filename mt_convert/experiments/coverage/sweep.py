"""Trials of many architectures, each in its own bounded process; stopped, it continues.

A finished row is its own file under ``rows/``; ``results.json`` holds all of them after each row.
``logs/`` keeps what a trial that failed had printed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, Fault, SpecError
from ...system.bounded import Limits, Outcome, Task, run_bounded
from ...system.plain_data import as_type
from ...system.progress import progress
from ...system.storage import read_json, reading, write_json
from .registry import Architecture, choose, count_parameters, families, matching, parameter_counts
from .rows import CoverageRow, Settings, Table
from .trial import trial

PRELOAD = (
    "mt_convert.experiments.coverage.trial",
    "torch.export._trace",
    "torch._inductor.decomposition",
)
VERSIONS = ("mt-convert", "torch", "timm", "brevitas")


@dataclass(frozen=True)
class Sweep:
    """Where the results go, how each architecture is tried, within which bounds."""

    out: Path
    settings: Settings
    limits: Limits

    def describe_row(self) -> dict[str, Any]:
        """Everything that a row depends on, as it stands beside it."""
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        settings = {**dataclasses.asdict(self.settings), "versions": versions}
        return {**settings, "modules": list(self.settings.modules)}


def plan(sweep: Sweep, patterns: Sequence[str], *, every: bool) -> list[Architecture]:
    """What to try: of each family that ``patterns`` match the smallest architecture, smallest
    first, then the names given whole; with ``every`` all that match.

    Sizes that this package does not know, and a choice depends on, are counted in child processes
    and kept in ``sizes.json``.


    Raises:
        SpecError: patterns that match nothing, with the nearest names; a module that cannot be
            imported.
        OutputError: the folder cannot be written.
    """
    for name in sweep.settings.modules:
        try:
            import_module(name)
        except ImportError as error:
            hint = "give its dotted name, and run where Python finds it"
            raise SpecError("cannot import", [Fault(name, str(error), hint)]) from error
    matches = matching(patterns, families())
    unclear = {
        family: names
        for family, names in matches.items()
        if every or any(name not in patterns for name in names)
    }
    return choose(matches, _sizes(sweep, unclear), lambda name: every or name in patterns)


def _sizes(sweep: Sweep, names_of: Mapping[str, Sequence[str]]) -> dict[str, int | None]:
    """Parameters of each architecture of families with more than one."""
    path, version = sweep.out / "sizes.json", importlib.metadata.version("timm")
    stored = _read_object(path)
    counted = {}
    if stored.get("timm") == version:
        with reading(path):
            counted = as_type(dict[str, int | None], stored["params"])
    counts: dict[str, int | None] = {**parameter_counts(), **counted}
    tasks = [
        Task(family, count_parameters, (unknown,), sweep.out / "logs" / f"sizes_{family}.txt")
        for family, names in names_of.items()
        if len(names) > 1 and (unknown := [name for name in names if name not in counts])
    ]
    if tasks:
        write_json(path, {"timm": version, "params": counts})  # before minutes of work
    outcomes = run_bounded(tasks, sweep.limits, PRELOAD)
    for outcome in progress(outcomes, "counting parameters by family", len(tasks)):
        counts.update(outcome.value or outcome.noted.get("params", {}))
        (sweep.out / "logs" / f"sizes_{outcome.key}.txt").unlink(missing_ok=True)
        write_json(path, {"timm": version, "params": counts})
    return counts


def run(sweep: Sweep, architectures: Sequence[Architecture], *, again: bool = False) -> Table:
    """Try all architectures that have no row of these settings yet; with ``again`` also those whose
    row says that they failed.

    Returns:
        All rows of these settings in the folder, those of earlier sweeps too.
    Raises:
        OutputError: the folder cannot be written.
    """
    rows = stored_rows(sweep)
    waiting = [
        item
        for item in architectures
        if item.name not in rows or (again and not rows[item.name].converted)
    ]
    by_name = {item.name: item for item in waiting}
    registry = families()
    count = {"families": len(registry), "architectures": sum(map(len, registry.values()))}
    table = _write_table(sweep, rows, count)
    outcomes = run_bounded(_tasks(sweep, waiting), sweep.limits, PRELOAD)
    try:
        for outcome in progress(outcomes, "architectures", len(waiting)):
            row = _row(by_name[outcome.key], outcome)
            rows[row.architecture] = row
            entry = {"settings": sweep.describe_row(), "row": row.to_json()}
            write_json(_row_file(sweep, row.architecture), entry)
            if row.converted:
                _log_file(sweep, row.architecture).unlink(missing_ok=True)
            table = _write_table(sweep, rows, count)
    finally:
        outcomes.close()
    return table


def stored_rows(sweep: Sweep) -> dict[str, CoverageRow]:
    """The rows of these settings that the folder holds."""
    settings = sweep.describe_row()
    entries = [_read_object(path) for path in sorted((sweep.out / "rows").glob("*.json"))]
    rows = []
    for entry in entries:
        if entry.get("settings") == settings and entry.get("row"):
            with suppress(CheckpointError):  # a damaged row is made again
                rows.append(CoverageRow.from_json(entry["row"]))
    return {row.architecture: row for row in rows}


def _tasks(sweep: Sweep, architectures: Sequence[Architecture]) -> Iterator[Task]:
    """One trial each."""
    for item in architectures:
        yield Task(item.name, trial, (item, sweep.settings), _log_file(sweep, item.name))


def _row(item: Architecture, outcome: Outcome) -> CoverageRow:
    """The row of a trial that ended in any way; one cut short keeps what it had measured."""
    columns = {"params": item.params, **outcome.noted, **(outcome.value or {})}
    if outcome.error is not None:
        columns |= {"converted": False, "error": outcome.error}
    return CoverageRow.from_json(
        {
            **columns,
            "architecture": item.name,
            "family": item.family,
            "seconds": round(outcome.seconds, 1),
            "memory": outcome.memory,
        }
    )


def _write_table(sweep: Sweep, rows: Mapping[str, CoverageRow], known: dict[str, int]) -> Table:
    """The table of all rows, stored."""
    settings = {**sweep.describe_row(), "limits": dataclasses.asdict(sweep.limits)}
    ordered = sorted(rows.values(), key=lambda row: (row.family, row.params or 0, row.architecture))
    table = Table(settings, known, tuple(ordered))
    write_json(sweep.out / "results.json", table.to_json())
    return table


def _row_file(sweep: Sweep, name: str) -> Path:
    """Where the row of an architecture is kept."""
    return sweep.out / "rows" / f"{name}.json"


def _log_file(sweep: Sweep, name: str) -> Path:
    """What its trial prints."""
    return sweep.out / "logs" / f"{name}.txt"


def _read_object(path: Path) -> dict[str, Any]:
    """A stored JSON object; empty where there is none, or none that can be read."""
    try:
        stored = read_json(path)
    except CheckpointError:
        return {}
    return stored if isinstance(stored, dict) else {}
