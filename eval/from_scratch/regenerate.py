"""Everything in this folder, by one command:

    python eval/from_scratch/regenerate.py --data FOLDER

FOLDER holds train.tar and test.tar of JPEG CIFAR-10; without it only the digits are trained. Each
cell is one `mt-convert run`; finished ones are kept, an interrupted one continues. ``--only NAME``
makes those whose name holds one of these words, ``--pages`` writes the table, the picture and the
page from what is there and names the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mt_convert.experiments.study import run_command, study_parser
from mt_convert.report.pictures import draw_forms
from mt_convert.report.pictures import write as write_picture
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
RECIPES = {"digits": "digits_plif", "cifar": "cifar10_jpeg_vgg7_plif"}
SEEDS = {"digits": (0, 1), "cifar": (0,)}
SHORTER = {"digits": (), "cifar": ("data.limit=20000", "ann.epochs=4", "train.epochs=4")}
NEURONS = ("plif", "lif")
WAYS = {
    "single": ("parallel", 1),
    "parallel": ("parallel", 4),
    "cascade": ("cascade", 4),
}
TIMES = (1, 2, 4)
WORDS = {
    "single": "one threshold",
    "parallel": "4 parallel thresholds (4 levels)",
    "cascade": "4 thresholds in cascade (15 levels)",
}


@dataclass(frozen=True)
class Training:
    """One network trained from scratch."""

    data: str
    neuron: str
    way: str
    T: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder, below runs/from_scratch."""
        return f"{self.data}_{self.neuron}_{self.way}_t{self.T}_seed{self.seed}"

    def words(self) -> list[str]:
        """The overrides of the recipe."""
        mode, n = self.way_of
        return [
            f"seed={self.seed}",
            f"spiking.neuron={self.neuron}",
            f"spiking.mode={mode}",
            f"spiking.n={n}",
            f"spiking.time_steps={self.T}",
            f"evaluate.time_steps=[{self.T}]",
        ]

    @property
    def way_of(self) -> tuple[str, int]:
        """Mode and n."""
        return WAYS[self.way]


def trainings() -> Iterator[Training]:
    """What tells most first: few steps, the first seed. At T = 1 nothing leaks, and lif is plif."""
    for data in RECIPES:
        for seed in SEEDS[data]:
            for T in TIMES:
                for neuron in NEURONS if T > 1 else NEURONS[:1]:
                    for way in WAYS:
                        yield Training(data, neuron, way, T, seed)


def main() -> None:
    """Run what is missing, then write table, picture and page."""
    arguments = study_parser(__doc__, "parts of names", weights=False).parse_args()
    folder = arguments.runs / "from_scratch"
    if not arguments.pages:
        for item in trainings():
            selected = not arguments.only or any(word in item.name for word in arguments.only)
            if selected and (item.data != "cifar" or arguments.data):
                run(item, folder, arguments.data)
    if not arguments.only:
        write(*collect(folder), HERE)


def run(item: Training, folder: Path, data: str | None) -> None:
    """One training, unless it is finished; the float network beside it is trained once."""
    out = folder / item.name
    if (out / "results.json").is_file():
        return
    own = [*([f"data.root={data}"] if item.data == "cifar" else []), *SHORTER[item.data]]
    beside = folder / f"{item.data}_ann"
    if not (beside / "results.json").is_file():  # one epoch of neurons behind a whole float one
        short = ["train.epochs=1", "spiking.time_steps=1", "evaluate.time_steps=[1]"]
        run_command("run", RECIPES[item.data], *own, *short, "--out", str(beside), "--resume")
    ann = [f"model.checkpoint={beside / 'ann' / 'model.safetensors'}", "ann=null"]
    words = [*own, *ann, *item.words(), "--out", str(out), "--resume"]
    run_command("run", RECIPES[item.data], *words)


def collect(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of all finished trainings, and the names of those that are missing."""
    rows, missing = [], []
    for item in trainings():
        path = folder / item.name / "results.json"
        if path.is_file():
            rows += results_from_json(read_json(path))
        else:
            missing.append(item.name)
    return rows, missing


def write(rows: Sequence[Row], missing: Sequence[str], folder: Path) -> None:
    """``results.json``, ``README.md`` and a picture."""
    write_json(folder / "results.json", results_to_json(rows))
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(text((HERE / "head.md").read_text(), rows, missing))
    if rows:
        draw_forms(partial(picture, rows), folder / "accuracy.png")


def way_of(row: Row) -> str:
    """Which way a row's neurons have their thresholds."""
    return "single" if row.n == 1 else row.mode


def cells(rows: Sequence[Row]) -> Mapping[tuple[str, str, str, int], list[Row]]:
    """The rows of all seeds, by data set, neuron, way and T; those of lif at T = 1 are plif's."""
    groups: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        methods = [f"mt_{name}" for name in NEURONS] if row.T == 1 else [row.method]
        for method in methods:
            groups.setdefault((row.dataset, method, way_of(row), row.T), []).append(row)
    return groups


def text(head: str, rows: Sequence[Row], missing: Sequence[str]) -> str:
    """The page."""
    lines = [head.rstrip(), ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        lines += section(dataset, here)
    if rows:
        lines += ["![accuracy over time steps](accuracy.png)", ""]
    if missing:
        lines += [f"Not made yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def section(dataset: str, rows: Sequence[Row]) -> list[str]:
    """One data set: what was found, then the table."""
    row, groups = rows[0], cells(rows)
    times = sorted({row.T for row in rows})
    seeds = max(len(item) for item in groups.values())
    several = "one seed" if seeds == 1 else f"mean of up to {seeds} seeds"
    lines = [f"## {dataset}: {row.model}, {row.images:,} test images", ""]
    lines += [*sentences(groups, dataset, times), ""]
    lines += [
        f"Test accuracy in %, {several} (lowest … highest where there are several); the float "
        f"network of the same architecture, trained alike, one seed: {row.ann_accuracy:.2f} %. "
        "Behind it spikes per neuron and image, over all T steps.",
        "",
        "| neuron | thresholds | " + " | ".join(f"T = {T}" for T in times) + " |",
        "| --- | --- |" + " ---: |" * len(times),
    ]
    for method in (f"mt_{name}" for name in NEURONS):
        for way, words in WORDS.items():
            shown = [cell(groups.get((dataset, method, way, T), [])) for T in times]
            lines.append(f"| {method.removeprefix('mt_')} | {words} | {' | '.join(shown)} |")
    return [*lines, ""]


def cell(rows: Sequence[Row]) -> str:
    """One cell of the table."""
    if not rows:
        return "–"
    each = [row.snn_accuracy for row in rows]
    spread = f" ({min(each):.2f} … {max(each):.2f})" if len(each) > 1 else ""
    return f"{mean(each):.2f}{spread}; {mean(row.spikes_per_neuron for row in rows):.2f}"


def sentences(
    groups: Mapping[tuple[str, str, str, int], list[Row]], dataset: str, times: Sequence[int]
) -> list[str]:
    """Whether more thresholds give more accuracy at as many steps, and how many steps they save."""
    lines = []
    for neuron in NEURONS:
        method = f"mt_{neuron}"

        def at(way: str, T: int, method: str = method) -> list[Row]:
            return groups.get((dataset, method, way, T), [])

        def accuracy(way: str, T: int) -> float | None:
            rows = at(way, T)
            return mean(row.snn_accuracy for row in rows) if rows else None

        def accuracies(way: str, T: int) -> str:
            spikes = mean(row.spikes_per_neuron for row in at(way, T))
            return f"{accuracy(way, T):.2f} %, {spikes:.2f} spikes"

        for way in ("parallel", "cascade"):
            gains = {
                T: own - one
                for T in times
                if (own := accuracy(way, T)) is not None
                and (one := accuracy("single", T)) is not None
            }
            if not gains:
                continue
            gained = ", ".join(f"{gain:+.2f} at T = {T}" for T, gain in gains.items())
            lines.append(f"- {neuron}, {WORDS[way]} against one: {gained} points.")
            first, last = accuracy(way, times[0]), accuracy("single", times[-1])
            if first is not None and last is not None and times[0] != times[-1]:
                than = "above" if first > last else "not above"
                lines.append(
                    f"- {neuron}, {WORDS[way]} at T = {times[0]} ({accuracies(way, times[0])}): "
                    f"{than} one threshold at T = {times[-1]} ({accuracies('single', times[-1])})."
                )
    return lines


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over T, a panel for each data set, a line for each neuron and way."""
    groups = cells(rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    figure = Figure(figsize=(1.5 + 4.2 * len(datasets), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {"single": "#777777", "parallel": "#4a7fb5", "cascade": "#c44e52"}
    styles = {"mt_plif": "-", "mt_lif": "--"}
    for k, dataset in enumerate(datasets):
        axes = figure.add_subplot(1, len(datasets), k + 1)
        for method, style in styles.items():
            for way, colour in colours.items():
                line = [
                    (T, mean(row.snn_accuracy for row in groups[dataset, method, way, T]))
                    for T in TIMES
                    if (dataset, method, way, T) in groups
                ]
                if line:
                    label = f"{method.removeprefix('mt_')}, {WORDS[way]}"
                    axes.plot(
                        *zip(*line, strict=True), style, marker="o", ms=4, color=colour, label=label
                    )
        ann = next(row.ann_accuracy for row in rows if row.dataset == dataset)
        if ann is not None:
            axes.axhline(ann, color="black", linestyle=":", linewidth=1.1, label="float network")
        axes.set_xscale("log", base=2)
        axes.set_xticks(TIMES, [str(T) for T in TIMES])
        axes.set_title(dataset, fontsize=10)
        axes.set_xlabel("time steps T")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    write_picture(figure, path)


if __name__ == "__main__":
    main()
