"""What people hand over as images: every form gives the tensor that was meant, or one error."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mt_convert.data import DataSpec, tensor_set
from mt_convert.errors import DataError
from mt_convert.graph.image_batches import MOST, collect, labelled_batches

X, Y = images(6, (3, 8, 8)), torch.arange(6) % 3
SHAPE = (3, 8, 8)


class Samples(Dataset[Any]):
    """A map-style data set without __iter__, as torchvision's."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Stream(IterableDataset[Any]):
    """Samples one after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def strided() -> np.ndarray[Any, Any]:
    """An array that is read-only and lies backwards."""
    array = X.numpy()[::-1].copy()[::-1]
    array.flags.writeable = False
    return array


PAIRS: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "loader of batches of one": lambda: DataLoader(TensorDataset(X, Y)),
    "loader of a map-style set": lambda: DataLoader(Samples(), batch_size=4),
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=4),
    "map-style set": Samples,
    "tensor set of torch": lambda: TensorDataset(X, Y),
    "stream": Stream,
    "pair": lambda: (X, Y),
    "pair as a list": lambda: [X, Y],
    "pair of arrays": lambda: (X.numpy(), Y.numpy()),
    "pair with a list of labels": lambda: (X, Y.tolist()),
    "list of pairs": lambda: [(X[:4], Y[:4]), [X[4:], Y[4:]]],
    "generator of pairs": lambda: ((x, y) for x, y in zip(X.split(2), Y.split(2), strict=True)),
    "list of samples": lambda: list(zip(X, Y.tolist(), strict=True)),
    "triples": lambda: [(X, Y, "names")],
    "mapping": lambda: {"pixel_values": X, "labels": Y},
    "mappings of a loader": lambda: [
        {"image": X[:4], "label": Y[:4]},
        {"image": X[4:], "label": Y[4:]},
    ],
    "user's mapping": lambda: UserDict(pixel_values=X.numpy(), labels=Y),
    "images of ours": lambda: tensor_set(
        X, Y, DataSpec("mine", image_size=8, channels=3, mean=(0, 0, 0), std=(1, 1, 1), classes=3)
    ),
}
ALONE: dict[str, Callable[[], Any]] = {
    "tensor": lambda: X,
    "array": X.numpy,
    "strided array": strided,
    "big-endian array": lambda: X.numpy().astype(">f4"),
    "list of images": lambda: list(X),
    "tuple of images": lambda: tuple(X),
    "list of arrays": lambda: list(X.numpy()),
    "list of batches": lambda: [X[:4], X[4:]],
    "two batches of one size": lambda: (X[:3], X[3:]),
    "generator of batches": lambda: (x for x in X.split(4)),
    "loader without labels": lambda: DataLoader(TensorDataset(X), batch_size=4),
    "loader of a tensor": lambda: DataLoader(X, batch_size=4),  # type: ignore[arg-type]
    "mapping of a list": lambda: {"images": list(X)},
}


@pytest.mark.parametrize("name", [*PAIRS, *ALONE])
def test_every_form_of_images_gives_the_tensor_that_was_meant(name: str) -> None:
    made = (PAIRS | ALONE)[name]
    for shape in (SHAPE, None):
        assert torch.equal(collect(made(), image_shape=shape), X)


@pytest.mark.parametrize("name", list(PAIRS))
def test_every_form_of_pairs_keeps_images_and_labels_together(name: str) -> None:
    batches = list(labelled_batches(PAIRS[name](), image_shape=SHAPE))
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
    labels = torch.cat([y for _, y in batches if y is not None])
    assert torch.equal(labels, Y)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("name", list(ALONE))
def test_images_without_labels_are_no_pairs(name: str) -> None:
    with pytest.raises(DataError, match=r"without labels: pass pairs \(images, labels\)"):
        list(labelled_batches(ALONE[name](), image_shape=SHAPE))
    assert all(
        y is None for _, y in labelled_batches(ALONE[name](), image_shape=SHAPE, required=False)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "cannot be read from NoneType: pass a tensor"),
        ("images", "cannot be read from 'images': pass a tensor"),
        (5, "cannot be read from int"),
        (Samples, "cannot be read from <class"),
        ([], "are an empty list"),
        (iter(()), "are an empty"),
        ({"photo": X}, "a mapping of photo: it needs a key 'images'"),
        ({}, "a mapping of nothing"),
        (["a.png", "b.png"], r"from list of str: .*ToTensor"),
        ([X[0], X[1, :, :4]], r"several shapes, \(3, 8, 8\) and \(3, 4, 8\)"),
        (np.array(["a", "b"]), "an array of <U1"),
        (np.array([None]), "an array of object"),
    ],
)
def test_what_holds_no_images_is_one_error_that_lists_what_does(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect(wrong)


def test_samples_with_labels_and_of_two_shapes_are_one_error() -> None:
    singles = [(X[0], 0), (X[1, :, :4], 1)]
    with pytest.raises(DataError, match=r"several shapes, \(3, 8, 8\) and \(3, 4, 8\)"):
        list(labelled_batches(singles, image_shape=None))


def test_a_batch_beside_a_pair_is_no_pair() -> None:
    shown = [X[:2], (X[:2], Y[:2])]
    assert len(collect(shown)) == 4
    labels = [label for _, label in labelled_batches(shown, image_shape=SHAPE, required=False)]
    assert labels[0] is None


@pytest.mark.parametrize(
    "labels", [torch.rand(6) + 0.1, torch.zeros(5).long(), torch.zeros(6, 3), torch.zeros(6) * 1j]
)
def test_labels_that_are_not_one_whole_number_for_each_image_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"for 6 images: pass whole numbers"):
        list(labelled_batches([(X, labels)], image_shape=SHAPE))


def test_what_may_have_no_end_is_read_up_to_1024_images() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(100, 1)

    assert len(collect(endless())) == MOST
    assert len(collect([torch.zeros(100, 1)] * 20)) == 2000  # a list was given whole


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    pairs=st.booleans(),
    mapping=st.booleans(),
    array=st.booleans(),
    outer=st.sampled_from([list, tuple, iter]),
)
def test_any_cut_into_batches_gives_the_images_back(
    sizes: list[int], pairs: bool, mapping: bool, array: bool, outer: Callable[[Any], Any]
) -> None:
    x = images(sum(sizes), SHAPE)
    parts: list[Any] = []
    for part in x.split(sizes):
        shown: Any = part.numpy() if array else part
        if mapping:
            shown = {"image": shown, "label": [0] * len(part)}
        elif pairs:
            shown = (shown, torch.zeros(len(part)))
        parts.append(shown)
    assert torch.equal(collect(outer(parts), image_shape=SHAPE), x)
