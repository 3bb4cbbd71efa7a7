"""Made-up event recordings: what moves, what it is drawn from, and what a recipe asks of them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

import mt_convert.data.events.frames
from mt_convert.data import DataSpec, Draw, EventSpec, ImageSet, batches, images, open_events
from mt_convert.data.events.synthetic import moving_blob
from mt_convert.data.image_set import crop_flip
from mt_convert.errors import SpecError
from mt_convert.experiments.recipes import faults
from mt_convert.experiments.recipes.yaml_tree import parse

SMALL = EventSpec(
    "synthetic", time_steps=5, size=16, limit=40, test_images=30, calibration_images=8
)


class Block(BaseModel):
    """A recipe's block of events, read as strictly as a recipe is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    events: EventSpec


def rows(split: ImageSet) -> list[tuple[bytes, int]]:
    found = []
    for frames, labels in batches(split, 7):
        found += [(f.numpy().tobytes(), int(n)) for f, n in zip(frames, labels, strict=True)]
    return found


def recordings(angle: float, count: int, *, time_steps: int = 8, side: int = 32) -> Tensor:
    """Many recordings of one direction, as floats [recordings, T, 2, side, side]."""
    random = torch.Generator().manual_seed(int(1000 * angle) + time_steps)
    made = [moving_blob(angle, time_steps, side, random) for _ in range(count)]
    return torch.stack(made).double()


def middle(weights: Tensor) -> Tensor:
    """(down, right) of the centre of weights [..., side, side]."""
    places = torch.arange(weights.shape[-1], dtype=weights.dtype)
    down, right = (weights.sum(-1) * places).sum(-1), (weights.sum(-2) * places).sum(-1)
    return torch.stack([down, right], -1) / weights.sum((-2, -1))[..., None]


@pytest.mark.parametrize("label", range(5))
def test_the_events_of_a_class_move_in_its_direction(label: int) -> None:
    angle = 2 * math.pi * label / 5
    paths = middle(recordings(angle, 60).sum((0, 2)))
    down, right = (paths[-1] - paths[0]).tolist()
    assert math.hypot(down, right) > 5, "pixels of 32, noise at rest included"
    apart = math.atan2(down, right) - angle
    assert abs(math.remainder(apart, 2 * math.pi)) < 0.25


def test_on_events_lead_three_times_in_four() -> None:
    made = recordings(0.0, 80)
    steps = middle(made[:, 1:-1]).diff(dim=2)[:, :, 0]  # from OFF to ON, down and right
    lead = steps.mean(1)
    assert lead[:, 1].abs().median() > 2 * lead[:, 0].abs().median()
    assert lead[:, 1].abs().median() > 1
    assert 0.6 < (lead[:, 1] > 0).double().mean() < 0.9


@pytest.mark.sampled
@pytest.mark.parametrize("side", [32, 64])
def test_the_number_of_events_is_what_the_rates_sum_to(side: int) -> None:
    # ON: 2 for each unit by which a pixel brightens: a blob's cross-section times how far it goes
    moved = 2 * math.sqrt(2 * math.pi) * side / 10 * side / 2
    expected = 2 * (moved + 0.2 * side**2)
    found = recordings(1.0, 60, time_steps=40, side=side).sum((1, 2, 3, 4)).mean()
    assert abs(found.item() / expected - 1) < 0.05
    noise = recordings(1.0, 60, time_steps=3, side=side)[..., :2, -2:].mean()  # the blob is far
    assert abs(noise.item() * 3 - 0.2) < 0.07


def test_a_recording_is_a_function_of_seed_part_and_place() -> None:
    first, again, other = (open_events(replace(SMALL, seed=seed)) for seed in (3, 3, 4))
    for name in ("train", "validation", "calibration", "test"):
        assert rows(getattr(first, name)) == rows(getattr(again, name))
        assert not set(rows(getattr(first, name))) & set(rows(getattr(other, name)))
    fewer = open_events(replace(SMALL, seed=3, limit=20, test_images=10))
    assert set(rows(fewer.test)) < set(rows(first.test))
    made = {*rows(first.train), *rows(first.validation)}
    assert {*rows(fewer.train), *rows(fewer.validation)} < made


def test_training_validation_and_test_recordings_are_different_ones() -> None:
    splits = open_events(replace(SMALL, validation_share=0.25))
    train, validation, test = (
        set(rows(split)) for split in (splits.train, splits.validation, splits.test)
    )
    assert (len(train), len(validation), len(test)) == (30, 10, 30)
    assert len({frames for frames, _ in train | validation | test}) == 70
    assert set(rows(splits.calibration)) < train
    assert sorted(label for _, label in test) == sorted([*range(10)] * 3)


def test_without_limits_there_are_as_many_as_made_up_images() -> None:
    splits = open_events(EventSpec("synthetic"))
    parts = (splits.train, splits.validation, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [922, 102, 512, 256]
    assert splits.train.classes == 10
    assert len(open_events(EventSpec("synthetic", limit=100)).calibration) == 90


def test_batches_and_images_are_frames() -> None:
    spec = replace(SMALL, classes=7)
    splits = open_events(spec)
    found = list(batches(splits.test, 16))
    assert [frames.shape for frames, _ in found] == [(16, 5, 2, 16, 16), (14, 5, 2, 16, 16)]
    assert all(frames.dtype == torch.float32 for frames, _ in found)
    assert {int(label) for _, labels in found for label in labels} == set(range(7))
    chosen = images(splits.calibration, 6)
    assert chosen.shape == (6, spec.time_steps, spec.channels, spec.side, spec.side)
    assert torch.equal(chosen, splits.train[Draw(range(6))][0])
    assert torch.equal(chosen, chosen.round())
    assert chosen.min() == 0
    assert chosen.max() > 0


def test_augmentation_shifts_all_frames_alike_and_mirrors_none() -> None:
    plain, shifted = open_events(SMALL).train, open_events(replace(SMALL, augment=True)).train
    everything = Draw(range(len(plain)), (4, 1))
    frames, found = plain[everything][0], shifted[everything][0]
    assert torch.equal(found[[6, 2]], shifted[Draw([6, 2], (4, 1))][0])
    assert not torch.equal(found, shifted[Draw(range(len(plain)), (4, 2))][0])
    assert torch.equal(frames, shifted[Draw(range(len(plain)))][0])
    moves = torch.tensor([(down, right, 0) for down in range(5) for right in range(5)])
    places = set()
    for before, after in zip(frames, found, strict=True):
        every = crop_flip(before.flatten(0, 1).expand(25, -1, -1, -1), moves, 2)
        fits = (every == after.flatten(0, 1)).flatten(1).all(1).nonzero().flatten().tolist()
        assert len(fits) == 1
        places.update(fits)
    assert len(places) > 8


def test_frames_made_each_time_are_those_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Draw([3, 3, 17], (0, 2))
    expected = open_events(replace(SMALL, augment=True)).train[draw]
    monkeypatch.setattr(mt_convert.data.events.frames, "MEMORY_LIMIT", 1000)
    streamed = open_events(replace(SMALL, augment=True)).train
    assert not streamed.in_memory
    assert torch.equal(streamed[draw][0], expected[0])
    assert torch.equal(streamed[draw][1], expected[1])
    none, labels = streamed[Draw([], (0, 2))]
    assert none.shape == (0, *expected[0].shape[1:])
    assert labels.shape == (0,)


def test_neither_tonic_nor_a_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tonic", "aedat"):
        monkeypatch.setitem(sys.modules, package, None)
    expected = rows(open_events(SMALL).test)
    elsewhere = replace(SMALL, root="nowhere", download=True, bins="count")
    assert rows(open_events(elsewhere).test) == expected


def test_the_order_of_frames_tells_what_their_sum_does_not() -> None:
    spec = EventSpec("synthetic", size=16, limit=500, test_images=200, validation_share=0)
    splits = open_events(replace(spec, calibration_images=1))
    (frames, labels), (tested, wanted) = (
        split[Draw(range(len(split)))] for split in (splits.train, splits.test)
    )

    def nearest(train: Tensor, test: Tensor) -> Tensor:
        means = torch.stack([train[labels == label].mean(0) for label in range(10)])
        return (test[:, None] - means).pow(2).sum(2).argmin(1)

    ordered = nearest(frames.sum(2).flatten(1), tested.sum(2).flatten(1))
    assert (ordered == wanted).double().mean() > 0.75
    summed = nearest(frames.sum(1).flatten(1), tested.sum(1).flatten(1))
    assert (summed == wanted).double().mean() < 0.7
    assert (summed % 5 == wanted % 5).double().mean() > 0.7, "the directions up to their sign"


@pytest.mark.parametrize(
    ("spec", "shape", "classes"),
    [
        (EventSpec("synthetic"), (2, 32, 32), 10),
        (EventSpec("synthetic", size=128, classes=3), (2, 128, 128), 3),
        (EventSpec("nmnist", "data"), (2, 34, 34), 10),
        (EventSpec("dvs_gesture", "data", size=48, classes=11), (2, 48, 48), 11),
    ],
)
def test_a_spec_says_what_its_frames_are(
    spec: EventSpec, shape: tuple[int, int, int], classes: int
) -> None:
    assert shape == (spec.channels, spec.image_size, spec.side)
    assert spec.number_of_classes == classes


def test_made_up_recordings_have_no_published_files() -> None:
    with pytest.raises(SpecError, match="nmnist, dvs_gesture do"):
        _ = EventSpec("synthetic").files


@pytest.mark.parametrize(
    ("values", "where", "hint"),
    [
        ({"dataset": "nmnist"}, "root", "the folder that holds NMNIST"),
        ({"dataset": "dvs_gesture", "root": "data", "classes": 10}, "classes", "allowed: 11"),
        ({"dataset": "nmnist", "root": "data", "classes": 10.0}, "classes", "allowed: 10, or none"),
        ({"dataset": "synthetic", "classes": 0}, "classes", "1 or more"),
        ({"dataset": "synthetic", "size": 15}, "size", "allowed: 16 to 128, or none for 32"),
        ({"dataset": "synthetic", "size": 129}, "size", "allowed: 16 to 128, or none for 32"),
        ({"dataset": "synthetic", "root": ""}, "root", "allowed: the folder"),
        ({"dataset": "made_up"}, "dataset", "nmnist, dvs_gesture, synthetic"),
        ({"dataset": "nmnst", "size": 8}, "dataset", "nmnist, dvs_gesture, synthetic"),
    ],
)
def test_a_wrong_value_is_the_only_fault(values: dict[str, Any], where: str, hint: str) -> None:
    with pytest.raises(SpecError) as raised:
        EventSpec(**values)
    (fault,) = raised.value.faults
    assert fault.where == where
    assert hint in fault.hint


@pytest.mark.parametrize("spec", [SMALL, EventSpec("dvs_cifar10", "data", bins="count", size=64)])
def test_a_spec_comes_back_from_strict_json_as_it_was(spec: EventSpec) -> None:
    text = json.dumps({"events": dataclasses.asdict(spec)})
    assert Block.model_validate_json(text).events == spec
    assert Block.model_validate_json(Block(events=spec).model_dump_json()).events == spec
    assert spec != replace(spec, classes=10), "what was left open stays open"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("dataset: nmnist", {"line 1  events.root"}),
        ("dataset: synthetic\n  size: 8", {"line 3  events.size"}),
        ("dataset: synthetic\n  size: '32'\n  frames: 3", {"line 3  events.size", "frames"}),
        ("dataset: synthetic\n  classes: true", {"line 3  events.classes"}),
    ],
)
def test_a_recipe_names_the_line_of_each_fault(text: str, lines: set[str]) -> None:
    tree = parse(f"events:\n  {text}", "a.yaml")
    with pytest.raises(ValidationError) as raised:
        Block.model_validate_json(json.dumps(tree.value))
    found = faults.findings(raised.value.errors(), tree, Block)
    assert len(found) == len(lines)
    assert all(any(line in item.fault.where for item in found) for line in lines)


def test_faults_reach_a_recipe_as_those_of_images_do() -> None:
    class Both(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        data: DataSpec
        events: EventSpec

    wrong = {"dataset": "synthetic", "classes": 0, "limit": 0}
    with pytest.raises(ValidationError) as raised:
        Both.model_validate_json(json.dumps({"data": wrong, "events": wrong}))
    of_images, of_events = (error["ctx"]["error"] for error in raised.value.errors())
    assert type(of_images) is type(of_events) is SpecError
    assert {f.where for f in of_images.faults} == {f.where for f in of_events.faults}
    assert {f.where for f in of_events.faults} == {"classes", "limit"}
