"""Everything in this folder, by one command:

    python eval/cifar10_resnet20/regenerate.py --data FOLDER --weights FILE

FOLDER holds train.tar and test.tar of JPEG CIFAR-10, FILE the fp32 ResNet-20. Three recipes are run
(W4A4, W3A3, W2A2; all 10,000 test images), and for W4A4 a second evaluation of the same trained
network on the first 1,000 test images of the seeded order: whole-window layers, and even input with
n T = L. All training images are trained on, the last epoch counts, and beside each width the float
network is trained by the same schedule (the control arm). ``--seeds 0 1`` makes the chain for each
of them. Finished runs are kept, an interrupted training continues; runs lie under --runs, those of
seed 1 in its folder seed1. ``--pages`` writes page and picture from the stored rows alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean

from mt_convert.experiments.study import CHAIN, run_chain, run_command
from mt_convert.report.columns import LEGEND, markdown_table, share_text
from mt_convert.report.pictures import draw_forms, draw_grid, make_figure, write
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.report.tables import title
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
PICTURE = "spikes.png"
MORE = (
    "train=null",
    "evaluate.images=1000",
    "evaluate.whole_window=[true]",
    "evaluate.iso_level=true",
)


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder of train.tar and test.tar")
    parser.add_argument("--weights", help="the fp32 network, a file")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    arguments = parser.parse_args()
    if not arguments.pages:
        if not (arguments.data and arguments.weights):
            parser.error("--data FOLDER and --weights FILE are needed, or --pages")
        common = [f"data.root={arguments.data}", f"model.checkpoint={arguments.weights}"]
        made: list[Row] = []
        histories: dict[str, str] = {}
        for seed in arguments.seeds:
            runs = arguments.runs if seed == 0 else arguments.runs / f"seed{seed}"
            own = ["control=true", "data.validation_share=0", f"seed={seed}"]
            run_chain(runs, CHAIN[-1], *common, *own)
            for recipe in CHAIN:
                made += rows_of(runs / recipe)
                histories[key_of(made[-1])] = history(runs / recipe)
                if (recipe, seed) == (CHAIN[0], 0):
                    made += more_rows(runs, common)
        content = {**results_to_json(made), "histories": histories}
        write_json(HERE / "results.json", content)
    stored = read_json(HERE / "results.json")
    rows = results_from_json(stored)
    draw_forms(partial(draw, rows), HERE / PICTURE)
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page((HERE / "head.md").read_text(), rows, stored["histories"]))


def more_rows(runs: Path, common: Sequence[str]) -> list[Row]:
    """The second evaluation of the trained network of 4 bits."""
    out, stored = runs / f"{CHAIN[0]}_more", f"quantize.checkpoint={runs / CHAIN[0] / 'train'}"
    run_command("run", CHAIN[0], *common, stored, *MORE, "--out", str(out), "--resume")
    return rows_of(out)


def rows_of(out: Path) -> list[Row]:
    """The rows of a finished run."""
    return results_from_json(read_json(out / "results.json"))


def key_of(row: Row) -> str:
    """What tells networks apart here."""
    return f"W{row.weight_bits}A{row.act_bits}, seed {row.seed}"


def history(out: Path) -> str:
    """What training did, in words."""
    lines = (out / "train" / "log.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    said = f"{len(epochs)} epochs of quantization-aware training, "
    if epochs[-1]["validation_accuracy"] is None:
        return f"{said}the last of which counts"
    best = max(epochs, key=lambda epoch: epoch["validation_accuracy"])
    return (
        f"{said}{best['validation_accuracy']:.2f} % on the validation images at epoch "
        f"{best['epoch']}, whose weights were kept"
    )


def tables(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each network and number of images, as they were stored."""
    return [list(group) for _, group in groupby(rows, key=lambda r: (r.act_bits, r.seed, r.images))]


def exact_rows(rows: Sequence[Row]) -> list[Row]:
    """Of each network the row with n = L at T = 1 on all images."""
    most = max(row.images for row in rows)
    return [
        next(row for row in table if row.n >= row.levels and row.T == 1)
        for table in tables(rows)
        if table[0].images == most
    ]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each width: mean over the seeds, lowest and highest in brackets."""
    yield (
        "| width | seeds | ANN % | QANN = SNN % (n = L, T = 1) | control arm % | against the "
        "control, points | events per neuron |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    by_width = sorted(exact_rows(rows), key=lambda row: -row.act_bits)
    for bits, group in groupby(by_width, key=lambda row: row.act_bits):
        same = list(group)
        controls = [row.control_accuracy for row in same if row.control_accuracy is not None]
        gaps = [
            row.snn_accuracy - row.control_accuracy
            for row in same
            if row.control_accuracy is not None
        ]
        cells = (
            f"W{same[0].weight_bits}A{bits}",
            str(len(same)),
            spread([row.ann_accuracy or 0.0 for row in same]),
            spread([row.snn_accuracy for row in same]),
            spread(controls),
            spread(gaps, "+.2f"),
            spread([row.spikes_per_neuron for row in same]),
        )
        yield f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean, and lowest … highest where they differ."""
    if not values:
        return "–"
    text = f"{mean(values):{form}}"
    low, high = min(values), max(values)
    return text if low == high else f"{text} ({low:{form}} … {high:{form}})"


def page(head: str, rows: Sequence[Row], histories: Mapping[str, str]) -> str:
    """The page of the stored rows."""
    exact = {(row.act_bits, row.seed): row for row in exact_rows(rows)}
    text = [head.rstrip(), "", *summary(rows), ""]
    text += [f"![accuracy over events per neuron]({PICTURE})", ""]
    for table in tables(rows):
        own = exact[table[0].act_bits, table[0].seed]
        if table[0].images < own.images:
            text += [
                f"The same network on {table[0].images:,} of these images: layers that wait for "
                "their whole window, and even input with n T = L:",
                "",
                markdown_table(table),
            ]
            continue
        assert own.ann_accuracy is not None
        assert own.qann_accuracy is not None
        text += [
            f"## {title(table)}",
            "",
            f"`{own.run}`: {histories[key_of(own)]}. ANN {own.ann_accuracy:.2f} %, QANN "
            f"{own.qann_accuracy:.2f} % ({own.qann_accuracy - own.ann_accuracy:+.2f} points); "
            f"SNN with n = L at T = 1: {own.snn_accuracy:.2f} %, "
            f"{share_text(own.exact_share)} % of the images exact in every activation.",
            "",
            markdown_table(table),
        ]
    text.append(LEGEND[0].upper() + LEGEND[1:] + ".\n")
    return "\n".join(text)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over what was emitted: a line for each network and n, a point for each T."""
    figure, (axes,) = make_figure((6.2, 3.6), (1, 1))
    colours = {4: "#264653", 3: "#2a9d8f", 2: "#e76f51"}
    marks = {1: "o", 3: "s", 7: "^", 15: "D"}
    most = max(row.images for row in rows)
    shown = [row for row in rows if row.images == most and row.seed == 0]
    for (bits, n), group in groupby(shown, key=lambda row: (row.act_bits, row.n)):
        points = sorted((row.spikes_per_neuron, row.snn_accuracy) for row in group)
        axes.plot(
            *zip(*points, strict=True),
            marker=marks.get(n, "x"),
            ms=4,
            lw=1,
            color=colours.get(bits, "0.5"),
            label=f"{bits} bits, n = {n}",
        )
    float_accuracy = shown[0].ann_accuracy
    if float_accuracy is not None:
        axes.axhline(float_accuracy, color="0.4", lw=0.8, label="fp32 network")
        axes.set_ylim(max(0, float_accuracy - 30), float_accuracy + 2)
    axes.set_xlabel("events per neuron and image", fontsize=9)
    axes.set_ylabel("SNN accuracy, %", fontsize=9)
    draw_grid(axes)
    figure.legend(loc="outside right center", fontsize=7.5, frameon=False)
    write(figure, path)


if __name__ == "__main__":
    main()
