"""`ImageSet`: one split as normalised batches, and the augmentation that is a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import DataError, Fault
from ..graph.image_batches import BATCH
from ..graph.nodes import looks_like_bytes
from .class_map import head_rows
from .image_spec import DataSpec
from .randomness import generator


class Draw(NamedTuple):
    """Which samples to read, and the (seed, epoch) of their augmentation; None leaves it out."""

    indices: Sequence[int]
    key: tuple[int, int] | None = None


def draws_in_order(count: int, batch_size: int = BATCH) -> list[Draw]:
    """All samples in order, without augmentation, the last batch being what is left.

    Example:
        >>> [list(draw.indices) for draw in draws_in_order(3, 2)]
        [[0, 1], [2]]
    """
    return [
        Draw(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)
    ]


class Source(Protocol):
    """Where the pixels of one split come from."""

    @property
    def in_memory(self) -> bool:
        """Whether reading a sample costs no decoding."""

    def __len__(self) -> int: ...

    def read(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels [batch, channels, side, side], uint8 or float in [0, 1], and labels [batch]."""

    def subset(self, indices: Tensor) -> Source:
        """Some of the samples, in this order."""


class TensorSource:
    """Images that are one tensor already."""

    in_memory = True

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self._pixels = pixels
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels and labels of the samples drawn."""
        chosen = torch.as_tensor(draw.indices, dtype=torch.int64)
        return self._pixels[chosen], self._labels[chosen]

    def subset(self, indices: Tensor) -> TensorSource:
        """Some of the samples, in this order."""
        return TensorSource(self._pixels[indices], self._labels[indices])


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """One split. Indexed by a `Draw`, it gives a whole batch.

    Shapes: images float32 [batch, channels, image_size, image_size], normalised; labels int64
    [batch], rows of the network's head (``spec.class_map``).

    Example:
        >>> spec = DataSpec("mine", image_size=2, channels=1, classes=2)
        >>> split = tensor_set(torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 1]), spec)
        >>> len(split), split[Draw([2])][1].tolist()
        (3, [1])
    """

    def __init__(self, source: Source, spec: DataSpec) -> None:
        rows = head_rows(spec)
        self._rows = None if rows is None else torch.tensor(rows)
        self.classes = spec.classes if rows is None else max(rows) + 1
        self._source, self._spec = source, spec
        self._augmentation = spec.augmentation
        self._pad = spec.image_size // 8
        self._mean = torch.tensor(spec.mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(spec.std).reshape(1, -1, 1, 1)
        self._moves: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._source)

    @property
    def in_memory(self) -> bool:
        """Whether a batch costs no decoding: then workers only slow it down."""
        return self._source.in_memory

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, labels = self._source.read(draw)
        if draw.key is not None and self._augmentation == "crop_flip":
            chosen = torch.as_tensor(draw.indices, dtype=torch.int64)
            pixels = crop_flip(pixels, self._moves_of(draw.key)[chosen], self._pad)
        values = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        labels = labels if self._rows is None else self._rows[labels]
        return values.sub_(self._mean).div_(self._std), labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, without augmentation: wherever a loader is taken, this is too."""
        yield from map(self.__getitem__, draws_in_order(len(self)))

    def subset(self, indices: Tensor) -> ImageSet:
        """Some of the samples, in this order; what is open stays open."""
        return ImageSet(self._source.subset(indices), self._spec)

    def _moves_of(self, key: tuple[int, int]) -> Tensor:
        """Rows (down, right, mirror), one per sample of the split, for one (seed, epoch)."""
        if self._moves is None or self._moves[0] != key:
            moves = torch.randint(
                0, 2 * self._pad + 1, (len(self), 3), generator=generator(*key, "crop")
            )
            moves[:, 2] = torch.randint(0, 2, (len(self),), generator=generator(*key, "flip"))
            self._moves = (key, moves)
        return self._moves[1]


def crop_flip(pixels: Tensor, moves: Tensor, pad: int) -> Tensor:
    """Pad with black, cut each image out at its own place, mirror those told to.

    Shapes: pixels [batch, channels, height, width]; moves [batch, 3] of (down, right, mirror),
    the first two from 0 to 2 pad.

    Example:
        >>> crop_flip(torch.tensor([[[[1, 2]]]]), torch.tensor([[0, 0, 1]]), pad=0).tolist()
        [[[[2, 1]]]]
    """
    batch, channels, height, width = pixels.shape
    padded = F.pad(pixels, (pad, pad, pad, pad)).flatten(2)
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(moves[:, 2:] == 1, width - 1 - columns, columns) + moves[:, 1:2]
    rows = torch.arange(height) + moves[:, 0:1]
    places = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)[:, None]
    return padded.gather(2, places.expand(-1, channels, -1)).reshape(pixels.shape)


def tensor_set(pixels: Tensor, labels: Tensor, spec: DataSpec) -> ImageSet:
    """An `ImageSet` of your own tensors.

    Shapes: pixels [images, channels, image_size, image_size], uint8 or floats in [0, 1]; labels
    [images], whole numbers.

    Raises:
        DataError: other shapes, NaN or infinity, a label outside the classes.
    """
    return ImageSet(make_source(pixels, labels, spec, spec.dataset), spec)


def make_source(pixels: Tensor, labels: Tensor, spec: DataSpec, where: str) -> TensorSource:
    """A source of the tensors, or a `DataError` that lists what is wrong with them."""
    faults = []
    shape = (len(labels), spec.channels, spec.image_size, spec.image_size)
    if tuple(pixels.shape) != shape:
        hint = f"expected {list(shape)}: set image_size and channels to fit, or resize: true"
        faults.append(Fault(where, f"images of shape {list(pixels.shape)}", hint))
    if pixels.is_floating_point() and not pixels.isfinite().all():
        finite = pixels.isfinite().flatten(1).all(1)
        first = int((~finite).nonzero()[0])
        hint = "pixels must be finite, from 0 to 1: mend or remove these images"
        faults.append(
            Fault(where, f"NaN or infinity in {int((~finite).sum())} images, first {first}", hint)
        )
    faults.extend(_pixel_faults(pixels, where))
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        faults.append(Fault(where, "labels with fractions", "pass whole numbers"))
    faults.extend(label_faults(labels, spec.classes, where))
    if faults:
        raise DataError(f"the images of {where!r} cannot be used", faults)
    return TensorSource(pixels, labels.long())


def _pixel_faults(pixels: Tensor, where: str) -> list[Fault]:
    """A fault if pixels from 0 to 255 would be taken for pixels from 0 to 1."""
    hint = "pass uint8, or floats from 0 to 1: divide by 255"
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        return [Fault(where, f"pixels are {str(pixels.dtype).removeprefix('torch.')}", hint)]
    if pixels.dtype == torch.uint8 or not looks_like_bytes(pixels):
        return []
    return [Fault(where, f"pixels are whole numbers up to {float(pixels.max()):g}", hint)]


def label_faults(
    labels: Tensor, classes: int, where: str, numbers: Sequence[int] | None = None
) -> list[Fault]:
    """A fault if a label is outside 0 … classes − 1; ``numbers`` of the images, unless from 0."""
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if not len(outside):
        return []
    first = int(outside[0])
    what = f"label {int(labels[first])} of image {first if numbers is None else numbers[first]}"
    hint = f"allowed: 0 to {classes - 1}; set classes to {int(labels.max()) + 1} or mend the labels"
    return [Fault(where, what, hint)]
