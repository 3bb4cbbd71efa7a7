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
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from pretrained_cells import (
    CALIBRATED_ON,
    FEW,
    MODEL,
    ROWS,
    SETS,
    TRAINED,
    Answer,
    Cell,
    Paid,
    Way,
    correct,
    enough,
    names,
    on_request,
    peers_of,
    settings,
    spec_of_cell,
)
from pretrained_page import HERE, store, stored_cells
from timm.data import ImageNetInfo, create_dataset, create_transform
from torch import Tensor, nn

from mt_convert.data.randomness import generator
from mt_convert.errors import MTConvertError, error_line
from mt_convert.evaluation.energy.account import dense_cost, spiking_cost
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.prices import MemoryModel, equal_prices
from mt_convert.evaluation.peers.network import peer_network
from mt_convert.evaluation.peers.plain_form import plain
from mt_convert.evaluation.subject import network_digest
from mt_convert.experiments.study import run_command
from mt_convert.graph.signals import Signal
from mt_convert.integer_engine.model import integer
from mt_convert.neurons.ladder import Radix, Uniform
from mt_convert.quantization.quantize import QuantizedModel, levels_of, quantize
from mt_convert.report.rows import results_from_json
from mt_convert.spiking import archive
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.system.storage import read_json

ENERGY_IMAGES = 4
BATCH = 25
PEER_TIMES = (4, 16, 32)
SHOWN, SIDE = "W8A8 corrected", 28


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
