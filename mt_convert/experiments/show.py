"""``mt-convert show``: what a finished run says. No torch, unless a network is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import CheckpointError, many
from ..report import tables
from ..report.columns import legend
from ..report.html.export import page_of, sentences, stored_verdicts
from ..report.html.parts import PAGE
from ..report.records import csv_text
from ..report.rows import Row, results_from_json, results_to_json
from ..system.network_files import files_of, holds_network
from ..system.network_summary import SUMMARY, read_summary
from ..system.storage import json_text, read_json, reading
from .bench import rows as bench_rows
from .coverage import rows as coverage_rows
from .run_page import is_finetuning


def show(path: Path, console: Console) -> None:
    """Print the table of a run, a sweep or a benchmark, the verdicts of an export, or what was
    converted of a network.

    Raises:
        CheckpointError: ``path`` holds none of them.
    """
    path = Path(path)
    if (tell := _other_table(path)) is not None:
        tell(path, console)
        return
    if (path / "results.json").is_file():
        rows = stored_rows(path)
        if (path / "eval.json").is_file():
            console.print(tables.accuracy_table(rows))
            return
        console.print(tables.rich_table(rows))
        console.print(legend(rows, left_out=tables.PAGES_ALONE) + ".\n", style="dim")
        if (path / "recipe.yaml").is_file():  # else a table, of a study or of several runs
            console.print(_closing_sentence(path, rows), highlight=False, soft_wrap=True)
        if (path / PAGE).is_file():
            console.print(f"page: {path / PAGE}", highlight=False, soft_wrap=True)
        return
    if stored_verdicts(path):
        for line in sentences(path):
            console.print(line, highlight=False, soft_wrap=True)
        if page_of(path).is_file():
            console.print(f"page: {page_of(path)}", highlight=False, soft_wrap=True)
        return
    if _is_network(path):
        _show_network(path, console)
        return
    raise CheckpointError(_nothing(path))


def _other_table(path: Path) -> Callable[[Path, Console], None] | None:
    """What shows a table of other rows than a run's: a sweep, a benchmark; None for all else."""
    schema = _schema(path)
    if schema == coverage_rows.SCHEMA:
        return _show_coverage
    if schema == bench_rows.SCHEMA:
        return _show_benchmark
    if schema is None and _schema(path, "training.json") == bench_rows.TRAINING_SCHEMA:
        return _show_training_speed
    if schema is None and _schema(path, "layers.json") == bench_rows.LAYERS_SCHEMA:
        return _show_layer_times
    if schema is None and _schema(path, "busy.json") == bench_rows.THREADS_SCHEMA:
        return _show_thread_times
    return None


def _schema(path: Path, file: str = "results.json") -> str | None:
    """What the rows in a folder are, by their own word."""
    if not (path / file).is_file():
        return None
    stored = read_json(path / file)
    return str(stored.get("schema")) if isinstance(stored, dict) else None


def _show_coverage(path: Path, console: Console) -> None:
    """The rows of a sweep over architectures."""
    from .coverage import pages

    pages.show(coverage_rows.read_table(path / "results.json"), console)


def _show_benchmark(path: Path, console: Console) -> None:
    """The tables of a benchmark."""
    from .bench import pages

    pages.show(path, console)


def _show_training_speed(path: Path, console: Console) -> None:
    """What ``bench --training`` left."""
    from .bench import command

    command.show_training(path, console)


def _show_layer_times(path: Path, console: Console) -> None:
    """What ``bench --layers`` left."""
    from .bench import command

    command.show_layers(path, console)


def _show_thread_times(path: Path, console: Console) -> None:
    """What ``bench --busy`` left."""
    from .bench import command

    command.show_threads(path, console)


def _other_plain(path: Path, form: str) -> str | None:
    """The rows of a sweep or a benchmark as ``json`` or ``csv``; None for all else."""
    schema = _schema(path)
    if schema == coverage_rows.SCHEMA:
        table = coverage_rows.read_table(path / "results.json")
        text = csv_text(coverage_rows.CoverageRow, table.rows)
        return json_text(table.to_json()) if form == "json" else text
    if schema == bench_rows.SCHEMA:
        benchmark = read_json(path / "results.json", bench_rows.benchmark_from_json)
        text = csv_text(bench_rows.BenchRow, benchmark.rows)
        return json_text(benchmark.to_json()) if form == "json" else text
    return None


def plain(path: Path, form: str) -> str:
    """The rows of a run, or the report of a converted network, as ``json`` or ``csv``.

    Raises:
        CheckpointError: ``path`` holds neither; a network has no rows to give as ``csv``.
    """
    path = Path(path)
    if (text := _other_plain(path, form)) is not None:
        return text
    if (path / "results.json").is_file():
        rows = stored_rows(path)
        if form == "csv":
            return csv_text(Row, rows)
        more = read_json(path / "results.json")  # what stands beside the rows, such as neurobench
        return json_text(more | results_to_json(rows))
    if verdicts := stored_verdicts(path):
        if form == "csv":
            raise CheckpointError(f"{path} holds an export, which has no rows: use --json")
        return json_text(verdicts)
    if not _is_network(path):
        raise CheckpointError(_nothing(path))
    if form == "csv":
        raise CheckpointError(f"{path} holds a network, which has no rows: use --json")
    summary = _summary(path)
    with reading(path / SUMMARY):
        if summary["kind"] == "snn":
            return json_text({"report": summary["report"]})
        return json_text(summary["spec"] if summary["kind"] == "qann" else summary)


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
    """The conversion report, what a quantized network is, or one from scratch."""
    summary = _summary(path)
    with reading(path / SUMMARY):
        _print_summary(summary, console)


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    """What a network is."""
    if summary["kind"] == "snn":
        for table in tables.conversion_table(summary["report"]):
            console.print(table)
        for text in summary["sentences"]:
            console.print(text, highlight=False)
    elif summary["kind"] == "qann":
        spec = ", ".join(f"{key}={value}" for key, value in summary["spec"].items())
        console.print(f"a quantized network: {spec}", highlight=False)
    else:
        console.print(tables.scratch_table(summary))
        steps = many(int(summary["time_steps"]), "step", "steps")
        console.print(f"a network trained from scratch, for {steps}", highlight=False)
    for text in summary.get("warnings", ()):
        console.print(f"warning: {text}", style="yellow")


def _summary(path: Path) -> dict[str, Any]:
    """What a stored network is: as it was written beside it, else from the network itself.

    Raises:
        CheckpointError: it is damaged.
    """
    if (stored := read_summary(path)) is not None:
        return stored
    from ..training.archive import load, summary_of

    return summary_of(load(path))


def _is_network(path: Path) -> bool:
    """Whether a network lies there, as `save` writes it or as the Hub knows it."""
    return holds_network(path)


def _nothing(path: Path) -> str:
    """What is said of a folder with nothing to show."""
    partial = sorted(item.name for item in path.glob("*.partial")) if path.is_dir() else []
    hint = f"; unfinished: {', '.join(partial)}, continue with run --resume" if partial else ""
    return f"{path} holds no finished run (results.json) and no network (config.json){hint}"


def _closing_sentence(out: Path, rows: Sequence[Row]) -> str:
    """The closing sentence of a run of either kind; a table of ``eval`` has none."""
    if is_finetuning(out):
        sentence = tables.finetune_sentence(rows)
        return f"{sentence} The fine-tuned network is in {out / 'network'}."
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
    neurons = read_json(files_of(spiking_folder)[0], _count_neurons)
    ann = "" if row.ann_accuracy is None else f" (float network {row.ann_accuracy:.2f} %)"
    steps = "1 step" if row.T == 1 else f"{row.T} steps"
    return (
        f"{row.model} with {neurons} layers of {row.method} neurons ({row.mode}, "
        f"n = {row.n}), trained by {row.algorithm} for "
        f"{many(row.epochs or 0, 'epoch', 'epochs')}, weights of epoch "
        f"{epoch}: {row.snn_accuracy:.2f} % of {row.images} test images after {steps}{ann}."
    )


def _count_neurons(network: Any) -> int:
    """The layers of neurons in the description of a network."""
    network = network.get("network", network)
    kinds = {name: layer["type"] for name, layer in network["layers"].items()}
    return sum(kinds.get(node["target"]) == "MTNeuron" for node in network["graph"])
