"""Everything in this folder, by one command:

    python eval/training_cost/regenerate.py [--threads N] [--device cuda]

Time and memory of a training step of a converted ResNet-20, by algorithm and T, each in a process
of its own; no data and no weights are needed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.neurons.ladder import Firing, Uniform
from mt_convert.neurons.linear_recurrence import linrec
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.system.bounded import Limits, Note, Task, run_bounded
from mt_convert.system.peak_memory import MIB, meter_of
from mt_convert.system.storage import atomic, write_json
from mt_convert.training.algorithm import Algorithm, Backpropagation, Lesson
from mt_convert.training.finetune.learner import TrainableSpikingModel
from mt_convert.training.from_scratch.spec import SpikingSpec, build_spiking
from mt_convert.training.gradients import ALGORITHMS

HERE = Path(__file__).parent
SCHEMA = "mt_convert.training_cost/1"
SHORT = {"bptt": (1, 2, 4, 8), "ottt_a": (1, 2, 8), "dsr": (1, 2, 8), "tandem": (1, 2, 8)}
BATCH, WARM, STEPS = 128, 2, 5
DOUBLED = (8, 16, 32, 64)  # steps of linrec


@dataclass(frozen=True)
class Cost:
    """One algorithm at one T. Units: milliseconds and MiB per step, of a whole batch."""

    algorithm: str
    T: int
    milliseconds: float
    peak_mib: float
    saved_mib: float


def main() -> None:
    """Measure everything, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    trainings = [("qann", 1), *((name, T) for name, short in SHORT.items() for T in short)]
    costs = list(measure(trainings, arguments.threads, arguments.device))
    sums = recurrence(arguments.threads, arguments.device)
    kernels = time_compiled(arguments.threads, arguments.device)
    content = {"rows": [asdict(row) for row in costs], "linrec": sums, "compiled": kernels}
    write_json(HERE / "results.json", {"schema": SCHEMA} | content)
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(text((HERE / "head.md").read_text(), costs, sums, kernels))


def measure(trainings: Sequence[tuple[str, int]], threads: int, device: str) -> Iterator[Cost]:
    """Each in a child process; what fails is printed and left out."""
    with tempfile.TemporaryDirectory() as logs:
        tasks = [
            Task(f"{name} T={T}", cost, (name, T, threads, device), Path(logs) / f"{name}{T}.log")
            for name, T in trainings
        ]
        for outcome in run_bounded(tasks, Limits(memory=20.0, seconds=1200.0)):
            if outcome.error is not None:
                print(f"{outcome.key}: {outcome.error}")
            else:
                print(outcome.value)
                yield outcome.value


def cost(name: str, time_steps: int, threads: int, device: str, *, note: Note) -> Cost:
    """One line, measured here."""
    torch.set_num_threads(threads)
    note({"stage": "making the network"})
    where = torch.device(device)
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(where)
    labels = torch.arange(BATCH, device=where) % 10
    meter = meter_of(where)
    model, algorithm = contender(name, time_steps, images)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    lesson = Lesson(
        network=model,
        images=images,
        loss=lambda logits: F.cross_entropy(logits, labels),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        update=lambda: None,
        time_steps=time_steps,
    )

    def step() -> float:
        started = time.perf_counter()
        algorithm.learn(lesson)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if where.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - started

    note({"stage": "steps"})
    for _ in range(WARM):
        step()
    meter.start()
    seconds = [step() for _ in range(STEPS)]
    peak = meter.stop()
    held = saved_bytes(model, algorithm, lesson)
    return Cost(
        name,
        time_steps,
        round(1000 * statistics.median(seconds), 1),
        round(peak, 1),
        round(held / MIB, 1),
    )


def recurrence(threads: int, device: str) -> dict[str, float]:
    """Milliseconds of `linrec`, forward and backward, by T: a batch of 32 traces of 16x32x32."""
    torch.set_num_threads(threads)
    medians = {}
    for time_steps in DOUBLED:
        x = torch.randn(time_steps, 32, 16, 32, 32, device=device, requires_grad=True)
        decay, seen = torch.tensor(0.9, device=device, requires_grad=True), []
        for _ in range(WARM + STEPS):
            started = time.perf_counter()
            linrec(x, decay).backward(torch.ones_like(x))
            if x.device.type != "cpu":
                torch.accelerator.synchronize()
            seen.append(1000 * (time.perf_counter() - started))
            x.grad = None
        medians[str(time_steps)] = round(statistics.median(seen[WARM:]), 1)
    return medians


def time_compiled(threads: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step of a network from scratch, by T: torch's operations, and one
    kernel for the steps of a layer of neurons; in turns."""
    torch.set_num_threads(threads)
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.arange(BATCH, device=device) % 10
    ann = build(ModelSpec(architecture="vgg7_cifar", classes=10), seed=0, image_size=32).to(device)
    medians = {}
    for time_steps in (1, 4):
        spec = SpikingSpec("plif", mode=Firing.CASCADE, n=4, time_steps=time_steps)
        network = build_spiking(ann, spec, images[:2]).to(device).train()
        seen: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(WARM + STEPS):
            for network.compiled in seen:
                started = time.perf_counter()
                F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
                if device != "cpu":
                    torch.accelerator.synchronize()
                seen[network.compiled].append(1000 * (time.perf_counter() - started))
        plain, kernel = (round(statistics.median(seen[way][WARM:]), 1) for way in (False, True))
        medians[str(time_steps)] = {"milliseconds": plain, "compiled_milliseconds": kernel}
    return medians


def contender(name: str, time_steps: int, images: Tensor) -> tuple[nn.Module, Algorithm]:
    """What learns, and how."""
    spec = ModelSpec(architecture="resnet20_cifar", classes=10)
    ann = build(spec, seed=0, image_size=32).to(images.device)
    qann = quantize(ann.eval(), QuantSpec(weight_bits=2, act_bits=2), calibration=images)
    if name == "qann":
        return qann.train(), Backpropagation()
    learner = TrainableSpikingModel(convert(qann, ladder=Uniform(1), signed=True), time_steps)
    return learner.train(), ALGORITHMS[name]


def saved_bytes(model: nn.Module, algorithm: Algorithm, lesson: Lesson) -> int:
    """The most that the graphs of one backward pass hold, each storage once, weights left out."""
    weights = {item.untyped_storage().data_ptr() for item in model.parameters()}
    held: dict[int, Any] = {}  # the storages themselves: an address could be used again
    most = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    def backward(loss: Tensor) -> None:
        nonlocal most
        most = max(most, sum(storage.nbytes() for storage in held.values()))
        held.clear()
        loss.backward()  # type: ignore[no-untyped-call]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        algorithm.learn(Lesson(**{**lesson.__dict__, "backward": backward}))
    return most


def text(
    head: str,
    costs: Sequence[Cost],
    sums: Mapping[str, float],
    kernels: Mapping[str, Mapping[str, float]],
) -> str:
    """The page."""
    base = next((row for row in costs if row.algorithm == "qann"), None)
    lines = [
        head.rstrip(),
        "",
        "| algorithm | T | ms per step | of qann | peak MiB | of qann | saved MiB | of qann |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in costs:
        cells: list[Any] = [row.algorithm, row.T]
        for name in ("milliseconds", "peak_mib", "saved_mib"):
            value = getattr(row, name)
            share = "–" if base is None else f"{value / max(getattr(base, name), 1e-9):.2f}"
            cells += [f"{value:.1f}", share]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *sentences(costs)]
    times = list(sums.values())
    ratios = ", ".join(f"{two / one:.2f}" for one, two in pairwise(times))
    growth = f"T = {', '.join(sums)}: twice the steps take {ratios} times"
    lines.append(f"- linrec, forward and backward, {growth}.")
    for T, pair in kernels.items():
        plain, kernel = pair["milliseconds"], pair["compiled_milliseconds"]
        lines.append(
            f"- vgg7_cifar from scratch, PLIF, 4 thresholds in cascade, T = {T}: {plain:.1f} ms a "
            f"step, with compiled neurons {kernel:.1f} ms, {kernel / plain:.2f} times."
        )
    return "\n".join([*lines, ""])


def sentences(costs: Sequence[Cost]) -> Iterator[str]:
    """How memory grows with T, and whether BPTT stays within the T-fold of the QANN's."""
    base = next((row for row in costs if row.algorithm == "qann"), None)
    for name in SHORT:
        rows = [row for row in costs if row.algorithm == name]
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            yield (
                f"- {name}: from T = {first.T} to T = {last.T} graphs hold "
                f"{last.saved_mib / first.saved_mib:.2f} times as much, peak memory is "
                f"{last.peak_mib / first.peak_mib:.2f} times, time "
                f"{last.milliseconds / first.milliseconds:.2f} times."
            )
        if name == "bptt" and rows and base is not None:
            for row in rows:
                within = "within" if row.peak_mib <= row.T * base.peak_mib else "NOT within"
                yield f"- bptt at T = {row.T}: peak memory is {within} {row.T} times that of qann."


if __name__ == "__main__":
    main()
