"""Splits, augmentation as a pure function, and every message of the data package."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

import mt_convert.data.splits
from mt_convert.data import DataSpec, Draw, ImageSet, batches, images, loader, open_data, tensor_set
from mt_convert.data.image_files import Files
from mt_convert.data.image_set import crop_flip
from mt_convert.data.loading import unwrap_batch
from mt_convert.data.splits import select_test_images
from mt_convert.errors import DataError, SpecError

CIFAR = SHARED_DATA / "cifar10_jpeg"
DIGITS = DataSpec("digits", image_size=8, channels=1, classes=10)
CLASSES = ("ant", "bee", "cat")


def picture(number: int, size: int = 8) -> Image.Image:
    """An image unlike every other: its number stands in its pixels."""
    random = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (size, size, 3), generator=random, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 training and 12 test images of 8x8 in three class folders."""
    number = 0
    for split, count in (("train", 10), ("test", 4)):
        for name in CLASSES:
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(number).save(folder / f"{i:03d}.png")
                number += 1
    return tmp_path / "images"


def folder_spec(root: Path, **changes: object) -> DataSpec:
    spec = DataSpec(
        "", root=str(root), test_split="test", image_size=8, classes=3, calibration_images=5
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def rows(split: ImageSet) -> list[bytes]:
    return [image.numpy().tobytes() for batch, _ in batches(split, 7) for image in batch]


def test_test_images_are_never_in_training_validation_or_calibration(root: Path) -> None:
    splits = open_data(folder_spec(root, validation_share=0.2))
    test, train, validation = rows(splits.test), rows(splits.train), rows(splits.validation)
    assert len(test) == len(set(test)) == 12
    assert (len(train), len(validation)) == (24, 6)
    assert len(set(test) | set(train) | set(validation)) == 12 + 24 + 6
    assert set(rows(splits.calibration)) < set(train)


@pytest.mark.slow
def test_digits_are_all_there_once_and_in_eighths_of_two() -> None:
    splits = open_data(DIGITS)
    assert (len(splits.test), len(splits.validation), len(splits.train)) == (359, 144, 1294)
    values = images(splits.test, 359)
    assert values.shape == (359, 1, 8, 8)
    assert torch.equal(values * 16, (values * 16).round())
    assert (values.max(), values.min()) == (1.0, 0.0)


@pytest.mark.slow
def test_the_seed_alone_decides_the_split() -> None:
    first, again = open_data(DIGITS), open_data(DIGITS)
    other = open_data(replace(DIGITS, seed=1))
    assert rows(first.train) == rows(again.train)
    assert rows(first.test) == rows(again.test)
    assert rows(first.test) != rows(other.test)


def test_labels_follow_the_alphabetical_order_of_class_folders(root: Path) -> None:
    splits = open_data(folder_spec(root))
    labels = torch.cat([labels for _, labels in batches(splits.test, 5)])
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    wanted = torch.from_numpy(np.array(picture(30))).permute(2, 0, 1) / 255
    assert torch.equal(images(splits.test, 1)[0], wanted)


def test_a_tar_file_reads_as_the_folder_it_was_made_of(root: Path) -> None:
    folder = open_data(folder_spec(root))
    packed = root.parent / "packed"
    packed.mkdir()
    for split in ("train", "test"):
        with tarfile.open(packed / f"{split}.tar", "w") as archive:
            archive.add(root / split, arcname=".")
    tar = open_data(folder_spec(packed))
    for name in ("train", "validation", "calibration", "test"):
        assert rows(getattr(folder, name)) == rows(getattr(tar, name))


def test_normalisation_is_that_of_torchvision(root: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    splits = open_data(folder_spec(root, mean=mean, std=std))
    usual = Compose([ToTensor(), Normalize(mean, std)])
    assert torch.equal(images(splits.test, 12)[0], usual(picture(30)))


def test_grey_pictures_have_one_channel(root: Path) -> None:
    splits = open_data(folder_spec(root, channels=1))
    assert images(splits.test, 2).shape == (2, 1, 8, 8)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_crop_flip_is_slicing_and_flipping(data: st.DataObject) -> None:
    pad = data.draw(st.integers(0, 3))
    height, width, batch = (data.draw(st.integers(1, 6)) for _ in range(3))
    pixels = torch.randint(0, 256, (batch, 2, height, width), dtype=torch.uint8)
    moves = torch.tensor(
        [
            [
                data.draw(st.integers(0, 2 * pad)),
                data.draw(st.integers(0, 2 * pad)),
                data.draw(st.integers(0, 1)),
            ]
            for _ in range(batch)
        ]
    )
    moved = crop_flip(pixels, moves, pad)
    padded = torch.nn.functional.pad(pixels, (pad,) * 4)
    for i, (down, right, mirror) in enumerate(moves.tolist()):
        cut = padded[i, :, down : down + height, right : right + width]
        assert torch.equal(moved[i], cut.flip(2) if mirror else cut)


@pytest.mark.parametrize("augmentation", ["crop_flip", "imagenet"])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(root: Path, augmentation: str) -> None:
    train = open_data(folder_spec(root, augmentation=augmentation)).train
    whole = train[Draw(range(12), (0, 3))][0]
    torch.rand(5)
    alone = torch.cat([train[Draw([i], (0, 3))][0] for i in reversed(range(12))]).flip(0)
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, train[Draw(range(12), (0, 4))][0])
    assert not torch.equal(whole, train[Draw(range(12), (1, 3))][0])
    assert not torch.equal(whole, train[Draw(range(12))][0])
    draws = [Draw(range(start, start + 4), (0, 3)) for start in (0, 4, 8)]
    worked = torch.cat([unwrap_batch(item)[0] for item in loader(train, draws, workers=2)])
    assert torch.equal(whole, worked)


def test_augmentation_leaves_the_global_generators_alone(root: Path) -> None:
    train = open_data(folder_spec(root, augmentation="imagenet")).train
    before = torch.get_rng_state()
    train[Draw([0, 1], (0, 0))]
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_training_images_are_augmented(root: Path) -> None:
    for augmentation in ("crop_flip", "imagenet"):
        splits = open_data(folder_spec(root, augmentation=augmentation))
        for split in (splits.validation, splits.calibration, splits.test):
            assert torch.equal(split[Draw([0, 1], (0, 0))][0], split[Draw([0, 1])][0])


def test_streamed_files_give_the_same_images_as_decoded_ones(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = folder_spec(root, crop_pct=1.0, augmentation="crop_flip")
    held = open_data(spec)
    monkeypatch.setattr(mt_convert.data.splits, "MEMORY_LIMIT", 0)
    streamed = open_data(spec)
    assert (held.train.in_memory, streamed.train.in_memory) == (True, False)
    assert rows(held.test) == rows(streamed.test)
    draw = Draw(range(20), (0, 1))
    assert torch.equal(held.train[draw][0], streamed.train[draw][0])


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "imagenet"])
def test_no_images_are_no_images_whatever_they_come_from(root: Path, augmentation: str) -> None:
    splits = open_data(folder_spec(root, augmentation=augmentation))
    assert splits.train.in_memory == (augmentation != "imagenet")
    for split, key in ((splits.train, (0, 1)), (splits.train, None), (splits.test, None)):
        pixels, labels = split[Draw([], key)]
        assert pixels.shape == (0, 3, 8, 8)
        assert pixels.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(labels) == 0


def test_a_label_that_does_not_fit_is_named_with_its_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_data(folder_spec(root, augmentation="imagenet"))
    load = Files.load
    calls: list[str] = []

    def wrong(self: Files, index: int) -> tuple[Image.Image, int]:
        calls.append(self.name(index))
        return load(self, index)[0], 3 if len(calls) == 3 else 0

    monkeypatch.setattr(Files, "load", wrong)
    with pytest.raises(DataError) as error:
        splits.train[Draw(range(5))]
    (fault,) = error.value.faults
    assert fault.where == calls[2]
    assert fault.what.startswith("label 3 of image ")
    assert calls[2] != calls[0]


@pytest.mark.slow
def test_workers_share_no_position_in_a_tar_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            archive.add(root / split, arcname=".")
        (root / split).rename(root / f"{split}.moved")
    held = open_data(folder_spec(root, crop_pct=1.0))
    monkeypatch.setattr(mt_convert.data.splits, "MEMORY_LIMIT", 0)
    streamed = open_data(folder_spec(root, crop_pct=1.0))
    images(streamed.test, 2)
    wanted = [labels.tolist() for _, labels in batches(held.test, 2)]
    for _ in range(3):
        read = list(batches(streamed.test, 2, workers=2))
        assert [labels.tolist() for _, labels in read] == wanted
        assert torch.equal(torch.cat([batch for batch, _ in read]), images(held.test, 12))


@pytest.mark.slow
def test_test_images_asked_for_are_the_first_of_one_order() -> None:
    few = rows(open_data(replace(DIGITS, test_images=10)).test)
    more = rows(open_data(replace(DIGITS, test_images=50)).test)
    assert more[:10] == few
    assert len(more) == 50


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, 10])
def test_a_subset_is_what_the_data_set_would_give_and_opens_nothing(
    root: Path, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [folder_spec(root, test_images=asked), replace(DIGITS, test_images=asked)]
    specs.append(folder_spec(root, test_images=asked, augmentation="imagenet"))
    for spec in specs:
        opened = rows(open_data(replace(spec, test_images=6)).test)
        splits = open_data(spec)
        with monkeypatch.context() as patch:
            patch.setattr(mt_convert.data.splits, "_pools", None)
            subset = select_test_images(spec, 6, splits)
        assert rows(subset) == opened
        assert select_test_images(spec, None, splits) is splits.test
        assert select_test_images(spec, 5000, splits) is splits.test


def test_of_files_only_those_of_the_subset_are_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, decoded = folder_spec(root), []
    splits = open_data(spec)
    load = Files.load
    monkeypatch.setattr(Files, "load", lambda self, i: decoded.append(i) or load(self, i))
    assert len(rows(select_test_images(spec, 3, splits))) == len(decoded) == 3


@pytest.mark.slow
def test_limit_keeps_so_many_training_and_validation_images() -> None:
    splits = open_data(replace(DIGITS, limit=100, calibration_images=20))
    assert (len(splits.train), len(splits.validation)) == (90, 10)


def test_batches_of_several_processes_are_those_of_one() -> None:
    test = open_data(DIGITS).test
    whole = [labels.tolist() for _, labels in batches(test, 50)]
    for i in range(3):
        share = [labels.tolist() for _, labels in batches(test, 50, share=(i, 3))]
        assert share == whole[i::3]


def test_made_up_images_can_be_told_apart() -> None:
    spec = DataSpec("synthetic", image_size=16, classes=4, limit=200, calibration_images=8)
    splits = open_data(spec)
    train, labels = next(batches(splits.train, 200))
    means = torch.stack([train[labels == i].mean(0) for i in range(4)])
    test, wanted = next(batches(splits.test, 256))
    nearest = torch.cdist(test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == wanted).float().mean() > 0.95
    assert rows(splits.test) == rows(open_data(spec).test)


@pytest.mark.long
def test_jpeg_cifar10_is_read_from_its_tar_files() -> None:
    if not (CIFAR / "train.tar").exists():
        pytest.skip("the JPEG CIFAR-10 tar files are not in ../shared/data")
    spec = DataSpec(
        "", root=str(CIFAR), test_split="test", limit=80, calibration_images=8, test_images=40
    )
    splits = open_data(spec)
    pixels, labels = next(batches(splits.test, 40))
    assert pixels.shape == (40, 3, 32, 32)
    assert labels.unique().numel() > 5
    assert len(splits.train) == 72


# Messages


def test_values_outside_are_listed_all_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        DataSpec("", image_size=0, channels=2, augmentation="mirror", std=(0.0,), limit=0)
    text = str(caught.value)
    assert "5 values" in text
    for name in ("image_size", "channels", "augmentation", "std", "limit"):
        assert name in text


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist.*sub-folders or \.tar files"):
        open_data(folder_spec(tmp_path / "gone"))
    with pytest.raises(DataError, match="set root"):
        open_data(DataSpec(""))


def test_a_missing_split_lists_what_is_there(root: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'validation'.*holds test, train"):
        open_data(folder_spec(root, test_split="validation"))


def test_training_on_the_test_split_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="trained on"):
        open_data(folder_spec(root, test_split="train"))


def test_an_unknown_dataset_lists_the_allowed_ones() -> None:
    with pytest.raises(DataError, match=r"no dataset 'cifar11'.*torch/cifar10"):
        open_data(DataSpec("cifar11"))
    with pytest.raises(DataError, match="cannot open torch/cifar11"):
        open_data(DataSpec("torch/cifar11", root="."))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        open_data(DataSpec("hfds/owner/name"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install mt-convert\[demo\]"):
        open_data(DIGITS)


def test_torchvision_files_that_are_missing_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot open torch/cifar10"):
        open_data(DataSpec("torch/cifar10", root=str(tmp_path)))
    with pytest.raises(DataError, match="train_split: train"):
        open_data(DataSpec("torch/cifar10", root=str(tmp_path), train_split="trian"))


def test_a_corrupt_image_is_named(root: Path) -> None:
    victim = root / "test" / "bee" / "002.png"
    victim.write_bytes(victim.read_bytes()[:60])
    splits = open_data(folder_spec(root))
    with pytest.raises(DataError, match=r"bee/002\.png"):
        images(splits.test, 1)
    victim.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bee/002\.png  cannot be decoded"):
        images(open_data(folder_spec(root)).test, 1)


def test_a_worker_hands_over_the_message_without_a_traceback(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mt_convert.data.splits, "MEMORY_LIMIT", 0)
    (root / "test" / "bee" / "002.png").write_bytes(b"no image")
    splits = open_data(folder_spec(root))
    with pytest.raises(DataError) as caught:
        list(batches(splits.test, 4, workers=1))
    assert "bee/002.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_truncated_tar_is_a_data_error(root: Path) -> None:
    with tarfile.open(root / "whole.tar", "w") as archive:
        archive.add(root / "train", arcname=".")
    content = (root / "whole.tar").read_bytes()
    (root / "train").rename(root / "elsewhere")
    (root / "train.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(DataError, match=r"train\.tar"):
        images(open_data(folder_spec(root)).train, 1)


def test_a_wrong_image_size_gives_both_sizes_and_resize_mends_it(root: Path) -> None:
    spec = folder_spec(root, image_size=16)
    with pytest.raises(DataError, match=r"is 8x8, the spec says 16x16.*resize: true"):
        open_data(spec)
    resized = open_data(replace(spec, resize=True))
    assert images(resized.test, 3).shape == (3, 3, 16, 16)
    with pytest.raises(DataError, match="32; the digits are 8x8"):
        open_data(replace(DIGITS, image_size=32))
    assert images(open_data(replace(DIGITS, image_size=32, resize=True)).test, 1).shape[-1] == 32


def test_one_image_of_another_size_is_named(root: Path) -> None:
    picture(99, size=9).save(root / "test" / "cat" / "003.png")
    splits = open_data(folder_spec(root))
    with pytest.raises(DataError, match=r"cat/003\.png  is 9x9, the spec says 8x8"):
        images(splits.test, 1)


def test_class_folders_must_be_those_of_the_spec_and_of_both_splits(root: Path) -> None:
    with pytest.raises(DataError, match=r"3 class folders, the spec says 10.*set classes: 3"):
        open_data(folder_spec(root, classes=10))
    (root / "test" / "cat").rename(root / "test" / "dog")
    with pytest.raises(DataError, match="other classes: cat, dog"):
        open_data(folder_spec(root))
    with pytest.raises(DataError, match="the digits have 10"):
        open_data(replace(DIGITS, classes=5))


def test_labels_outside_the_classes_are_refused() -> None:
    spec = DataSpec("mine", image_size=2, channels=1, classes=2)
    with pytest.raises(DataError, match=r"label 2 of image 1.*allowed: 0 to 1; set classes to 3"):
        tensor_set(torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), spec)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    spec = DataSpec("mine", image_size=2, channels=1, classes=2)
    pixels = torch.zeros(3, 1, 2, 2)
    pixels[1, 0, 1, 1] = value
    with pytest.raises(DataError, match="NaN or infinity in 1 images, first 1"):
        tensor_set(pixels, torch.tensor([0, 1, 1]), spec)


def test_tensors_of_another_shape_are_refused() -> None:
    spec = DataSpec("mine", image_size=2, channels=3, classes=2)
    with pytest.raises(DataError, match=r"shape \[2, 1, 2, 2\]  expected \[2, 3, 2, 2\]"):
        tensor_set(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 5000}, "there are 1438 training images"),
        ({"limit": 100}, "set calibration_images to at most 90"),
        ({"limit": 4, "calibration_images": 1}, "0.1 of 4 images is none"),
        ({"test_images": 400}, "there are 359"),
    ],
)
def test_too_few_images_say_how_many_there_are(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(replace(DIGITS, **changes))  # type: ignore[arg-type]


def test_more_images_than_a_split_has_are_refused() -> None:
    with pytest.raises(DataError, match="the split has 359"):
        images(open_data(DIGITS).test, 1000)
