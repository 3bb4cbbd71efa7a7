"""``mt-convert show``: what a finished run says. No torch, unless a network is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import CheckpointError
from ..report import tables
from ..report.columns import legend
from ..report.records import csv_text
from ..report.rows import Row, results_from_json, results_to_json
from ..system.storage import json_text, read_json
from .run_page import PAGE


def show(path: Path, console: Console) -> None:
    """Print the table of a run, or the conversion report of a converted network.

    Raises:
        CheckpointError: ``path`` holds neither.
    """
    path = Path(path)
    if (path / "results.json").is_file():
        rows = stored_rows(path)
        if (path / "eval.json").is_file():
            console.print(tables.accuracy_table(rows))
            return
        console.print(tables.rich_table(rows))
        console.print(legend(rows) + ".\n", style="dim")
        console.print(_closing_sentence(path, rows), highlight=False, soft_wrap=True)
        if (path / PAGE).is_file():
            console.print(f"page: {path / PAGE}", highlight=False, soft_wrap=True)
        return
    if _is_network(path):
        _show_network(path, console)
        return
    raise CheckpointError(_nothing(path))


def plain(path: Path, form: str) -> str:
    """The rows of a run, or the report of a converted network, as ``json`` or ``csv``.

    Raises:
        CheckpointError: ``path`` holds neither; a network has no rows to give as ``csv``.
    """
    path = Path(path)
    if (path / "results.json").is_file():
        rows = stored_rows(path)
        return json_text(results_to_json(rows)) if form == "json" else csv_text(Row, rows)
    if not _is_network(path):
        raise CheckpointError(_nothing(path))
    if form == "csv":
        raise CheckpointError(f"{path} holds a network, which has no rows: use --json")
    from ..spiking import archive
    from ..spiking.model import SpikingModel

    network = archive.load(path)
    is_spiking = isinstance(network, SpikingModel)
    return json_text({"report": network.report.to_json()} if is_spiking else network.spec.to_json())


def stored_rows(path: Path) -> list[Row]:
    """The rows of a run, a table or a study.

    Raises:
        CheckpointError: there are none.
    """
    rows: list[Row] = read_json(path / "results.json", results_from_json)
    if not rows:
        raise CheckpointError(f"{path / 'results.json'} has no rows: run the recipe again")
    return rows


def _show_network(path: Path, console: Console) -> None:
    """The conversion report, or what a quantized network is."""
    from ..spiking import archive
    from ..spiking.model import SpikingModel

    network = archive.load(path)
    if isinstance(network, SpikingModel):
        for table in tables.conversion_table(network.report.to_json()):
            console.print(table)
        console.print(str(network.report).splitlines()[0])
        warnings = network.report.warnings
    else:
        console.print(f"a quantized network: {network.spec}", soft_wrap=True)
        warnings = network.warnings
    for text in warnings:
        console.print(f"warning: {text}", soft_wrap=True, style="yellow")


def _is_network(path: Path) -> bool:
    """Whether a network lies there, as `save` writes it or as the Hub knows it."""
    return any((path / name).is_file() for name in ("network.json", "config.json"))


def _nothing(path: Path) -> str:
    """What is said of a folder with nothing to show."""
    partial = sorted(item.name for item in path.glob("*.partial")) if path.is_dir() else []
    hint = f"; unfinished: {', '.join(partial)}, continue with run --resume" if partial else ""
    return f"{path} holds no finished run (results.json) and no network (network.json){hint}"


def _closing_sentence(out: Path, rows: Sequence[Row]) -> str:
    """The closing sentence of a run of either kind; a table of ``eval`` has none."""
    if (out / "spiking").is_dir():
        return f"{from_scratch_sentence(rows, out / 'spiking')} All artefacts are in {out}."
    return conversion_sentence(out, out / "convert", rows) + "."


def conversion_sentence(out: Path, convert_folder: Path, rows: Sequence[Row]) -> str:
    """The closing sentence of a run that converted, from its artefacts, without its full stop."""
    path = convert_folder / "report.json"

    def said(content: Any) -> str:
        if content["report"]["verdict"] is None:
            raise CheckpointError(f"{path} has no verdict: convert again")
        return tables.summary(rows, content["report"], str(out))

    return str(read_json(path, said))


def from_scratch_sentence(rows: Sequence[Row], spiking_folder: Path) -> str:
    """What was trained, how, and how good it is behind its last step."""
    row = rows[-1]
    epoch = read_json(spiking_folder / "training.json", lambda stored: int(stored["best_epoch"]))
    neurons = read_json(spiking_folder / "network.json", _count_neurons)
    ann = "" if row.ann_accuracy is None else f" (float network {row.ann_accuracy:.2f} %)"
    steps = "1 step" if row.T == 1 else f"{row.T} steps"
    return (
        f"{row.model} with {neurons} layers of {row.method} neurons ({row.mode}, "
        f"n = {row.n}), trained by {row.algorithm} for {row.epochs} epochs, weights of epoch "
        f"{epoch}: {row.snn_accuracy:.2f} % of {row.images} test images after {steps}{ann}."
    )


def _count_neurons(network: Any) -> int:
    """The layers of neurons in the description of a network."""
    kinds = {name: layer["type"] for name, layer in network["layers"].items()}
    return sum(kinds.get(node["target"]) == "MTNeuron" for node in network["graph"])
