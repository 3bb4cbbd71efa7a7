"""Does what was written answer as the network does? On images, and on inputs made for the question.

Images alone would not tell: hardly any accumulator of theirs lies next to a threshold. So every
node is also run by itself in the foreign runtime, on `node_inputs`. The reference is the integer
engine's own instruction, which never saw the export.
"""

from __future__ import annotations

from collections.abc import Callable
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
from ..neurons.totals import totals_step
from .forms.float_segments import Segment
from .forms.nodes import IntegerForm, Node
from .node_inputs import inputs_of

FEWEST_IMAGES = 1000
BATCH = 64
LARGEST_BATCH = 2**23  # numbers of the largest value: a runtime may hold each threshold of each
CLOSE = 2.0**-16  # share of the largest number that sums of float32 in another order can differ by


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


def images_at_once(form: IntegerForm) -> int:
    """How many images are shown at once: fewer where values are large."""
    largest = max(value.size for value in form.values.values())
    return max(1, min(BATCH, LARGEST_BATCH // largest))


def _compare_on_images(
    form: IntegerForm, runtime: Runtime, images: Tensor
) -> tuple[tuple[Compared, ...], list[Tensor], list[Tensor]]:
    """Levels of all neurons, as far as the runtime shows them, and the logits; these themselves,
    the network's and the runtime's."""
    last = form.nodes[-1]
    due: list[Tensor] = []
    have: list[Tensor] = []
    counts = {out: [0, 0] for out in (*form.levels, last.out)}
    for batch in images.split(images_at_once(form)):
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
    """How many numbers are equal, in float32 where ours are; none where the shapes differ."""
    if ours.dtype == np.float32:
        theirs = theirs.astype(np.float32)
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
