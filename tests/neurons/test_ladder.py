"""Ladders as plain values: levels, JSON form, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations

import pytest

from mt_convert.errors import SpecError
from mt_convert.neurons.ladder import (
    Binary,
    Firing,
    Ladder,
    Learned,
    PowerOfTwo,
    Radix,
    Uniform,
    UnsignedRadix,
    ladder_from_json,
    ladder_to_json,
)

LADDERS: list[Ladder] = [
    Uniform(1),
    Uniform(15),
    Binary(1),
    Binary(4),
    PowerOfTwo(1),
    PowerOfTwo(4),
    Learned((0.5, 1.25, 2.0)),
    Learned((1.0, 2.0), weights=(2.0, 0.5)),
    Radix(1),
    Radix(3, steps=2),
    Radix(1, 2, (0.5, 1.0, 0.25)),
    UnsignedRadix(3, steps=2),
]


@pytest.mark.parametrize("ladder", LADDERS, ids=repr)
def test_thresholds_rise_and_there_are_n_of_them(ladder: Ladder) -> None:
    assert len(ladder.thresholds) == len(ladder.weights) == ladder.n
    assert list(ladder.thresholds) == sorted(set(ladder.thresholds))
    assert min(ladder.thresholds) > 0


@pytest.mark.parametrize("ladder", LADDERS, ids=repr)
def test_natural_firing_is_allowed_and_the_reach_is_the_sum_of_what_it_emits(
    ladder: Ladder,
) -> None:
    assert ladder.natural_firing in ladder.allowed_firing
    emitted = ladder.weights if ladder.natural_firing is Firing.PARALLEL else ladder.cascade
    assert ladder.reach == sum(emitted)


def test_binary_thresholds_are_the_bits_of_every_level() -> None:
    ladder = Binary(4)
    sums = {sum(part) for size in range(5) for part in combinations(ladder.thresholds, size)}
    assert sums == {float(level) for level in range(16)}
    assert list(ladder.cascade) == [8, 4, 2, 1]
    assert ladder.allowed_firing == (Firing.CASCADE,)
    assert ladder.reach == 15


def test_power_of_two_weights_add_up_to_the_largest_threshold_reached() -> None:
    ladder = PowerOfTwo(5)
    for reached, threshold in enumerate(ladder.thresholds, start=1):
        assert sum(ladder.weights[:reached]) == threshold
    assert ladder.allowed_firing == (Firing.PARALLEL,)


def test_learned_gaps_of_one_are_the_uniform_ladder() -> None:
    learned, uniform = Learned((1.0, 1.0, 1.0)), Uniform(3)
    assert learned.thresholds == uniform.thresholds
    assert learned.weights == uniform.weights
    assert learned.reach == uniform.reach


def test_learned_takes_a_list_and_stays_hashable() -> None:
    assert Learned([0.5, 1.0]) == Learned((0.5, 1.0))  # type: ignore[arg-type]
    assert len({Learned((0.5, 1.0)), Learned((0.5, 1.0), (1.0, 1.0))}) == 1


@pytest.mark.parametrize("ladder", LADDERS, ids=repr)
def test_json_gives_the_same_ladder_back(ladder: Ladder) -> None:
    assert ladder_from_json(json.loads(json.dumps(ladder_to_json(ladder)))) == ladder


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Uniform(0), "n=0"),
        (lambda: Uniform(True), "n=True"),
        (lambda: Uniform(2.0), "n=2.0"),  # type: ignore[arg-type]
        (lambda: Binary(17), "1 to 16"),
        (lambda: PowerOfTwo(-1), "n=-1"),
        (lambda: Learned(()), "empty"),
        (lambda: Learned((1.0, 0.0)), "above 0"),
        (lambda: Learned((1.0, float("nan"))), "finite"),
        (lambda: Learned(3.0), "tuple"),  # type: ignore[arg-type]
        (lambda: Learned((1.0,), (1.0, 2.0)), "2 weights for 1 gaps"),
        (lambda: ladder_from_json({"kind": "unifrom", "n": 3}), "unifrom"),
        (lambda: ladder_from_json({"n": 3}), "kind"),
        (lambda: ladder_from_json({"kind": "uniform"}), "with n"),
        (lambda: ladder_from_json({"kind": "uniform", "n": 3, "bits": 2}), "bits"),
        (lambda: ladder_from_json({"kind": "binary", "bits": "4"}), "bits='4'"),
        (lambda: ladder_from_json([1, 2]), "mapping"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_value_is_named_together_with_what_is_allowed(
    build: Callable[[], object], said: str
) -> None:
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        build()
