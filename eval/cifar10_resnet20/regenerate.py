"""Everything in this folder, by one command:

    python eval/cifar10_resnet20/regenerate.py --data FOLDER --weights FILE

FOLDER holds train.tar and test.tar of JPEG CIFAR-10, FILE the fp32 ResNet-20. Three recipes are run
(W4A4, W3A3, W2A2; all 10,000 test images), and for W4A4 a second evaluation of the same trained
network on the first 1,000 test images of the seeded order: whole-window layers, and even input with
n T = L. All training images are trained on, the last epoch counts, and beside each width the float
network is trained by the same schedule (the control arm). Finished stages are kept, an interrupted
training continues; runs lie under --runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mt_convert.experiments.study import CHAIN, run_command
from mt_convert.report.columns import LEGEND, markdown_table, share_text
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.report.tables import title
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
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
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    common = [f"data.root={arguments.data}", f"model.checkpoint={arguments.weights}"]
    trained = ["control=true", "data.validation_share=0"]
    tables: dict[str, tuple[list[Row], list[Row]]] = {}
    for wider, recipe in zip((None, *CHAIN), CHAIN, strict=False):
        out, more = arguments.runs / recipe, arguments.runs / f"{recipe}_more"
        start = [] if wider is None else [f"model.from_run={arguments.runs / wider}"]
        run_command("run", recipe, *common, *trained, *start, "--out", str(out), "--resume")
        tables[recipe] = rows(out), []
        if recipe == CHAIN[0]:
            stored = f"quantize.checkpoint={out / 'train'}"
            run_command("run", recipe, *common, stored, *MORE, "--out", str(more), "--resume")
            tables[recipe] = rows(out), rows(more)
    write(tables, arguments.runs)


def rows(out: Path) -> list[Row]:
    """The rows of a finished run."""
    return results_from_json(read_json(out / "results.json"))


def history(runs: Path, recipe: str) -> str:
    """What training did, epoch by epoch."""
    lines = (runs / recipe / "train" / "log.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    said = f"{len(epochs)} epochs of quantization-aware training, "
    if epochs[-1]["validation_accuracy"] is None:
        return f"{said}the last of which counts"
    best = max(epochs, key=lambda epoch: epoch["validation_accuracy"])
    return (
        f"{said}{best['validation_accuracy']:.2f} % on the 2,500 validation images at epoch "
        f"{best['epoch']}, whose weights were kept"
    )


def write(tables: dict[str, tuple[list[Row], list[Row]]], runs: Path) -> None:
    """results.json and the page."""
    everything = [row for pair in tables.values() for part in pair for row in part]
    write_json(HERE / "results.json", results_to_json(everything))
    page = [(HERE / "head.md").read_text().rstrip(), ""]
    for recipe, (main_rows, more_rows) in tables.items():
        exact = next(row for row in main_rows if row.n >= row.levels and row.T == 1)
        page += [
            f"## {title(main_rows)}",
            "",
            f"`{recipe}`: {history(runs, recipe)}. ANN {exact.ann_accuracy:.2f} %, QANN "
            f"{exact.qann_accuracy:.2f} % "
            f"({exact.qann_accuracy - exact.ann_accuracy:+.2f} points); "
            f"SNN with n = L at T = 1: {exact.snn_accuracy:.2f} %, "
            f"{share_text(exact.exact_share)} % of the images exact in every activation.",
            "",
            markdown_table(main_rows),
        ]
        if more_rows:
            page += [
                f"The same network on {more_rows[0].images} of these images: layers that wait for "
                "their whole window, and even input with n T = L:",
                "",
                markdown_table(more_rows),
            ]
    page.append(LEGEND[0].upper() + LEGEND[1:] + ".\n")
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text("\n".join(page))


if __name__ == "__main__":
    main()
