"""Images of one's own for training: every form gives the same splits, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mt_convert.data import DataSpec, Draw, batches, images, open_data, own_splits, tensor_set
from mt_convert.data.own_sets import OwnSet
from mt_convert.errors import DataError

X = torch.randn(10, 1, 4, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3
SQUARE = DataSpec("mine", image_size=4, channels=1, classes=3)


class Augmented(Dataset[Any]):
    """Samples with noise of three generators."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + torch.rand(1), index % 3


class Stream(IterableDataset[Any]):
    """No length, no order."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def as_dicts(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A collate function of a user."""
    return {
        "pixel_values": torch.stack([x for x, _ in items]),
        "labels": torch.stack([y for _, y in items]),
    }


FORMS: dict[str, Callable[[], Any]] = {
    "pair": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "list of batches": lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "mapping": lambda: {"images": X, "labels": Y},
    "tensor set of torch": lambda: TensorDataset(X, Y),
    "subset": lambda: Subset(TensorDataset(X, Y), range(10)),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "shuffled loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    "loader of some": lambda: DataLoader(
        TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), sampler=SubsetRandomSampler(range(10))
    ),
    "loader with a collate function": lambda: DataLoader(TensorDataset(X, Y), collate_fn=as_dicts),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_every_form_gives_the_same_split(name: str) -> None:
    splits = own_splits((FORMS[name](), (X, Y)), classes=3)
    assert (len(splits.train), len(splits.validation)) == (10, 10)
    for key in (None, (0, 3)):
        shown, labels = splits.train[Draw([7, 0, 2], key)]
        assert torch.equal(shown, X[[7, 0, 2]])
        assert labels.tolist() == [1, 0, 2]
        assert [part.shape for part in splits.train[Draw([], key)]] == [(0, 1, 4, 6), (0,)]
    assert torch.equal(torch.cat([x for x, _ in batches(splits.train, 4)]), X)
    assert torch.equal(images(splits.calibration, 4), X[:4])
    assert torch.equal(torch.cat([y for _, y in splits.validation]), Y)


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    split = OwnSet(Augmented(), classes=3)
    before = torch.get_rng_state()
    first = split[Draw([0, 1, 2], (5, 1))][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(split[Draw([2, 0], (5, 1))][0], first[[2, 0]])
    assert not torch.equal(split[Draw([0], (5, 2))][0], first[:1])
    assert not torch.equal(split[Draw([0], (6, 1))][0], first[:1])
    assert torch.equal(split[Draw([1])][0], split[Draw([1])][0])
    noise = first.flatten(1)[:, 0] - X[:3].flatten(1)[:, 0]
    assert len(noise.unique()) == 3


def test_splits_and_sets_of_ours_stay_as_they_are() -> None:
    splits = open_data(
        DataSpec("synthetic", image_size=8, classes=4, limit=32, calibration_images=8)
    )
    assert own_splits(splits, classes=4) is splits
    ours = tensor_set(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]), SQUARE)
    assert own_splits((ours, ours), 3).train is ours
    both = {"train": (X, Y), "validation": (X[:2], Y[:2])}
    assert len(own_splits(both, 3).validation) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (X, r"splits +a Tensor +pass a pair \(training, validation\)"),
        ((X, Y), "a tuple"),
        (DataLoader(TensorDataset(X, Y)), "a DataLoader"),
        (None, "a NoneType"),
        ([(X, Y)], "a list"),
        ((Stream(), (X, Y)), "training images are a Stream: .*pass a data set with a length"),
        ((DataLoader(Stream()), (X, Y)), "training images are a Stream"),
        ((iter([(X, Y)]), (X, Y)), "training images are a list_iterator"),
        (
            (
                DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 10, 10)),
                (X, Y),
            ),
            "a DataLoader with a WeightedRandomSampler: training draws its own order",
        ),
        (
            ((X, Y), DataLoader(TensorDataset(X, Y), batch_sampler=[[0], [1]])),
            "validation images: ",
        ),
        (([], (X, Y)), "training images are an empty list"),
        ((([X, X], (X, Y))), "images without labels"),
        (
            ([(X[:2], Y[:2]), (X[2:, :, :2], Y[2:])], (X, Y)),
            r"training images have several shapes, \(1, 4, 6\) and \(1, 2, 6\)",
        ),
    ],
)
def test_what_training_would_read_otherwise_is_refused(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        own_splits(given, classes=3)


def test_labels_beyond_the_classes_are_told_when_they_are_read() -> None:
    split = own_splits((TensorDataset(X, Y), (X, Y)), classes=2).train
    with pytest.raises(DataError, match="label 2 of image 2"):
        split[Draw([2])]
