"""Everything in this folder, by one command on a machine with an accelerator, in 8 minutes at most:

    python eval/gpu/regenerate.py

T = 1 equality with TF32 off and on, speed of simulation, integer network and training, the tests
marked gpu. Each part runs in a process of its own and ends when its time is over; what was not
made is named on the page. Without an accelerator it says so in a line, and nothing is written.
``--pages`` writes the page from results.json alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mt_convert.experiments.bench import pages as bench_pages
from mt_convert.experiments.bench.contenders.registry import choose_contenders
from mt_convert.experiments.bench.measure import Group
from mt_convert.experiments.bench.network import Network, open_network, thresholds_for
from mt_convert.experiments.bench.rows import BenchRow
from mt_convert.experiments.bench.timing import LEAST_ROUNDS, Clock
from mt_convert.experiments.bench.training import Way, time_training
from mt_convert.integer_engine.exactness import run_difference
from mt_convert.integer_engine.model import integer
from mt_convert.spiking.simulate import simulate
from mt_convert.system import devices
from mt_convert.system.bounded import Limits, Note, Task, run_bounded
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.gpu/1"
NETWORKS = ("resnet20_cifar", "mobilenetv2_100")
SECONDS = {"equality": 150, "tests": 60, "speed": 150, "training": 90}  # 450 of 480
IMAGES, BATCHES, TRAINED_AT_ONCE = 64, (1, 128), 128
CONTENDERS = ("integer_torch", "integer_compile", "simulate", "fp32_eager", "bf16_autocast")
SPIKING = "spiking at T = 1 and quantized, logits"


@dataclass(frozen=True)
class Equality:
    """Two computations of the same numbers: how many were compared, how many differed."""

    network: str
    what: str
    tf32: bool
    compared: int
    different: int


def equality(network: Network, device: torch.device, backends: Sequence[str]) -> Iterator[Equality]:
    """The spiking network at T = 1 and the quantized one; integers and the CPU's reference."""
    images = network.images(IMAGES, torch.Generator().manual_seed(0))
    thresholds = {T: thresholds_for(network.levels, T) for T in (1, 4)}
    references = {
        T: integer(network.spiking(n), backend="reference").run(images, T, totals=True)
        for T, n in thresholds.items()
    }
    network, shown = network.on(device), images.to(device)
    networks = {T: network.spiking(n) for T, n in thresholds.items()}
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (False, True):
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32
            with torch.inference_mode():
                expected = network.qann(shown)
                logits = simulate(networks[1], shown, time_steps=1).logits[-1]
            apart = int((logits != expected).sum())
            yield Equality(network.name, SPIKING, tf32, logits.numel(), apart)
            for backend in backends:
                for T, snn in networks.items():
                    run = integer(snn, backend=backend).run(shown, T, totals=True)
                    totals = {name: total.cpu() for name, total in run.totals.items()}
                    found = run_difference(
                        replace(run, logits=run.logits.cpu(), totals=totals), references[T]
                    )
                    what = f"integer {backend} and the CPU's reference, T = {T}, levels and logits"
                    yield Equality(network.name, what, tf32, found.compared, found.different)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def speed(
    network: Network,
    batch: int,
    names: Sequence[str] = CONTENDERS,
    rounds: int = LEAST_ROUNDS,
    clock: Clock | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the benchmark at T = 1 and 4, in turns, and who is absent."""
    steps = [(T, thresholds_for(network.levels, T)) for T in (1, 4)]
    entries = [
        (contender, case)
        for contender in choose_contenders(names)
        for case in contender.cases(batch, steps, network.levels)
    ]
    group = Group(network, entries, rounds, clock=clock)
    rows = [asdict(row) for row in group.rows()]
    return rows, [asdict(item) for item in group.absent]


def training(
    network: Network, batch: int, rounds: int = LEAST_ROUNDS, clock: Clock | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps of training, float, quantized and spiking, eager, and who is absent."""
    timed = time_training(network, (1,), batch, rounds, clock, chosen=ways(network.levels))
    return [asdict(row) for row in timed.rows], [asdict(item) for item in timed.absent]


def ways(levels: int) -> list[Way]:
    """What is trained: nothing that has to be compiled first."""
    kinds: list[tuple[Any, ...]] = [("float",), ("quantized",), ("spiking", 1, levels)]
    return [
        Way(kind, False, precision, *steps)
        for precision in ("no", "bf16")
        for kind, *steps in kinds
    ]


def tests(seconds: float) -> dict[str, Any]:
    """The tests marked gpu: pytest's last line."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    done = subprocess.run(
        words, cwd=HERE.parents[1], capture_output=True, text=True, timeout=seconds, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {"exit": done.returncode, "said": lines[-1] if lines else done.stderr[-200:]}


# -------------------------------------------------------------------------------------- the parts


def part_equality(name: str, store: Path, *, note: Note) -> list[dict[str, Any]]:
    """In a process of its own; what there is by then survives its end."""
    rows: list[dict[str, Any]] = []
    for row in equality(open_network(name, store), devices.device(), ("torch", "compile")):
        rows.append(asdict(row))
        note({"rows": list(rows)})
    return rows


def part_speed(name: str, store: Path, *, note: Note) -> list[Any]:
    """Small and large batches, small first."""
    found: list[Any] = [[], []]
    network = open_network(name, store).on(devices.device())
    for batch in BATCHES:
        for kept, more in zip(found, speed(network, batch), strict=True):
            kept += more
        note({"rows": [list(rows) for rows in found]})
    return found


def part_training(name: str, store: Path, *, note: Note) -> list[Any]:
    """Training steps."""
    return list(training(open_network(name, store).on(devices.device()), TRAINED_AT_ONCE))


def run(folder: Path) -> dict[str, Any]:
    """All parts, each with a budget of its own, which `SECONDS` adds up."""
    content: dict[str, Any] = {"machine": machine(), "missing": []}
    content |= {"equality": [], "speed": [[], []], "training": [[], []], "tests": None}
    kinds: list[tuple[str, Any]] = [
        ("equality", part_equality),
        ("speed", part_speed),
        ("training", part_training),
    ]
    begun = time.monotonic()
    try:
        content["tests"] = tests(SECONDS["tests"])
    except subprocess.TimeoutExpired:
        content["missing"].append(f"tests marked gpu: not through in {SECONDS['tests']} s")
    for kind, function in kinds:
        names = NETWORKS if kind != "training" else NETWORKS[:1]
        for name in names:
            log = folder / "logs" / f"{kind}_{name}.log"
            task = Task(f"{kind} {name}", function, (name, folder / "networks"), log)
            limits = Limits(memory=64, seconds=SECONDS[kind] / len(names))
            for outcome in run_bounded([task], limits):
                rows = outcome.value if outcome.error is None else outcome.noted.get("rows", [])
                add(content, kind, rows)
                if outcome.error is not None:
                    content["missing"].append(f"{outcome.key}: {outcome.error}")
    content["seconds"] = round(time.monotonic() - begun)
    return content


def add(content: dict[str, Any], kind: str, rows: list[Any]) -> None:
    """Rows of one part, and of those that are timed who is absent."""
    if kind == "equality":
        content[kind] += rows
        return
    for kept, more in zip(content[kind], rows, strict=False):
        kept += more


def machine() -> dict[str, Any]:
    """The accelerator and what ran on it."""
    device = devices.device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return {"name": name, "device": device.type, "torch": torch.__version__}


# ------------------------------------------------------------------------------------------- page


def page(head: str, content: dict[str, Any]) -> str:
    """The page from what is stored."""
    where = content["machine"]
    lines = [head.rstrip(), "", f"{where['name']} ({where['device']}), torch {where['torch']}.", ""]
    rows = [Equality(**row) for row in content["equality"]]
    if rows:
        apart = sum(row.different for row in rows if not row.tf32)
        lines += [f"## Equality\n\nWith TF32 off {apart:,} numbers differ.\n"]
        lines += ["| network | compared | TF32 | numbers | different |"]
        lines += ["| --- | --- | --- | ---: | ---: |"]
        lines += [
            f"| {row.network} | {row.what} | {'on' if row.tf32 else 'off'} | {row.compared:,} "
            f"| {row.different:,} |"
            for row in rows
        ]
        lines.append("")
    if content["tests"] is not None:
        lines += [f"## Tests marked gpu\n\n{content['tests']['said']}\n"]
    timed = merge_rows(content["speed"][0])
    for (name, batch), some in bench_pages.groups(timed).items():
        lines += [f"## {name}, batch {batch}\n"]
        lines += ["| contender | T | n | µs per image | × best float | checked |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
        for row in some:
            text = bench_pages.cells(row)
            lines.append("| " + " | ".join([*text[:4], text[5], text[-1]]) + " |")
        lines.append("")
    if content["training"][0]:
        lines += ["## Training steps\n"]
        lines += ["| network | trained | T | precision | batch | ms a step | of float |"]
        lines += ["| --- | --- | ---: | --- | ---: | ---: | ---: |"]
        lines += [
            f"| {row['network']} | {row['trained']} | {row['T'] or '–'} "
            f"| {'bfloat16' if row['precision'] == 'bf16' else 'float32'} | {row['batch']} "
            f"| {row['milliseconds']:.2f} | {row['of_float'] or '–'} |"
            for row in content["training"][0]
        ]
        lines.append("")
    absent = [*content["speed"][1], *content["training"][1]]
    reasons = [f"{item.get('contender') or item['trained']}: {item['reason']}" for item in absent]
    if reasons or content["missing"]:
        lines += ["## Not made\n"]
        lines += [f"- {reason}" for reason in dict.fromkeys([*content["missing"], *reasons])]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def merge_rows(rows: Sequence[dict[str, Any]]) -> list[BenchRow]:
    """Stored rows of the benchmark."""
    return [BenchRow(**row) for row in rows]


def main() -> None:
    """Make all of it, or say why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", type=Path, default=Path("runs/gpu"), help="networks and logs")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--pages", action="store_true", help="write the page from results.json")
    arguments = parser.parse_args()
    if not arguments.pages:
        if devices.device().type == "cpu":
            print("skipped: torch finds no accelerator here; nothing was written")
            return
        content = {"schema": SCHEMA, **run(arguments.parts)}
        write_json(arguments.out / "results.json", content)
    stored = read_json(arguments.out / "results.json")
    with atomic(arguments.out / "README.md") as temporary:
        temporary.write_text(page((HERE / "head.md").read_text(), stored))


if __name__ == "__main__":
    main()
