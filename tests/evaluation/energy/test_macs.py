"""Multiply-accumulates against numbers counted by hand, and what spikes feed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt_convert import QuantSpec
from mt_convert.evaluation.energy.macs import MacRow, count_macs, spike_fed_share
from mt_convert.graph.signals import Signal
from mt_convert.graph.tracing.trace import trace
from mt_convert.quantization.quantize import quantize
from mt_convert.spiking.convert import convert

SIDE = 9  # of the images; odd, so that strides round


def macs_of(layer: nn.Module, channels: int) -> int:
    """What one layer costs on one image; the trace is for a batch of two."""
    (row,) = count_macs(trace(layer, torch.zeros(2, channels, SIDE, SIDE))).values()
    return row.macs


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layer", "channels", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3, 9 * 9 * 8 * 3 * 3 * 3),
        (nn.Conv2d(3, 8, 3, stride=2), 3, 4 * 4 * 8 * 3 * 3 * 3),
        (nn.Conv2d(4, 8, (1, 3), groups=2), 4, 9 * 7 * 8 * 2 * 1 * 3),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), 6, 9 * 9 * 6 * 5 * 5),
        (nn.Conv2d(2, 4, 3, dilation=2, padding=2), 2, 9 * 9 * 4 * 2 * 3 * 3),
        (nn.Linear(SIDE, 7), 2, 2 * 9 * 9 * 7),
    ],
    ids=["padded", "strided", "grouped", "depthwise", "dilated", "linear over the last axis"],
)
def test_a_layer_costs_outputs_times_inputs_of_each(
    layer: nn.Module, channels: int, expected: int
) -> None:
    assert macs_of(layer, channels) == expected


class Attention(nn.Module):
    """One head over the rows of the image, its values from a second branch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(2)  # [batch, 4, 8]
        weights = (self.q(rows) @ self.k(rows).transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.v(rows)).mean(1))


ATTENTION = {"q": 4 * 8 * 6, "k": 4 * 8 * 6, "v": 4 * 8 * 5, "head": 5 * 2}
PRODUCTS = [4 * 4 * 6, 4 * 4 * 5]


@pytest.mark.slow
def test_products_count_and_a_traced_network_feeds_them_no_spikes() -> None:
    rows = count_macs(trace(Attention(), torch.zeros(2, 4, 2, 4))).values()
    assert {row.name: row.macs for row in rows if row.name in ATTENTION} == ATTENTION
    products = [row for row in rows if row.name not in ATTENTION]
    assert [row.macs for row in products] == PRODUCTS
    assert [row.fed_by for row in products] == [Signal.CURRENT, Signal.CURRENT]
    assert spike_fed_share(rows) == 0


@pytest.mark.slow
def test_in_a_converted_network_spikes_feed_products_and_all_but_the_first_layers() -> None:
    net = Attention().eval()
    images = torch.randn(4, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    rows = count_macs(convert(quantize(net, QuantSpec(), calibration=images))).values()
    fed = {row.name for row in rows if row.spike_fed}
    assert {row.name for row in rows} - fed == {"q", "k", "v"}
    assert all(row.fed_by is Signal.IMAGE for row in rows if not row.spike_fed)
    spiking = ATTENTION["head"] + sum(PRODUCTS)
    total = sum(ATTENTION.values()) + sum(PRODUCTS)
    assert spike_fed_share(rows) == spiking / total


class Shared(nn.Module):
    """A layer used twice, and a product of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.left, self.right = nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(3))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.conv(images))).mean((2, 3))
        return x + (self.left @ self.right).sum(0)


@pytest.mark.slow
def test_a_layer_used_twice_counts_twice_and_what_reads_parameters_alone_never() -> None:
    rows = count_macs(trace(Shared(), torch.zeros(2, 3, SIDE, SIDE))).values()
    assert [row.macs for row in rows] == [9 * 9 * 3 * 3] * 2
    assert [row.fed_by for row in rows] == [Signal.IMAGE, Signal.SPIKES]
    assert spike_fed_share(rows) == 0.5


def test_the_share_of_nothing_is_nothing() -> None:
    assert spike_fed_share([]) == 0
    assert not MacRow("a", "Linear", 1, Signal.CURRENT).spike_fed
