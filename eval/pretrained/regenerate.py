"""Everything in this folder, by one command:

    python eval/pretrained/regenerate.py --data FOLDER --weights FILE

FOLDER holds imagenette224 (train.tar, test.tar: a folder for each of ten classes) and photos1000
(test.tar: folders named by WordNet ids), FILE timm's weights of tf_efficientnet_lite0. Cells are
made one after the other, what tells most first, and stored as they come; cells that are there, of
the same settings and of as many images, are not made again, a training that was stopped goes on.
--only takes parts of names of cells, --images a smaller number of test images of each set,
--compared how many of them the quantized network itself is shown, --pages writes the page from what
is there. Cells that train ("trained") and that take times ("time") are made if --only names them:
both want a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, create_dataset, create_transform
from torch import Tensor, nn

from mt_convert.data.randomness import generator
from mt_convert.errors import MTConvertError, error_line
from mt_convert.evaluation.energy.account import (
    dense_cost,
    spiking_cost,
)
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.prices import MemoryModel, equal_prices
from mt_convert.evaluation.peers.network import PEERS, peer_network
from mt_convert.evaluation.peers.plain_form import plain
from mt_convert.evaluation.subject import network_digest
from mt_convert.experiments.study import run_command
from mt_convert.graph.signals import Signal
from mt_convert.integer_engine.model import integer
from mt_convert.neurons.ladder import Radix, Uniform
from mt_convert.quantization.quantize import QuantizedModel, levels_of, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.report.pictures import draw_grid, make_figure, write
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.spiking import archive
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.system.storage import atomic, digest, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.pretrained/2"
KEY = "mt_convert.pretrained/1"  # what stored networks and cells are known by
MODEL = "tf_efficientnet_lite0"
ROWS = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # of ImageNet-1k, in order of the folders
WIDTHS = ((8, 8), (4, 8), (8, 4), (4, 4))
AFTER = ("output_steps", "gptq", "match_bn")
AFTER_8 = ("match_bn",)  # weights of 8 bits are rounded finely enough
CALIBRATED_ON = 64
FEW = 200
ENERGY_IMAGES = 4
BATCH = 25
PEER_TIMES = (4, 16, 32)
SETS = {
    "imagenette": (1000, "Imagenette, ten logits"),
    "photos": (500, "photographs, 1,000 logits"),
}
TRAINED = {"epochs": 8, "lr": 5e-4, "batch_size": 64}
Z = 1.96
SHOWN, SIDE = "W8A8 corrected", 28
PICTURES = ("accuracy.png", "photograph.png")


@dataclass(frozen=True)
class Answer:
    """How one network did on one set of images, image by image, in the order of `Photographs`.

    ``right``: "1" for each image whose class it gave, else "0". ``compared``: of how many images
    the quantized network's answers were compared with those of the integer engine, ``equal``: on
    how many the class was the same; ``different``: the share of their levels that was not, next to
    thresholds, where floats are summed in another order than whole numbers. ``spikes`` and
    ``packets``: per neuron and image.
    """

    images: str
    right: str
    compared: int = 0
    equal: int = 0
    different: float | None = None
    spikes: float | None = None
    packets: float | None = None

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.right.count("1") / len(self.right)


@dataclass(frozen=True)
class Paid:
    """What one way to run a network costs, per image: the mean of ``images`` photographs.

    ``fed`` is the share of multiply-accumulates of layers that spikes feed; ``compute`` and
    ``total`` (memory counted) are shares of what the quantized network of equal bits costs.
    """

    images: int
    fed: float
    spikes: float
    packets: float
    compute: float
    total: float
    prices: str


@dataclass(frozen=True)
class Way:
    """A way to run a converted network, and how it did on the first images of a set."""

    ladder: str
    n: int
    T: int
    answer: Answer
    paid: Paid | None = None


@dataclass(frozen=True)
class Cell:
    """What one cell gave. ``refused``: the words in which it could not be made."""

    name: str
    settings: str
    answers: Sequence[Answer] = ()
    ways: Sequence[Way] = ()
    bits: tuple[int, int] | None = None
    after: Sequence[str] = ()
    levels: int | None = None
    network: str | None = None
    refused: str | None = None
    version: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cell:
        """The cell that `dataclasses.asdict` wrote."""

        def way(item: Mapping[str, Any]) -> Way:
            paid = None if item["paid"] is None else Paid(**item["paid"])
            return Way(**{**item, "answer": Answer(**item["answer"]), "paid": paid})

        made = {
            "answers": [Answer(**item) for item in stored["answers"]],
            "ways": [way(item) for item in stored["ways"]],
            "bits": None if stored["bits"] is None else tuple(stored["bits"]),
        }
        return cls(**{**stored, **made})


# ------------------------------------------------------------------------------------ what there is


def title(bits: tuple[int, int]) -> str:
    """Bits of weights and activations in a word."""
    return f"W{bits[0]}A{bits[1]}"


def names() -> list[str]:
    """All cells, what tells most first."""
    first = [(8, 8), (4, 8)]
    rest = [item for item in WIDTHS if item not in first]
    made = [f"{title(bits)} {stage}" for bits in first for stage in ("corrected", "calibrated")]
    made += [f"{title(bits)} {stage}" for bits in rest for stage in ("corrected", "calibrated")]
    ways = [f"{title(bits)} {stage} steps" for bits in WIDTHS for stage in ("corrected",)]
    peers = [f"{peer} {form}" for peer in PEERS for form in ("as it is", "plain form")]
    trained = [f"{title(bits)} trained" for bits in reversed(WIDTHS)]
    return [
        "float",
        *made[:4],
        "photograph",
        *made[4:],
        *ways,
        *peers,
        *trained,
        *(f"{item} steps" for item in trained),
        "time",
    ]


def on_request(name: str) -> bool:
    """Whether a cell is made only where it is asked for: it trains, or takes times."""
    return "trained" in name or name == "time"


class Photographs:
    """The images of one tar file in a seeded order, as numbers of the network's range."""

    def __init__(self, tar: Path, count: int | None, rows: Sequence[int] | None = None) -> None:
        transform = create_transform(224, interpolation="bicubic", crop_pct=0.875, normalize=False)
        self._files = create_dataset("", root=str(tar), transform=transform)
        folders = sorted(self._files.reader.class_name_to_idx)
        ids = ImageNetInfo("imagenet-1k").label_names()
        self.rows = list(rows) if rows else [ids.index(name) for name in folders]
        self.order = torch.randperm(len(self._files), generator=generator(0, tar.parent.name))
        self.order = self.order[:count]

    def batches(self, first: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and the rows of the head that are right."""
        for part in self.order[:first].split(BATCH):
            read = [self._files[int(k)] for k in part]
            pixels = torch.stack([torch.as_tensor(image) for image, _ in read])
            labels = torch.tensor([self.rows[label] for _, label in read])
            yield pixels.float() / 127.5 - 1, labels


class Study:
    """Networks and images, opened when they are first needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.weights, self.runs = options.data, options.weights, options.runs
        self.images, self.compared = options.images, options.compared

    @cached_property
    def ann(self) -> nn.Module:
        """The float network."""
        return timm.create_model(MODEL, checkpoint_path=str(self.weights)).eval()

    @cached_property
    def calibration(self) -> Tensor:
        """The first training photographs of Imagenette, in their seeded order."""
        chosen = Photographs(self.data / "imagenette224" / "train.tar", CALIBRATED_ON, ROWS)
        return torch.cat([images for images, _ in chosen.batches()])

    def tested(self, word: str) -> Photographs:
        """The test photographs of a set."""
        count = min(SETS[word][0], self.images or SETS[word][0])
        rows = ROWS if word == "imagenette" else None
        folder = {"imagenette": "imagenette224", "photos": "photos1000"}[word]
        return Photographs(self.data / folder / "test.tar", count, rows)

    def cell(self, name: str) -> Cell:
        """Make a cell."""
        if name == "float":
            answers = [self.answer(word, self.ann) for word in SETS]
            return Cell(name, settings(name), answers)
        if name == "time":
            return self.timed(name)
        if name == "photograph":
            return self.photograph(name)
        if name.startswith("W"):
            return self.steps(name) if name.endswith("steps") else self.network(name)
        return self.peer(name)

    @torch.inference_mode()
    def answer(self, word: str, network: Any, first: int | None = None) -> Answer:
        """How a network with a thousand rows, or ten, answers."""
        right = [
            correct(word, network(images), labels)
            for images, labels in self.tested(word).batches(first)
        ]
        return Answer(word, "".join(right))

    def qann(self, name: str) -> QuantizedModel:
        """The quantized network of a cell, stored once it is made."""
        base = name.removesuffix(" steps")
        folder = self.runs / base.replace(" ", "_").lower()
        if "trained" in base:
            return self.trained(base, folder)
        kept = folder / settings(base)
        if not kept.is_dir():
            made = quantize(self.ann, spec_of_cell(base), calibration=self.calibration)
            archive.save(made, str(kept))
        loaded = archive.load(str(kept))
        assert isinstance(loaded, QuantizedModel)
        return loaded

    def trained(self, name: str, folder: Path) -> QuantizedModel:
        """The network after training on Imagenette, by the recipe with ten rows of the head."""
        words = training_words(name, self.data, self.weights)
        recipe = "imagenet_efficientnet_lite0_w4a4"
        run_command("run", recipe, *words, "--out", str(folder), "--resume")
        loaded = archive.load(str(folder / "train"))
        assert isinstance(loaded, QuantizedModel)
        return loaded

    def network(self, name: str) -> Cell:
        """Quantized, and spiking with n = L at T = 1, by the integer engine."""
        spec, started = spec_of_cell(name), time.process_time()
        qann = self.qann(name)
        shown = next(self.tested("imagenette").batches(ENERGY_IMAGES))[0]
        snn = convert(qann, verify=shown)
        verdict = snn.report.verdict
        assert verdict is not None
        whole = integer(snn)
        ten = "trained" in name
        sets = ["imagenette"] if ten or (name.startswith("W4A4")) else list(SETS)
        answers = [self.exact_answer(word, qann, whole) for word in sets]
        paid = self.paid(snn, 1)
        way = Way("uniform", spec.levels, 1, answers[0], paid)
        notes: dict[str, Any] = {"verified": len(shown), "exact": verdict.exact_t1}
        if ten:
            folder = self.runs / name.replace(" ", "_").lower()
            stored = results_from_json(read_json(folder / "results.json"))[0]
            notes["control_accuracy"] = stored.control_accuracy
        return Cell(
            name,
            settings(name),
            answers,
            [way],
            (spec.weight_bits or 32, spec.act_bits),
            spec.after,
            spec.levels,
            network_digest(qann),
            notes=notes | {"cpu_seconds": round(time.process_time() - started)},
        )

    @torch.inference_mode()
    def exact_answer(self, word: str, qann: QuantizedModel, whole: Any) -> Answer:
        """What the integer engine answers; on the first images compared with the quantized network,
        level by level."""
        right, equal, seen, events, packets, neurons = "", 0, 0, 0.0, 0.0, 1
        different = 0
        for images, labels in self.tested(word).batches():
            run = whole.run(images, 1, totals=True)
            right += correct(word, run.logits[-1], labels)
            events += sum(float(item.abs().sum()) for item in run.totals.values())
            packets += sum(float(item.count_nonzero()) for item in run.totals.values())
            neurons = sum(item[0].numel() for item in run.totals.values())
            if seen < self.compared:
                with levels_of(qann) as levels:
                    logits = qann(images)
                alike = logits.argmax(1) == run.logits[-1].argmax(1)
                different += sum(
                    int((run.totals[layer].to(level.dtype) != level).sum())
                    for layer, level in levels.items()
                )
                equal, seen = equal + int(alike.sum()), seen + len(images)
        count = len(right) * neurons
        share = different / (seen * neurons) if seen else None
        spikes, sent = round(events / count, 4), round(packets / count, 4)
        return Answer(word, right, seen, equal, share, spikes, sent)

    def steps(self, name: str) -> Cell:
        """The same network in several steps: digits in windows, and fifteen thresholds."""
        spec, qann = spec_of_cell(name), self.qann(name)
        ways = []
        for n in (15, 3, 1):
            T = Radix(n).digits(spec.levels)
            snn = convert(qann, ladder=Radix(n), whole_window=True)
            whole = integer(snn)
            answer = self.answer("imagenette", lambda x, w=whole, T=T: w(x, T), FEW)
            ways.append(Way("radix", n, T, answer, self.paid(snn, T)))
        few = convert(qann, ladder=Uniform(min(15, spec.levels)), signed=True)
        whole = integer(few)
        for T in (1, 2, 4, 8):
            answer = self.answer("imagenette", lambda x, T=T: whole(x, T), FEW)
            ways.append(Way("uniform", min(15, spec.levels), T, answer, self.paid(few, T)))
        bits = (spec.weight_bits or 32, spec.act_bits)
        digest_of = network_digest(qann)
        return Cell(name, settings(name), (), ways, bits, spec.after, spec.levels, digest_of)

    def paid(self, snn: SpikingModel, T: int) -> Paid:
        """What a way costs beside the quantized network of the same bits."""
        images = next(self.tested("imagenette").batches(ENERGY_IMAGES))[0]
        report = energy(snn, images, time_steps=T, batch_size=ENERGY_IMAGES)
        rows = [row for row in report.rows if row.time_steps == T]
        prices, memory = equal_prices(rows), MemoryModel()
        ours = spiking_cost("", rows, prices, memory)
        theirs = dense_cost("", rows, prices, memory, None)
        neurons, macs = sum(row.neurons for row in rows), sum(row.ann_macs for row in rows)
        return Paid(
            len(images),
            round(sum(row.ann_macs for row in rows if row.fed_by is Signal.SPIKES) / macs, 4),
            round(sum(row.events for row in rows) / neurons, 4),
            round(sum(row.packets for row in rows) / neurons, 4),
            round((ours.compute + ours.neurons) / (theirs.compute + theirs.neurons), 4),
            round(ours.total / theirs.total, 4),
            prices.name,
        )

    def peer(self, name: str) -> Cell:
        """The float network converted by another package, or its refusal in its own words."""
        method, form = next((peer, name[len(peer) + 1 :]) for peer in peers_of(name))
        try:
            ann = plain(self.ann, self.calibration[:2]) if form == "plain form" else self.ann
            network = peer_network(method, ann, self.calibration)
        except MTConvertError as error:
            return Cell(name, settings(name), refused=error_line(error))
        right: dict[tuple[str, int], str] = {}
        spikes = dict.fromkeys(PEER_TIMES, 0.0)
        seen = 0
        for images, labels in self.tested("imagenette").batches(FEW):
            run = network.run(images, PEER_TIMES[-1])
            for T in PEER_TIMES:
                spikes[T] += float(run.spikes_per_neuron[T - 1]) * len(images)
                for word, logits in (("", run.logits), ("delayed", run.delayed)):
                    if logits is not None:
                        said = correct("imagenette", logits[T - 1], labels)
                        right[word, T] = right.get((word, T), "") + said
            seen += len(images)
        ways = [
            Way(word, 1, T, Answer("imagenette", said, spikes=round(spikes[T] / seen, 4)))
            for (word, T), said in right.items()
        ]
        notes = {"left": network.left, "shared": list(network.shared)}
        return Cell(name, settings(name), (), ways, version=network.version, notes=notes)

    @torch.inference_mode()
    def photograph(self, name: str) -> Cell:
        """What the neurons of one channel emit on the first photograph: that channel of the first
        layer of 28 by 28 neurons which says most, as numbers; and how many levels of the quantized
        network are others in whole numbers, and in float64."""
        qann = self.qann(SHOWN)
        images, labels = next(self.tested("photos").batches(1))
        totals = integer(convert(qann)).run(images, 1, totals=True).totals
        with levels_of(qann) as due:
            qann(images)
        double = QuantizedModel(copy.deepcopy(qann.layers).double(), qann.spec)
        with levels_of(double) as in_double:
            double.layers(images.double())
        neurons = sum(level.numel() for level in due.values())

        def share(found: Mapping[str, Tensor], key: str) -> float:
            return float((found[key].double() != due[key].double()).double().mean())

        shares = {key: share(totals, key) for key in due}
        of_all = {
            word: sum(share(found, key) * level.numel() for key, level in due.items()) / neurons
            for word, found in (("whole numbers", totals), ("float64", in_double))
        }
        ends = {
            key: shares[key] for key in (next(iter(shares)), max(shares, key=shares.__getitem__))
        }
        layer = next(key for key, item in totals.items() if item.shape[-1] == SIDE)
        channels = totals[layer][0]
        channel = int(channels.float().flatten(1).std(1).argmax())
        notes: dict[str, Any] = {"layer": layer, "channel": channel, "label": int(labels[0])}
        levels = channels[channel].int().tolist()
        notes |= {"levels": levels, "network": SHOWN, "different": ends, "of all": of_all}
        return Cell(name, settings(name), notes=notes)

    def timed(self, name: str) -> Cell:
        """Microseconds an image beside onnxruntime's int8, by `mt-convert bench`."""
        out = self.runs / "time"
        chosen = ("integer_native", "onnxruntime_int8", "onnxruntime")
        run_command("bench", MODEL, "--only", *chosen, "--batch", "1", "--out", str(out))
        return Cell(name, settings(name), notes={"bench": read_json(out / "results.json")})


def settings(name: str) -> str:
    """A digest of all that the numbers of a cell depend on, but of how many images were shown."""
    said: list[Any] = [KEY, MODEL, name, CALIBRATED_ON, ROWS]
    if name.startswith("W"):
        said += [spec_of_cell(name).to_json(), TRAINED if "trained" in name else None]
    return str(digest(said))[:16]


def training_words(name: str, data: Path, weights: Path) -> list[str]:
    """What the recipe of Lite0 is told for a training on Imagenette, ten rows of the head."""
    spec = spec_of_cell(name)
    return [
        *(f"data.root={data / 'imagenette224'}", f"model.checkpoint={weights}"),
        *("model.pretrained=false", "model.classes=10", f"model.rows={list(ROWS)}"),
        *("data.classes=10", "data.test_split=test", "data.validation_share=0"),
        *(f"data.calibration_images={CALIBRATED_ON}", "train.optimizer=adamw"),
        *(f"train.{key}={value}" for key, value in TRAINED.items()),
        *("train.reestimate_bn=1000", "evaluate.thresholds=[15]", "evaluate.time_steps=[1]"),
        *(f"quantize.weight_bits={spec.weight_bits}", f"quantize.act_bits={spec.act_bits}"),
        *(f"quantize.after=[{','.join(spec.after)}]", "evaluate.images=1000", "control=true"),
    ]


def enough(cell: Cell, asked: int | None) -> bool:
    """Whether a stored cell was shown as many images of each set as are asked for, None for all.

    Example:
        >>> few = Cell("float", "", [Answer("photos", "1" * 200)])
        >>> enough(few, 200), enough(few, 500), enough(few, None)
        (True, False, False)
    """
    return all(
        len(item.right) >= min(SETS[item.images][0], asked or SETS[item.images][0])
        for item in cell.answers
    )


def peers_of(name: str) -> list[str]:
    """The peer that a cell is of: the longest name that fits."""
    return sorted((peer for peer in PEERS if name.startswith(f"{peer} ")), key=len)[-1:]


def spec_of_cell(name: str) -> QuantSpec:
    """How the network of a cell is quantized.

    Example:
        >>> spec_of_cell("W4A8 corrected").weight_bits, spec_of_cell("W8A8 calibrated").after
        (4, ())
    """
    weight_bits, act_bits = int(name[1]), int(name[3])
    after: tuple[str, ...] = ()
    if "calibrated" not in name:
        after = AFTER if weight_bits < 5 else AFTER_8
    return QuantSpec(weight_bits=weight_bits, act_bits=act_bits, after=after)


def correct(word: str, logits: Tensor, labels: Tensor) -> str:
    """For each image whether the class is right; of Imagenette ten rows compete."""
    if word == "imagenette":
        rows = torch.tensor(ROWS)
        said = logits.argmax(1) if logits.shape[1] == len(ROWS) else logits[:, rows].argmax(1)
        right = rows[said] == labels
    else:
        right = logits.argmax(1) == labels
    return "".join("1" if item else "0" for item in right.tolist())


# ------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Difference:
    """Points by which a network is better than another on the same images, with its 95 % interval.

    ``only_first``, ``only_second``: images that one of them alone got right.
    """

    points: float
    low: float
    high: float
    only_first: int
    only_second: int
    both_wrong: int

    def within(self, bound: float) -> str:
        """Whether the second is at most ``bound`` points below the first, as far as is known.

        Example:
            >>> difference("1" * 100, "1" * 100).within(5), difference("1" * 9, "0" * 9).within(5)
            ('yes', 'no')
        """
        if self.low >= -bound:
            return "yes"
        return "no" if self.high < -bound else "not decided"


def difference(first: str, second: str) -> Difference:
    """The second network against the first, image by image; those that both were shown.

    Source:
        Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data (2012).

    Example:
        >>> found = difference("1111011111", "1111011110")
        >>> found.points, found.only_first, found.only_second, found.both_wrong
        (-10.0, 1, 0, 1)
    """
    pairs = list(zip(first, second, strict=False))
    count = len(pairs)
    one, other = pairs.count(("1", "0")), pairs.count(("0", "1"))
    p, q = (one + 1) / (count + 2), (other + 1) / (count + 2)
    half = Z * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    low, high = 100 * (q - p - half), 100 * (q - p + half)
    points = 100 * (other - one) / count
    return Difference(points, low, high, one, other, pairs.count(("0", "0")))


# ------------------------------------------------------------------------------------- rows, page


def rows_of(cells: Mapping[str, Cell]) -> list[Row]:
    """All ways of all cells as rows of results."""
    rows = []
    for cell in cells.values():
        for way in cell.ways:
            answers = cell.answers or [way.answer]
            for answer in answers if way.T == 1 and cell.answers else [way.answer]:
                rows.append(_row(cell, way, answer, cells))
    return rows


def _row(cell: Cell, way: Way, answer: Answer, cells: Mapping[str, Cell]) -> Row:
    """One way of one cell on one set of images."""
    same = [item for item in cells["float"].answers if item.images == answer.images]
    ann = same[0].right[: len(answer.right)] if same else ""
    base = cells.get(cell.name.removesuffix(" steps"), cell)
    quantized = [item for item in base.answers if item.images == answer.images]
    qann = quantized[0].right[: len(answer.right)] if quantized else None
    ours = cell.bits is not None
    agree = None if qann is None else sum(map(str.__eq__, qann, answer.right)) / len(answer.right)
    exact = float(cell.notes["exact"]) if "exact" in cell.notes else None
    paid = way.paid
    spikes = answer.spikes if answer.spikes is not None else paid.spikes if paid else 0.0
    packets = answer.packets if answer.packets is not None else paid.packets if paid else None
    radix = way.ladder == "radix"
    return Row(
        model=MODEL,
        dataset=SETS[answer.images][1],
        images=len(answer.right),
        presentation="once" if ours else "every_step",
        mode="parallel",
        signed=ours and not radix and way.n < (cell.levels or 0),
        n=way.n,
        T=way.T,
        ann_accuracy=100 * ann.count("1") / len(ann) if ann else None,
        qann_accuracy=100 * qann.count("1") / len(qann) if qann else None,
        snn_accuracy=answer.accuracy,
        agreement=agree if ours else None,
        exact_share=exact,
        spikes_per_neuron=spikes,
        ladder=way.ladder if ours else "uniform",
        levels=cell.levels or 0,
        weight_bits=cell.bits[0] if cell.bits else None,
        whole_window=radix,
        settling_T=None,
        seed=0,
        method=f"mt_{way.ladder}" if ours else " ".join((cell.name, way.ladder)).strip(),
        run=cell.name,
        digest=cell.network,
        packets_per_neuron=packets,
        act_bits=cell.bits[1] if cell.bits else None,
        control_accuracy=cell.notes.get("control_accuracy"),
    )


def page(head: str, cells: Mapping[str, Cell]) -> str:
    """The page of the stored cells."""
    text = [head.rstrip(), ""]
    if "float" not in cells:
        return "\n".join([*text, "No cells are stored yet.", ""])
    float_answers = {item.images: item for item in cells["float"].answers}
    said = "; ".join(
        f"{SETS[word][1]}: {item.accuracy:.2f} % of {len(item.right):,}"
        for word, item in float_answers.items()
    )
    text += [f"The float network: {said}.", ""]
    if any(cell.ways for cell in cells.values()):
        text += [f"![accuracy over time steps]({PICTURES[0]})", ""]
    if "photograph" in cells:
        notes = cells["photograph"].notes
        text += [
            f"![what a channel emits]({PICTURES[1]})",
            "",
            f"What channel {notes['channel']} of `{notes['layer']}` emits on one photograph: its "
            "levels in one step with 255 thresholds, and as digits in four steps with three. "
            "On it, levels of the integer engine that are not the quantized network's: "
            + ", ".join(f"{share:.1e} in `{key}`" for key, share in notes["different"].items())
            + f" (first and largest), {notes['of all']['whole numbers']:.1e} of all. The quantized "
            f"network has {notes['of all']['float64']:.1e} other levels where it is computed in "
            "float64: so much hangs on the last bit of float32 sums behind each other.",
            "",
        ]
    text += list(_networks(cells, float_answers))
    text += ["", "## In several steps", "", *_steps(cells, float_answers)]
    text += ["", "## Other packages on the same photographs", "", *_peers(cells, float_answers)]
    missing = [name for name in names() if name not in cells]
    if missing:
        text += ["", f"Not made yet: {'; '.join(missing)}."]
    return "\n".join([*text, ""])


def _networks(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """Quantized and spiking at T = 1, beside the float network."""
    yield (
        "| network | images | float % | quantized = spiking, n = L, T = 1, % | difference, points "
        "(95 %) | only float right / only this | within | equal: float simulation; "
        "integer engine, levels that differ | spikes, packets "
        "a neuron | MACs fed by spikes | energy beside the quantized network: sums / with memory |"
    )
    yield "| --- | --- | ---: | ---: | --- | --- | --- | --- | --- | ---: | --- |"
    for name in names():
        cell = cells.get(name)
        if cell is None or not cell.answers or name == "float":
            continue
        control = cell.notes.get("control_accuracy")
        for place, answer in enumerate(cell.answers):
            own = floats[answer.images]
            change = difference(own.right, answer.right)
            bound = aim(cell)
            paid = cell.ways[0].paid if cell.ways and not place else None
            shown = own.right[: len(answer.right)]
            yield " | ".join(
                [
                    f"| {describe(cell)}",
                    f"{SETS[answer.images][1]}, {len(answer.right):,}",
                    f"{100 * shown.count('1') / len(shown):.2f}"
                    + (f" (control {control:.2f})" if control is not None else ""),
                    f"{answer.accuracy:.2f}",
                    f"{change.points:+.2f} ({change.low:+.2f} … {change.high:+.2f})",
                    f"{change.only_first} / {change.only_second}",
                    "" if bound is None else f"{bound:g}: {change.within(bound)}",
                    exactness(cell, answer),
                    f"{answer.spikes}, {answer.packets}",
                    f"{paid.fed:.4f}" if paid else "",
                    f"{paid.compute:.2f} / {paid.total:.2f} |" if paid else " |",
                ]
            )


def exactness(cell: Cell, answer: Answer) -> str:
    """What is equal to the quantized network, on how many photographs."""
    count = cell.notes.get("verified", 0)
    first = f"{count} of {count}" if cell.notes.get("exact") else f"not on {count}"
    share = 0.0 if answer.different is None else answer.different
    return f"{first}; {answer.equal} of {answer.compared}, {share:.1e}"


def describe(cell: Cell) -> str:
    """A network in words."""
    assert cell.bits is not None
    if "trained" in cell.name:
        return f"{title(cell.bits)}, trained"
    words = f"`{', '.join(cell.after)}`" if cell.after else "calibrated alone"
    return f"{title(cell.bits)}, {words}"


def aim(cell: Cell) -> float | None:
    """How far below the float network it may be, where something was asked."""
    wanted = {(8, 8): 0.5, (4, 8): 5.0, (4, 4): 1.5 if "trained" in cell.name else None}
    return wanted.get(cell.bits) if cell.bits else None


def _steps(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """Fewer thresholds than levels, over several steps."""
    made = [cells[name] for name in names() if name in cells and name.endswith("steps")]
    if not made:
        yield "Not made yet."
        return
    yield (
        "| network | thresholds | T | images | % | against T = 1, n = L: points (95 %) | spikes, "
        "packets a neuron | energy beside the quantized network: sums / with memory |"
    )
    yield "| --- | --- | ---: | ---: | ---: | --- | --- | --- |"
    for cell in made:
        base = cells.get(cell.name.removesuffix(" steps"))
        for way in cell.ways:
            own = base.answers[0].right if base else ""
            change = difference(own, way.answer.right) if own else None
            paid = way.paid
            yield " | ".join(
                [
                    f"| {describe(cell)}",
                    f"{way.ladder} {way.n}",
                    str(way.T),
                    str(len(way.answer.right)),
                    f"{way.answer.accuracy:.2f}",
                    f"{change.points:+.2f} ({change.low:+.2f} … {change.high:+.2f})"
                    if change
                    else "",
                    f"{paid.spikes}, {paid.packets}" if paid else "",
                    f"{paid.compute:.2f} / {paid.total:.2f} |" if paid else " |",
                ]
            )


def _peers(cells: Mapping[str, Cell], floats: Mapping[str, Answer]) -> Iterator[str]:
    """What other packages make of the float network."""
    made = [cells[name] for name in names() if name in cells and peers_of(name)]
    if not made:
        yield "Not made yet."
        return
    yield "| package | network given | T | images | % | against float, points (95 %) | said |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- |"
    for cell in made:
        (peer,) = peers_of(cell.name)
        form = cell.name[len(peer) + 1 :]
        if cell.refused is not None:
            yield f"| {peer} | {form} | – | – | – | – | {cell.refused.replace('|', '/')} |"
        for way in cell.ways:
            change = difference(floats["imagenette"].right, way.answer.right)
            left = ", ".join(f"{n} {kind}" for kind, n in cell.notes.get("left", {}).items())
            yield (
                f"| {peer} {cell.version} {way.ladder} | {form} | {way.T} | "
                f"{len(way.answer.right)} | {way.answer.accuracy:.2f} | {change.points:+.2f} "
                f"({change.low:+.2f} … {change.high:+.2f}) | "
                f"{f'activations left as they were: {left}' if left else ''} |"
            )


# ---------------------------------------------------------------------------------------- running


def stored_cells(out: Path = HERE) -> dict[str, Cell]:
    """What results.json holds, by name."""
    path = out / "results.json"
    stored = read_json(path)["cells"] if path.is_file() else []
    return {cell.name: cell for cell in map(Cell.from_json, stored)}


def draw_accuracy(cells: Mapping[str, Cell], path: Path) -> None:
    """Accuracy over T on the same photographs of Imagenette: ours, and other packages' networks."""
    figure, (axes,) = make_figure((6.2, 3.4), (1, 1))
    count = min(
        (len(way.answer.right) for cell in cells.values() for way in cell.ways), default=FEW
    )
    lines: dict[str, list[tuple[int, float]]] = {}
    for name in names():
        cell = cells.get(name)
        for way in cell.ways if cell else ():
            right = way.answer.right[:count]
            ladder = "n = L" if way.T == 1 and cell.answers else f"{way.ladder} n = {way.n}"
            word = f"{title(cell.bits)}, {ladder}" if cell.bits else f"{name} {way.ladder}".strip()
            lines.setdefault(word, []).append((way.T, 100 * right.count("1") / len(right)))
    for word, points in lines.items():
        times, values = zip(*sorted(points), strict=True)
        ours = word.startswith("W")
        axes.plot(times, values, "o-" if ours else "x--", ms=5, lw=1.2, label=word)
    own = [item.right[:count] for item in cells["float"].answers if item.images == "imagenette"]
    axes.axhline(100 * own[0].count("1") / len(own[0]), color="0.4", lw=0.8, label="float network")
    axes.set_xscale("log", base=2)
    ticks = sorted({time for points in lines.values() for time, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xlabel("time steps T", fontsize=9)
    axes.set_ylabel(f"right of {count} photographs, %", fontsize=9)
    axes.set_ylim(0, 103)
    draw_grid(axes)
    figure.legend(loc="outside right center", fontsize=7.5, frameon=False)
    write(figure, path)


def draw_photograph(cell: Cell, path: Path) -> None:
    """What one channel emits on one photograph: its levels in one step of n = L thresholds, and the
    same in four steps of three thresholds, digit by digit."""
    levels = torch.tensor(cell.notes["levels"])
    steps = Radix(3).digits(255)
    digits = [(levels.abs() // 4 ** (steps - 1 - t)) % 4 * levels.sign() for t in range(steps)]
    figure, panels = make_figure((9.0, 2.5), (1, 1 + steps))
    most = int(levels.abs().max())
    panels[0].imshow(levels, cmap="RdBu_r", vmin=-most, vmax=most)
    panels[0].set_title(f"n = 255, T = 1\n{int(levels.abs().sum()):,} thresholds", fontsize=8.5)
    for t, (axes, digit) in enumerate(zip(panels[1:], digits, strict=True)):
        axes.imshow(digit, cmap="RdBu_r", vmin=-3, vmax=3)
        crossed = int(digit.abs().sum())
        worth = 4 ** (steps - 1 - t)
        axes.set_title(f"n = 3, step {t + 1} (worth {worth})\n{crossed:,} thresholds", fontsize=8.5)
    for axes in panels:
        axes.set_axis_off()
    write(figure, path)


def store(cells: Mapping[str, Cell], out: Path = HERE) -> None:
    """Rows in the schema of all results; cells, of which they are made, beside them."""
    known = {name: cells[name] for name in names() if name in cells}
    rows = results_to_json(rows_of(known)) if "float" in known else results_to_json([])
    plain_cells = [dataclasses.asdict(cell) for cell in known.values()]
    write_json(out / "results.json", {**rows, "cells_schema": SCHEMA, "cells": plain_cells})
    if any(cell.ways for cell in known.values()) and "float" in known:
        draw_accuracy(known, out / PICTURES[0])
    if "photograph" in known:
        draw_photograph(known["photograph"], out / PICTURES[1])
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page((HERE / "head.md").read_text(), known))


def read_options() -> argparse.Namespace:
    """The words of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="holds imagenette224 and photos1000")
    parser.add_argument("--weights", type=Path, help="timm's weights, a file")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "pretrained")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", nargs="*", help="parts of names: " + "; ".join(names()))
    parser.add_argument("--images", type=int, help="test images of each set; all by default")
    parser.add_argument("--compared", type=int, default=100)
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    if not options.pages and not (options.data and options.weights):
        parser.error("--data FOLDER and --weights FILE are needed, or --pages")
    return options


def main() -> None:
    """Make the cells that are not there, then write the page."""
    options = read_options()
    torch.set_num_threads(1)
    cells = stored_cells(options.out)
    if not options.pages:
        study = Study(options)
        for name in names():
            asked = options.only and any(part in name for part in options.only)
            there = cells.get(name)
            if not (asked if options.only else not on_request(name)):
                continue
            if (
                there is not None
                and there.settings == settings(name)
                and enough(there, options.images)
            ):
                continue
            made = study.cell(name)
            cells = {**stored_cells(options.out), name: made}  # others may have come meanwhile
            store(cells, options.out)
            print(name, *(f"{item.images} {item.accuracy:.2f}" for item in cells[name].answers))
    store(cells, options.out)


if __name__ == "__main__":
    main()
