"""``mt-convert finetune``, and the stage of a run: the converted network learns; before and after.

The command leaves ``learn/`` (the training), ``network/`` (the fine-tuned network), ``inspect/``
(what its page shows), ``recipe.yaml``, ``results.json``, ``versions.json``, ``README.md`` and
``report.html``; and in the run's ``finetuned`` folder the conversions' numbers.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data import Splits, open_data
from ..errors import Fault, RecipeError
from ..evaluation.evaluate import convert_for
from ..evaluation.row_cache import RowCache
from ..evaluation.subject import Subject, network_digest
from ..evaluation.tuned_inspection import inspect_tuned
from ..report import tables
from ..report.columns import LEGEND, markdown_table
from ..report.html.parts import PAGE
from ..report.rows import Row, results_from_json, results_to_json
from ..spiking import archive
from ..spiking.model import SpikingModel
from ..system.devices import device_of
from ..system.peak_memory import store_peak, stored_peak
from ..system.processes import Processes, alone_in
from ..system.storage import atomic, digest, read_json, sweep, write_json
from ..training.finetune.finetune import finetune
from ..training.finetune.progressive_tandem import tandem
from ..training.spec import History
from .recipes.conversion import Recipe, dump, load_stored
from .recipes.finetune_job import FinetuneBlock
from .run_page import write_page
from .stages import versions
from .subjects import run_subject


def run(name: str, overrides: Sequence[str], out: Path | None) -> Path:
    """Fine-tune the network of the run folder ``name`` by its recipe's ``finetune`` block.

    Returns: the folder of the results, by default one in the run's own.
    Raises:
        RecipeError: not a run's folder; wrong values.
        MTConvertError: whatever the user can mend; finished work stays.
    """
    folder = Path(name)
    if not (folder / "recipe.yaml").is_file():
        hint = f"make one: mt-convert run RECIPE --out {name}"
        raise RecipeError("finetune takes the folder of a run", [Fault(name, "is none", hint)])
    stored, recipe = load_stored(folder), load_stored(folder, overrides)
    if recipe.finetune is None:
        recipe = load_stored(folder, [*overrides, "finetune={}"])
    assert recipe.finetune is not None
    splits = open_data(recipe.data, calibrates=False)
    kept = folder / "finetuned"  # what all trainings of this network are compared with
    out = out or kept / _name(recipe.finetune)
    calibrated = folder / "calibrate" / "network"
    start = calibrated if recipe.calibrate == stored.calibrate and calibrated.is_dir() else None
    with alone_in(out, Processes()):
        sweep(out, deep=False)
        subject = run_subject(folder, recipe, splits)
        subject = replace(subject, describe={**subject.describe, "run": recipe.name})
        rows, history = run_finetune(recipe, subject, splits, out, shared=kept, start=start)
        looked = _look_into(recipe, subject, out)
        more = {"neurobench": looked["account"]["neurobench"]} if "account" in looked else {}
        write_json(out / "results.json", results_to_json(rows) | more)
        _describe(out, recipe)
        with atomic(out / "README.md") as temporary:
            temporary.write_text(_page(rows, history.best_epoch))
        command = shlex.join(["mt-convert", "finetune", name, *overrides])
        write_json(out / "versions.json", versions() | {"command": command})
        write_page(out)
    return out


def _look_into(recipe: Recipe, subject: Subject, out: Path) -> dict[str, Any]:
    """What the page shows beside its rows; stored as that of a run is."""
    tuned = archive.load(out / "network").to(device_of(subject.qann))
    assert isinstance(tuned, SpikingModel)
    looked = inspect_tuned(subject, tuned, recipe.finetune_job().setting, recipe.energy)
    write_json(out / "inspect" / "inspection.json", looked)
    return looked


def show(out: Path, console: Console) -> None:
    """Print the table and what came of it."""
    rows = read_json(out / "results.json", results_from_json)
    console.print(tables.rich_table(rows))
    console.print(tables.finetune_sentence(rows), highlight=False, soft_wrap=True)
    console.print(f"the fine-tuned network is in {out / 'network'}", highlight=False)
    console.print(f"page: {out / PAGE}", highlight=False, soft_wrap=True)


def _name(block: FinetuneBlock) -> str:
    n = "L" if block.thresholds is None else block.thresholds
    words = [block.algorithm, f"n{n}", f"t{block.time_steps}", str(block.presentation)]
    words += [str(block.firing)] if block.firing is not None else []
    words += [] if block.signed else ["unsigned"]
    words += [block.surrogate] if block.surrogate is not None else []
    usual = FinetuneBlock()
    if sorted(block.learns) != sorted(usual.learns):
        words.append("learns-" + "-".join(sorted(block.learns) or ["nothing"]))
    words += [] if block.detach_reset else ["through-resets"]
    words += ["progressive"] if block.progressive else []
    words += [f"from-{block.teacher}"] * bool(block.train.distillation_weight)
    plain = replace(block.train, seed=usual.train.seed)
    if plain.numbers() != usual.train.numbers():
        words.append(digest(plain.numbers())[:8])
    words += [f"seed{block.train.seed}"] * bool(block.train.seed)
    return "_".join(words)


def _describe(out: Path, recipe: Recipe) -> None:
    with atomic(out / "recipe.yaml") as temporary:
        temporary.write_text(dump(recipe))


def _page(rows: Sequence[Row], best_epoch: int) -> str:
    kept = (
        f"The weights are those of epoch {best_epoch}, the best on the validation images."
        if best_epoch
        else "No epoch was better on the validation images: the network is the converted one."
    )
    said = f"{tables.finetune_sentence(rows)} {kept}"
    return f"# Fine-tuning\n\n{said}\n\n{markdown_table(rows)}\n{LEGEND}.\n"


def run_finetune(
    recipe: Recipe,
    subject: Subject,
    splits: Splits,
    folder: Path,
    *,
    shared: Path | None = None,
    start: Path | None = None,
) -> tuple[list[Row], History]:
    """Convert, fine-tune and evaluate as the recipe's ``finetune`` block says: the rows of the
    conversion and of what it became.

    Leaves in ``folder``: ``learn`` (the training, which continues where it stopped), ``network``
    (the fine-tuned network), and, unless a ``shared`` folder of several trainings is given, the
    cached rows of the table. ``start`` is the folder of the calibrated network, where the recipe
    calibrates and it is stored already.

    Raises:
        SpecError: a network or an algorithm that cannot learn so; no validation images.
        CheckpointError: the folder holds another training.
    """
    assert recipe.finetune is not None
    job, classes = recipe.finetune_job(), recipe.model.classes
    cache = RowCache(shared or folder, job.train.batch_size)
    if start is None:
        before = cache.rows(subject, [job.setting], "converted")
        snn, _ = convert_for(subject.qann, job.setting, subject.calibration)
    else:
        snn = archive.load(start)
        snn.to(device_of(subject.qann))
        before = cache.rows_of(subject, snn, job.setting)
    teacher = subject.qann if job.teacher == "qann" else subject.ann
    if not job.train.distillation_weight:
        teacher = None
    learn = folder / "learn"
    with store_peak(learn / "peak.json"):
        if job.progressive:
            done = tandem(
                snn,
                splits,
                job.train,
                learn,
                classes=classes,
                time_steps=job.setting.time_steps[0],
                teacher=teacher,
            )
        else:
            how = job.how()
            done = finetune(snn, splits, how, job.train, learn, classes=classes, teacher=teacher)
    after = cache.rows_of(subject, done.snn, job.setting)
    if cache.processes.first:
        archive.save(done.snn, folder / "network")
    epochs = done.history.rows
    finetuned_rows = [
        replace(
            row,
            seed=job.train.seed,
            algorithm=f"progressive_{job.algorithm}" if job.progressive else job.algorithm,
            digest=network_digest(done.snn),
            epochs=len(epochs),
            seconds_per_epoch=statistics.median(row.seconds for row in epochs),
            peak_mib=stored_peak(learn / "peak.json"),
        )
        for row in after
    ]
    return [*before, *finetuned_rows], done.history
