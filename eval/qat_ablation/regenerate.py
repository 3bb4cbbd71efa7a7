"""What each part of quantization-aware training brings: all on, each left out, each alone.

    python eval/qat_ablation/regenerate.py --data FOLDER
    python eval/qat_ablation/regenerate.py --smoke --out runs/smoke/qat_ablation

FOLDER holds train.tar and test.tar of JPEG CIFAR-10. A float ResNet-20 is trained on 45,000
training images; 5,000 are held out, which no training and no choice of an epoch has seen, and which
give all accuracies. Then each cell trains a quantized network from it on 10,000 of the 45,000, at
W3A3 and W2A2, with three seeds. One training at a time: a row is stored when its cell is done, a
training that was stopped goes on, and rows that are there are not made again; nor is the float
network, whose weights lie beside the rows. --only takes names of arms, --pages writes the page
from what is stored. The float network is compiled, and all trained in bfloat16; --eager trains
without torch.compile in float32.
The smoke variant takes made-up images, one seed and one epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt_convert.data import DataSpec, ImageSet, Splits, batches, images, open_data, tensor_set
from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.graph.nodes import layer_nodes
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.system.devices import device
from mt_convert.system.storage import (
    atomic,
    digest,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from mt_convert.training.accuracy import accuracy
from mt_convert.training.loop import fit
from mt_convert.training.spec import FreezeOscillating, History, StepGroup, TrainSpec

HERE = Path(__file__).parent
SCHEMA = "mt_convert.qat_ablation/1"
WIDTHS, SEEDS = (3, 2), (0, 1, 2)
LEVEL_IMAGES = 1000


@dataclass(frozen=True)
class Part:
    """What a part changes: fields of the training, of the quantizers, or where it starts."""

    about: str
    train: Mapping[str, Any] = field(default_factory=dict)
    quantize: Mapping[str, Any] = field(default_factory=dict)
    chain: bool = False


PARTS = {
    "steps": Part("steps at 0.02 of the rate", {"steps": StepGroup(lr_scale=0.02)}),
    "batch_norm": Part("batch norms estimated again on 2,000 images", {"reestimate_bn": 2000}),
    "chain": Part("weights of one bit more, trained with all parts", chain=True),
    "distillation": Part(
        "float network as teacher, weight 0.9, temperature 4",
        {"distillation_weight": 0.9, "distillation_temperature": 4.0},
    ),
    "warm_up": Part("one epoch of warm-up", {"warmup_epochs": 1}),
    "average": Part("averages, 0.99 per step", {"ema_decay": 0.99}),
    "lowest_level": Part("the lowest level of weights", quantize={"narrow_range": False}),
    "normalized": Part("normalised weights", quantize={"normalize_weights": True}),
    "frozen": Part(
        "oscillating weights frozen above 0.1, at the end 0.01",
        {"freeze_oscillating": FreezeOscillating()},
    ),
}
SPARSE = Part("0.01 times the mean level in the loss", {"spike_weight": 0.01})


def arms() -> dict[str, tuple[str, ...]]:
    """The parts of each arm, by its name; the first two are what others are compared with."""
    every = tuple(PARTS)
    return {
        "all": every,
        "none": (),
        **{f"all but {name}": tuple(item for item in every if item != name) for name in every},
        **{f"{name} alone": (name,) for name in every},
        "all and sparse": (*every, "sparse"),
    }


FLOAT = "float"


@dataclass(frozen=True)
class Row:
    """A trained network.

    Units: ``accuracy`` percent of the held-out images; ``mean_level`` of all activations, None for
        a float network; ``oscillating`` and ``frozen`` weights, where they are watched.
    """

    bits: int
    arm: str
    seed: int
    accuracy: float
    mean_level: float | None
    oscillating: int | None
    frozen: int | None
    epochs: int
    images: int
    precision: str
    compiled: bool
    settings: str


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    data: DataSpec
    base: TrainSpec
    cell: TrainSpec
    held_out: int
    images: int
    seeds: Sequence[int]
    widths: Sequence[int]
    reestimated: int

    @property
    def few(self) -> DataSpec:
        """The images of a cell: as many held out, the same ones, and the first of the others."""
        limit = self.held_out + self.images
        return replace(self.data, limit=limit, validation_share=self.held_out / limit)


def full(data: str, fast: Mapping[str, Any]) -> Sizes:
    """The study itself."""
    spec = DataSpec(
        dataset="",
        root=data,
        test_split="test",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        validation_share=0.1,
        augmentation="crop_flip",
        name="JPEG CIFAR-10",
    )
    base = TrainSpec(epochs=20, lr=0.1, warmup_epochs=1, weight_decay=5e-4, **fast)
    alone = {**fast, "compile": False}  # compiling would take as long as the steps of a cell
    cell = TrainSpec(epochs=4, optimizer="adamw", lr=0.002, weight_decay=1e-4, **alone)
    return Sizes(spec, base, cell, 5000, 10_000, SEEDS, WIDTHS, 2000)


def small() -> Sizes:
    """The same on made-up images, in seconds."""
    spec = DataSpec(
        "synthetic", image_size=16, limit=96, validation_share=1 / 3, calibration_images=16,
        test_images=16, augmentation="crop_flip",
    )  # fmt: skip
    spec_of_training = TrainSpec(epochs=1, batch_size=16, lr=0.01)
    cell = replace(spec_of_training, optimizer="adamw", lr=0.002)
    return Sizes(spec, spec_of_training, cell, 32, 48, (0,), (2,), 32)


def main() -> None:
    """Make the rows that are not there, then write the page."""
    options = read_options()
    out, runs = options.out, options.runs
    torch.set_num_threads(options.threads)
    stored = out / "results.json"
    rows = [Row(**row) for row in read_json(stored)["rows"]] if stored.is_file() else []
    if not options.pages:
        fast = {} if options.eager else {"compile": True, "mixed_precision": "bf16"}
        study = Study(small() if options.smoke else full(options.data, fast), runs, out)
        for row in study.rows(rows, options.only):
            rows = sort([*(item for item in rows if place(item) != place(row)), row])
            plain = [dataclasses.asdict(item) for item in rows]
            write_json(stored, {"schema": SCHEMA, "rows": plain})
            print(row, flush=True)
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page(rows))


def read_options() -> argparse.Namespace:
    """The words of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder of JPEG CIFAR-10")
    parser.add_argument("--runs", type=Path, help="where trainings lie (runs/qat_ablation)")
    parser.add_argument("--out", type=Path, default=HERE, help="where rows and page are written")
    parser.add_argument("--only", nargs="*", help="arms: " + ", ".join((FLOAT, *arms())))
    parser.add_argument("--smoke", action="store_true", help="made-up images, seconds")
    parser.add_argument("--eager", action="store_true", help="float32, without torch.compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    if options.smoke and options.out == HERE:
        parser.error("--smoke needs --out: it must not replace the stored rows")
    if not (options.smoke or options.pages or options.data):
        parser.error("--data FOLDER is needed, or --smoke")
    unknown = [name for name in options.only or () if name not in (FLOAT, *arms())]
    if unknown:
        parser.error(f"no such arm: {', '.join(unknown)}; there are {', '.join((FLOAT, *arms()))}")
    options.runs = options.runs or Path("runs") / ("qat_smoke" if options.smoke else "qat_ablation")
    return options


class Study:
    """The trainings, each in a folder of its own under ``runs``; ``out``: where rows lie."""

    def __init__(self, sizes: Sizes, runs: Path, out: Path) -> None:
        self.sizes, self.runs, self.out = sizes, runs, out
        self.classes = sizes.data.classes
        self.few = open_data(sizes.few)
        self.calibration = images(self.few.calibration, sizes.data.calibration_images)

    def rows(self, stored: Sequence[Row], only: Sequence[str] | None) -> Iterator[Row]:
        """The rows that are not stored, each as soon as it is made."""
        there = {(place(row), row.settings) for row in stored}
        for seed in self.sizes.seeds:
            cells = [(32, FLOAT), *((bits, arm) for bits in self.sizes.widths for arm in arms())]
            for bits, arm in cells:
                settings = self.settings(bits, arm, seed)
                named = only is None or arm in only
                if named and ((bits, arm, seed), settings) not in there:
                    yield self.row(bits, arm, seed, settings)

    def settings(self, bits: int, arm: str, seed: int) -> str:
        """A digest of all that the numbers of a cell depend on."""
        spec, cell = self.spec(bits, arm), self.training(bits, arm, seed)
        data = dataclasses.asdict(self.sizes.data) | {"root": None}
        parts = [data, self.sizes.held_out, self.sizes.images, self.sizes.base.numbers()]
        start = self.settings(bits + 1, "all", seed) if self.chained(bits, arm) else None
        return digest([*parts, spec.to_json(), cell.numbers(), start])[:16]

    def spec(self, bits: int, arm: str) -> QuantSpec:
        """How the network of a cell is quantized; a float one is not."""
        changes = [part.quantize for part in parts_of(arm)] if bits < 32 else []
        return QuantSpec(
            weight_bits=min(bits, 8),
            act_bits=min(bits, 8),
            **{name: value for change in changes for name, value in change.items()},
        )

    def training(self, bits: int, arm: str, seed: int) -> TrainSpec:
        """How it is trained; a float one by the same schedule, without parts."""
        cell = replace(self.sizes.cell, seed=seed, weight_decay=3e-5 if bits == 2 else 1e-4)
        for part in parts_of(arm):
            cell = replace(cell, **part.train)
        if cell.reestimate_bn is not None:
            cell = replace(cell, reestimate_bn=self.sizes.reestimated)
        return cell

    def chained(self, bits: int, arm: str) -> bool:
        """Whether a cell starts from a network of one bit more; 4 bits start from the float one."""
        return bits < 4 and any(part.chain for part in parts_of(arm))

    def row(self, bits: int, arm: str, seed: int, settings: str) -> Row:
        """Train a cell, or find it trained, and look at the held-out images."""
        cell = self.training(bits, arm, seed)
        network, history = self.trained(bits, arm, seed)
        held_out = self.few.validation
        last = history.rows[-1]
        quantized = isinstance(network, QuantizedModel)
        return Row(
            bits,
            arm,
            seed,
            accuracy(network, held_out, 250),
            mean_level(network, held_out) if quantized else None,
            last.oscillating,
            last.frozen,
            cell.epochs,
            len(self.few.train),
            cell.mixed_precision,
            cell.compile,
            settings,
        )

    def base(self) -> nn.Module:
        """The float network, trained once."""
        network = build(ModelSpec("resnet20_cifar", classes=self.classes), seed=0)
        data = dataclasses.asdict(self.sizes.data) | {"root": None}
        settings = digest([data, self.sizes.held_out, self.sizes.base.numbers()])[:8]
        path = self.out / f"float_network_{settings}.safetensors"
        if not path.is_file():
            splits = without_validation(open_data(self.sizes.data), self.sizes.data)
            fit(network, splits, self.sizes.base, self.runs / "base", classes=self.classes)
            save_tensors(path, network.state_dict())
        network.load_state_dict(load_tensors(path))
        return network.to(device()).eval()

    def trained(self, bits: int, arm: str, seed: int) -> tuple[nn.Module, History]:
        """The network of a cell, and what its training says."""
        base = self.base()
        cell = self.training(bits, arm, seed)
        folder = self.runs / f"w{bits} {arm} {seed}".replace(" ", "_")
        network: nn.Module = base if bits == 32 else self.quantized(bits, arm, seed)
        teacher = self.base() if cell.distillation_weight else None
        splits = without_validation(self.few, self.sizes.data)
        history = fit(network, splits, cell, folder, classes=self.classes, teacher=teacher)
        return network.to(device()).eval(), history

    def quantized(self, bits: int, arm: str, seed: int) -> QuantizedModel:
        """Where a cell starts: the float network, or one of one bit more with all parts."""
        start = None
        if self.chained(bits, arm):
            start, _ = self.trained(bits + 1, "all", seed)
            assert isinstance(start, QuantizedModel)
        spec, calibration = self.spec(bits, arm), self.calibration.to(device())
        return quantize(self.base(), spec, calibration=calibration, start=start)


def parts_of(arm: str) -> list[Part]:
    """The parts of an arm; a float network has none."""
    every = {**PARTS, "sparse": SPARSE}
    return [every[name] for name in arms().get(arm, ())]


def without_validation(splits: Splits, spec: DataSpec) -> Splits:
    """The same without validation images: the last epoch is kept."""
    shape = (0, spec.channels, spec.image_size, spec.image_size)
    empty = tensor_set(torch.zeros(shape), torch.zeros(0, dtype=torch.int64), spec)
    return replace(splits, validation=empty)


@torch.no_grad()
def mean_level(network: QuantizedModel, held_out: ImageSet) -> float:
    """The mean |level| of all activations on the first held-out images: spikes of a neuron."""
    sums, count = torch.zeros((), dtype=torch.float64), 0

    def add(layer: QuantAct, inputs: Any, output: Tensor) -> None:
        nonlocal count
        sums.add_((output / layer.scale).abs().sum().double().cpu())
        count += output.numel()

    acts = [layer for _, layer in layer_nodes(network.layers, QuantAct) if not layer.encodes_input]
    handles = [layer.register_forward_hook(add) for layer in acts]
    seen = 0
    for pictures, _ in batches(held_out, 250):
        network(pictures.to(device()))
        seen += len(pictures)
        if seen >= LEVEL_IMAGES:
            break
    for handle in handles:
        handle.remove()
    return round(float(sums) / count, 4)


# -------------------------------------------------------------------------------------------- page


def place(row: Row) -> tuple[int, str, int]:
    """Which cell a row is of."""
    return row.bits, row.arm, row.seed


def sort(rows: Sequence[Row]) -> list[Row]:
    """Float first, then widths from wide to narrow, arms in their order, seeds."""
    names = [FLOAT, *arms()]
    return sorted(rows, key=lambda row: (-row.bits, names.index(row.arm), row.seed))


def page(rows: Sequence[Row]) -> str:
    """The page of the stored rows."""
    text = [(HERE / "head.md").read_text().rstrip(), ""]
    if not rows:
        return "\n".join([*text, "No rows are stored yet.", ""])
    ways = sorted({(row.precision, row.compiled) for row in rows})
    words = {"no": "float32", "bf16": "bfloat16", True: "compiled", False: "eager"}
    text += ["Trained in " + ", ".join(f"{words[p]}, {words[c]}" for p, c in ways) + ".", ""]
    own = [row for row in rows if row.arm == FLOAT]
    if own:
        text += [
            f"The float network, trained on for as long by the same schedule: {spread(own)}.",
            "",
        ]
    for bits in sorted({row.bits for row in rows} - {32}, reverse=True):
        text += [f"## W{bits}A{bits}", "", *table([row for row in rows if row.bits == bits]), ""]
    return "\n".join(text)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The arms of one width."""
    yield "| arm | accuracy, mean (least to most) | against | mean level | frozen | seeds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    means = {
        arm: statistics.mean(row.accuracy for row in rows if row.arm == arm)
        for arm in dict.fromkeys(row.arm for row in rows)
    }
    for arm, mean in means.items():
        own = [row for row in rows if row.arm == arm]
        other = "none" if arm.endswith("alone") or arm == "all" else "all"
        against = f"{mean - means[other]:+.2f} {other}" if other in means and arm != "none" else ""
        level = statistics.mean(row.mean_level or 0.0 for row in own)
        frozen = [row.frozen for row in own if row.frozen is not None]
        many = f"{statistics.mean(frozen):,.0f}" if frozen else ""
        yield f"| {arm} | {spread(own)} | {against} | {level:.2f} | {many} | {len(own)} |"


def spread(rows: Sequence[Row]) -> str:
    """Mean and range of accuracies."""
    values = [row.accuracy for row in rows]
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.2f} % ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
