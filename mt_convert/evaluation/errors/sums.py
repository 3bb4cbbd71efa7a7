"""Running sums of errors and counts of spikes, batch by batch, and the rows they give.

Everything is summed in double precision, so that it hardly matters how images are batched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .rows import (
    CAUSES,
    RATE_EDGES,
    RATE_PARTS,
    RESIDUAL_EDGES,
    RESIDUAL_FIRST,
    RESIDUAL_PARTS,
    ErrorRow,
    ErrorSize,
    LogitRow,
    RateRow,
)

_PIECE = 2**16  # values summed at once: they stay in the processor's cache


@dataclass
class Sum:
    """Running sums of one quantity.

    Example:
        >>> error = Sum()
        >>> error.add(torch.tensor([3.0, -4.0], dtype=torch.float64))
        >>> error.size(power=50.0)
        ErrorSize(mean=-0.5, rms=3.5355339059327378, maximum=4.0, relative=0.25)
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, values: Tensor) -> None:
        """Add values, flat and in double precision."""
        low, high = values.aminmax()
        self.count += len(values)
        self.total += float(values.sum())
        self.squares += float(torch.dot(values, values))
        self.largest = max(self.largest, -float(low), float(high))

    def join(self, other: Sum) -> None:
        """Add what another has summed."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.largest = max(self.largest, other.largest)

    def size(self, power: float) -> ErrorSize:
        """The error's size, next to an activation of this mean square."""
        mean_square = self.squares / self.count
        relative = mean_square / power if power else None
        return ErrorSize(self.total / self.count, mean_square**0.5, self.largest, relative)


@dataclass
class CauseSums:
    """Running sums of an activation, and of its error by cause."""

    power: Sum = field(default_factory=Sum)
    causes: dict[str, Sum] = field(default_factory=lambda: {cause: Sum() for cause in CAUSES})

    def add(self, a: Tensor, c: Tensor, q: Tensor, m: Tensor) -> None:
        """Add one batch of a layer: analog, clipped, quantized, emitted."""
        for pieces in _pieces(a, c, q, m):
            a, c, q, m = (piece.double() for piece in pieces)
            self.power.add(a)
            errors = (a - c, c - q, q - m, a - m)
            for total, error in zip(self.causes.values(), errors, strict=True):
                total.add(error)

    def join(self, other: CauseSums) -> None:
        """Add another layer's."""
        self.power.join(other.power)
        for cause, total in self.causes.items():
            total.join(other.causes[cause])

    def row(self, layer: str, view: str, n: int, T: int) -> ErrorRow:
        """The errors' sizes."""
        power = self.power.squares / self.power.count
        sizes = {cause: total.size(power) for cause, total in self.causes.items()}
        return ErrorRow(layer, view, n, T, power, **sizes)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equal shape, flat, piece by piece."""
    return zip(*(tensor.reshape(-1).split(_PIECE) for tensor in tensors), strict=True)


@dataclass(frozen=True)
class LayerBatch:
    """One batch of a layer by T: what it should give, and what its neurons have done.

    Shapes: all alike. Units: ``totals`` in levels, ``residual`` in thresholds, ``events`` so far,
        of which ``most`` are possible for a neuron.
    """

    quantized: Tensor
    totals: Tensor
    residual: Tensor
    events: Tensor
    negative: float
    most: float


@dataclass
class SpikeCounts:
    """Running counts over neurons times images of a layer, and events."""

    values: int = 0
    zero: int = 0
    occasional: int = 0
    missing: int = 0
    events: float = 0.0
    negative: float = 0.0
    rates: Tensor = field(default_factory=lambda: _no_counts(len(RATE_EDGES)))
    residuals: Tensor = field(default_factory=lambda: _no_counts(len(RESIDUAL_EDGES) + 1))

    def add(self, firing: LayerBatch) -> None:
        """Add one batch of a layer."""
        zero = firing.quantized == 0
        self.values += zero.numel()
        self.zero += int(zero.sum())
        self.occasional += int((zero & (firing.events > 0)).sum())
        self.missing += int((~zero & (firing.totals == 0)).sum())
        self.negative += firing.negative
        for events, residual in _pieces(firing.events, firing.residual):
            self.events += float(events.sum(dtype=torch.float64))
            self.rates += _counts((events * RATE_PARTS / firing.most).ceil(), len(self.rates))
            place = (residual * RESIDUAL_PARTS).floor() + (1 - RESIDUAL_FIRST * RESIDUAL_PARTS)
            self.residuals += _counts(place, len(self.residuals))

    def join(self, other: SpikeCounts) -> None:
        """Add another layer's."""
        for name in ("values", "zero", "occasional", "missing", "events", "negative"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rates += other.rates
        self.residuals += other.residuals

    def row(self, layer: str, n: int, T: int, images: int) -> RateRow:
        """The shares and counts."""
        return RateRow(
            layer=layer,
            n=n,
            T=T,
            neurons=self.values // images,
            zero=self.zero / self.values,
            occasional=self.occasional / max(1, self.zero),
            missing=self.missing / max(1, self.values - self.zero),
            negative=self.negative / max(1.0, self.events),
            firing_rate=self.events / (self.values * T),
            rate_counts=tuple(self.rates.tolist()),
            residual_counts=tuple(self.residuals.tolist()),
        )


def _no_counts(bins: int) -> Tensor:
    """An empty histogram."""
    return torch.zeros(bins, dtype=torch.int64)


def _counts(bins: Tensor, size: int) -> Tensor:
    """How many values are in each bin; the first and the last hold all that lies beyond."""
    return torch.bincount(bins.clamp(0, size - 1).long(), minlength=size).cpu()


@dataclass(frozen=True)
class Answers:
    """The logits of one batch by three networks, and its labels.

    Shapes: logits [batch, classes], labels [batch]; None where unknown.
    """

    snn: Tensor
    qann: Tensor
    ann: Tensor | None = None
    labels: Tensor | None = None


@dataclass
class AnswerCounts:
    """Running sums of the logits' error, and counts of equal and of right answers."""

    error: Sum = field(default_factory=Sum)
    power: Sum = field(default_factory=Sum)
    agreed: dict[str, int] = field(default_factory=dict)
    images: int = 0

    def add(self, answers: Answers) -> None:
        """Add one batch."""
        for snn, qann in _pieces(answers.snn, answers.qann):
            self.error.add(qann.double() - snn.double())
            self.power.add(qann.double())
        self.images += len(answers.snn)
        said = {
            name: None if logits is None else logits.argmax(1)
            for name, logits in (("snn", answers.snn), ("qann", answers.qann), ("ann", answers.ann))
        }
        said["labels"] = answers.labels
        for pair in _PAIRS:
            first, second = (said[name] for name in pair.split())
            if first is not None and second is not None:
                equal = int((first == second).sum())
                self.agreed[pair] = self.agreed.get(pair, 0) + equal

    def row(self, n: int, T: int, labelled: bool) -> LogitRow:
        """The read-out's error, agreement and accuracies; these only if all batches had labels."""
        shares = {pair: count / self.images for pair, count in self.agreed.items()}
        accuracies = {
            f"{name}_accuracy": 100 * shares[f"{name} labels"]
            for name in ("snn", "qann", "ann")
            if labelled and f"{name} labels" in shares
        }
        return LogitRow(
            n=n,
            T=T,
            error=self.error.size(self.power.squares / self.power.count),
            agreement=shares["snn qann"],
            ann_agreement=shares.get("snn ann"),
            **accuracies,
        )


_PAIRS = ("snn qann", "snn ann", "snn labels", "qann labels", "ann labels")
