"""``mt-convert eval``: runs, data sets, methods and calibrations side by side in one table.

Leaves ``cells/`` (one file for each finished result), ``results.json``, ``README.md`` with
its picture, and ``eval.json``, which says what was asked for; with ``errors`` images also
``analyses/``, ``errors.json`` and their page ``errors.md``: errors by cause, spikes where none
should be, energy.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..calibration.text import parse
from ..data.image_spec import data_labels
from ..errors import Fault, MTConvertError, SpecError, many
from ..evaluation.analysis import Analysis, analyses
from ..evaluation.energy.account import (
    FLOAT,
    QUANTIZED,
    Reference,
    costs_over_time,
    costs_page,
)
from ..evaluation.energy.prices import FLOAT_STATE, EnergySpec
from ..evaluation.energy.report import EnergyReport
from ..evaluation.errors.pictures import error_by_layer, histograms
from ..evaluation.peers.converters import PEERS
from ..evaluation.peers.network import available
from ..evaluation.row_cache import AnySetting, RowCache
from ..evaluation.settings import METHODS
from ..evaluation.stored import StoredNetwork
from ..evaluation.subject import Subject
from ..report import pictures, tables
from ..report.columns import LEGEND, markdown_table
from ..report.html.page import PageContent, render
from ..report.html.parts import PAGE, downloads
from ..report.rows import Row, results_from_json, results_to_json
from ..system.network_files import holds_network
from ..system.processes import Processes, alone_in
from ..system.progress import notice
from ..system.storage import atomic, read_json, sweep, write_json
from .recipes.conversion import EvaluateBlock, Recipe, load_recipe, load_stored
from .run_page import write_csv
from .stored_networks import stored_energy, stored_network, stored_rows
from .subjects import calibrates_on_images, own_prices, subjects_of

SHOWN = 12
"""Analyses that the page shows; the others are in its files."""
FILES = {
    "results.json": "the table, every number",
    "results.csv": "the table for a spreadsheet",
    "README.md": "the table as Markdown",
    "accuracy.png": "accuracy over time steps",
    "accuracy.pdf": "the same, for print",
    "accuracy.svg": "the same, to edit",
    "eval.json": "what was asked for",
    "errors.json": "errors by cause, and energy",
    "errors.md": "the same as Markdown, with pictures",
}
ANALYSES_SCHEMA = "mt_convert.analyses/1"


@dataclass(frozen=True)
class EvalOptions:
    """What is to be compared; the fields are the options of ``mt-convert eval``.

    Raises:
        SpecError: no network named, unknown methods or calibrations; all of them at once.
    """

    names: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    time_steps: tuple[int, ...] = (1, 2, 4, 8)
    levels: tuple[int, ...] = (1, 3, 15)
    methods: tuple[str, ...] = ("mt_signed",)
    calibrations: tuple[str, ...] = ("none",)
    calibrated_for: tuple[int, ...] | None = None
    act_bits: int | None = None
    images: int | None = None
    errors: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        faults = []
        if not self.names:
            hint = "name at least one folder of a run, or a recipe: mt-convert eval runs/digits"
            faults.append(Fault("RUN|RECIPE", "missing", hint))
        faults += [
            Fault("--method", name, "allowed: " + ", ".join((*METHODS, *PEERS)))
            for name in self.methods
            if name not in METHODS and name not in PEERS
        ]
        missing = {name: available(name) for name in self.methods if name in PEERS}
        faults += [
            Fault("--method", f"{name} cannot run here: {why}", "install it, or leave it out")
            for name, why in missing.items()
            if why is not None
        ]
        for text in self.calibrations:
            try:
                parse(text)
            except MTConvertError as error:
                faults += [
                    Fault("--calibrate", f"{item.where} {item.what}", item.hint)
                    for item in error.faults
                ]
        if faults:
            raise SpecError(f"{many(faults, 'fault', 'faults')} in what is to be compared", faults)

    def command(self) -> str:
        """The command line that asks for the same."""
        words = ["mt-convert", "eval", *self.names, *self.overrides]
        for option, values in (("--data", self.data), ("--method", self.methods)):
            words += [word for value in values for word in (option, value)]
        words += [word for item in self.calibrations[1:] for word in ("--calibrate", item)]
        numbers: tuple[tuple[str, Any], ...] = (
            ("--time-steps", self.time_steps),
            ("--levels", self.levels),
            ("--calibrated-for", self.calibrated_for),
            ("--act-bits", self.act_bits),
            ("--images", self.images),
            ("--errors", self.errors or None),
        )
        for option, value in numbers:
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [option, text]
        return shlex.join(words)

    def block(self) -> EvaluateBlock:
        """The same as the block of a recipe."""
        return EvaluateBlock(
            thresholds=self.levels,
            time_steps=self.time_steps,
            methods=self.methods,
            calibrations=self.calibrations,
            calibrated_for=self.calibrated_for,
            iso_level=False,
            images=self.images,
            batch_size=self.batch_size,
        )


def run(options: EvalOptions, out: Path) -> list[Row]:
    """Make what is missing of the table in ``out``; return all its rows.

    Raises:
        MTConvertError: whatever the user can mend; finished results stay.
    """
    with alone_in(out, Processes()):
        return _run(options, out)


def _run(options: EvalOptions, out: Path) -> list[Row]:
    recipes = [load_recipe(name, options.overrides) for name in options.data]
    for folder in ("", "cells", "references", "analyses"):
        sweep(out / folder, deep=False)
    cache = RowCache(out, options.batch_size)
    rows: list[Row] = []
    results: list[Analysis] = []
    energies: list[_Energy] = []
    labels, runs = _labels(recipes, options), _run_names(options.names)
    for name in options.names:
        spec = _prices(name, recipes, options)
        if stored_network(name) is not None:
            rows += stored_rows(
                name,
                recipes,
                () if recipes else options.overrides,
                options.time_steps,
                run=runs[name],
                count=options.images,
                batch_size=options.batch_size,
            )
            if options.errors and cache.processes.first:
                found, reference = stored_energy(
                    name,
                    recipes,
                    () if recipes else options.overrides,
                    options.time_steps,
                    options.errors,
                )
                title = f"{runs[name]}, as it is stored"
                if reference is FLOAT and spec == EnergySpec():
                    spec = FLOAT_STATE
                energies.append(_Energy(title, found, spec, stored=True, reference=reference))
            continue
        for number, plain in enumerate(_subjects(name, recipes, options)):
            describe = {**plain.describe, "dataset": labels[name][number], "run": runs[name]}
            subject = dataclasses.replace(plain, describe=describe)
            settings = _settings(name, subject, options)
            label = f"{name}, {subject.describe['dataset']}"
            rows += cache.rows(subject, settings, label)
            if options.errors and cache.processes.first:
                done = analyses(subject, settings, options.errors, out)
                results += done
                energies += [
                    _Energy(f"{item.title}, n = {n}", EnergyReport.from_json(stored), spec)
                    for item in done
                    for n, stored in item.energy.items()
                ]
    if cache.processes.first:
        write_json(out / "eval.json", dataclasses.asdict(options))
        write_json(out / "results.json", results_to_json(rows))
        _publish(rows, results, energies, out)
        _write_page(options, rows, results, energies, out)
    cache.processes.wait()
    return rows


@dataclass(frozen=True)
class _Energy:
    """What one network of a table costs; ``stored``: it is no setting of an analysis."""

    title: str
    report: EnergyReport
    spec: EnergySpec
    stored: bool = False
    reference: Reference = QUANTIZED

    def account(self) -> dict[str, Any]:
        """Its account, as plain data."""
        return {"title": self.title, **costs_over_time(self.report, self.spec, self.reference)}


def _prices(name: str, recipes: Sequence[Recipe], options: EvalOptions) -> EnergySpec:
    """The ``energy`` block of the recipe whose images are evaluated, where it says anything; else
    that of the network's own recipe."""
    asked = [item.energy for item in recipes if item.energy != EnergySpec()]
    if asked:
        return asked[0]
    if recipes and (holds_network(name) or stored_network(name) is not None):
        return EnergySpec()
    return own_prices(name, () if recipes else options.overrides)


def _settings(name: str, subject: Subject, options: EvalOptions) -> Sequence[AnySetting]:
    """All that is asked for; a spiking network that was stored is as it was converted.

    Raises:
        SpecError: nothing of it goes with learned thresholds.
    """
    if not isinstance(subject.qann, StoredNetwork):
        spec = subject.qann.spec
        settings = options.block().settings(spec.levels, spec.spacing)
        if not settings:
            fault = Fault(name, "has learned thresholds", "take --method mt_signed")
            raise SpecError("nothing that was asked for goes with learned thresholds", [fault])
        return settings
    notice(
        f"{subject.describe['model']} is converted already: it is evaluated as it is, without "
        "--levels and --method"
    )
    return subject.qann.settings(options.time_steps, options.calibrations, options.calibrated_for)


def _publish(
    rows: list[Row],
    results: list[Analysis],
    energies: Sequence[_Energy],
    out: Path,
) -> None:
    """The pages and their pictures."""
    pictures.draw_forms(partial(pictures.accuracy_over_time, rows), out / "accuracy.png")
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page(rows))
    if not results and not energies:
        return
    accounts = [item.account() for item in energies]
    stored = {"schema": ANALYSES_SCHEMA, "analyses": [item.to_json() for item in results]}
    write_json(out / "errors.json", stored | {"accounts": accounts})
    lines = ["# Errors by cause, and energy\n"]
    for number, item in enumerate(results, 1):
        lines.append(item.markdown())
        for n, T in dict(item.errors.settings).items():
            for kind, draw in (("errors", error_by_layer), ("rates", histograms)):
                name = f"{kind}_{number}_n{n}_T{T}.png"
                draw(item.errors, n, T, out / name)
                lines.append(f"![{kind} of {item.title}, n = {n}, T = {T}]({name})\n")
    for cost in energies:
        if cost.stored:
            lines.append(f"## {cost.title}\n\n{cost.report.markdown()}\n")
    lines.append(costs_page(accounts))
    with atomic(out / "errors.md") as temporary:
        temporary.write_text("\n".join(lines))


def _write_page(
    options: EvalOptions,
    rows: list[Row],
    results: Sequence[Analysis],
    energies: Sequence[_Energy],
    out: Path,
) -> None:
    """The page for a browser, and the rows for a spreadsheet."""
    write_csv(rows, out / "results.csv")
    content = PageContent(
        rows=rows,
        name="Conversion error over time steps",
        heading=tables.title(rows),
        command=options.command(),
        analyses=[
            {"title": item.title, "errors": item.errors.to_json()} for item in results[:SHOWN]
        ],
        accounts=[item.account() for item in energies],
        downloads=downloads(out, FILES),
    )
    with atomic(out / PAGE) as temporary:
        temporary.write_text(render(content), encoding="utf-8")


def _subjects(name: str, recipes: list[Recipe], options: EvalOptions) -> list[Subject]:
    """The subjects of one name."""
    overrides = () if recipes else options.overrides  # they are for the images that are evaluated
    calibrates = any(calibrates_on_images(item) for item in options.block().settings(1))
    return subjects_of(
        name, recipes, overrides, options.act_bits, options.images, calibrates=calibrates
    )


def _labels(recipes: list[Recipe], options: EvalOptions) -> dict[str, list[str]]:
    """What the data sets of each name are called, no two of them the same."""
    own: dict[str, list[Recipe]] = {}
    for name in options.names:
        if stored_network(name) is not None:
            own[name] = []
        elif recipes or holds_network(name):
            own[name] = recipes
        else:
            is_run = (Path(name) / "recipe.yaml").is_file()
            load = load_stored if is_run else load_recipe
            own[name] = [load(name, options.overrides)]
    everything = [item for name in options.names for item in own[name]]
    labels = iter(
        data_labels([item.data for item in everything], [item.name for item in everything])
    )
    return {name: [next(labels) for _ in own[name]] for name in options.names}


def _run_names(names: Sequence[str]) -> dict[str, str]:
    """What tables call each network: the last part of its name where that is no other's."""
    short = {name: Path(name).name.removesuffix(".yaml") for name in names}
    count = Counter(short[name] for name in dict.fromkeys(names))
    return {name: short[name] if count[short[name]] == 1 else name for name in names}


def page(rows: list[Row]) -> str:
    """The table as a Markdown page."""
    picture = "![accuracy and agreement over time steps](accuracy.png)"
    table = markdown_table(rows)
    lines = [
        "# Conversion error over time steps",
        "",
        *tables.accuracy_lines(rows),
        "",
        picture,
        "",
    ]
    return "\n".join([*lines, "## All columns", "", table, LEGEND + ".", ""])


def show(out: Path, console: Console) -> None:
    """Print the table of a finished comparison."""
    rows = read_json(out / "results.json", results_from_json)
    console.print(tables.accuracy_table(rows))
    shows_errors = read_json(out / "eval.json", lambda content: content["errors"])
    if shows_errors and (out / "errors.json").is_file():
        for item in read_json(out / "errors.json", _analyses):
            console.print(item.title, style="bold", highlight=False)
            console.print(item.errors.rich()[0])
        console.print(f"layers, causes, energy: {out}/errors.md", highlight=False, soft_wrap=True)
    console.print(f"every column: {out}/README.md", highlight=False, soft_wrap=True)
    console.print(f"page: {out / PAGE}", highlight=False, soft_wrap=True)


def _analyses(stored: Any) -> list[Analysis]:
    return [Analysis.from_json(item) for item in stored["analyses"]]
