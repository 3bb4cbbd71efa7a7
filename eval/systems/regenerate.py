"""Everything in this folder, by one command:

    python eval/systems/regenerate.py

Each arm of each system is one recipe with other keys, run for each seed; finished ones are kept in
results.json, an interrupted command continues. ``--only NAME`` makes those whose name holds one of
these words, ``--pages`` writes the page from what is stored, ``--smoke`` runs the smoke variant of
every arm in a folder of its own and stores nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml

from mt_convert.experiments.recipes.catalogue import find_recipe
from mt_convert.experiments.recipes.from_scratch import load
from mt_convert.experiments.run import run
from mt_convert.report.rows import results_from_json
from mt_convert.system.storage import atomic, digest, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.systems/1"
SEEDS = (0, 1, 2)
LEFT_OUT = "larger networks and images; "


@dataclass(frozen=True)
class System:
    """One system: its recipe, its claim, and its arms; the first is with it, the second without.
    ``saves``: memory, weights or an analog input is what it claims to save, at no cost in accuracy.
    """

    name: str
    recipe: str
    claim: str
    left_out: str
    T: int
    arms: Mapping[str, tuple[str, ...]] = field(hash=False)
    saves: bool = False


BY_FINETUNE = ("finetune.presentation=every_step", "finetune.signed=false")
SYSTEMS = (
    System(
        "MT-SNN, parallel",
        "digits_plif",
        "more thresholds give more accuracy at few steps",
        "its own equations and surrogate, which were not read",
        2,
        {"4 parallel, PLIF": (), "one threshold, PLIF": ("spiking.n=1",)},
    ),
    System(
        "MT-SNN, cascade",
        "digits_mt_cascade",
        "more thresholds give more accuracy at few steps",
        "its own equations and surrogate, which were not read",
        2,
        {
            "3 in cascade, LIF, thresholds learned": (),
            "one threshold, LIF, learned": ("spiking.mode=parallel", "spiking.n=1"),
            "3 in cascade, not learned": ("spiking.learn_thresholds=false",),
            "3 parallel, learned": ("spiking.mode=parallel",),
        },
    ),
    System(
        "Noise Adaptor",
        "digits_noise_adaptor",
        "noise while training makes spikes that should not be do less harm",
        "its schedule, which was not read",
        4,
        {"stochastic rounding": (), "no noise": ("quantize.act_noise=none",)},
    ),
    System(
        "Dual-phase",
        "digits_dual_phase",
        "partial quantization, then calibration, converts in few steps",
        "choice by test accuracy, which the source makes; cutout and AutoAugment",
        4,
        {
            "both phases": (),
            "neither": (*("quantize.act_noise=none", "calibrate=null", "evaluate.time_steps=[4]"),),
            "phase II alone": ("quantize.act_noise=none",),
            "phase I alone": ("calibrate=null", "evaluate.time_steps=[4]"),
        },
    ),
    System(
        "Ultra-low latency",
        "digits_ultra_low_latency",
        "scaled thresholds and spikes, then fine-tuning, at T = 2",
        "its signed objective, whose errors cancel",
        2,
        {
            "alpha, beta, fine-tuned": (),
            "fine-tuned alone": ("calibrate=null", *BY_FINETUNE, "finetune.time_steps=2"),
            "alpha, beta alone": ("finetune=null",),
        },
    ),
    System(
        "Hybrid, STDB",
        "digits_hybrid_stdb",
        "balanced thresholds and a few epochs of STDB bring T down",
        "Poisson input and the delay of a layer, which converted networks do not have",
        8,
        {
            "0.7 of the maximum, STDB": (),
            "0.7 of the maximum alone": ("finetune=null",),
            "linear surrogate": ("finetune.surrogate=linear",),
        },
    ),
    System(
        "Its dynamics",
        "digits_poisson_delayed",
        "rate coding and layers a step apart, trained from the float network",
        "T = 100 and more",
        16,
        {
            "Poisson, delayed": (),
            "direct, at once": ("spiking.coding=direct", "spiking.delayed=false"),
            "Poisson, at once": ("spiking.delayed=false",),
        },
        saves=True,
    ),
    System(
        "DSR",
        "digits_dsr",
        "one pass back on representations trains as well as all steps",
        "thresholds that learn; a pre-activation ResNet",
        10,
        {
            "DSR, fires at 0.3": (),
            "BPTT, fires at 0.3": ("spiking.algorithm=bptt",),
            "DSR, fires at the threshold": ("spiking.fires_at=1",),
        },
        saves=True,
    ),
    System(
        "OTTT",
        "digits_ottt",
        "traces train as well as all steps, at a memory that does not grow with them",
        "neuron dropout; NF-ResNets",
        6,
        {
            "OTTT, update once": (),
            "BPTT": ("spiking.algorithm=bptt",),
            "OTTT, update in every step": ("spiking.algorithm=ottt_o",),
            "plain weights": ("spiking.standardize_weights=false",),
            "no MSE share": ("train.mse_weight=0",),
        },
        saves=True,
    ),
    System(
        "Tandem",
        "digits_tandem",
        "layer by layer the network adapts to counts",
        "output layers on counts; 6 epochs of patience",
        8,
        {
            "layer by layer": (),
            "converted alone": ("finetune=null",),
            "all layers at once": (
                *("finetune.progressive=false", "finetune.train.patience=null"),
            ),
        },
    ),
    System(
        "TT-SNN",
        "digits_tensor_train",
        "trains of tensors train with fewer weights at a negligible loss",
        "MS-ResNets; ranks by EVBMF",
        4,
        {
            "PTT": (),
            "dense": ("spiking.tensor_train=null",),
            "STT": ("spiking.tensor_train.form=stt",),
            "HTT": ("spiking.tensor_train.form=htt",),
        },
        saves=True,
    ),
    System(
        "Sub-bit weights",
        "digits_subbit",
        "fewer than one bit a weight",
        "binary activations; distillation; its two stages",
        1,
        {
            "0.56 bits": (),
            "2 bits": ("quantize.weights=uniform", "quantize.weight_bits=2"),
            "1 bit (all 512 kernels)": ("quantize.codeword_bits=9",),
        },
        saves=True,
    ),
    System(
        "FATNN",
        "digits_fatnn",
        "unequal thresholds, learned, at two bits",
        "its fast inner product, which no engine here runs",
        1,
        {
            "learned thresholds": (),
            "equal steps": ("quantize.spacing=equal",),
            "learned, 2-bit weights": ("quantize.weights=uniform", "quantize.weight_bits=2"),
        },
    ),
    System(
        "S-MNN (read-out)",
        "digits_leaky_read_out",
        "linear recurrences in linear time; used for read-outs and traces",
        "its differential equations, for which there is no use here",
        4,
        {
            "leaky, learned": (),
            "mean of the steps": (*("spiking.read_out_tau=null", "spiking.learn_read_out=false"),),
        },
        saves=True,
    ),
)


@dataclass(frozen=True)
class Cell:
    """What one arm gave for one seed. ``recipe``: a digest of the recipe that it was."""

    system: str
    arm: str
    seed: int
    recipe: str
    seconds: float
    T: int
    accuracy: float
    ann_accuracy: float | None
    qann_accuracy: float | None
    spikes_per_neuron: float
    seconds_per_epoch: float | None
    peak_mib: float | None


def cells() -> Iterator[tuple[System, str, int]]:
    """What tells most first: with and without, seed by seed; then the other arms."""
    for first, last in ((0, 2), (2, None)):
        for seed in SEEDS:
            for system in SYSTEMS:
                for arm in list(system.arms)[first:last]:
                    yield system, arm, seed


def words(system: System, arm: str, seed: int) -> list[str]:
    """The overrides of an arm."""
    return [f"seed={seed}", *system.arms[arm]]


def main() -> None:
    """Run what is missing, storing each result as it comes; then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", help="parts of names of systems")
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    parser.add_argument("--smoke", action="store_true", help="try every arm, store nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [
        (system, arm, seed)
        for system, arm, seed in cells()
        if not arguments.only or any(part in system.name for part in arguments.only)
    ]
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            for system, arm, seed in chosen:
                if seed == SEEDS[0]:
                    print(measure(system, arm, seed, Path(folder), smoke=True), flush=True)
        return
    for system, arm, seed in chosen if not arguments.pages else ():
        stored = stored_cells()
        same = identity(system, arm, seed)
        key = (system.name, arm, seed)
        if any((c.system, c.arm, c.seed) == key and c.recipe == same for c in stored):
            continue
        cell = measure(system, arm, seed, arguments.runs / "systems")
        kept = [c for c in stored if (c.system, c.arm, c.seed) != key]
        store([*kept, cell])
        write_page()
    store(stored_cells())
    write_page()


def measure(system: System, arm: str, seed: int, runs: Path, smoke: bool = False) -> Cell:
    """Run one arm. Those of a recipe and a seed share a folder, so that what they share is kept."""
    recipe = load(system.recipe, words(system, arm, seed), smoke)
    started = time.monotonic()
    out = run(recipe, runs / f"{system.recipe}_seed{seed}", resume=True, overwrite=True)
    rows = results_from_json(read_json(out / "results.json"))
    row = next((row for row in reversed(rows) if row.T == system.T), rows[-1])
    return Cell(
        system.name,
        arm,
        seed,
        identity(system, arm, seed),
        round(time.monotonic() - started, 1),
        row.T,
        round(row.snn_accuracy, 4),
        row.ann_accuracy,
        row.qann_accuracy,
        round(row.spikes_per_neuron, 4),
        row.seconds_per_epoch,
        row.peak_mib,
    )


def identity(system: System, arm: str, seed: int) -> str:
    """A digest of what the recipe says, its comments and its smoke block apart, and of the keys."""
    said = yaml.safe_load(find_recipe(system.recipe).read_text())
    said.pop("smoke", None)
    return digest([said, words(system, arm, seed)])


def stored_cells() -> list[Cell]:
    """What results.json holds."""
    path = HERE / "results.json"
    return [Cell(**item) for item in read_json(path)["cells"]] if path.is_file() else []


def store(items: Sequence[Cell]) -> None:
    """Write results.json in the order of `cells`."""
    order = {(s.name, arm, seed): k for k, (s, arm, seed) in enumerate(cells())}
    known = [c for c in items if (c.system, c.arm, c.seed) in order]
    known.sort(key=lambda c: order[c.system, c.arm, c.seed])
    write_json(HERE / "results.json", {"schema": SCHEMA, "cells": [asdict(c) for c in known]})


def write_page() -> None:
    """README.md from what is stored."""
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page((HERE / "head.md").read_text(), stored_cells()))


def page(head: str, items: Sequence[Cell]) -> str:
    """The table, the arms, what is missing."""
    at = {(c.system, c.arm, c.seed): c for c in items}
    lines = [
        "| system and recipe | claims | with it, % | without, % | difference, points | here | "
        "left out |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for system in SYSTEMS:
        first, second = list(system.arms)[:2]
        both = [s for s in SEEDS if {(system.name, a, s) for a in (first, second)} <= set(at)]
        gains = [
            at[system.name, first, s].accuracy - at[system.name, second, s].accuracy for s in both
        ]
        lines.append(
            f"| {system.name}: `{system.recipe}`, T = {system.T} | {system.claim} | "
            f"{first}: {spread([at[system.name, first, s].accuracy for s in both])} | "
            f"{second}: {spread([at[system.name, second, s].accuracy for s in both])} | "
            f"{spread(gains, sign=True)} | {verdict(gains, system.saves)} | "
            f"{LEFT_OUT}{system.left_out} |"
        )
    lines += ["", "## Every arm", "", *arms(at)]
    missing = Counter(s.name for s, arm, seed in cells() if (s.name, arm, seed) not in at)
    if missing:
        each = "; ".join(f"{name} {count}" for name, count in missing.items())
        lines += ["", f"Not run yet, {missing.total()} of {len(list(cells()))} runs: {each}."]
    return head + "\n".join(lines) + "\n"


def arms(at: Mapping[tuple[str, str, int], Cell]) -> Iterator[str]:
    """A line for each arm that has run."""
    yield (
        "Accuracy in %, mean (lowest … highest) of the seeds; spikes per neuron and image; memory "
        "beyond what was held, MiB."
    )
    yield ""
    yield ("| system | arm | keys | seeds | SNN % | ANN % | QANN % | spikes | MiB |")
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for system in SYSTEMS:
        for arm, keys in system.arms.items():
            ran = [at[system.name, arm, s] for s in SEEDS if (system.name, arm, s) in at]
            if ran:
                values: list[Any] = [
                    spread([c.accuracy for c in ran]),
                    *(
                        average([getattr(c, name) for c in ran])
                        for name in (
                            *("ann_accuracy", "qann_accuracy", "spikes_per_neuron", "peak_mib"),
                        )
                    ),
                ]
                shown = " ".join(f"`{key}`" for key in keys) or "as it is"
                yield f"| {system.name} | {arm} | {shown} | {len(ran)} | {' | '.join(values)} |"


def spread(values: Sequence[float], sign: bool = False) -> str:
    """Mean, lowest and highest."""
    if not values:
        return "–"
    form = "{:+.2f}" if sign else "{:.2f}"
    text = form.format(mean(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))} … {form.format(max(values))})"
    return text


def average(values: Sequence[float | None]) -> str:
    """The mean of what was measured."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.2f}" if known else "–"


def verdict(gains: Sequence[float], saves: bool = False) -> str:
    """What the seeds say; of a system that ``saves`` something, what that costs.

    Example:
        >>> verdict([1.0, 0.5, 0.0]), verdict([0.2])
        ('higher in 2 of 3 seeds, lower in 0: not in every one', 'higher in all of 1 seed')
        >>> verdict([-1.0, -0.5], saves=True)
        'costs 0.75 points, 1.00 at most, 2 seeds'
    """
    if not gains:
        return "not run yet"
    count = f"{len(gains)} seed" + "s" * (len(gains) > 1)
    if saves:
        cost = f"costs {-mean(gains):.2f} points, {-min(gains):.2f} at most"
        return f"{cost if mean(gains) < 0 else 'costs nothing'}, {count}"
    higher, lower = (sum(sign * gain > 0 for gain in gains) for sign in (1, -1))
    if higher == len(gains):
        return f"higher in all of {count}"
    if lower == len(gains):
        return f"lower in all of {count}: does not show"
    shown = "not in every one" if higher > lower else "does not show"
    return f"higher in {higher} of {count}, lower in {lower}: {shown}"


if __name__ == "__main__":
    main()
