"""What people hand over as images: tensors, arrays, pairs, mappings, loaders, generators.

`collect` makes one tensor of it, `labelled` batches with their labels. Which axis is whose is
decided here alone; whether the numbers fit a network is `nodes.check_images`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

MOST = 1024
"""So many images are taken of what may have no end: loaders, data sets, generators."""
BATCH = 128
_IMAGES = ("images", "image", "pixel_values", "img", "pixels", "inputs", "input", "x", "data")
_LABELS = ("labels", "label", "targets", "target", "fine_label", "y", "classes")
_ALLOWED = (
    "a tensor [batch, ...], a NumPy array, a list of images or batches, a pair (images, labels), "
    "a mapping with a key 'images', or a DataLoader, data set or generator of these"
)


def collect(
    given: Any, *, name: str = "images", image_shape: tuple[int, ...] | None = None
) -> Tensor:
    """One tensor of images; labels that come with them are left out.

    Tensors are given back as they are, lists and tuples are taken whole, of loaders, data sets and
    generators the first 1,024 images. An item of ``image_shape`` is one image; where that is not
    known, an item of three axes, or of one.

    Raises:
        DataError: something else, with what is allowed; no image; images of several shapes.

    Example:
        >>> batch, labels = torch.zeros(4, 1, 2, 2), torch.zeros(4)
        >>> collect([batch, batch]).shape, collect((batch, labels)).shape, collect([batch[0]]).shape
        (torch.Size([8, 1, 2, 2]), torch.Size([4, 1, 2, 2]), torch.Size([1, 1, 2, 2]))
    """
    if isinstance(given, Tensor):
        return given
    parts: list[Tensor] = []
    whole = isinstance(given, (list, tuple, Mapping, np.ndarray))
    for images, _ in _batches(given, name, image_shape):
        parts.append(images)
        if not whole and sum(map(len, parts)) >= MOST:
            break
    if not parts:
        raise DataError(f"{name} are an empty {_kind(given)}: pass {_ALLOWED}")
    images = join_images(parts, name)
    return images if whole else images[:MOST]


def join_images(parts: Sequence[Tensor], name: str = "images") -> Tensor:
    """Batches as one.

    Raises:
        DataError: images of several shapes.
    """
    shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in parts))
    if len(shapes) > 1:
        raise DataError(
            f"{name} have several shapes, {shapes[0]} and {shapes[1]}: resize them to one"
        )
    return torch.cat(list(parts))


def labelled_batches(
    given: Any, *, image_shape: tuple[int, ...] | None, required: bool = True
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images and their labels; of a data set of single samples, 128 at a time.

    Raises:
        DataError: as `collect`; images without labels where they are ``required``; labels that are
            no whole numbers, one for each image.

    Example:
        >>> pair = torch.zeros(4, 1, 2, 2), torch.arange(4)
        >>> [labels.tolist() for _, labels in labelled_batches([pair, pair], image_shape=(1, 2, 2))]
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    singles: list[tuple[Tensor, Tensor | None]] = []
    for images, label in _batches(given, "images", image_shape):
        if label is None and required:
            hint = "pass pairs (images, labels), such as a DataLoader yields"
            raise DataError(f"images without labels: {hint}")
        labels = None if label is None else whole_labels(label, len(images))
        if len(images) == 1:
            singles.append((images, labels))
        else:
            yield from _join(singles)
            singles = []
            yield images, labels
        if len(singles) == BATCH:
            yield from _join(singles)
            singles = []
    yield from _join(singles)


def _join(singles: list[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of one image as one batch."""
    if not singles:
        return
    labels = [label for _, label in singles if label is not None]
    together = torch.cat(labels) if len(labels) == len(singles) else None
    yield join_images([images for images, _ in singles]), together


def _batches(
    given: Any, name: str, image_shape: tuple[int, ...] | None
) -> Iterator[tuple[Tensor, Any]]:
    """Batches of images, each with its labels or None, from all that is allowed."""
    if isinstance(given, (Tensor, np.ndarray)):
        yield _tensor(given), None
        return
    if isinstance(given, Mapping) or (isinstance(given, (list, tuple)) and _is_pair(given)):
        images, label = parts_of(given, name)
        if not isinstance(images, Tensor):
            images = collect(images, name=name, image_shape=image_shape)
        yield _batch(images, image_shape), label
        return
    for item in _items(given, name):
        images, label = parts_of(item, name)
        if not isinstance(images, Tensor):
            raise DataError(
                f"{name} cannot be read from {_kind(given)} of {_kind(images)}: pass {_ALLOWED}; "
                "pictures become tensors by torchvision.transforms.ToTensor() and Normalize(...)"
            )
        yield _batch(images, image_shape), label


def _items(given: Any, name: str) -> Iterable[Any]:
    """What a container yields, one after the other."""
    if isinstance(given, (str, bytes, type)):
        raise DataError(f"{name} cannot be read from {given!r}: pass {_ALLOWED}")
    if hasattr(given, "__iter__"):
        return iter(given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return (given[index] for index in range(len(given)))
    raise DataError(f"{name} cannot be read from {_kind(given)}: pass {_ALLOWED}")


def _is_pair(given: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list or tuple is images beside their labels, not two batches of images."""
    if len(given) < 2 or not isinstance(given[0], (Tensor, np.ndarray)):
        return False
    first, second = given[0], given[1]
    if isinstance(second, (Tensor, np.ndarray)):
        return second.ndim < min(first.ndim, 3) and len(second) == len(first)
    plain = isinstance(second, (list, tuple, range)) and len(second) == len(first)
    return plain and not any(
        isinstance(item, (Tensor, np.ndarray)) and item.ndim for item in second
    )


def parts_of(item: Any, name: str) -> tuple[Any, Any]:
    """Images and labels of one item of a container; the images a tensor wherever they are one."""
    if isinstance(item, Mapping):
        images = next((item[key] for key in _IMAGES if key in item), None)
        if images is None:
            keys = ", ".join(map(str, item))
            raise DataError(f"{name} are a mapping of {keys or 'nothing'}: it needs a key 'images'")
        return _tensor(images), next((item[key] for key in _LABELS if key in item), None)
    if isinstance(item, (list, tuple)) and item:
        return _tensor(item[0]), item[1] if len(item) > 1 else None
    return _tensor(item), None


def _tensor(value: Any) -> Any:
    """Arrays as tensors, the rest as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "fiub":
        raise DataError(f"images are an array of {value.dtype}: pass floats, normalised")
    native = value.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(value, native))  # a copy: it may be read-only or strided


def _batch(images: Tensor, image_shape: tuple[int, ...] | None) -> Tensor:
    """Images with their batch axis."""
    known = image_shape is not None
    one = tuple(images.shape) == image_shape if known else images.dim() in (1, 3)
    return images[None] if one else images


def whole_labels(label: Any, count: int) -> Tensor:
    """Labels int64 [batch]."""
    labels = torch.as_tensor(label)
    labels = labels[None] if labels.dim() == 0 else labels
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if tuple(labels.shape) != (count,) or labels.is_complex() or not whole:
        raise DataError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} of shape "
            f"{list(labels.shape)} for {count} images: pass whole numbers, one for each image"
        )
    return labels.long()


def _kind(value: Any) -> str:
    """What a value is called."""
    return type(value).__name__
