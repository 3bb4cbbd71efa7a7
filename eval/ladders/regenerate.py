"""Everything in this folder, by one command:

    python eval/ladders/regenerate.py --runs RUN ... --data FOLDER

Each RUN is the folder of a finished run (cifar10_resnet20_w4a4, cifar10_resnet20_w2a2), FOLDER the
images of JPEG CIFAR-10 they were trained on, where they lie elsewhere now. On all test images:
accuracy, equality, packets and thresholds crossed of digits and of other ladders; both curves of
digits that are not there yet; time per image in the integer engine. What is measured is kept under
--parts, setting by setting, and networks that are stored already stay; ``--pages`` writes page and
picture from the stored rows alone, and ``--smoke`` makes all of it, run included, in seconds and
into --parts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mt_convert.data import batches
from mt_convert.evaluation.row_cache import RowCache
from mt_convert.evaluation.settings import Setting
from mt_convert.evaluation.subject import Subject
from mt_convert.evaluation.truncation import EVERY_LAYER, READ_OUT, Truncation, truncations
from mt_convert.experiments.study import run_command
from mt_convert.experiments.subjects import subjects_of
from mt_convert.integer_engine.model import integer
from mt_convert.neurons.ladder import Binary, PowerOfTwo, Radix, Uniform
from mt_convert.quantization.quantize import QuantizedModel
from mt_convert.report.pictures import draw_forms, write
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike
from mt_convert.system.progress import progress
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.ladders/1"
BASES = (1, 3, 15)  # thresholds of a digit
BATCH, TIMED, ROUNDS = 128, 128, 7
ON_SPIKES = 16  # images whose membranes add digits
CROSSED = "thresholds crossed"
MOST_STEPS = (1, 2, 4, 8, 16)


def digit_ladders(L: int) -> list[Radix]:
    """Digits of levels up to L that take more than one step, and those that take one."""
    return [Radix(n) for n in BASES if n <= L]


def settings(L: int) -> list[Setting]:
    """Digits, and what stands beside them."""
    bits = L.bit_length()
    window = {"signed": False, "whole_window": True}
    return [
        *(Setting(item, (item.digits(L),), **window) for item in digit_ladders(L)),
        Setting(Uniform(1), (L,), method="uniform window", **window),
        Setting(Uniform(L), (1,), signed=False, method="uniform"),
        Setting(Uniform(3), MOST_STEPS, method="uniform, signed"),
        Setting(Binary(bits), (1,), signed=False, method="binary"),
        Setting(PowerOfTwo(bits), MOST_STEPS, method="power of two, signed"),
        Setting(Uniform(1), MOST_STEPS, method="signed IF"),
    ]


# ------------------------------------------------------------------------------------- measuring


def measure(word: str, overrides: Sequence[str], parts: Path) -> dict[str, Any]:
    """All numbers of one run; those that are there already are read."""
    (subject,) = subjects_of(word, [], overrides, None, None)
    qann, name = subject.qann, Path(word).name
    L, folder = qann.spec.levels, parts / name
    cached = RowCache(folder, BATCH).rows(subject, settings(L), name)
    kept = {
        f"{what} {ladder.n}": keep(folder / f"{what}_{ladder.n}.json", make, subject, ladder)
        for ladder in digit_ladders(L)
        for what, make in (("curves", curves), ("time", times), ("membranes", membranes))
    }
    return {
        "name": name,
        "levels": L,
        "rows": results_to_json(cached)["rows"],
        "digits": [
            {
                "n": ladder.n,
                "T": ladder.digits(L),
                "curves": kept[f"curves {ladder.n}"],
                **kept[f"time {ladder.n}"],
                **kept[f"membranes {ladder.n}"],
            }
            for ladder in digit_ladders(L)
        ],
    }


def store(network: dict[str, Any], path: Path) -> None:
    """Put a network beside those that are stored, or in the place of the one of its name."""
    stored = read_json(path)["networks"] if path.is_file() else []
    networks = {item["name"]: item for item in [*stored, network]}
    write_json(path, {"schema": SCHEMA, "networks": list(networks.values())})


def keep(path: Path, make: Callable[[Subject, Radix], Any], subject: Subject, ladder: Radix) -> Any:
    """What is stored, or is made and stored."""
    if not path.is_file():
        write_json(path, make(subject, ladder))
    return read_json(path)


def in_digits(qann: QuantizedModel, ladder: Radix) -> SpikingModel:
    return convert(qann, ladder=ladder, whole_window=True)


def curves(subject: Subject, ladder: Radix) -> list[dict[str, Any]]:
    """Both curves over network steps."""
    shown = progress(batches(subject.test, BATCH), f"digits, n = {ladder.n}")
    points = truncations(in_digits(subject.qann, ladder), shown)
    return [point.to_json() for point in points]


def times(subject: Subject, ladder: Radix) -> dict[str, Any]:
    """Milliseconds per image in the integer engine, in turns with one step of all levels."""
    torch.set_num_threads(1)
    steps = ladder.digits(subject.qann.spec.levels)
    models = [
        (integer(convert(subject.qann)), 1),
        (integer(in_digits(subject.qann, ladder)), steps),
    ]
    shown = next(iter(batches(subject.test, TIMED)))[0]
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for (model, T), own in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(shown, T)
            own.append(time.perf_counter() - start)
    plain, digits = (1000 * statistics.median(own) / len(shown) for own in seconds)
    return {"backend": models[1][0].backend, "ms": digits, "ms_one_step": plain}


def membranes(subject: Subject, ladder: Radix) -> dict[str, Any]:
    """How many neurons say another level where their membranes add digits."""
    snn = in_digits(subject.qann, ladder)
    latency, images = snn.report.latency, next(iter(batches(subject.test, ON_SPIKES)))[0]
    assert latency is not None
    assert latency.steps is not None
    spikes = spike_by_spike(snn, images, time_steps=latency.steps).totals
    totals = simulate(snn, images, time_steps=latency.steps).totals
    different = sum(int((spikes[name] != total).sum()) for name, total in totals.items())
    compared = sum(total.numel() for total in totals.values())
    return {
        "membranes_compared": compared,
        "membranes_different": different,
        "latency": latency.latency(),
        "depth": latency.depth,
        "skips": [layers * latency.steps for _, layers in latency.skips],
    }


# ---------------------------------------------------------------------------- page and picture


def page(networks: Sequence[dict[str, Any]]) -> str:
    """The page, from stored numbers alone."""
    text = [(HERE / "head.md").read_text()]
    if networks:
        text.append("![accuracy over network steps, and spikes](ladders.png)\n")
    for network in networks:
        rows = rows_of(network)
        text.append(f"## {network['name']}: L = {network['levels']}\n")
        text.append(
            f"{rows[0].images:,} test images; quantized network {rows[0].qann_accuracy:.2f} %.\n"
        )
        text += ladder_table(rows)
        text += digit_table(network)
        text += curve_table(network)
    return "\n".join(text)


def rows_of(network: dict[str, Any]) -> list[Row]:
    """The rows of one network."""
    stored = {"schema": "mt_convert.results/1", "rows": network["rows"]}
    return results_from_json(stored)


def ladder_table(rows: Sequence[Row]) -> list[str]:
    """A line for each ladder and number of steps."""
    return [
        "| ladder | n | T | waits | SNN % | exact images | packets | thresholds crossed |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {title(row)} | {row.n} | {row.T} | {'yes' if row.whole_window else 'no'} | "
            f"{row.snn_accuracy:.2f} | {row.exact_share:.4f} | {row.packets_per_neuron:.3f} | "
            f"{row.spikes_per_neuron:.3f} |"
            for row in rows
        ),
        "",
    ]


def title(row: Row) -> str:
    """What a row is called."""
    return "radix" if row.ladder == "radix" else row.method


def digit_table(network: dict[str, Any]) -> list[str]:
    """Time, latency and membranes of digits."""
    lines = [
        "| radix n | T | steps for one image | longest wait of a skip | ms per image | "
        "of T = 1 | neurons that adding digits moves |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in network["digits"]:
        moved = item["membranes_different"] / max(1, item["membranes_compared"])
        cells = (
            *(item["n"], item["T"], f"{item['latency']} = {item['T']} x ({item['depth']} + 1)"),
            *(max(item["skips"], default=0), f"{item['ms']:.3f} ({item['backend']})"),
            *(f"{item['ms'] / item['ms_one_step']:.2f}", f"{moved:.2%}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def curve_table(network: dict[str, Any]) -> list[str]:
    """Digits that are not there yet."""
    lines = [
        "| radix n | what is early | digits | network step | SNN % |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for item in network["digits"]:
        for point in (Truncation(**stored) for stored in item["curves"]):
            early = "read-out" if point.curve == READ_OUT else "every layer"
            lines.append(
                f"| {item['n']} | {early} | {point.digits} | {point.network_step} | "
                f"{point.accuracy:.2f} |"
            )
    return [*lines, ""]


def draw(networks: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over network steps on the left, spikes per neuron on the right."""
    figure = Figure(figsize=(9.0, 3.4 * len(networks)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(networks), 2, squeeze=False)
    for network, (left, right) in zip(networks, panels, strict=True):
        rows, colours = rows_of(network), {1: "#264653", 3: "#2a9d8f", 15: "#e76f51"}
        for item in network["digits"]:
            for curve, style in ((EVERY_LAYER, "o-"), (READ_OUT, "s--")):
                points = [Truncation(**one) for one in item["curves"] if one["curve"] == curve]
                steps = [point.network_step for point in points]
                found = [point.accuracy for point in points]
                early = "every layer" if curve == EVERY_LAYER else "read-out"
                label = f"n = {item['n']}, {early}"
                left.plot(steps, found, style, color=colours[item["n"]], label=label, markersize=4)
        left.axhline(rows[0].qann_accuracy, color="0.5", linewidth=0.8, label="quantized network")
        left.set_xlabel("network step", fontsize=8)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel("accuracy, %", fontsize=8)
        left.set_title(f"{network['name']}, L = {network['levels']}", fontsize=9)
        left.legend(fontsize=6.5, frameon=False)
        last = {(title(row), row.n, row.T): row for row in rows if is_drawn(row, rows)}
        names = [f"{name}, n = {n}, T = {T}" for name, n, T in last]
        places = range(len(last))
        crossed = [row.spikes_per_neuron for row in last.values()]
        packets = [row.packets_per_neuron or 0.0 for row in last.values()]
        right.barh([at - 0.2 for at in places], crossed, 0.38, color="#e9c46a", label=CROSSED)
        right.barh([at + 0.2 for at in places], packets, 0.38, color="#264653", label="packets")
        right.set_yticks(list(places), names, fontsize=6.5)
        right.invert_yaxis()
        right.set_xlabel("per neuron and image", fontsize=8)
        right.legend(fontsize=6.5, frameon=False)
    for axes in panels.flat:
        axes.tick_params(labelsize=7)
    write(figure, path)


def is_drawn(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row is the first exact one of its ladder; the last where none is."""
    same = [item for item in rows if (title(item), item.n) == (title(row), row.n)]
    exact = [item for item in same if item.exact_share == 1]
    return row is (exact[0] if exact else same[-1])


# -------------------------------------------------------------------------------------- command


def main(words: Sequence[str] | None = None) -> None:
    """Make what is missing, write results, page and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", default=[], help="folders of finished runs")
    parser.add_argument("--data", help="folder of their images, where it is another one now")
    parser.add_argument("--parts", type=Path, default=Path("runs/ladders"))
    parser.add_argument("--out", type=Path, help="where results and page are written, if not here")
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    parser.add_argument(
        "--smoke", action="store_true", help="a run of seconds, all of it in --parts"
    )
    arguments = parser.parse_args(words)
    out = arguments.out or (arguments.parts if arguments.smoke else HERE)
    runs = list(arguments.runs)
    if arguments.smoke:
        runs = [str(arguments.parts / "digits_smoke")]
        run_command("run", "digits", "--smoke", "--out", runs[0], "--resume")
    if not arguments.pages:
        if not runs:
            parser.error("name folders of finished runs: --runs RUN ..., or try --smoke")
        data = [] if arguments.data is None else [f"data.root={arguments.data}"]
        for word in runs:
            store(measure(word, data, arguments.parts), out / "results.json")
    networks = read_json(out / "results.json")["networks"]
    draw_forms(partial(draw, networks), out / "ladders.png")
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page(networks))


if __name__ == "__main__":
    main()
