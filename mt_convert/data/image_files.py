"""Image files, and what timm's readers give: listed, counted, and decoded one by one."""

from __future__ import annotations

import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_dataset, create_transform
from torch import Tensor

from ..errors import DataError, Fault
from ..system.progress import progress
from .image_listing import Listing
from .image_set import Draw, TensorSource, label_faults
from .image_spec import DataSpec
from .randomness import borrow_random, derive

_TRAINING = ("train", "training")
_EVALUATION = ("validation", "val", "valid", "eval", "evaluation")
_ANY_SIZE = "imagenet"
_OPENING = (AssertionError, ImportError, OSError, RuntimeError, ValueError, KeyError)
_DECODING = (
    *(OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError),
    *(MemoryError, OverflowError, RecursionError, TypeError, IndexError, KeyError, AttributeError),
    *(RuntimeError, struct.error, zlib.error, tarfile.TarError, ZeroDivisionError, AssertionError),
)  # of Pillow's readers, each of which has its own for a damaged file
_LISTING = (
    *(tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError),
    *(OverflowError, ValueError, RecursionError, IndexError, TypeError),
)


class Files:
    """The images of one split as files; a faulty one raises a `DataError` that names it."""

    def __init__(self, spec: DataSpec, split: str) -> None:
        self._spec = spec
        self._split = split
        self.listing = None if spec.dataset else list_split(spec, split)
        self._dataset: Any = _open(spec, split) if spec.dataset else None
        self._reader: Any = getattr(self._dataset, "reader", None)

    def __len__(self) -> int:
        return len(self.listing.names) if self.listing else len(self._dataset)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of their labels, where folders give them."""
        return self.listing.classes if self.listing else None

    @property
    def labels(self) -> Tensor | None:
        """All labels, where they are known without decoding."""
        if self.listing:
            return torch.tensor(self.listing.labels)
        for owner in (self._reader, self._dataset):
            targets = getattr(owner, "targets", None)
            if targets is not None:
                return torch.as_tensor(np.asarray(targets), dtype=torch.int64)
        return None

    def name(self, index: int) -> str:
        """The file's name inside its split, or its number where there is no file."""
        if self.listing:
            return self.listing.name(index)
        if self._reader is not None:
            return str(self._reader.filename(index))
        samples = getattr(self._dataset, "samples", None)
        return str(samples[index][0]) if samples else f"{self._split} image {index}"

    def load(self, index: int) -> tuple[Image.Image, int]:
        """One decoded image and its label."""
        try:
            if self.listing is None and self._reader is None:
                image, label = self._dataset[index]
                return self._in_8_bits(image), int(label)
            if self.listing:
                stream = self.listing.files.open(self.listing.names[index])
                label = self.listing.labels[index]
            else:
                stream, label = self._reader[index][:2]
            with stream, Image.open(stream) as image:
                return self._in_8_bits(image), int(label)
        except _DECODING as error:
            hint = "replace or remove the file"
            fault = Fault(self.name(index), f"cannot be decoded ({error})", hint)
            where = self._spec.root or self._spec.dataset
            raise DataError(f"an image of {where} is unreadable or corrupt", [fault]) from error

    def _in_8_bits(self, image: Image.Image) -> Image.Image:
        """Grey or RGB of 8 bits; of 16 bits the upper 8, as of 16-bit RGB, where Pillow cuts off.

        Raises:
            ValueError: numbers of 32 bits, of which nobody knows what white is.
        """
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            upper = np.asarray(image).astype(np.int32) >> 8  # Pillow gives PPM from 0 to 65535
            image = Image.fromarray(upper.astype(np.uint8), "L")
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits, mode {image.mode}: store it with 8 or 16 bits")
        return image.convert("L" if self._spec.channels == 1 else "RGB")


def list_split(spec: DataSpec, split: str) -> Listing:
    """The image files of a split.

    Raises:
        DataError: nothing is there, or not in class folders.
    """
    path = _locate(spec, split)
    try:
        return Listing(path, split)
    except _LISTING as error:
        reason = str(error) or type(error).__name__
        hint = "check root, the splits and the files"
        raise DataError(f"cannot open image files, {path}: {reason}. What to do: {hint}") from error


def _open(spec: DataSpec, split: str) -> Any:
    """timm's data set of one split."""
    if spec.dataset.startswith("torch/") and spec.root is None:
        raise DataError(f"dataset {spec.dataset!r} needs a folder: set root")
    if spec.dataset.lower() in ("torch/folder", "torch/image_folder"):
        raise DataError(
            f"dataset {spec.dataset!r} reads one folder for both splits: the test images would be "
            "trained on. Set dataset: '', and root to the folder that holds both splits"
        )
    if not spec.dataset.startswith(("torch/", "hfds/")):
        raise DataError(
            f"there is no dataset {spec.dataset!r}. Allowed: digits, synthetic, '' with a root "
            "folder, torch/NAME (torch/cifar10, torch/imagenet), hfds/OWNER/NAME"
        )
    try:
        return create_dataset(
            spec.dataset,
            root=spec.root,
            split=split,
            search_split=False,
            download=spec.download,
            input_img_mode="L" if spec.channels == 1 else "RGB",
        )
    except (*_OPENING, tarfile.TarError) as error:
        packages = spec.dataset.startswith("hfds/") and isinstance(error, ImportError)
        advice = "pip install datasets" if packages else "check root, the splits and the files"
        where = f"{spec.dataset}, split {split!r}, root {spec.root}"
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot open {where}: {reason}. What to do: {advice}") from error


def _locate(spec: DataSpec, split: str) -> Path:
    """The sub-folder or tar file of a split; never the root itself, which would hold both."""
    if spec.root is None:
        raise DataError("dataset '' reads image files: set root to their folder")
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"root {root} {what}: it must be a folder that holds {spec.train_split!r} and "
            f"{spec.test_split!r} as sub-folders or .tar files, one folder per class in each"
        )
    same = next((group for group in (_TRAINING, _EVALUATION) if split in group), ())
    for name in (split, *same):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    there = ", ".join(sorted(os.listdir(root))[:10]) or "nothing"
    raise DataError(
        f"root {root} has no split {split!r}: neither a folder {split} nor {split}.tar; it holds "
        f"{there}. Set train_split and test_split to what is there"
    )


class DecodedSource:
    """Files decoded once, on first use, into one tensor."""

    in_memory = True

    def __init__(self, files: Files, indices: Tensor, spec: DataSpec, label: str) -> None:
        self._files = files
        self._indices = indices
        self._spec = spec
        self._label = label

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels and labels of the samples drawn."""
        return self._decode.read(draw)

    def subset(self, indices: Tensor) -> DecodedSource:
        """Some of the files, of which no others are decoded."""
        return DecodedSource(self._files, self._indices[indices], self._spec, self._label)

    @cached_property
    def _decode(self) -> TensorSource:
        side = self._spec.image_size
        pixels = torch.empty(len(self), self._spec.channels, side, side, dtype=torch.uint8)
        labels = torch.empty(len(self), dtype=torch.int64)
        in_order = torch.argsort(self._indices).tolist()
        for place in progress(in_order, f"decoding {self._label}"):
            index = int(self._indices[place])
            image, label = self._files.load(index)
            if image.size != (side, side):
                image = self._resize(image, index)
            array = np.array(image).reshape(side, side, self._spec.channels)
            pixels[place] = torch.from_numpy(array).permute(2, 0, 1)
            labels[place] = label
        faults = label_faults(labels, self._spec.classes, self._label)
        if faults:
            raise DataError("labels do not fit the spec", faults)
        return TensorSource(pixels, labels)

    def _resize(self, image: Image.Image, index: int) -> Image.Image:
        side = self._spec.image_size
        if not self._spec.resize:
            raise size_error(self._files.name(index), image.size, side)
        method = getattr(Image.Resampling, self._spec.interpolation.upper())
        return ImageOps.fit(image, (side, side), method=method)


class StreamedSource:
    """Files decoded each time, resized and cropped by timm's transforms."""

    in_memory = False

    def __init__(self, files: Files, indices: Tensor, spec: DataSpec) -> None:
        self._files = files
        self._indices = indices
        self._spec = spec
        self._plain = _transform(spec, training=False)
        random = spec.augmentation == _ANY_SIZE
        self._random = _transform(spec, training=True) if random else None

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels and labels of the samples drawn."""
        samples = [self._sample(int(index), draw.key) for index in draw.indices]
        labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
        if not samples:
            side = self._spec.image_size
            return torch.empty(0, self._spec.channels, side, side), labels
        return torch.stack([pixels for pixels, _ in samples]), labels

    def subset(self, indices: Tensor) -> StreamedSource:
        """Some of the files, in this order."""
        return StreamedSource(self._files, self._indices[indices], self._spec)

    def _sample(self, index: int, key: tuple[int, int] | None) -> tuple[Tensor, int]:
        at = int(self._indices[index])
        image, label = self._files.load(at)
        where = self._files.name(at)
        if faults := label_faults(torch.tensor([label]), self._spec.classes, where, [at]):
            raise DataError("labels do not fit the spec", faults)
        if key is None or self._random is None:
            return self._plain(image), label
        with borrow_random(derive(*key, index)):
            return self._random(image), label


def _transform(spec: DataSpec, *, training: bool) -> Callable[[Image.Image], Tensor]:
    """timm's transform to uint8 pixels [channels, side, side]."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (spec.channels, spec.image_size, spec.image_size),
        is_training=training,
        color_jitter=0.0,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        normalize=False,
    )
    return transform


def size_error(where: str, size: tuple[int, int], side: int) -> DataError:
    """The error for an image that has not the size the spec asks for."""
    what = f"is {size[0]}x{size[1]}, the spec says {side}x{side}"
    square = f"set image_size: {size[0]}, or resize: true"
    hint = square if size[0] == size[1] else "set resize: true, which cuts out a square"
    fault = Fault(where, what, hint)
    return DataError("an image has the wrong size", [fault])
