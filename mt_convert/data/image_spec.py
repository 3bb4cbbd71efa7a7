"""`DataSpec`: which images, how large, how they are split and augmented."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Fault, SpecError, many

AUGMENTATIONS = ("none", "crop_flip", "imagenet")
INTERPOLATIONS = ("bilinear", "bicubic")
COMPARISONS = ("times", "content")


@dataclass(frozen=True)
class DataSpec:
    """One data set, complete.

    ``dataset`` is "digits" (scikit-learn), "synthetic" (random), or a name that timm reads: ""
    with ``root`` a folder holding ``train_split`` and ``test_split`` as sub-folders or tar files
    (one folder per class, labels in alphabetical order), "torch/cifar10", "torch/imagenet",
    "hfds/owner/name"; ``name`` is what tables call it. Validation and calibration images are split
    off the training images by ``seed``; the test images are never among them. ``class_map`` names,
    for a head of other classes, the row of each class folder in alphabetical order: a list, or a
    text file with a row or a WordNet id of ImageNet-1k a line; labels are these rows then.
    ``compare`` says by what a later run knows that files are the same: "times" (names, sizes and
    times of change) or "content", whatever folder they lie in.

    Units:
        ``image_size`` pixels; ``mean`` and ``std`` for images in [0, 1], one per channel;
        ``limit`` training images (validation included) after a seeded shuffle; ``test_images``
        the first so many of a fixed seeded order, None for all.

    Augmentations: "none"; "crop_flip" pads by an eighth of the side (4 at 32), crops at random,
    mirrors every second image; "imagenet" is timm's random resized crop and mirror, from the
    files. Files whose size is not ``image_size`` are resized where ``resize`` says so, or when
    they are streamed (more than 1 GiB once decoded, or "imagenet"): then to
    ``image_size / crop_pct`` with ``interpolation``, and the centre is cut out.

    Raises:
        SpecError: a value outside what is allowed; all of them at once.

    Example:
        >>> DataSpec("digits", image_size=8, channels=1, classes=10).validation_share
        0.1
    """

    dataset: str
    root: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    image_size: int = 32
    channels: int = 3
    classes: int = 10
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    validation_share: float = 0.1
    calibration_images: int = 512
    test_images: int | None = None
    augmentation: str = "none"
    resize: bool = False
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    download: bool = False
    seed: int = 0
    limit: int | None = None
    name: str | None = None
    class_map: tuple[int, ...] | str | None = None
    compare: str = "times"

    def __post_init__(self) -> None:
        faults = tuple(_faults(self))
        if faults:
            raise SpecError(
                f"{many(faults, 'value', 'values')} of DataSpec outside what is allowed",
                faults,
            )


def _faults(spec: DataSpec) -> Iterator[Fault]:
    """Everything that is wrong with the values themselves."""
    for name in ("image_size", "classes", "calibration_images"):
        if getattr(spec, name) < 1:
            yield Fault(name, str(getattr(spec, name)), "allowed: 1 or more")
    for name in ("test_images", "limit"):
        if getattr(spec, name) is not None and getattr(spec, name) < 1:
            yield Fault(name, str(getattr(spec, name)), "allowed: 1 or more, or none for all")
    if spec.channels not in (1, 3):
        yield Fault("channels", str(spec.channels), "allowed: 1 (grey) or 3 (red, green, blue)")
    if not 0 <= spec.validation_share < 1:
        yield Fault("validation_share", str(spec.validation_share), "allowed: 0 up to below 1")
    if not 0 < spec.crop_pct <= 1:
        yield Fault("crop_pct", str(spec.crop_pct), "allowed: above 0 up to 1")
    if spec.augmentation not in AUGMENTATIONS:
        yield Fault("augmentation", repr(spec.augmentation), f"allowed: {', '.join(AUGMENTATIONS)}")
    if spec.interpolation not in INTERPOLATIONS:
        allowed = ", ".join(INTERPOLATIONS)
        yield Fault("interpolation", repr(spec.interpolation), f"allowed: {allowed}")
    if spec.augmentation == "imagenet" and spec.dataset in ("digits", "synthetic"):
        yield Fault("augmentation", "'imagenet'", "needs image files: take none or crop_flip")
    if spec.compare not in COMPARISONS:
        yield Fault("compare", repr(spec.compare), f"allowed: {', '.join(COMPARISONS)}")
    if isinstance(spec.class_map, tuple):
        yield from row_faults(spec.class_map, spec.classes)
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if len(values) not in (1, spec.channels):
            hint = f"allowed: one value, or one for each of {spec.channels} channels"
            yield Fault(name, f"{len(values)} values", hint)
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            yield Fault(name, str(values), "allowed: finite numbers, std above 0")


def row_faults(rows: tuple[int, ...], classes: int) -> Iterator[Fault]:
    """What is wrong with the rows of a head that so many classes are."""
    if len(rows) != classes:
        hint = f"allowed: one row for each of the {classes} class folders, in alphabetical order"
        yield Fault("class_map", f"holds {len(rows)} rows", hint)
    for row in dict.fromkeys(rows):
        if row < 0:
            yield Fault("class_map", f"holds row {row}", "allowed: 0 or more")
        elif rows.count(row) > 1:
            yield Fault("class_map", f"holds row {row} twice", "give every class a row of its own")


def dataset_name(spec: DataSpec) -> str:
    """What the tables call the images: the name given, or the data set's, or its folder's."""
    return spec.name or spec.dataset or Path(spec.root or "images").name


def data_labels(specs: Sequence[DataSpec], recipes: Sequence[str | None] = ()) -> list[str]:
    """What tables call each data set: its name, and where that is another's too its recipe's, or
    a digest of what it is.

    Example:
        >>> one, other = (DataSpec("", root=f"{place}/cats") for place in ("here", "there"))
        >>> data_labels([one, one, other], ["a", "a", "b"])
        ['cats (a)', 'cats (a)', 'cats (b)']
    """
    recipes = recipes or [None] * len(specs)
    kinds = [_pictures(spec) for spec in specs]
    labels = []
    for spec, recipe, kind in zip(specs, recipes, kinds, strict=True):
        name = dataset_name(spec)
        alike = [i for i, other in enumerate(specs) if dataset_name(other) == name]
        if len({kinds[i] for i in alike}) == 1:
            labels.append(name)
            continue
        own = [recipes[i] for i in alike if kinds[i] == kind]
        others = {recipes[i] for i in alike if kinds[i] != kind}
        told = recipe is not None and len(set(own)) == 1 and recipe not in others
        labels.append(
            f"{name} ({recipe if told else hashlib.sha256(kind.encode()).hexdigest()[:8]})"
        )
    return labels


def _pictures(spec: DataSpec) -> str:
    """Which test images these are, whatever is done to them."""
    root = None if spec.root is None else str(Path(spec.root).expanduser().resolve())
    drawn = spec.dataset in ("digits", "synthetic") or spec.test_images is not None
    seed = spec.seed if drawn else None
    return repr((spec.dataset, root, spec.test_split, spec.test_images, seed))
