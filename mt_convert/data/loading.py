"""Reading a split: batches for evaluation, images for calibration, loaders for training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ..errors import DataError, Fault, MTConvertError
from .image_set import Draw, ImageSet, draws_in_order

Batch = tuple[Tensor, Tensor]


class _Guarded(Dataset[Any]):
    """Hands our own errors over as values: a worker process would bury them in a traceback."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self._dataset = dataset

    def __getitem__(self, draw: Draw) -> Batch | MTConvertError:
        try:
            return self._dataset[draw]
        except MTConvertError as error:
            return error


def _as_is(item: Any) -> Any:
    """A collate function for batches that are whole already."""
    return item


def loader(
    dataset: Dataset[Batch], draws: Sequence[Draw], workers: int = 0
) -> StatefulDataLoader[Any]:
    """A stateful loader that reads ``draws`` in turn; pass each through `unwrap_batch`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
        return StatefulDataLoader(
            _Guarded(dataset),
            batch_size=None,
            sampler=draws,
            num_workers=workers,
            collate_fn=_as_is,
            generator=torch.Generator(),
            multiprocessing_context="fork" if workers else None,
        )


def unwrap_batch(item: Batch | MTConvertError) -> Batch:
    """The batch, or the error that a worker handed over."""
    if isinstance(item, MTConvertError):
        raise item
    return item


def batches(
    dataset: ImageSet, batch_size: int, *, share: tuple[int, int] = (0, 1), workers: int = 0
) -> Iterator[Batch]:
    """Yield a split in order, without augmentation, the last batch being what is left.

    ``share`` = (i, n) yields batches i, i + n, i + 2n, … for the i-th of n processes.

    Shapes: images float32 [batch, channels, side, side], normalised; labels int64 [batch].

    Example:
        >>> from mt_convert.data import DataSpec, tensor_set
        >>> spec = DataSpec("mine", image_size=2, channels=1, classes=2)
        >>> split = tensor_set(torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 1]), spec)
        >>> [labels.tolist() for _, labels in batches(split, 2)]
        [[0, 1], [1]]
    """
    draws = draws_in_order(len(dataset), batch_size)[share[0] :: share[1]]
    for item in loader(dataset, draws, workers):
        yield unwrap_batch(cast("Batch | MTConvertError", item))


def images(dataset: ImageSet, count: int) -> Tensor:
    """The first ``count`` images of a split, normalised, without augmentation.

    Shapes: float32 [count, channels, side, side].

    Raises:
        DataError: the split has fewer images.
    """
    if count > len(dataset):
        hint = f"the split has {len(dataset)}: ask for at most so many"
        raise DataError("too few images", [Fault("images", str(count), hint)])
    return dataset[Draw(range(count))][0]
