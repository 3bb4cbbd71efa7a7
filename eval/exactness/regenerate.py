"""Everything in this folder, by one command:

    python eval/exactness/regenerate.py --data FOLDER --runs RUNS

RUNS holds cifar10_resnet20_w4a4 and cifar10_resnet20_w2a2, FOLDER the images of JPEG CIFAR-10 they
were trained on. Every backend of the integer network that this machine has is compared with the
reference: layer by layer on a million neurons next to thresholds, on all 10,000 test images with
several batch sizes and numbers of threads, and on every ReLU-type network of eval/coverage. Rows
are kept in --parts as they are made, and not made again; ``--only PART ...`` makes some of the
parts, ``--pages`` writes the page from what is there and names what is not whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt_convert.data import batches
from mt_convert.experiments.models.lived_in import build
from mt_convert.experiments.subjects import subjects_of
from mt_convert.integer_engine.backends import BACKENDS
from mt_convert.integer_engine.exactness import (
    LAYERS,
    layer_difference,
    network_difference,
    run_difference,
)
from mt_convert.integer_engine.model import IntegerModel, IntegerRun, integer
from mt_convert.integer_engine.native.backend import NativeBackend
from mt_convert.integer_engine.native.build import EMULATED, instruction_sets
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.system.bounded import Limits, Task, run_bounded
from mt_convert.system.progress import progress
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.exactness/1"
MILLION = 1_000_000
WHOLE = {"Conv2d", "max_pool2d", "BatchNorm2d", "amax", "pad"}  # analog, yet whole numbers
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "T = 1, n = L": ({}, 1),
    "T = 4, n = 4, signed": ({"ladder": Uniform(4), "signed": True}, 4),
    "T = 4, n = 3, every step": ({"ladder": Uniform(3), "presentation": "every_step"}, 4),
}
IN_TORCH = (("torch", 1, 128), ("torch", 2, 32))
LOT = 128  # images between two looks
MOST_THREADS = 2
SIZES = {"vgg11": 224}  # smaller maps than its first classifier's kernel are interpolated
AT_ONCE = {name: 1024 if name == "linear" else 64 for name in LAYERS}


@dataclass(frozen=True)
class Row:
    """A backend on one layer or network: how many numbers were compared, how many differed."""

    part: str
    name: str
    way: str
    backend: str
    threads: int
    batch: int
    images: int
    compared: int
    different: int

    @property
    def of(self) -> tuple[str, str, str]:
        """What it is about."""
        return self.name, self.way, self.backend


Done = AbstractSet[tuple[str, str, str]]


def backends() -> dict[str, Callable[..., Any]]:
    """All that this machine has, by name, the native one with each of its instruction sets."""
    makers = {name: info.make for name, info in BACKENDS.items() if name != "native"}
    if BACKENDS["native"].missing() is None:
        for name in (*instruction_sets(), *EMULATED):
            makers[f"native {name}"] = partial(NativeBackend, instruction_set=name)
    return makers


def layers(done: Done) -> Iterator[list[Row]]:
    """A million neurons next to thresholds for each type of layer."""
    for layer in LAYERS:
        size = {"channels": 1024} if layer == "linear" else {"channels": 64, "side": 32}
        for name, make in backends().items():
            if name == "reference" or (layer, "T = 1", name) in done:
                continue
            batch = AT_ONCE[layer] if name == "compile" else 1  # compiled anew for each seed
            compared = different = seed = 0
            while compared < MILLION:
                difference = layer_difference(make, layer, seed=seed, images=batch, **size)
                compared += difference.compared
                different += difference.different
                seed += 1
            counts = seed * batch, compared, different
            yield [Row("layers", layer, "T = 1", name, 1, batch, *counts)]


def images(runs: Path, data: str, done: Done) -> Iterator[list[Row]]:
    """Trained networks on all test images; the reference runs once for all settings."""
    for bits in ("w4a4", "w2a2"):
        word = str(runs / f"cifar10_resnet20_{bits}")
        (subject,) = subjects_of(word, [], (f"data.root={data}",), None, None)
        name, known = f"ResNet-20 {bits.upper()}", {(of, way) for of, way, _ in done}
        for way, (options, steps) in WAYS.items():
            if (name, way) in known:
                continue
            snn = convert(subject.qann, **options)
            reference = integer(snn, backend="reference")
            models = {item: integer(snn, backend=item[0]) for item in settings()}
            counts = {item: [0, 0, 0] for item in models}
            for shown, _ in progress(batches(subject.test, LOT), f"{bits}, {way}"):
                torch.set_num_threads(MOST_THREADS)
                expected = reference.run(shown, steps, totals=True)
                for (backend, threads, batch), count in counts.items():
                    torch.set_num_threads(threads)
                    model = models[backend, threads, batch]
                    run = runs_of(model, shown, steps, batch)
                    difference = run_difference(run, expected)
                    count[0] += len(shown)
                    count[1] += difference.compared
                    count[2] += difference.different
            yield [Row("images", name, way, *setting, *count) for setting, count in counts.items()]


def runs_of(model: IntegerModel, shown: Tensor, steps: int, batch: int) -> IntegerRun:
    """A run on these images, so many at once."""
    parts = [model.run(part, steps, totals=True) for part in shown.split(batch)]
    totals = {name: torch.cat([part.totals[name] for part in parts]) for name in parts[0].totals}
    return replace(parts[0], logits=torch.cat([part.logits for part in parts], 1), totals=totals)


def settings() -> list[tuple[str, int, int]]:
    """Backend, threads and batch size."""
    native = [("native", 1, 128), ("native", 2, 1), ("native", 2, 32)]
    return [
        *(native if BACKENDS["native"].missing() is None else ()),
        ("compile", 1, 128),
        *IN_TORCH,
    ]


def families(logs: Path, done: Done) -> Iterator[list[Row]]:
    """The ReLU-type networks of eval/coverage, random weights that behave like trained ones."""
    stored = read_json(HERE.parent / "coverage" / "results.json")["rows"]
    covered = [item for item in stored if item["converted"] and set(item["analog"]) <= WHOLE]
    logs.mkdir(parents=True, exist_ok=True)
    named = [
        (name := item["architecture"], SIZES.get(name, item["input_size"]))
        for item in covered
        if item["architecture"] not in {of for of, _, _ in done}
    ]
    tasks = [Task(name, family, (name, size), logs / f"{name}.log") for name, size in named]
    for outcome in run_bounded(tasks, Limits(memory=12, seconds=900)):
        if outcome.error is not None:
            print(f"{outcome.key}: {outcome.error}")
            continue
        yield [Row(**row) for row in outcome.value]


def family(name: str, size: int, *, note: Any) -> list[dict[str, Any]]:
    """One architecture at T = 1 with n = L and at T = 4 with a quarter of the thresholds."""
    torch.set_num_threads(1)
    built = build(name, size=size, images=4, seed=0)
    spec = QuantSpec(weight_bits=8, act_bits=4)
    qann = quantize(built.model, spec, calibration=built.images)
    rows = []
    for way in list(WAYS)[:2]:
        options, steps = WAYS[way]
        snn = convert(qann, **options)
        reference, model = integer(snn, backend="reference"), integer(snn)
        difference = network_difference(model, reference, [built.images], steps)
        how = f"{way}, {len(model.real)} operators in float" if model.real else way
        counts = difference.compared, difference.different
        row = Row("families", name, how, model.backend, 1, 4, 4, *counts)
        rows.append(asdict(row))
    return rows


class Stored:
    """The rows of a part in their file, and whether all are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_json(path) if path.is_file() else {"whole": False, "rows": []}
        self.whole, self.rows = bool(found["whole"]), [Row(**row) for row in found["rows"]]

    def make(self, make: Callable[[Done], Iterator[list[Row]]], part: str) -> None:
        """Make the rows that are missing, and keep them one group after the other."""
        if self.whole:
            return
        for group in progress(make({row.of for row in self.rows}), part):
            self.rows += group
            self._write()
        self.whole = True
        self._write()

    def _write(self) -> None:
        rows = [asdict(row) for row in self.rows]
        write_json(self.path, {"whole": self.whole, "rows": rows})


def page(rows: list[Row], missing: list[str]) -> str:
    """The page."""
    text = [(HERE / "head.md").read_text()]
    for part, title in PARTS.items():
        of_part = [row for row in rows if row.part == part]
        if not of_part:
            continue
        different = sum(row.different for row in of_part)
        compared = sum(row.compared for row in of_part)
        text.append(f"## {title}\n\n{compared:,} numbers compared, {different:,} different.\n")
        text.append(
            "| network or layer | how | backend | threads | batch | images | compared | different |"
        )
        text.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
        text += [
            f"| {row.name} | {row.way} | {row.backend} | {row.threads} | {row.batch} "
            f"| {row.images:,} | {row.compared:,} | {row.different:,} |"
            for row in of_part
        ]
        text.append("")
    if missing:
        text.append(f"Not whole yet: {', '.join(missing)}.\n")
    return "\n".join(text)


PARTS = {
    "layers": "Next to thresholds, by type of layer",
    "images": "Trained networks on test images",
    "families": "ReLU-type networks of timm",
}


def main() -> None:
    """Make what is missing, write results and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder of JPEG CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--parts", type=Path, default=Path("runs/exactness"))
    parser.add_argument("--only", nargs="*", choices=list(PARTS))
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    arguments = parser.parse_args()
    makers = {
        "layers": layers,
        "images": partial(images, arguments.runs, arguments.data),
        "families": partial(families, arguments.parts / "logs"),
    }
    rows: list[Row] = []
    missing = []
    for part, make in makers.items():
        stored = Stored(arguments.parts / f"{part}.json")
        if not arguments.pages and part in (arguments.only or PARTS):
            stored.make(make, part)
        rows += stored.rows
        if not stored.whole:
            missing.append(PARTS[part].lower())
    content = {"schema": SCHEMA, "not_whole": missing, "rows": [asdict(row) for row in rows]}
    write_json(HERE / "results.json", content)
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page(rows, missing))


if __name__ == "__main__":
    main()
