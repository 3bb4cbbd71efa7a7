"""Does what was written answer as the network does? On images, and on inputs made for the question.

Images alone would not tell: hardly any accumulator of theirs lies next to a threshold. So every
node is also run by itself in the foreign runtime. Neurons are fed accumulators at every threshold
of every class of neurons and one beside it, on both sides, for the levels that stand beside an
accumulator too; sums of products random numbers, the largest, the least, and those that drive a
sum furthest. The reference is the integer engine's own instruction, which never saw the export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, Fault
from ..graph.nodes import check_images
from ..integer_engine import torch_backend
from ..integer_engine.program import Accumulate, Encode, Fire, ReadOut, slots
from ..integer_engine.threshold_tables import ThresholdTable
from ..neurons.totals import totals_step
from .forms.float_segments import Segment
from .forms.nodes import IntegerForm, Node, narrow_program

FEWEST_IMAGES = 1000
BATCH = 64
BESIDE = 64  # combinations of what stands beside an accumulator that are fed, at most
FURTHEST = 16  # outputs that are driven as far as they go
LARGEST = 2**22  # numbers at once
CLOSE = 2.0**-16  # share of the largest number that sums of float32 in another order can differ by
EACH = 2**19  # numbers, up to which neurons of one class do not share the work


class Runtime(Protocol):
    """What runs something that was written."""

    @property
    def version(self) -> str:
        """What runs it, with its version."""

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Values by index, the logits and whatever else this runtime shows of the network."""

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """What one node makes of given inputs."""


@dataclass(frozen=True)
class Compared:
    """So many numbers of one node were compared, and so many differ; ``next_to``: how many of them
    were fed at a threshold or one beside it. ``far``: of real numbers, how many are further apart
    than the last bits of float32 explain.
    """

    name: str
    op: str
    compared: int
    different: int
    next_to: int = 0
    far: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a check found. ``on_images``: numbers of values that were compared on images, by node.

    ``real``: operators on real numbers. Of an approximation, which is not exact in these alone:
    images of another class (``other_class``), and the ``largest`` and the ``mean`` difference of
    logits as shares of the largest logit.
    """

    target: str
    exact: bool
    runtime: str
    images: int
    neurons: int
    on_images: tuple[Compared, ...]
    by_node: tuple[Compared, ...]
    sizes: dict[str, int]
    us_per_image: float | None = None
    time_steps: int = 1
    real: tuple[str, ...] = ()
    other_class: int | None = None
    largest: float | None = None
    mean: float | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it is about an approximation, whose loss is measured."""
        return self.other_class is not None

    def json(self) -> dict[str, Any]:
        """As it stands beside the file."""
        return asdict(self) | {"reference": "mt_convert.integer, backend torch"}

    def faults(self) -> list[Fault]:
        """What differs, node by node; of an approximation what must not."""
        on_images = () if self.is_measured else self.on_images
        return [
            Fault(row.name, row.op, f"{row.different} of {row.compared} numbers differ {where}")
            for rows, where in ((self.by_node, "next to thresholds"), (on_images, "on images"))
            for row in rows
            if (row.far if self.is_measured and row.op == "float" else row.different)
        ]

    def __str__(self) -> str:
        fed = sum(row.next_to for row in self.by_node)
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        steps = "" if self.time_steps == 1 else f"{self.time_steps} time steps, "
        words = f"; in float32, as this version has it on this machine: {', '.join(self.real)}"
        outcome = "exact" if self.exact else "APPROXIMATE" if self.is_measured else "NOT EXACT"
        if not self.exact and self.is_measured:
            words = self._lost()
        return (
            f"{self.target}: {steps}{outcome} in {self.runtime}: "
            f"{self.images} images, {fed} accumulators at a threshold or one beside it; {sizes}"
            f"{words if self.real else ''}"
        )

    def _lost(self) -> str:
        """What differs of an approximation, in words."""
        levels = [row for row in self.on_images if row.op != "read_out"]
        other, compared = (
            sum(getattr(row, name) for row in levels) for name in ("different", "compared")
        )
        mean, largest = (f"{100 * (share or 0):.2g} %" for share in (self.mean, self.largest))
        return (
            f"; {self.other_class:,} of {self.images:,} images get another class, {other:,} of "
            f"{compared:,} levels differ, logits by {mean} of the largest on average, {largest} at "
            f"most. Lost: float32 of {self.runtime} has other last bits in {', '.join(self.real)}; "
            "whole numbers are exact, node by node"
        )


@torch.no_grad()
def verify(
    target: str,
    form: IntegerForm,
    runtime: Runtime,
    images: Tensor,
    sizes: dict[str, int],
    *,
    approximate: bool = False,
) -> Verdict:
    """Compare a runtime with the network on ``images`` and node by node; ``approximate``: measure
    what differs in the logits, where operators on real numbers may."""
    by_node = tuple(_compare_node(form, node, runtime) for node in form.nodes)
    on_images, due, have = _compare_on_images(form, runtime, images)
    other_class = largest = mean = None
    if approximate and form.real:
        other_class, largest, mean = logits_apart(torch.cat(due), torch.cat(have))
    return Verdict(
        target,
        not any(row.different for row in (*by_node, *on_images)),
        runtime.version,
        len(images),
        sum(form.values[out].size for out in form.levels),
        on_images,
        by_node,
        sizes,
        time_steps=form.time_steps,
        real=form.real,
        other_class=other_class,
        largest=largest,
        mean=mean,
    )


def logits_apart(due: Tensor, have: Tensor) -> tuple[int, float, float]:
    """Images of another class, and the largest and the mean difference as shares of the largest
    logit.

    Example:
        >>> logits_apart(torch.tensor([[4.0, 2.0]]), torch.tensor([[4.0, 3.0]]))
        (0, 0.25, 0.125)
    """
    apart = (have - due).abs() / due.abs().max().clamp(min=1e-30)
    return int((due.argmax(1) != have.argmax(1)).sum()), float(apart.max()), float(apart.mean())


def run_foreign(path: Path, call: Callable[[], Any]) -> Any:
    """What a foreign runtime makes of a file; whatever it raises is one error.

    Raises:
        CheckpointError: it stops.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # runtimes raise types of their own
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{path} does not run ({why}): write it again") from error


def images_to_compare(shape: tuple[int, ...], images: Any) -> Tensor:
    """What was given, or as many random images as a verdict asks for at least."""
    if images is None:
        random = torch.Generator().manual_seed(1)
        return torch.randn(FEWEST_IMAGES, *shape, generator=random)
    return check_images(images, shape).float().cpu()


def _compare_on_images(
    form: IntegerForm, runtime: Runtime, images: Tensor
) -> tuple[tuple[Compared, ...], list[Tensor], list[Tensor]]:
    """Levels of all neurons, as far as the runtime shows them, and the logits; these themselves,
    the network's and the runtime's."""
    last = form.nodes[-1]
    due: list[Tensor] = []
    have: list[Tensor] = []
    counts = {out: [0, 0] for out in (*form.levels, last.out)}
    for batch in images.split(BATCH):
        run = form.model.run(batch, form.time_steps, totals=True)
        values = runtime.run(batch.numpy())
        if last.out in values:
            due.append(run.logits[-1])
            have.append(torch.from_numpy(np.array(values[last.out], np.float32)))
        for node in form.nodes:
            if node.out not in counts or node.out not in values:
                continue
            theirs = run.logits[-1] if node is last else run.totals[form.levels[node.out]]
            same = _same(values[node.out], theirs.numpy())
            counts[node.out][0] += theirs.numel()
            counts[node.out][1] += theirs.numel() - same
    rows = tuple(
        Compared(node.name, node.op, *counts[node.out])
        for node in form.nodes
        if node.out in counts and (counts[node.out][0] or node is last)
    )
    return rows, due, have


def _compare_node(form: IntegerForm, node: Node, runtime: Runtime) -> Compared:
    """One node by itself."""
    compared = different = fed = far = 0
    for inputs, next_to in inputs_of(form, node):
        theirs = expected(form, node, inputs).numpy()
        ours = runtime.run_node(node, [one.numpy() for one in inputs])
        compared, fed = compared + theirs.size, fed + next_to * theirs.size
        different += theirs.size - _same(ours, theirs)
        far += _far(ours, theirs) if node.op == "float" else 0
    return Compared(node.name, node.op, compared, different, fed, far)


def _same(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many numbers are equal; none where the shapes differ."""
    return int((ours == theirs).sum()) if ours.shape == theirs.shape else 0


def _far(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many real numbers differ by more than `CLOSE` of the largest."""
    if ours.shape != theirs.shape:
        return theirs.size
    return int((~(np.abs(ours - theirs) <= CLOSE * np.abs(theirs).max(initial=0))).sum())


def expected(form: IntegerForm, node: Node, inputs: list[Tensor]) -> Tensor:
    """What the integer engine's own instruction makes of inputs."""
    item = form.sources[node.out]
    if node.op == "emit":
        asked, *before = (one.double() for one in inputs)
        return totals_step(asked, before[0] if before else torch.zeros_like(asked), item.spec)
    if isinstance(item, Encode):
        return torch.round(inputs[0] / item.scale).clamp(*item.bounds)
    if isinstance(item, Segment):
        return _run_segment(item, node, inputs)
    floats = [one.double() for one in inputs]
    if isinstance(item, Accumulate):
        return torch_backend.accumulate(item, floats[0])
    if isinstance(item, (Fire, ReadOut)):
        values: dict[int, Tensor] = {
            term.value: one for term, one in zip(item.input.terms, floats, strict=True)
        }
        if isinstance(item, Fire):
            return torch_backend.fire(item, values, None)
        return torch_backend.real_sum(item.input, values)
    named = dict.fromkeys(slots((item.args, item.kwargs)))
    everything: dict[int, Any] = dict(zip(named, floats, strict=True))
    torch_backend.operate(item, everything, len(floats[0]))
    result: Tensor = everything[node.out]
    return result


def _run_segment(item: Segment, node: Node, inputs: list[Tensor]) -> Tensor:
    """Operators on real numbers, or moves."""
    places = node.settings.get("inputs") or {index: at for at, index in enumerate(item.reads)}
    given = {index: inputs[places[index]].to(kind) for index, kind in item.reads.items()}
    return item.values(given, len(inputs[0]))[node.out]


# --------------------------------------------------------------------------------- what is fed


def inputs_of(form: IntegerForm, node: Node) -> Iterator[tuple[list[Tensor], bool]]:
    """Inputs for one node, batch by batch, and whether they lie next to thresholds."""
    random = torch.Generator().manual_seed(node.out)
    if node.op == "encode":
        yield [_next_to_levels(node, form.image_shape, random)], False
        return
    values = [form.values[index] for index in node.inputs]
    draws = [
        torch.randn(6, *one.shape, generator=random)
        if one.real
        else torch.randint(one.low, one.high + 1, (6, *one.shape), generator=random)
        for one in values
    ]
    for draw, one in zip(draws, values, strict=True):
        if one.real:
            continue
        draw[1], draw[2] = one.low, one.high
        for place, number in enumerate((0, 1, -1), start=3):  # constants beside them show
            draw[place] = min(max(number, one.low), one.high)
    yield draws, False
    if node.op == "emit":
        yield _all_pairs(values), False
    if node.op in ("conv", "linear"):
        yield [_furthest(form, node)], False
    if node.op == "fire" and any(one.real for one in values):
        yield _next_to_real_thresholds(node, draws, values), True
    elif node.op == "fire":
        yield from ((batch, True) for batch in _next_to_thresholds(form, node, random))


def _next_to_levels(node: Node, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Pixels at the edges of levels and a few units in the last place beside them."""
    low, high = node.settings["low"], node.settings["high"]
    scale = node.arrays["scale"]
    levels = torch.randint(low - 1, high + 2, (16, *shape), generator=random)
    pixels = (levels + 0.5) * scale
    for _ in range(3):
        toward = torch.randint(-1, 2, pixels.shape, generator=random)
        moved = pixels.nextafter(torch.where(toward > 0, torch.inf, -torch.inf))
        pixels = torch.where(toward == 0, pixels, moved)
    return pixels


def _all_pairs(values: list[Any]) -> list[Tensor]:
    """Every level that is asked for beside every one that was emitted before."""
    pairs = torch.cartesian_prod(*(torch.arange(one.low, one.high + 1) for one in values))
    pairs = pairs.reshape(-1, len(values))
    shape, size = values[0].shape, values[0].size
    images = min(-(-len(pairs) // size), max(1, LARGEST // size))
    chosen = pairs[torch.arange(images * size) % len(pairs)]
    return [column.reshape(images, *shape) for column in chosen.unbind(1)]


def _next_to_real_thresholds(node: Node, draws: list[Tensor], values: list[Any]) -> list[Tensor]:
    """Real numbers at thresholds of neurons and a few units in the last place beside them, for what
    the others are."""
    arrays, low, high = node.arrays, node.settings["low"], node.settings["high"]
    (free, *_) = (index for index, one in enumerate(values) if one.real)
    count = max(2, min(64, LARGEST // max(1, values[free].size)))
    inputs = [one.repeat(-(-count // len(one)), *[1] * (one.dim() - 1))[:count] for one in draws]
    random = torch.Generator().manual_seed(node.out)
    rest = sum(
        one.double() * arrays[f"multiplier_{index}"].double()
        for index, one in enumerate(inputs)
        if index != free
    )
    for name in ("bias", "offset"):
        rest = rest + arrays[name].double() if name in arrays else rest
    levels = torch.randint(low - 1, high + 2, inputs[free].shape, generator=random)
    numbers = ((levels + 0.5 - rest) / arrays[f"multiplier_{free}"].double()).float()
    for _ in range(3):
        toward = torch.randint(-1, 2, numbers.shape, generator=random)
        moved = numbers.nextafter(torch.where(toward > 0, torch.inf, -torch.inf))
        numbers = torch.where(toward == 0, numbers, moved)
    inputs[free] = torch.where(numbers.isfinite(), numbers, 0.0)
    return inputs


def _furthest(form: IntegerForm, node: Node) -> Tensor:
    """Levels that drive single outputs as far as they go, up and down."""
    (value,) = (form.values[index] for index in node.inputs)
    weight, groups = node.arrays["weight"].long(), node.settings.get("groups", 1)
    rows = torch.arange(0, len(weight), max(1, len(weight) // FURTHEST))
    summed = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    inputs = []
    for row in rows.tolist():
        signs = torch.zeros(value.shape[-1 if node.op == "linear" else 0]).long()
        start = row // (len(weight) // groups) * summed.shape[1]
        signs[start : start + summed.shape[1]] = summed[row].sign()
        line = torch.where(signs > 0, value.high, value.low)
        shape = [1] * len(value.shape)
        shape[-1 if node.op == "linear" else 0] = -1
        inputs.append(line.reshape(shape).expand(value.shape))
        inputs.append((value.high + value.low - line).reshape(shape).expand(value.shape))
    return torch.stack(inputs)


def _next_to_thresholds(
    form: IntegerForm, node: Node, random: torch.Generator
) -> Iterator[list[Tensor]]:
    """Accumulators at each threshold of each class of neurons, one below and one above, for the
    levels beside them. Neurons of one class share the work: each is given other thresholds.
    """
    item = form.sources[node.out]
    table = ThresholdTable(item, narrow_program(form.program, item, form.values, node.inputs))
    values = [form.values[index] for index in node.inputs]
    beside = _beside([one for index, one in enumerate(values) if index != table.free], random)
    places = table.places.flatten()
    counts = torch.bincount(places)
    rank = _ranks(places, counts)
    free, shape = values[table.free], values[table.free].shape
    width = table.count * 3
    fewest = int(counts.min())
    if len(beside) * width * places.numel() <= EACH:
        rank, fewest = torch.zeros_like(rank), 1  # each neuron meets every threshold
    images = -(-len(beside) * width // fewest)
    step = max(1, LARGEST // max(1, places.numel()))
    classes = torch.arange(len(counts))
    by_class = {}
    for start in range(0, images, step):
        image = torch.arange(start, min(images, start + step))
        chosen = (image[:, None] * fewest + rank % fewest) % (len(beside) * width)
        combination, column = chosen // width, chosen % width
        numbers = torch.zeros_like(chosen)
        for index in combination.unique().tolist():
            if index not in by_class:
                rows = torch.cat([classes[:, None], beside[index].expand(len(classes), -1)], 1)
                by_class[index] = table.thresholds(rows)[0]
            here = combination == index
            all_of = by_class[index][places.expand_as(chosen), column // 3] + column % 3 - 1
            numbers = torch.where(here, all_of, numbers)
        inputs = [beside[combination, index] for index in range(beside.shape[1])]
        inputs.insert(table.free, numbers.clamp(free.low, free.high))
        yield [one.reshape(-1, *shape) for one in inputs]


def _beside(values: list[Any], random: torch.Generator) -> Tensor:
    """Combinations of what stands beside an accumulator: all of them, or some, the ends among
    them.

    Shapes: returns int64 [combinations, values].
    """
    if not values:
        return torch.zeros(1, 0, dtype=torch.long)
    sizes = [one.high - one.low + 1 for one in values]
    if math.prod(sizes) <= BESIDE:
        ranges = [torch.arange(one.low, one.high + 1) for one in values]
        return torch.cartesian_prod(*ranges).reshape(-1, len(values))
    columns = [
        torch.cat(
            [
                torch.tensor([one.low, one.high, min(max(0, one.low), one.high)]),
                torch.randint(one.low, one.high + 1, (BESIDE - 3,), generator=random),
            ]
        )
        for one in values
    ]
    return torch.stack(columns, 1)


def _ranks(places: Tensor, counts: Tensor) -> Tensor:
    """How many neurons of the same class stand in front of each."""
    order = torch.argsort(places, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(places)
    rank[order] = torch.arange(len(places)) - starts[places[order]]
    return rank
