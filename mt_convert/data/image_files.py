"""Image files through timm's readers: listed, counted, and decoded one by one."""

from __future__ import annotations

import os
import tarfile
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
from .image_set import Draw, TensorSource, label_faults
from .image_spec import DataSpec
from .randomness import borrow_random, derive

_TRAINING = ("train", "training")
_EVALUATION = ("validation", "val", "valid", "eval", "evaluation")
_ANY_SIZE = "imagenet"
_OPENING = (AssertionError, ImportError, OSError, RuntimeError, ValueError, KeyError)
_DECODING = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Files:
    """The images of one split as files; a faulty one raises a `DataError` that names it."""

    def __init__(self, spec: DataSpec, split: str) -> None:
        self._spec = spec
        self._split = split
        self._dataset = _open(spec, split)
        self._reader: Any = getattr(self._dataset, "reader", None)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of their labels, where folders give them."""
        for name in ("class_to_idx", "class_name_to_idx"):
            mapping = getattr(self._reader, name, None)
            if mapping and not self._spec.dataset:
                return sorted(mapping, key=mapping.get)
        return None

    @property
    def labels(self) -> Tensor | None:
        """All labels, where they are known without decoding."""
        for owner in (self._reader, self._dataset):
            targets = getattr(owner, "targets", None)
            if targets is not None:
                return torch.as_tensor(np.asarray(targets), dtype=torch.int64)
        if not self._spec.dataset:
            return torch.tensor([label for _, label in self._reader.samples])
        return None

    def name(self, index: int) -> str:
        """The file's name inside its split, or its number where there is no file."""
        if self._reader is not None:
            return str(self._reader.filename(index))
        samples = getattr(self._dataset, "samples", None)
        return str(samples[index][0]) if samples else f"{self._split} image {index}"

    def load(self, index: int) -> tuple[Image.Image, int]:
        """One decoded image and its label."""
        mode = "L" if self._spec.channels == 1 else "RGB"
        try:
            if self._reader is None:
                image, label = self._dataset[index]
                return image.convert(mode), int(label)
            stream, label = self._reader[index][:2]
            with stream, Image.open(stream) as image:
                return image.convert(mode), int(label)
        except (*_DECODING, tarfile.TarError) as error:
            hint = "replace or remove the file"
            fault = Fault(self.name(index), f"cannot be decoded ({error})", hint)
            where = self._spec.root or self._spec.dataset
            raise DataError(f"an image of {where} is unreadable or corrupt", [fault]) from error

    def keep_closed(self) -> None:
        """Open a tar file anew for each image: worker processes must not share a file position."""
        if hasattr(self._reader, "cache_tarfiles"):
            self._reader.cache_tarfiles = False


def _open(spec: DataSpec, split: str) -> Any:
    """timm's data set of one split."""
    root = str(_locate(spec, split)) if not spec.dataset else spec.root
    if spec.dataset.startswith("torch/") and spec.root is None:
        raise DataError(f"dataset {spec.dataset!r} needs a folder: set root")
    if spec.dataset and not spec.dataset.startswith(("torch/", "hfds/")):
        raise DataError(
            f"there is no dataset {spec.dataset!r}. Allowed: digits, synthetic, '' with a root "
            "folder, torch/NAME (torch/cifar10, torch/imagenet), hfds/OWNER/NAME"
        )
    try:
        return create_dataset(
            spec.dataset,
            root=root,
            split=split,
            search_split=False,
            download=spec.download,
            input_img_mode="L" if spec.channels == 1 else "RGB",
        )
    except (*_OPENING, tarfile.TarError) as error:
        packages = spec.dataset.startswith("hfds/") and isinstance(error, ImportError)
        advice = "pip install datasets" if packages else "check root, the splits and the files"
        where = f"{spec.dataset or 'image files'}, split {split!r}, root {root}"
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
        files.keep_closed()
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
        labels = torch.tensor([label for _, label in samples])
        faults = label_faults(labels, self._spec.classes, self._files.name(int(draw.indices[0])))
        if faults:
            raise DataError("labels do not fit the spec", faults)
        return torch.stack([pixels for pixels, _ in samples]), labels

    def _sample(self, index: int, key: tuple[int, int] | None) -> tuple[Tensor, int]:
        image, label = self._files.load(int(self._indices[index]))
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
    fault = Fault(where, what, f"set image_size: {size[0]}, or resize: true")
    return DataError("an image has the wrong size", [fault])
