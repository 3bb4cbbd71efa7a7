"""Images of one's own for training: data sets, loaders and tensors of torch as splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from ..errors import DataError, Fault
from ..graph.image_batches import join_images, labelled_batches, parts_of, whole_labels
from .image_set import Draw, ImageSet, draws_in_order, label_faults
from .randomness import borrow_random, derive
from .splits import Splits

_HINT = (
    "pass a pair (training, validation), each a data set, a DataLoader of one, a pair "
    "(images, labels), or a list of batches; or the Splits of open_data"
)


class OwnSet(Dataset[tuple[Tensor, Tensor]]):
    """A data set of samples or tensors as one split: indexed by a `Draw`, it gives a batch.

    What is drawn at random for a sample (augmentation) depends on (seed, epoch, sample) alone.

    Shapes: images float [batch, channels, height, width], as they are; labels int64 [batch].

    Example:
        >>> split = OwnSet((torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1])), classes=2)
        >>> len(split), split[Draw([2])][1].tolist()
        (3, [1])
    """

    def __init__(self, given: Any, classes: int, name: str = "images") -> None:
        self.classes, self.name = classes, name
        self.tensors: tuple[Tensor, Tensor] | None = None
        self._collate: Callable[[list[Any]], Any] = default_collate
        self._chosen: Sequence[int] | None = None
        if isinstance(given, DataLoader):
            self._chosen = _samples_of(given, name)
            self._collate, given = given.collate_fn, given.dataset
        self._samples: Any = given
        if isinstance(given, IterableDataset) or not hasattr(given, "__len__"):
            hint = "training reads images in an order of its own: pass a data set with a length"
            raise DataError(f"{name} are a {type(given).__name__}: {hint}")
        if isinstance(given, (list, tuple, Mapping)) or not hasattr(given, "__getitem__"):
            self.tensors = _whole(given, name)

    def __len__(self) -> int:
        if self.tensors is not None:
            return len(self.tensors[1])
        return len(self._samples) if self._chosen is None else len(self._chosen)

    @property
    def in_memory(self) -> bool:
        """Whether a batch costs no decoding."""
        return self.tensors is not None or isinstance(self._samples, TensorDataset)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.tensors is None and not len(draw.indices) and len(self):
            images, labels = self[Draw([0], draw.key)]  # what they would look like
            return images[:0], labels[:0]
        if self.tensors is not None:
            chosen = torch.as_tensor(draw.indices, dtype=torch.int64)
            images, labels = self.tensors[0][chosen], self.tensors[1][chosen]
        else:
            items = [self._sample(int(index), draw.key) for index in draw.indices]
            images, label = parts_of(self._collate(items), self.name)
            labels = whole_labels(label, len(items))
        if faults := label_faults(labels, self.classes, self.name, draw.indices):
            raise DataError("labels do not fit the network's classes", faults)
        return images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order."""
        yield from map(self.__getitem__, draws_in_order(len(self)))

    def _sample(self, index: int, key: tuple[int, int] | None) -> Any:
        """One sample, with its own random numbers."""
        with borrow_random(derive(*(key or (0, 0)), index, "sample")):
            return self._samples[index if self._chosen is None else self._chosen[index]]


def own_splits(given: Any, classes: int) -> Splits:
    """Training and validation images of one's own; the `Splits` of `open_data` as they are.

    Raises:
        DataError: something else, with what is allowed; loaders that sample by other rules than
            all images, or some, in any order.

    Example:
        >>> pair = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0])
        >>> splits = own_splits((pair, pair), classes=2)
        >>> len(splits.train), len(splits.validation)
        (4, 4)
    """
    if isinstance(given, Splits):
        return given
    if isinstance(given, Mapping) and {"train", "validation"} <= set(given):
        given = given["train"], given["validation"]
    if not isinstance(given, (tuple, list)) or len(given) != 2 or isinstance(given[0], Tensor):
        fault = Fault("splits", f"a {type(given).__name__}", _HINT)
        raise DataError("training needs images to learn from and images to validate on", [fault])
    train, validation = (
        item if isinstance(item, (ImageSet, OwnSet)) else OwnSet(item, classes, f"{name} images")
        for item, name in zip(given, ("training", "validation"), strict=True)
    )
    return Splits(train, validation, train, validation)  # type: ignore[arg-type]


def _samples_of(loader: DataLoader[Any], name: str) -> Sequence[int] | None:
    """The samples that a loader yields; None for all."""
    sampler = loader.sampler
    plain = type(loader.batch_sampler) in (BatchSampler, type(None))
    if isinstance(loader.dataset, IterableDataset):
        return None  # refused by its type
    if plain and isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if plain and type(sampler) in (RandomSampler, SequentialSampler):
        return None
    what = type(sampler if plain else loader.batch_sampler).__name__
    hint = "training draws its own order from a seed: pass the loader's data set, or a Subset of it"
    raise DataError(f"{name}: a DataLoader with a {what}: {hint}")


def _whole(given: Any, name: str) -> tuple[Tensor, Tensor]:
    """All images and labels of what is in memory."""
    batches = list(labelled_batches(given, image_shape=None))
    if not batches:
        raise DataError(f"{name} are an empty {type(given).__name__}: {_HINT}")
    labels = [label for _, label in batches if label is not None]
    return join_images([images for images, _ in batches], name), torch.cat(labels)
