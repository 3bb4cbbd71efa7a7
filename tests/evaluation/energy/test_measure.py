"""Additions, multiply-accumulates and comparisons against numbers counted by hand (invariant 10).

Neurons here have step 1 and stand on the image, so an image of whole numbers is what they emit.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from networks import KEPT, images, quantized, shape_of
from torch import Tensor, fx, nn

from mt_convert import QuantSpec
from mt_convert.errors import SpecError
from mt_convert.evaluation.energy.fanout import event_paths
from mt_convert.evaluation.energy.macs import count_macs
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.report import (
    FP32_45NM,
    INT32_45NM,
    EnergyReport,
    EnergyTable,
    baseline,
)
from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.graph.nodes import layer_nodes, set_image_shape
from mt_convert.graph.signals import Signal
from mt_convert.graph.tracing.trace import trace
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import BatchNorm
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Presentation
from mt_convert.spiking.simulate import simulate

L = 15


def spiking(
    net: nn.Module,
    shape: tuple[int, ...],
    ladder: Ladder | None = None,
    presentation: Presentation = Presentation.ONCE,
    whole_window: bool = False,
    signed: bool = False,
) -> SpikingModel:
    """The network with neurons of step 1 and 15 levels in place of every ReLU. A graph that is
    traced already is copied."""
    traced = isinstance(net, fx.GraphModule)
    layers = copy.deepcopy(net) if traced else trace(net.eval(), torch.zeros(2, *shape))
    set_image_shape(layers, shape)
    low = -L if signed else 0
    spec = NeuronSpec(ladder or Uniform(L), signed=signed, bounds=(low, L))
    for node, _ in list(layer_nodes(layers, nn.ReLU)):
        layers.set_submodule(str(node.target), MTNeuron(spec, 1.0))
    return SpikingModel(layers, presentation, whole_window)


def levels(*shape: int, seed: int = 0, low: int = 0, high: int = L) -> Tensor:
    """Random whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).float()


def synops_of(report: EnergyReport, time_steps: int = 1) -> list[float]:
    """SynOps of the layers that are no neurons."""
    rows = [row for row in report.rows if row.time_steps == time_steps]
    return [row.synops for row in rows if row.operator != "MTNeuron"]


def counted(net: nn.Module, image: Tensor, **settings: object) -> float:
    """SynOps of the one weighted layer or product of a network, on one image, at T = 1."""
    snn = spiking(net, tuple(image.shape), **settings)  # type: ignore[arg-type]
    report = energy(snn, image[None], time_steps=1)
    (synops,) = synops_of(report)
    assert report.totals[0].synops == synops
    assert report.totals[0].macs == 0
    return synops


def behind(*layers: nn.Module) -> nn.Module:
    """Neurons on the image, then the layers."""
    return nn.Sequential(nn.ReLU(), *layers)


# ----------------------------------------------------------------- one event, wherever it arrives

ALL = [1, 1, 1, 1, 1]
REACHED = {  # a convolution of one row and column of weights: outputs reached, per place on an axis
    "padded": (nn.Conv2d(1, 2, 3, padding=1), 2, [2, 3, 3, 3, 2]),
    "not padded": (nn.Conv2d(1, 2, 3), 2, [1, 2, 3, 2, 1]),
    "strided": (nn.Conv2d(1, 3, 3, stride=2, padding=1), 3, [1, 2, 1, 2, 1]),
    "skipping": (nn.Conv2d(1, 1, 1, stride=2), 1, [1, 0, 1, 0, 1]),
    "dilated": (nn.Conv2d(1, 2, 3, dilation=2, padding=2), 2, [2, 2, 3, 2, 2]),
    "padded by name": (nn.Conv2d(1, 2, 3, padding="same"), 2, [2, 3, 3, 3, 2]),
    "pointwise": (nn.Conv2d(1, 7, 1, bias=False), 7, ALL),
}


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", REACHED)
def test_an_event_counts_the_outputs_it_reaches_at_each_place_of_the_image(name: str) -> None:
    layer, channels, line = REACHED[name]
    reached = channels * torch.tensor(line)[:, None] * torch.tensor(line)
    snn = spiking(behind(layer), (1, 5, 5))
    (fanout,) = event_paths(snn).fanouts.values()
    assert fanout.additions is not None
    (additions,) = fanout.additions.values()
    assert torch.equal(additions, reached[None, None].double())
    image = levels(1, 5, 5)
    assert synops_of(energy(snn, image[None], time_steps=1)) == [float((image * reached).sum())]


@pytest.mark.slow
def test_a_group_reaches_its_own_outputs_alone() -> None:
    image = levels(4, 3, 3)
    assert counted(behind(nn.Conv2d(4, 8, 1, groups=2)), image) == 4 * image.sum()
    assert counted(behind(nn.Conv2d(4, 4, 1, groups=4)), image) == image.sum()
    reached = torch.tensor([2.0, 3.0, 2.0])
    depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
    assert counted(behind(depthwise), image) == 2 * (image * reached[:, None] * reached).sum()


@pytest.mark.slow
def test_a_linear_layer_adds_its_outputs_for_each_event() -> None:
    image = levels(2, 3, 4)
    assert counted(behind(nn.Flatten(), nn.Linear(24, 7)), image) == 7 * image.sum()
    assert counted(behind(nn.Linear(4, 5)), image) == 5 * image.sum(), "over the last axis"


@pytest.mark.slow
def test_a_convolution_of_a_line_or_a_volume_counts_alike() -> None:
    reached = torch.tensor([2.0, 3.0, 3.0, 2.0])
    line, volume = levels(2, 4), levels(1, 4, 4, 4)
    assert counted(behind(nn.Conv1d(2, 3, 3, padding=1)), line) == 3 * (line * reached).sum()
    fan = reached[:, None, None] * reached[:, None] * reached
    assert counted(behind(nn.Conv3d(1, 1, 3, padding=1)), volume) == (volume * fan).sum()


# --------------------------------------------------------------------------- events of each ladder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ladder", "events"),
    [
        (Uniform(15), [0, 1, 2, 3, 5, 7, 8, 15]),
        (Uniform(3), [0, 1, 2, 3, 3, 3, 3, 3]),
        (Binary(4), [0, 1, 1, 2, 2, 3, 1, 4]),
        (PowerOfTwo(4), [0, 1, 1, 1, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_an_emission_counts_the_thresholds_it_crosses(ladder: Ladder, events: list[int]) -> None:
    batch = torch.diag(torch.tensor([0.0, 1, 2, 3, 5, 7, 8, 15])).reshape(8, 1, 1, 8)
    snn = spiking(behind(nn.Linear(8, 10)), (1, 1, 8), ladder)
    for image, expected in zip(batch, events, strict=True):
        assert synops_of(energy(snn, image[None], time_steps=1)) == [10 * expected]


@pytest.mark.slow
def test_a_spike_downwards_counts_like_one_upwards() -> None:
    image = levels(1, 3, 3, low=-L)
    assert bool((image < 0).any())
    found = counted(behind(nn.Linear(3, 2)), image, signed=True)
    assert found == 2 * image.abs().sum()


# ------------------------------------------------------------- what lies between neuron and weights


class TwoSides(nn.Module):
    """What is above 0 in the image and what is below, put together by a function."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.join, self.layer = join, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.join(F.relu(x), F.relu(-x)))


REACH3 = torch.tensor([2.0, 3.0, 2.0])
FAN3 = REACH3[:, None] * REACH3


def conv(inputs: int, outputs: int = 2) -> nn.Conv2d:
    """Reaches `FAN3` in each output channel of a 3 x 3 image."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@pytest.mark.slow
def test_in_a_residual_sum_the_events_of_both_sides_arrive() -> None:
    image = levels(2, 3, 3, low=-L)
    expected = 2 * (image.abs() * FAN3).sum()
    assert counted(TwoSides(torch.add, conv(2)), image) == expected
    assert counted(TwoSides(torch.sub, conv(2)), image) == expected
    assert counted(TwoSides(lambda a, b: a + b * 0.5, conv(2)), image) == expected


def test_a_concatenation_keeps_all_events() -> None:
    image = levels(2, 3, 3, low=-L)
    joined = TwoSides(lambda a, b: torch.cat([a, b], 1), conv(4))
    assert counted(joined, image) == 2 * (image.abs() * FAN3).sum()


class Through(nn.Module):
    """Neurons on the image, a function, one layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(F.relu(x)))


@pytest.mark.long
def test_movement_takes_events_along_drops_and_copies_them() -> None:
    image = levels(2, 4, 4)
    line = nn.Linear(4, 3)
    assert counted(Through(lambda x: x[:, :1, ::2], line), image) == 3 * image[:1, ::2].sum()
    assert counted(Through(lambda x: x.transpose(2, 3), line), image) == 3 * image.sum()
    assert counted(Through(lambda x: torch.cat([x, x], 2), line), image) == 6 * image.sum()
    twice = Through(lambda x: F.interpolate(x, scale_factor=2), nn.Linear(8, 3))
    assert counted(twice, image) == 3 * 4 * image.sum(), "nearest neighbour: each event four times"
    padded = Through(lambda x: F.pad(x, (1, 1, 1, 1)), nn.Conv2d(2, 1, 3))
    reached = torch.tensor([2.0, 3.0, 3.0, 2.0])
    assert counted(padded, image) == (image * reached[:, None] * reached).sum()


@pytest.mark.slow
def test_an_average_carries_every_event_on_to_the_weights() -> None:
    image, flat = levels(2, 4, 4), nn.Flatten()
    whole = Through(lambda x: x.mean((2, 3)), nn.Linear(2, 5))
    assert counted(whole, image) == 5 * image.sum()
    halves = behind(nn.AvgPool2d(2), flat, nn.Linear(8, 5))
    assert counted(halves, image) == 5 * image.sum()
    windows = torch.tensor([1.0, 2, 2, 1])  # of 2, one apart: two share each inner place
    overlapping = behind(nn.AvgPool2d(2, 1), flat, nn.Linear(18, 5))
    assert counted(overlapping, image) == 5 * (image * windows[:, None] * windows).sum()
    bins = torch.tensor([1.0, 2, 2, 1])  # 4 places in 3 bins: 0-1, 1-2, 2-3
    adaptive = behind(nn.AdaptiveAvgPool2d(3), flat, nn.Linear(18, 5))
    assert counted(adaptive, image) == 5 * (image * bins[:, None] * bins).sum()
    line = behind(nn.AvgPool1d(3, 1, padding=1), nn.Linear(4, 5))
    reached = torch.tensor([2.0, 3, 3, 2])
    assert counted(line, image[0]) == 5 * (image[0] * reached).sum()


class Masked(nn.Module):
    """Neurons scaled by constants, one of which is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 0.0, -3.0]))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x) * self.scale / 2)


@pytest.mark.slow
def test_a_scale_leaves_an_event_one_and_a_zero_leaves_none() -> None:
    image = levels(1, 5, 3)
    assert counted(Masked(), image) == 4 * image[..., [0, 2]].sum()


@pytest.mark.slow
def test_a_maximum_passes_on_the_change_of_what_it_shows() -> None:
    image = torch.tensor([[1.0, 3.0], [2.0, 0.0]])[None]
    net = behind(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 10))
    assert counted(net, image) == 10 * 3
    report = energy(spiking(net, (1, 2, 2), Uniform(2)), image[None], time_steps=(1, 2, 3))
    assert [total.synops for total in report.totals] == [20, 30, 30]
    assert counted(net, torch.full((1, 2, 2), 7.0), ladder=Binary(4)) == 10 * 3, "bits of 7"


def test_a_maximum_over_a_concatenation_counts_each_side_by_its_own_ladder() -> None:
    image = levels(1, 4, 4, low=-L)
    net = TwoSides(
        lambda a, b: F.max_pool2d(torch.cat([a, b], 1), 2),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 3)),
    )
    snn = spiking(net, (1, 4, 4))
    second = list(snn.neurons())[1][0]
    binary = NeuronSpec(Binary(4), bounds=(0, L))
    report = energy(snn.with_neurons({second: MTNeuron(binary, 0.5)}), image[None], time_steps=1)
    shown = F.max_pool2d(torch.cat([image.clamp(min=0), (-image).clamp(0, 7.5)]), 2)
    bits = sum(int(level * 2).bit_count() for level in shown[1].flatten().tolist())
    assert synops_of(report) == [3 * (shown[0].sum() + bits)]


# ---------------------------------------------------------------------------------------- products


class Scores(nn.Module):
    """Each row above 0 times each row below."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) @ F.relu(-x).transpose(1, 2)


@pytest.mark.slow
def test_an_event_on_either_side_of_a_product_meets_the_total_of_the_other() -> None:
    image = levels(4, 3, low=-L)  # 4 rows of 3: 4 x 4 products of 3
    assert counted(Scores(), image) == 4 * image.abs().sum()
    report = energy(spiking(Scores(), (4, 3), Uniform(4)), image[None], time_steps=4)
    assert synops_of(report, 4) == [4 * image.abs().sum()], "each level is emitted once"
    assert report.totals[0].baseline.ann_pj == pytest.approx(4 * 4 * 3 * 4.6)


# ---------------------------------------------------------------------- a slow loop over all events


def touched(layer: nn.Conv2d, events: Tensor) -> float:
    """Additions of a convolution, output by output and tap by tap."""
    rows, columns = events.shape[1:]
    (high, wide), (stride, other) = layer.kernel_size, layer.stride
    (pad, side), (spread, across) = layer.padding, layer.dilation  # type: ignore[misc]
    out = layer(torch.zeros(1, *events.shape)).shape[1:]
    per_group, additions = layer.out_channels // layer.groups, 0.0
    channels = layer.in_channels // layer.groups
    for channel, y, x in product(*map(range, out)):
        first = channel // per_group * channels
        for c, i, j in product(range(first, first + channels), range(high), range(wide)):
            row, column = y * stride - pad + i * spread, x * other - side + j * across
            if 0 <= row < rows and 0 <= column < columns:
                additions += float(events[c, row, column])
    return additions


def random_network(seed: int) -> tuple[nn.Module, nn.Conv2d]:
    """Two convolutions and a linear layer; the second of random geometry."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    groups = draw(1, 2, 4)
    second = nn.Conv2d(
        *(4, draw(4, 8), (draw(1, 2, 3), draw(1, 3)), (draw(1, 2, 3), draw(1, 2))),
        *((draw(0, 1, 2), draw(0, 1)), (draw(1, 2), 1), groups, bool(draw(0, 1))),
    )
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), second, nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.LazyLinear(3)).eval()
    net(torch.zeros(1, 1, 7, 6))
    for parameter in net.parameters():  # in eighths: sums are exact, ties happen
        parameter.data = torch.randint(-8, 9, parameter.shape, generator=generator) / 8
    return net, second


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_every_event_of_a_random_network_is_counted_at_every_output_it_touches(seed: int) -> None:
    net, second = random_network(seed)
    ladder = (Uniform(3), Binary(2))[seed % 2]
    layers = trace(net, torch.zeros(2, 1, 7, 6))
    batch = levels(2, 1, 7, 6, seed=seed, low=-3, high=3)
    for presentation, signed in product(Presentation, (False, True)):
        snn = spiking(layers, (1, 7, 6), ladder, presentation, signed=signed)
        spikes = simulate(snn, batch, time_steps=3, record=True).spikes
        assert spikes is not None
        sizes = [emitted.abs() for emitted in spikes.values()]
        if ladder == Binary(2):  # of 0, 1, 2, 3: the set bits
            sizes = [torch.div(size + 1, 2, rounding_mode="floor") for size in sizes]
        first, last = sizes
        rows = energy(snn, batch, time_steps=3).rows
        expected = touched(second, first.sum((0, 1))) / len(batch)
        macs, *synops = [row for row in rows if row.operator != "MTNeuron"]
        assert [row.synops for row in synops] == [expected, 3 * float(last.sum()) / len(batch)]
        assert expected > 0
        assert (macs.synops, macs.macs) == (0, 7 * 6 * 4 * 9)
        events = [row.events for row in rows if row.operator == "MTNeuron"]
        assert events == [float(item.sum()) / len(batch) for item in (first, last)]


# ------------------------------------------------------------------------------ steps and batches


@pytest.mark.long
@pytest.mark.parametrize("name", ["residual", "pools"])
def test_more_steps_never_count_less_and_one_pass_shows_all_of_them(name: str) -> None:
    snn, batch = convert(quantized(name), ladder=Uniform(3), signed=True), images(3)
    report = energy(snn, batch, time_steps=(4, 1, 2, 2))
    assert [total.time_steps for total in report.totals] == [1, 2, 4]
    counts = [total.synops for total in report.totals]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    for total in report.totals:
        assert energy(snn, batch, time_steps=total.time_steps).totals == (total,)


@pytest.mark.slow
def test_a_network_at_rest_adds_nothing() -> None:
    net, _ = random_network(0)
    report = energy(spiking(net, (1, 7, 6)), levels(2, 1, 7, 6, high=3), time_steps=(1, 5))
    first, fifth = report.totals
    assert first.synops == fifth.synops > 0
    assert first.events == fifth.events
    assert fifth.comparisons == 5 * first.comparisons
    silent = spiking(behind(nn.Linear(6, 3)), (1, 7, 6))
    assert energy(silent, -levels(2, 1, 7, 6), time_steps=3).totals[0].synops == 0


@pytest.mark.slow
def test_where_layers_wait_for_their_window_each_number_of_steps_is_a_run_of_its_own() -> None:
    net = nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(2), conv(1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    )
    batch = levels(3, 1, 6, 6)
    snn = spiking(net, (1, 6, 6), Uniform(3), signed=True, whole_window=True)
    report = energy(snn, batch, time_steps=(2, 3), batch_size=2)
    alone = [energy(snn, batch, time_steps=T).totals[0] for T in (2, 3)]
    assert list(report.totals) == alone
    pooled = F.max_pool2d(batch.clamp(max=6), 2)[:, 0]
    assert synops_of(report, 2)[0] == float(2 * (pooled * FAN3).sum()) / 3


class Windows(nn.Module):
    """Halves of the image beside one another on the axis of images."""

    def forward(self, x: Tensor) -> Tensor:
        halves = F.relu(x.reshape(x.shape[0] * 2, 2, 4))
        return (halves @ halves.transpose(1, 2)).reshape(x.shape[0], 2, 4)


@pytest.mark.slow
def test_a_batch_is_the_mean_of_its_images_also_where_windows_share_their_axis() -> None:
    batch = levels(5, 1, 4, 4)
    snn = spiking(Windows(), (1, 4, 4))
    expected = 2 * 2 * float(batch.sum()) / 5  # either side of 2 x 2 products meets 2
    for size in (1, 2, 64):
        report = energy(snn, batch, time_steps=1, batch_size=size)
        assert synops_of(report) == [expected]
        assert report.images == 5


# ----------------------------------------------------- multiply-accumulates, comparisons, prices


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name", ["residual", "pools", "shared_conv", "shared_weight", "kinds_of_convolution", "line"]
)
def test_every_multiply_accumulate_of_the_network_is_in_a_row(name: str) -> None:
    qann = quantized(name, BatchNorm.KEEP if name in KEPT else BatchNorm.FOLD)
    snn = convert(qann, ladder=Uniform(3), signed=True)
    report = energy(snn, images(2, shape_of(name)), time_steps=(1, 3))
    expected = count_macs(snn).values()
    for T, total in zip((1, 3), report.totals, strict=True):
        rows = [row for row in report.rows if row.time_steps == T and row.operator != "MTNeuron"]
        assert [(row.name, row.operator, row.ann_macs, row.fed_by) for row in rows] == [
            (row.name, row.operator, row.macs, row.fed_by) for row in expected
        ]
        image_fed = sum(row.macs for row in expected if row.fed_by is Signal.IMAGE)
        assert total.macs == image_fed > 0, "of a still image: once, whatever T"
        assert total.baseline.ann_pj == pytest.approx(4.6 * sum(row.macs for row in expected))
        assert all((row.synops == 0) == (row.macs > 0) for row in rows)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("ladder", "signed", "thresholds"),
    [
        (Uniform(3), False, 3),
        (Uniform(3), True, 6),
        (Binary(4), False, 4),
        (PowerOfTwo(5), True, 10),
    ],
    ids=str,
)
def test_a_neuron_compares_with_each_threshold_in_each_step_and_direction(
    ladder: Ladder, signed: bool, thresholds: int
) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2), nn.ReLU())
    report = energy(
        spiking(net, (1, 4, 4), ladder, signed=signed), levels(3, 1, 4, 4), time_steps=(1, 5)
    )
    for total in report.totals:
        assert total.comparisons == thresholds * total.time_steps * (4 * 2 * 2 + 2)


@pytest.mark.slow
def test_a_layer_on_a_current_multiplies_in_every_step_and_on_the_image_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    for presentation in Presentation:
        snn = spiking(net, (2, 4), Uniform(3), presentation)
        report = energy(snn, levels(2, 2, 4), time_steps=5)
        rows = {row.name: row for row in report.rows}
        assert [rows[name].macs for name in "023"] == [2 * 4 * 4, 0, 5 * 2 * 4 * 3]
        assert rows["3"].fed_by is Signal.CURRENT
        assert report.totals[0].macs == 32 + 120


def test_picojoules_are_counts_times_prices_and_ratios_say_of_what() -> None:
    image = torch.full((1, 1, 2, 5), 2.0)
    snn = spiking(behind(nn.Linear(5, 3)), (1, 2, 5))
    report = energy(snn, image, time_steps=1)
    (total,) = report.totals
    assert (total.synops, total.macs, total.comparisons, total.events) == (60, 0, 150, 20)
    assert total.picojoules == pytest.approx(60 * 0.9)
    assert total.comparison_picojoules == pytest.approx(150 * 0.9)
    assert total.baseline == baseline(report.rows)
    assert total.baseline.ann_pj == pytest.approx(30 * 4.6)
    assert total.baseline.qann_pj == pytest.approx(30 * 3.2)
    assert total.ratios == pytest.approx(
        {
            "ann": 54 / 138,
            "qann": 54 / 96,
            "ann_with_comparisons": (54 + 135) / 138,
            "qann_with_comparisons": (54 + 135) / 96,
            "qann_bit_operations": 60 * 32 / (30 * 32 * 4),
        }
    )
    cheap = energy(snn, image, time_steps=1, table=INT32_45NM)
    assert cheap.totals[0].picojoules == pytest.approx(6.0)
    assert cheap.totals[0].baseline == total.baseline
    own = energy(snn, image, time_steps=1, table=EnergyTable(8, 2, "mine"))
    assert own.totals[0].picojoules == 120
    assert (FP32_45NM.mac_pj, FP32_45NM.ac_pj) == (4.6, 0.9)


@pytest.mark.slow
def test_bits_are_those_of_the_quantized_network() -> None:
    spec = QuantSpec(weight_bits=3, act_bits=2, first_bits=5, last_bits=4, input_bits=6)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4, 2)),
    )
    snn = convert(quantize(net, spec, calibration=images(8, (1, 4, 4))))
    rows = energy(snn, images(2, (1, 4, 4)), time_steps=1).rows
    assert [row.bits for row in rows if row.ann_macs] == [(5, 6), (3, 2), (4, 2)]
    first, _, second, _, last = rows
    assert first.bit_operations == first.macs * 30
    assert second.bit_operations == second.synops * 3
    assert baseline(rows).qann_bit_operations == 144 * 30 + 64 * 6 + 8 * 8
    assert last.ann_macs == 8


# ------------------------------------------------------------------------------- what is left out


def listed(report: EnergyReport) -> dict[str, str]:
    """Reasons by operator."""
    return {item.operator: item.reason for item in report.not_counted}


@pytest.mark.slow
def test_what_has_no_number_is_listed_by_name() -> None:
    net = nn.Sequential(
        *(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 1),
            nn.GELU(),
        ),
        *(nn.Flatten(), nn.Linear(4, 2)),
    )
    spec = QuantSpec(functions="analog")
    snn = convert(quantize(net, spec, calibration=images(8, (1, 4, 4))))
    report = energy(snn, images(2, (1, 4, 4)), time_steps=1)
    names = {item.name for item in report.not_counted}
    assert {"2", "4"} <= names
    reasons = listed(report)
    assert "non-linear" in reasons["aten.gelu.default"]
    assert "comparisons" in reasons["aten.max_pool2d.default"]
    assert "image" in reasons["Encoder"]
    assert {"bias", "memory", "MTNeuron"} <= reasons.keys()
    assert "Linear" not in reasons
    assert "Conv2d" not in reasons


@pytest.mark.slow
def test_sums_before_weights_say_where_their_events_are_counted() -> None:
    snn = spiking(TwoSides(torch.add, conv(1)), (1, 3, 3))
    reasons = listed(energy(snn, levels(1, 1, 3, 3), time_steps=1))
    assert "weights behind" in reasons["aten.add.Tensor"]


LOST = {
    "interpolation": Through(
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), nn.Linear(6, 2)
    ),
    "a maximum of sums": TwoSides(lambda a, b: F.max_pool2d(a + b, 3), nn.Linear(1, 2)),
    "a maximum over two layers": TwoSides(
        lambda a, b: torch.stack([a, b]).amax(0), nn.Linear(3, 2)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_where_events_cannot_be_followed_macs_count_in_every_step_and_both_are_listed(
    name: str,
) -> None:
    snn = spiking(LOST[name], (1, 3, 3), Uniform(3))
    report = energy(snn, levels(2, 1, 3, 3, low=-L), time_steps=(1, 4))
    (row,) = count_macs(snn).values()
    assert row.spike_fed
    assert [total.macs for total in report.totals] == [row.macs, 4 * row.macs]
    assert [total.synops for total in report.totals] == [0, 0]
    missing = [item.operator for item in report.not_counted if "cannot be followed" in item.reason]
    assert len(missing) == 2
    assert missing[-1] == "Linear"


@pytest.mark.slow
def test_a_transformer_is_counted_layer_by_layer_products_included() -> None:
    size = {"depth": 1, "class_token": True, "global_pool": "token"}
    ann = build(ModelSpec("digits_vit", classes=10, channels=1, kwargs=size), image_size=8)
    batch = images(4, (1, 8, 8))
    snn = convert(quantize(ann.eval(), QuantSpec(), calibration=batch))
    report = energy(snn, batch, time_steps=(1, 2))
    expected = {(row.name, row.operator): row for row in count_macs(snn).values()}
    products = [row for row in report.rows if "matmul" in row.operator and row.time_steps == 1]
    assert len(products) == 2
    assert all(row.synops > 0 and row.macs == 0 for row in products)
    spike_fed = [row for row in report.rows if row.ann_macs and row.fed_by is Signal.SPIKES]
    assert len(spike_fed) == 2 * sum(row.spike_fed for row in expected.values()) + 2
    assert all(row.macs == 0 for row in spike_fed)
    reasons = listed(report)
    for operator in ("aten.layer_norm.default", "aten.softmax.int"):
        assert operator in reasons
    assert "aten.gelu.default" not in reasons, "its thresholds are a layer of neurons"
    assert not any("cannot be followed" in reason for reason in reasons.values())


# ------------------------------------------------------------------------------ values and messages


def test_a_report_is_plain_numbers_and_a_page() -> None:
    snn = spiking(behind(nn.Linear(3, 2)), (2, 3), Uniform(3))
    report = energy(snn, levels(4, 2, 3), time_steps=(1, 2))
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert stored["schema"] == "mt_convert.energy/1"
    assert [total["synops"] for total in stored["totals"]] == [t.synops for t in report.totals]
    assert stored["totals"][0]["ratios"]["ann"] == report.totals[0].ratios["ann"]
    assert {row["fed_by"] for row in stored["rows"]} == {"image", "spikes"}
    assert stored["prices"]["mac_pj"] == 4.6
    page = report.markdown()
    for item in report.not_counted:
        assert f"- {item.name} ({item.operator}): {item.reason}" in page
    assert f"| 1 | Linear | spikes | {synops_of(report, 2)[0]:,.1f}".rstrip("0").rstrip(".") in page
    assert "45 nm, fp32" in page


@pytest.mark.sampled
@pytest.mark.parametrize("steps", [0, True, (), (1, 0), (1.5,)])
def test_steps_that_are_no_whole_numbers_from_1_are_refused(steps: object) -> None:
    snn = spiking(behind(nn.Linear(3, 2)), (2, 3))
    with pytest.raises(SpecError, match="whole numbers from 1"):
        energy(snn, levels(1, 2, 3), time_steps=steps)  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_images_and_empty_batches_are_refused() -> None:
    snn = spiking(behind(nn.Linear(3, 2)), (2, 3))
    with pytest.raises(SpecError, match="0 images"):
        energy(snn, torch.zeros(0, 2, 3), time_steps=1)
    with pytest.raises(SpecError, match="batches of 0"):
        energy(snn, torch.zeros(1, 2, 3), time_steps=1, batch_size=0)


def test_counting_changes_nothing_in_the_network() -> None:
    snn = spiking(behind(nn.Linear(3, 2)), (2, 3), Uniform(3))
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    batch = levels(2, 2, 3)
    first = energy(snn, batch, time_steps=2)
    assert energy(snn, batch, time_steps=2) == first
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert math.isfinite(first.totals[0].picojoules)
