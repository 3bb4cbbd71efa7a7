"""`open_data`: training, validation, calibration and test images of one `DataSpec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DataError, Fault
from .builtin_images import digits, synthetic
from .events.spec import EventSpec
from .image_files import DecodedSource, Files, StreamedSource, size_error
from .image_set import ImageSet, Source, label_faults, make_source
from .image_spec import DataSpec
from .randomness import generator

MEMORY_LIMIT = 2**30
_DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Splits:
    """The four sets of images. Only ``train`` is augmented; calibration is part of it. ``digest``
    is that of the files of training, where there are files that are known by one."""

    train: ImageSet
    validation: ImageSet
    calibration: ImageSet
    test: ImageSet
    digest: str | None = None


@dataclass(frozen=True)
class _Pool:
    """Images to choose from: how many, and how to make a source of some of them."""

    count: int
    take: Callable[[Tensor, str], Source]
    digest: str | None = None


def open_data(spec: DataSpec, *, calibrates: bool = True) -> Splits:
    """Open the data set and split it; files are decoded when a split is first read.

    Returns:
        `Splits`: test images from the test split alone; validation and calibration images from
        the training split, by ``spec.seed``. ``validation`` is empty if its share is 0. Where
        nothing ``calibrates``, fewer calibration images than asked for are no fault.

    Raises:
        DataError: the root or a split is missing, classes or sizes do not fit the spec, or there
            are too few images; while reading, an image that is corrupt or has the wrong size.

    Example:
        >>> spec = DataSpec("synthetic", image_size=8, classes=4, limit=64, calibration_images=8)
        >>> splits = open_data(spec)
        >>> len(splits.train), len(splits.validation), len(splits.calibration), len(splits.test)
        (58, 6, 8, 256)
    """
    train, test = _pools(spec)
    train_part, validation_part = partition(train.count, spec, calibrates=calibrates)
    tested = chosen_for_test(test.count, spec)
    calibration_part = train_part[: spec.calibration_images]
    plain = replace(spec, augmentation="none")
    return Splits(
        train=ImageSet(train.take(train_part, "training images"), spec),
        validation=ImageSet(train.take(validation_part, "validation images"), plain),
        calibration=ImageSet(train.take(calibration_part, "calibration images"), plain),
        test=ImageSet(test.take(tested, "test images"), plain),
        digest=train.digest,
    )


def partition(count: int, spec: DataSpec, *, calibrates: bool = True) -> tuple[Tensor, Tensor]:
    """Training and validation indices after a seeded shuffle."""
    order = torch.randperm(count, generator=generator(spec.seed, "split"))
    if spec.limit is not None and spec.limit > count:
        fault = Fault("limit", str(spec.limit), f"there are {count} training images: lower it")
        raise DataError("too few images for the split", [fault])
    order = order[: spec.limit]
    held_back = round(len(order) * spec.validation_share)
    train = len(order) - held_back
    faults = []
    if spec.validation_share > 0 and held_back == 0:
        hint = "raise validation_share, or set it to 0 to train without validation"
        what = f"{spec.validation_share} of {len(order)} images is none"
        faults.append(Fault("validation_share", what, hint))
    if calibrates and spec.calibration_images > train:
        hint = f"{train} training images are left: set calibration_images to at most {train}"
        faults.append(Fault("calibration_images", str(spec.calibration_images), hint))
    if faults:
        raise DataError("too few images for the split", faults)
    return order[held_back:], order[:held_back]


def chosen_for_test(count: int, spec: DataSpec) -> Tensor:
    """All test indices as they stand, or the first of a seeded order."""
    if spec.test_images is None:
        return torch.arange(count)
    if spec.test_images > count:
        fault = Fault("test_images", str(spec.test_images), f"there are {count}: lower it")
        raise DataError("too few images for the split", [fault])
    return _test_order(count, spec.seed)[: spec.test_images]


def _pools(spec: DataSpec) -> tuple[_Pool, _Pool]:
    """What there is to train on, and what to test on."""
    if spec.dataset == "synthetic":
        return (
            _tensor_pool(*synthetic(spec, "train"), spec),
            _tensor_pool(*synthetic(spec, "test"), spec),
        )
    if spec.dataset == "digits":
        pixels, labels = digits(spec)
        order = torch.randperm(len(labels), generator=generator(spec.seed, "digits"))
        tested = round(len(labels) * _DIGITS_TEST_SHARE)
        test, train = order[:tested], order[tested:]
        return (
            _tensor_pool(pixels[train], labels[train], spec),
            _tensor_pool(pixels[test], labels[test], spec),
        )
    return _file_pools(spec)


def _tensor_pool(pixels: Tensor, labels: Tensor, spec: DataSpec) -> _Pool:
    def take(indices: Tensor, label: str) -> Source:
        return make_source(pixels[indices], labels[indices], spec, f"{spec.dataset} {label}")

    return _Pool(len(labels), take)


def _file_pools(spec: DataSpec) -> tuple[_Pool, _Pool]:
    """Files of both splits, after everything that can be checked without decoding them all."""
    _check_split_names(spec)
    train, test = Files(spec, spec.train_split), Files(spec, spec.test_split)
    _check_classes(train, test, spec)
    chosen = min(spec.limit or len(train), len(train))
    chosen += min(spec.test_images or len(test), len(test))
    too_large = chosen * spec.channels * spec.image_size**2 > MEMORY_LIMIT
    streamed = too_large or spec.augmentation == "imagenet"
    if not streamed and not spec.resize:
        for files in (train, test):
            size = files.load(0)[0].size
            if size != (spec.image_size, spec.image_size):
                raise size_error(files.name(0), size, spec.image_size)
    return _file_pool(train, spec, streamed), _file_pool(test, spec, streamed)


def _file_pool(files: Files, spec: DataSpec, streamed: bool) -> _Pool:
    def take(indices: Tensor, label: str) -> Source:
        if not streamed:
            return DecodedSource(files, indices, spec, label)
        random = label == "training images"
        plain = spec if random else replace(spec, augmentation="none")
        return StreamedSource(files, indices, plain)

    digest = files.listing.digest(content=spec.compare == "content") if files.listing else None
    return _Pool(len(files), take, digest)


def _check_split_names(spec: DataSpec) -> None:
    """Training and test images must be different ones."""
    if spec.train_split == spec.test_split:
        raise DataError(
            f"train_split and test_split are both {spec.train_split!r}: the test images would be "
            "trained on. Set them to two different splits"
        )
    if spec.dataset.startswith("torch/") and spec.train_split not in ("train", "training"):
        raise DataError(
            f"{spec.dataset} has no train_split {spec.train_split!r}: set train_split: train"
        )


def _check_classes(train: Files, test: Files, spec: DataSpec) -> None:
    """Labels and class folders against ``spec.classes``; both splits must name the same classes."""
    names, tested = train.classes, test.classes
    faults = []
    if names is not None and len(names) != spec.classes:
        hint = f"set classes: {len(names)}, or complete the folders ({', '.join(names[:5])}, …)"
        what = f"{len(names)} class folders, the spec says {spec.classes}"
        faults.append(Fault(spec.train_split, what, hint))
    if names is not None and tested is not None and names != tested:
        differing = sorted(set(names) ^ set(tested))
        hint = "both splits need the same class folders"
        faults.append(Fault(spec.test_split, f"other classes: {', '.join(differing[:5])}", hint))
    for files, where in ((train, spec.train_split), (test, spec.test_split)):
        labels = files.labels
        if labels is not None and names is None:
            faults.extend(label_faults(labels, spec.classes, where))
    if faults:
        where = spec.root or spec.dataset
        raise DataError(f"the classes of {where} do not fit the spec", faults)


def select_test_images(data: DataSpec | EventSpec, count: int | None, splits: Splits) -> ImageSet:
    """The images that are evaluated: all, or the first ``count`` of a seeded order; taken from the
    splits of ``data``, which are not opened again.

    Files lie sorted by class, so that the first as they stand would be of one class.
    """
    test = splits.test
    if count is None or count >= len(test):
        return test
    if data.test_images is not None:  # they are in that order already
        return test.subset(torch.arange(count))
    return test.subset(_test_order(len(test), data.seed)[:count])


def _test_order(count: int, seed: int) -> Tensor:
    """The order in which test images are taken where not all are."""
    return torch.randperm(count, generator=generator(seed, "test"))
