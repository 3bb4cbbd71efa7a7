"""The study of changes: its kernel adds up what a convolution is, its page says what is stored."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from paths import EVAL
from torch import nn

FOLDER = EVAL / "density"


def test_the_page_is_made_from_what_is_stored(regenerate: ModuleType) -> None:
    cases = regenerate.read_cases(FOLDER / "results.json")
    assert regenerate.page(cases) == (FOLDER / "README.md").read_text()
    assert {(case.network, case.T) for case in cases} == {
        (name, T)
        for name in ("cifar10_resnet20_w4a4", "imagenet_efficientnet_lite0_w8a8")
        for T in (4, 8)
    }
    for case in cases:
        assert 1 <= regenerate.cost(case) <= case.T


def test_the_break_even_is_where_both_ways_take_as_long(regenerate: ModuleType) -> None:
    """20 % of inputs take 40 µs, so that 5 % take the 10 µs of the whole layer."""
    layer = regenerate.Layer(
        "a", "conv 3x3", 9, (0.2, 0.02), (1, 1), (1, 1), (1, 1), 10.0, 0.2, 40.0
    )
    assert layer.break_even == pytest.approx(0.05)
    assert layer.at_best == pytest.approx(10 + 4)
    same = replace(layer, entries=(0.05, 0.05), timed=0.05, events=10.0)
    assert same.at_best == pytest.approx(20)


def test_shares_are_of_entries_fours_places_and_rows(regenerate: ModuleType) -> None:
    emitted = torch.zeros(1, 1, 8, 4, 4)
    emitted[0, 0, 0, 1, 2] = -2
    emitted[0, 0, 5, 1, 2] = 1
    assert regenerate.shares(emitted) == [(0.0156,), (0.0625,), (0.0625,), (0.25,)]
    emitted[0, 0, 5, 3, 3] = 1
    assert regenerate.shares(emitted) == [(0.0234,), (0.0938,), (0.125,), (0.5,)]


@pytest.mark.slow
def test_events_add_up_to_the_convolution_of_their_signs(regenerate: ModuleType) -> None:
    kernel = regenerate.event_kernel()
    layers = [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6),
        nn.Conv2d(6, 6, 3, groups=6),
    ]
    for seed, layer in enumerate(layers):
        draw = torch.Generator().manual_seed(seed)
        assert regenerate.is_plain(layer)
        nn.init.normal_(layer.weight, std=40, generator=draw)
        emitted = torch.randint(-3, 4, (layer.in_channels, 9, 7), generator=draw).float()
        sums, seconds = kernel(layer, emitted)
        wanted = nn.functional.conv2d(
            emitted.sign()[None],
            layer.weight.round(),
            None,
            layer.stride,
            layer.padding,
            1,
            layer.groups,
        )
        assert torch.equal(sums.float(), wanted[0].permute(1, 2, 0))
        assert seconds > 0
    assert not regenerate.is_plain(nn.Conv2d(4, 4, 3, groups=2))
    assert not regenerate.is_plain(nn.Conv2d(4, 4, (3, 1)))
