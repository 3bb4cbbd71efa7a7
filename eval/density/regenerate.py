"""Everything in this folder, by one command on a machine that does nothing else:

    python eval/density/regenerate.py runs/cifar10_resnet20_w4a4 --data FOLDER

RUN is the folder of a finished run; --data the folder of its images, where it is another one now.
Networks that are not named stay as they are stored; --pages writes the page from results.json.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from mt_convert.data import batches
from mt_convert.experiments.bench.network import thresholds_for
from mt_convert.experiments.subjects import subjects_of
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native.compile import compile_library
from mt_convert.neurons.ladder import Uniform
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.system.progress import progress
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.density/1"
IMAGES, ROUNDS, STEPS = 16, 7, (4, 8)


EventKernel = Callable[[nn.Conv2d, Tensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class Layer:
    """A convolution that reads one layer of neurons, over T steps.

    Shapes:
        entries, fours, places, rows [T]: the share of its inputs, of four channels at a place, of
            places, of rows of the image, that change in each step.
    Units: microseconds an image: ``whole`` in one step of n = L, ``events`` for as many changes
        as the share ``timed`` of its inputs.
    """

    name: str
    kind: str
    macs: int
    entries: tuple[float, ...]
    fours: tuple[float, ...]
    places: tuple[float, ...]
    rows: tuple[float, ...]
    whole: float
    timed: float
    events: float

    @property
    def break_even(self) -> float:
        """The share of inputs at which adding changes takes as long as the whole layer."""
        return self.timed * self.whole / self.events

    @property
    def at_best(self) -> float:
        """Microseconds of all steps, each by the faster way."""
        each = self.events / self.timed
        return sum(min(self.whole, each * share) for share in self.entries)


@dataclass(frozen=True)
class Case:
    """A network with n thresholds and T steps."""

    network: str
    n: int
    T: int
    layers: tuple[Layer, ...]


# ------------------------------------------------------------------------------------- measuring


def measure(word: str, overrides: Sequence[str]) -> list[Case]:
    """All cases of one run."""
    torch.set_num_threads(1)
    (subject,) = subjects_of(word, [], overrides, None, None)
    images, L = next(iter(batches(subject.test, IMAGES)))[0], subject.qann.spec.levels
    kernel, found = event_kernel(), []
    for T in STEPS:
        n = thresholds_for(L, T)
        snn = convert(subject.qann, ladder=Uniform(n), signed=True)
        run = simulate(snn, images, time_steps=T, record=True)
        assert run.spikes is not None
        timed = time_layers(convert(subject.qann), snn, run.spikes, images, kernel)
        found.append(Case(Path(word).name, n, T, tuple(timed)))
    return found


def time_layers(
    whole: SpikingModel,
    snn: SpikingModel,
    spikes: Mapping[str, Tensor],
    images: Tensor,
    kernel: EventKernel,
) -> list[Layer]:
    """Every convolution that reads one layer of neurons, both ways in turns."""
    model = integer(whole, backend="native")
    fed_by = {row.name: row.fed_by for row in snn.report.weighted}
    chosen: dict[str, tuple[nn.Conv2d, Tensor]] = {}
    for name, layer in snn.named_modules():
        short = name.removeprefix("layers.")
        feeders = fed_by.get(short, ())
        if is_plain(layer) and len(feeders) == 1 and feeders[0] in spikes:
            emitted = spikes[feeders[0]]
            if emitted.dim() == 5 and emitted.shape[2] == layer.in_channels:
                chosen[short] = (layer, emitted)
    wholes: dict[str, list[float]] = {}
    events: dict[str, list[float]] = {name: [] for name in chosen}
    kinds: dict[str, tuple[str, int]] = {}
    for _ in progress(range(ROUNDS), "both ways, in turns"):
        for note, seconds in model.layer_times(images):
            wholes.setdefault(note.name, []).append(seconds)
            kinds[note.name] = note.kind, note.macs
        for name, (layer, emitted) in chosen.items():
            events[name].append(kernel(layer, busiest(emitted))[1])
    return [
        Layer(
            name,
            *kinds[name],
            *shares(emitted),
            whole=round(1e6 * statistics.median(wholes[name]) / len(images), 3),
            timed=round(float((busiest(emitted) != 0).float().mean()), 4),
            events=round(1e6 * statistics.median(events[name]), 3),
        )
        for name, (_, emitted) in chosen.items()
        if name in wholes
    ]


def is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that the kernel of events knows."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return False
    alike = all(len(set(v)) == 1 for v in (layer.kernel_size, layer.stride, layer.padding))
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    return alike and set(layer.dilation) == {1} and (layer.groups == 1 or depthwise)


def busiest(emitted: Tensor) -> Tensor:
    """What the first image's neurons emit in the step in which most of them do.

    Shapes:
        emitted [T, batch, channels, height, width] -> [channels, height, width].
    """
    image = emitted[:, 0]
    return image[int((image != 0).flatten(1).sum(1).argmax())]


def shares(emitted: Tensor) -> list[tuple[float, ...]]:
    """Of entries, fours of channels, places and rows, in each step.

    Shapes:
        emitted [T, batch, channels, height, width].
    """
    changes = emitted != 0
    fours = torch.stack([four.any(2) for four in changes.split(4, 2)], 2)
    forms = (changes, fours, changes.any(2), changes.any(2).any(3))
    return [tuple(round(float(v), 4) for v in form.flatten(1).float().mean(1)) for form in forms]


def event_kernel() -> EventKernel:
    """What a convolution of the signs of one image's changes is, by its events, and the seconds.

    Shapes:
        emitted [channels, height, width] -> sums [height, width, channels out], of weights rounded.
    """
    flags = ["-O3", "-march=native", "-funroll-loops"]
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(compile_library(HERE / "events.cpp", Path(folder), flags)))

    def convolve(layer: nn.Conv2d, emitted: Tensor) -> tuple[Tensor, float]:
        places = emitted.permute(1, 2, 0).nonzero()  # by rows, as a dense kernel reads them
        signs = emitted.permute(1, 2, 0)[tuple(places.T)].sign()
        stride, padding, size = layer.stride[0], int(layer.padding[0]), layer.kernel_size[0]
        shape = [(side + 2 * padding - size) // stride + 1 for side in emitted.shape[1:]]
        depthwise = layer.groups > 1
        order = (0, 2, 3, 1) if depthwise else (1, 2, 3, 0)
        sums = np.zeros((*shape, layer.out_channels), np.int32)
        at, of, weights = (
            np.ascontiguousarray(v.detach().numpy().astype(np.int32))
            for v in (places, signs, layer.weight.round().permute(order))
        )
        given = [pointer(at), pointer(of), ctypes.c_int64(len(at)), pointer(weights), pointer(sums)]
        numbers = (*shape, layer.out_channels, size, stride, padding, int(depthwise))
        library.events(*given, *map(ctypes.c_int, numbers))  # once to warm caches
        sums[:] = 0
        begun = time.perf_counter()
        library.events(*given, *map(ctypes.c_int, numbers))
        return torch.from_numpy(sums), time.perf_counter() - begun

    return convolve


def pointer(array: np.ndarray[Any, Any]) -> Any:
    """Where an array's numbers begin."""
    return array.ctypes.data_as(ctypes.c_void_p)


# ------------------------------------------------------------------------------------------ page


def page(cases: Sequence[Case]) -> str:
    """The page, from stored numbers alone."""
    lines = [
        (HERE / "head.md").read_text(),
        "| network | n | T | inputs that change, by step % | in fours % | places % | rows % | "
        "break-even % | layers and steps below it | cost of T steps, at best |",
        "| --- | ---: | ---: | --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    for case in cases:
        below = sum(share < layer.break_even for layer in case.layers for share in layer.entries)
        points = sorted(layer.break_even for layer in case.layers)
        cells = [
            *(case.network, case.n, case.T),
            *(steps(case, what) for what in ("entries", "fours", "places", "rows")),
            f"{100 * points[0]:.1f} … {100 * points[-1]:.1f}",
            f"{below} of {case.T * len(case.layers)}",
            f"{cost(case):.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *findings(cases), "", "## By layer", ""]
    for case in cases:
        lines += [f"### {case.network}, n = {case.n}, T = {case.T}", "", *layer_table(case), ""]
    return "\n".join(lines)


def steps(case: Case, what: str) -> str:
    """The share of each step, layers weighed by their multiply-adds."""
    macs = sum(layer.macs for layer in case.layers)
    shown = (
        sum(layer.macs * getattr(layer, what)[t] for layer in case.layers) / macs
        for t in range(case.T)
    )
    return " ".join(f"{100 * share:.0f}" for share in shown)


def cost(case: Case) -> float:
    """All T steps, each layer and step by the faster way, over one pass."""
    return sum(layer.at_best for layer in case.layers) / sum(layer.whole for layer in case.layers)


def findings(cases: Sequence[Case]) -> list[str]:
    """What the numbers say."""
    return [
        f"- {case.network}, n = {case.n}, T = {case.T}: {case.T} steps cost {cost(case):.2f} times "
        f"one even if every layer chose the faster way in every step; {case.T} without a choice."
        for case in cases
    ]


def layer_table(case: Case) -> list[str]:
    """One line for each layer."""
    lines = [
        "| layer | kind | M mult-adds | inputs that change, by step % | break-even % | whole, µs | "
        "adding up, µs | of inputs % |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for layer in case.layers:
        changes = " ".join(f"{100 * share:.0f}" for share in layer.entries)
        lines.append(
            f"| {layer.name} | {layer.kind} | {layer.macs / 1e6:.2f} | {changes} | "
            f"{100 * layer.break_even:.1f} | {layer.whole:.1f} | {layer.events:.1f} | "
            f"{100 * layer.timed:.0f} |"
        )
    return lines


# --------------------------------------------------------------------------------------- command


def read_cases(path: Path) -> list[Case]:
    """The cases of results.json."""
    items = read_json(path)["cases"] if path.is_file() else []
    return [Case(**{**item, "layers": tuple(map(layer_of, item["layers"]))}) for item in items]


def layer_of(item: dict[str, Any]) -> Layer:
    """A stored layer."""
    lists = {what: tuple(item[what]) for what in ("entries", "fours", "places", "rows")}
    return Layer(**{**item, **lists})


def main(words: Sequence[str] | None = None) -> None:
    """Measure the runs named, store them beside the others, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--data", help="folder of their images, where it is another one now")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--pages", action="store_true", help="write the page from results.json")
    arguments = parser.parse_args(words)
    if not arguments.runs and not arguments.pages:
        parser.error("name folders of finished runs, or --pages")
    data = [] if arguments.data is None else [f"data.root={arguments.data}"]
    cases = read_cases(arguments.out / "results.json")
    for word in arguments.runs:
        cases = [case for case in cases if case.network != Path(word).name]
        cases += measure(word, data)
        content = {"schema": SCHEMA, "cases": [asdict(case) for case in cases]}
        write_json(arguments.out / "results.json", content)
    with atomic(arguments.out / "README.md") as temporary:
        temporary.write_text(page(cases))


if __name__ == "__main__":
    main()
