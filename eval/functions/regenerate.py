"""Everything in this folder, by one command:

    python eval/functions/regenerate.py

Two networks of functions are trained on the digits of scikit-learn, with functions as ladders and
kept analog, from the same seeds. What is finished under --runs is not run again; ``--only`` names
networks, ``--seeds`` other seeds; ``--pages`` writes the page from the stored rows alone, and
``--smoke`` makes all of it in seconds, into --runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mt_convert.data import batches
from mt_convert.evaluation.energy.measure import energy
from mt_convert.experiments.recipes.conversion import load_recipe
from mt_convert.experiments.run import run
from mt_convert.experiments.subjects import subjects_of
from mt_convert.integer_engine.tracing import trace
from mt_convert.quantization.spec import ANALOG, FUNCTIONS
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate
from mt_convert.system.storage import atomic, read_json, write_json
from mt_convert.training.accuracy import accuracy

HERE = Path(__file__).parent
SCHEMA = "mt_convert.functions/1"
NETWORKS = ("digits_vit", "digits_se")
BATCH = 128


@dataclass(frozen=True)
class Row:
    """One network, trained with its functions as ladders or analog.

    Units: percent of the test images; all counts per image.
    """

    network: str
    functions: str
    seed: int
    images: int
    ann_accuracy: float
    snn_accuracy: float
    exact: bool
    analog: int
    real: int
    neurons: int
    crossed: float
    packets: float
    synops: float
    macs: int
    comparisons: int
    picojoules: float
    ann_picojoules: float


def train(network: str, functions: str, seed: int, runs: Path, smoke: bool) -> Path:
    """The folder of the finished run."""
    folder = runs / f"{network}_{functions}_{seed}"
    if (folder / "results.json").is_file():
        return folder
    own = HERE / f"{network}.yaml"
    words = [f"quantize.functions={functions}", f"seed={seed}"]
    if own.is_file():
        words.append(f"model.architecture={own.with_suffix('.py')}:DigitsSE")
    recipe = load_recipe(str(own) if own.is_file() else network, words, smoke=smoke)
    return run(recipe, folder, resume=folder.is_dir())


def measure(network: str, functions: str, seed: int, folder: Path) -> Row:
    """What a run came to."""
    (subject,) = subjects_of(str(folder), [], [])
    snn = convert(subject.qann)
    images, labels = (torch.cat(parts) for parts in zip(*batches(subject.test, BATCH), strict=True))
    logits = simulate(snn, images, time_steps=1).logits[0]
    report = energy(snn, images, time_steps=1)
    (total,) = report.totals
    return Row(
        network,
        functions,
        seed,
        len(images),
        accuracy(subject.ann, subject.test, BATCH),
        100 * float((logits.argmax(1) == labels).float().mean()),
        torch.equal(logits, torch.cat([subject.qann(part) for part in images.split(BATCH)])),
        len(snn.report.analog),
        len(trace(snn).real),
        sum(row.neurons for row in report.rows),
        total.events,
        total.packets,
        total.synops,
        total.macs,
        total.comparisons,
        total.picojoules,
        total.baseline.ann_pj,
    )


def page(rows: Sequence[Row]) -> str:
    """The page, from stored rows alone."""
    heads = "network|functions|seed|float %|SNN %|equal|analog|on real numbers|neurons|"
    heads += "thresholds crossed|packets|additions|MACs left|comparisons|nJ|of the float network"
    names = heads.split("|")
    rules = ["---", "---", *["---:"] * (len(names) - 2)]
    lines = [f"| {' | '.join(cells)} |" for cells in (names, rules)]
    for row in rows:
        cells = (
            *(row.network, row.functions, row.seed, f"{row.ann_accuracy:.2f}"),
            *(f"{row.snn_accuracy:.2f}", "yes" if row.exact else "no", row.analog, row.real),
            *(f"{row.neurons:,}", f"{row.crossed:,.0f}", f"{row.packets:,.0f}"),
            *(f"{row.synops:,.0f}", f"{row.macs:,}", f"{row.comparisons:,}"),
            *(f"{row.picojoules / 1000:,.1f}", f"{row.picojoules / row.ann_picojoules:.1%}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([(HERE / "head.md").read_text().rstrip("\n"), "", *lines, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, write results and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/functions"))
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    parser.add_argument("--smoke", action="store_true", help="runs of seconds, all of it in --runs")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    out = arguments.runs if arguments.smoke else HERE
    path = out / "results.json"
    rows = [Row(**row) for row in read_json(path)["rows"]] if path.is_file() else []
    kept = {(row.network, row.functions, row.seed): row for row in rows}
    for network in () if arguments.pages else arguments.only:
        for seed in arguments.seeds:
            for functions in (ANALOG, *(word for word in FUNCTIONS if word != ANALOG)):
                folder = train(network, functions, seed, arguments.runs, arguments.smoke)
                kept[network, functions, seed] = measure(network, functions, seed, folder)
                ordered = [asdict(kept[key]) for key in sorted(kept)]
                write_json(path, {"schema": SCHEMA, "rows": ordered})
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page([kept[key] for key in sorted(kept)]))


if __name__ == "__main__":
    main()
