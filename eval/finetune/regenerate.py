"""Everything in this folder, by one command:

    python eval/finetune/regenerate.py --data FOLDER --weights FILE

FOLDER holds train.tar and test.tar of JPEG CIFAR-10, FILE the fp32 ResNet-20. The W2A2 network of
eval/cifar10_resnet20 is trained if --runs lacks it; each fine-tuning is one `mt-convert finetune`.
Finished ones are kept, an interrupted one continues. ``--only NAME ...`` makes those whose name
holds one of these words, ``--pages`` writes the table and the page from what is there and names the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mt_convert.experiments.study import run_chain, run_command, study_parser
from mt_convert.report.columns import LEGEND, markdown_table
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.report.tables import title
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
RECIPE = "cifar10_resnet20_w2a2"
ALGORITHMS = ("bptt", "ottt_a", "dsr")
SHORT = ((1, 2), (1, 4), (3, 1))  # n, T
SEEDS = (0, 1)
EPOCHS = 1
IMAGES = 20_000  # of 50,000; 1,000 for validation among them
LR = {(1, 2): 0.005, (1, 4): 0.001, (3, 1): 0.0005}  # the more is lost, the more has to move


@dataclass(frozen=True)
class Training:
    """One fine-tuning."""

    algorithm: str
    n: int
    T: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder, below runs/finetune."""
        return f"{self.algorithm}_n{self.n}_t{self.T}_seed{self.seed}"

    def words(self) -> list[str]:
        """The overrides of the recipe."""
        lr = LR[self.n, self.T]
        train = f"{{epochs: {EPOCHS}, lr: {lr}, optimizer: adamw, weight_decay: 0.0}}"
        return [
            f"data.limit={IMAGES}",
            f"finetune={{thresholds: {self.n}, time_steps: {self.T}, train: {train}}}",
            f"finetune.algorithm={self.algorithm}",
            f"finetune.train.seed={self.seed}",
        ]


def trainings() -> Iterator[Training]:
    """The first seed of all, then the second."""
    for seed in SEEDS:
        for n, steps in SHORT:
            for algorithm in ALGORITHMS:
                yield Training(algorithm, n, steps, seed)


def main() -> None:
    """Run what is missing, then write the table and the page."""
    arguments = study_parser(__doc__, "parts of names").parse_args()
    common = [f"data.root={arguments.data}", f"model.checkpoint={arguments.weights}"]
    trained = arguments.runs / RECIPE
    if not arguments.pages:
        run_chain(arguments.runs, RECIPE, *common)
        for item in trainings():
            if not arguments.only or any(word in item.name for word in arguments.only):
                out = arguments.runs / "finetune" / item.name
                if not (out / "results.json").is_file():
                    run_command("finetune", str(trained), *common, *item.words(), "--out", str(out))
    if not arguments.only:
        write(*collect(arguments.runs / "finetune"), HERE)


def collect(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of all finished trainings, conversions once, and what is missing."""
    rows: dict[Row, None] = {}
    missing = []
    for item in trainings():
        path = folder / item.name / "results.json"
        if not path.is_file():
            missing.append(item.name)
            continue
        before, after = results_from_json(read_json(path))
        rows[before] = None
        rows[after] = None
    order = sorted(rows, key=lambda row: (row.n * row.T, row.n, row.algorithm != "none"))
    return order, missing


def write(rows: Sequence[Row], missing: Sequence[str], folder: Path) -> None:
    """``results.json`` and ``README.md``."""
    write_json(folder / "results.json", results_to_json(rows))
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(text((folder / "head.md").read_text(), rows, missing))


def text(head: str, rows: Sequence[Row], missing: Sequence[str]) -> str:
    """The page."""
    lines = [head.rstrip(), "", "## What came back", "", *sentences(rows), ""]
    if rows:
        lines += [title(list(rows)), "", markdown_table(rows), "", f"{LEGEND}.", ""]
    if missing:
        lines += [f"Not made yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def sentences(rows: Sequence[Row]) -> list[str]:
    """For each n and T and each algorithm: from where to where, and the share of the gap."""
    lines = []
    for n, steps in SHORT:
        here = [row for row in rows if (row.n, row.T) == (n, steps)]
        before = [row for row in here if row.algorithm == "none"]
        if not before:
            continue
        start, goal = before[0].snn_accuracy, before[0].qann_accuracy
        for algorithm in ALGORITHMS:
            ends = [row for row in here if row.algorithm == algorithm]
            if not ends:
                continue
            end = mean(row.snn_accuracy for row in ends)
            seconds = mean(row.seconds_per_epoch or 0 for row in ends)
            gap = goal - start
            share = f", {(end - start) / gap:.0%} of the gap" if gap > 0.05 else ""
            lines.append(
                f"- n = {n}, T = {steps}, {algorithm}: {start:.2f} % as converted, {end:.2f} % "
                f"fine-tuned ({'one seed' if len(ends) == 1 else f'mean of {len(ends)} seeds'}, "
                f"QANN {goal:.2f} %){share}; "
                f"{seconds:.0f} seconds an epoch."
            )
    return lines


if __name__ == "__main__":
    main()
