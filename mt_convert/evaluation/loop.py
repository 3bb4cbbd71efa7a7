"""The one loop over images: any number of settings in a pass, the reference networks run once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..quantization.quantize import QuantizedModel, levels_of
from ..report.rows import Row
from ..system.devices import device_of
from .stored import StoredNetwork


class Answers(NamedTuple):
    """Labels of a batch, and the classes that the float and the quantized network predict.

    Shapes: each int64 [batch], on the CPU; ``ann`` None without a float network.
    """

    labels: Tensor
    ann: Tensor | None
    qann: Tensor

    def part(self, start: int, end: int) -> Answers:
        """The answers to some of the images."""
        ann = None if self.ann is None else self.ann[start:end]
        return Answers(self.labels[start:end], ann, self.qann[start:end])


def join(answers: Sequence[Answers]) -> Answers:
    """The answers to one batch after the other, as to one."""
    ann = [item.ann for item in answers if item.ann is not None]
    return Answers(
        torch.cat([item.labels for item in answers]),
        torch.cat(ann) if ann else None,
        torch.cat([item.qann for item in answers]),
    )


class Batch(NamedTuple):
    """Images and labels, and what the reference networks answer where that is known already."""

    images: Tensor
    labels: Tensor
    answers: Answers | None = None


class Counts(Protocol):
    """What counts in one setting: add batches, then read the rows."""

    counts: Tensor
    neuron_count: int
    comparable: bool
    """Whether it compares levels with those of the quantized network."""

    def add(
        self, images: Tensor, labels: Tensor, predicted: Tensor, expected: dict[str, Tensor]
    ) -> None:
        """Count one batch, of which the quantized network says ``predicted`` by ``expected``."""

    def rows(self, columns: dict[str, Any]) -> list[Row]:
        """The rows; ``columns``: those that are not measured."""


@torch.no_grad()
def count_batches(
    qann: QuantizedModel | StoredNetwork,
    ann: nn.Module | None,
    batches: Iterable[Batch],
    counters: Sequence[Counts],
) -> list[Answers]:
    """Show every batch to all counters, and to the reference networks once.

    The quantized network runs where its answers are not known, or one of the counters compares
    levels; those of a batch are held until the next.

    Returns: what the reference networks answer to each batch.
    Raises:
        DataError: images of another shape or with NaN.
    """
    qann.eval()
    if ann is not None:
        ann.eval()
    device = device_of(qann)
    return [
        _count_batch(qann, ann, Batch(images.to(device), labels.to(device), answers), counters)
        for images, labels, answers in batches
    ]


def _count_batch(
    qann: QuantizedModel | StoredNetwork,
    ann: nn.Module | None,
    batch: Batch,
    counters: Sequence[Counts],
) -> Answers:
    """Show one batch to all."""
    images, labels, answers = batch
    expected: dict[str, Tensor] = {}
    predicted: Tensor | None = None
    if any(counter.comparable for counter in counters):
        if isinstance(qann, StoredNetwork):
            logits, expected = qann.levels(images)
        else:
            with levels_of(qann) as expected:
                logits = qann(images)
        predicted = logits.argmax(1)
    if answers is None:
        said = None if ann is None else ann(images).argmax(1).cpu()
        predicted = qann(images).argmax(1) if predicted is None else predicted
        answers = Answers(labels.cpu(), said, predicted.cpu())
    for counter in counters:
        counter.add(images, labels, answers.qann.to(images.device), expected)
    return answers
