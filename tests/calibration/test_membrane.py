"""Initial potentials: mean emissions come closer to the quantized network's, never further away."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, conv, dense, images, lived_in, network
from torch import Tensor, nn

from mt_convert.calibration.lockstep import Lockstep
from mt_convert.calibration.membrane import MOST, transform
from mt_convert.calibration.samples import Samples
from mt_convert.calibration.spec import MembraneMean, Per
from mt_convert.neurons.ladder import Binary, Ladder, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Spacing
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import quantized_activation, worth
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

FLOAT = QuantSpec(weight_bits=None, first_bits=None, last_bits=None, input_bits=None, act_bits=8)
SPECS = {"w4a4": QuantSpec(), "float": FLOAT}
T = 4


class Windows(nn.Module):
    """Quarters of the image beside one another on the first axis, as attention over windows has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = conv(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).reshape(x.shape[0], 4, 2, 4, 2, 4)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 4)
        x = F.relu(self.inner(x)).mean(1)
        return self.head(x.reshape(-1, 4, 4).mean(1))


@cache
def qann_of(name: str, spec: str = "w4a4", seed: int = 0) -> QuantizedModel:
    """A small quantized network; shared, so not to be changed."""
    made = {"windows": Windows, "dense": dense}
    model = lived_in(made[name](), seed) if name in made else network(name, seed)
    return quantize(model, SPECS[spec], calibration=images(8, seed=2))


def converted(
    name: str,
    ladder: Ladder | None = None,
    signed: bool = False,
    presentation: str = "every_step",
    **settings: object,
) -> SpikingModel:
    """A converted network of its own."""
    chosen = {item: settings.pop(item) for item in ("spec", "seed") if item in settings}
    qann = qann_of(name, **chosen)  # type: ignore[arg-type]
    return convert(
        qann,
        ladder=ladder or Uniform(1),
        signed=signed,
        presentation=presentation,
        **settings,  # type: ignore[arg-type]
    )


def samples_of(snn: SpikingModel, count: int = 24, seed: int = 5) -> Samples:
    return Samples.split(snn, images(count, seed=seed), T)


def gaps(snn: SpikingModel, reference: SpikingModel, batch: Tensor) -> Iterator[float]:
    """Σ|mean q − mean m| / Σ|mean q| of each layer over channels, from whole simulations."""
    wanted: dict[str, Tensor] = {}

    def note(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
        wanted[name] = quantized_activation(layer, x)
        return wanted[name]

    with torch.no_grad():
        forward_with(reference, batch, note)
    totals = simulate(snn, batch, time_steps=T).totals
    for name, neuron in snn.neurons():
        axes = [0, *range(2, wanted[name].dim())]
        emitted = totals[name] * worth(neuron, snn.presentation, T - 1)
        q, m = (value.double().mean(axes) for value in (wanted[name], emitted))
        yield float((q - m).abs().sum() / q.abs().sum())


# -------------------------------------------------------------------- two networks side by side


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "pools", "pre_activation", "clamps", "windows"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize(("signed", "whole_window"), [(False, False), (True, False), (True, True)])
def test_layers_in_lockstep_emit_what_a_simulation_emits(
    name: str, presentation: str, signed: bool, whole_window: bool
) -> None:
    snn = converted(name, Uniform(3), signed, presentation, whole_window=whole_window)
    batches = [images(3, seed=1), images(2, seed=2)]
    front = Lockstep(snn, snn, batches, T)
    for node in front.nodes:
        targets = [front.target(node, k) for k in range(2)]
        emitted = front.pass_on(node, targets)
        for k, batch in enumerate(batches):
            last = worth(front.neuron(node), snn.presentation, T - 1)
            totals = simulate(snn, batch, time_steps=T).totals
            assert torch.equal(emitted[k], totals[str(node.target)] * last)
            found: dict[str, Tensor] = {}
            forward_with(
                snn,
                batch,
                lambda at, layer, x, found=found: found.setdefault(
                    at, quantized_activation(layer, x)
                ),
            )
            assert torch.equal(targets[k], found[str(node.target)])


@pytest.mark.slow
def test_what_no_later_layer_reads_is_forgotten() -> None:
    snn = converted("residual")
    front = Lockstep(snn, snn, [images(2)], T)
    for node in front.nodes:
        front.pass_on(node, [front.target(node, 0)])
        assert len(front._totals[0]) <= 2  # a block's input and its inner layer
    assert not front._totals[0]


# ------------------------------------------------------------------------------- what it achieves


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [Uniform(1), Uniform(3), Binary(2), PowerOfTwo(3)])
@pytest.mark.parametrize("spec", SPECS)
def test_mean_differences_fall_strictly_where_there_is_unevenness(
    ladder: Ladder, spec: str
) -> None:
    snn = converted("residual", ladder, spec=spec)
    samples = samples_of(snn, 64)
    found, rows = transform(MembraneMean(), snn, samples, True)
    before, after = (list(gaps(item, snn, samples.held_out)) for item in (snn, found))
    assert sum(after) < 0.7 * sum(before)
    assert rows[-1].layer == "all layers"
    assert rows[-1].before == pytest.approx(sum(before) / len(before), rel=1e-4)
    assert rows[-1].after == pytest.approx(sum(after) / len(after), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize(("n", "signed"), [(1, False), (3, False), (1, True), (3, True)])
def test_no_loss_rises(seed: int, presentation: str, n: int, signed: bool) -> None:
    snn = converted("clamps", Uniform(n), signed, presentation, seed=seed)
    samples = samples_of(snn, 12, seed)
    found, rows = transform(MembraneMean(rounds=3), snn, samples, True)
    assert all(row.loss_now <= row.before for row in rows)
    before, after = (sum(gaps(item, snn, samples.held_out)) for item in (snn, found))
    assert after <= before * (1 + 1e-6)
    assert [row.layer for row in rows] == [*dict(snn.neurons()), "all layers"]


def test_a_network_without_error_is_left_as_it_is() -> None:
    snn = converted("residual", Uniform(15), presentation="once")
    found, rows = transform(MembraneMean(), snn, samples_of(snn), True)
    assert not any(row.kept for row in rows)
    assert all(neuron.offset is None for _, neuron in found.neurons())


def test_without_keep_better_every_layer_gets_an_offset() -> None:
    snn = converted("residual", Uniform(3), True, "once")
    found, rows = transform(MembraneMean(rounds=1), snn, samples_of(snn), False)
    assert rows[-1].kept
    assert any(neuron.offset is not None for _, neuron in found.neurons())


@pytest.mark.parametrize("per", Per)
def test_offsets_have_the_shape_asked_for_and_stay_within_half_a_threshold(per: Per) -> None:
    snn = converted("residual")
    found, _ = transform(MembraneMean(per=per), snn, samples_of(snn), True)
    offsets = [neuron.offset for _, neuron in found.neurons() if neuron.offset is not None]
    shapes = {(4, 1, 1), (8, 1, 1)} if per is Per.CHANNEL else {(4, 8, 8), (8, 4, 4)}
    assert {tuple(offset.shape) for offset in offsets} == shapes
    assert 0.1 < max(float(offset.abs().max()) for offset in offsets) <= MOST


def test_an_offset_stays_within_half_a_threshold_where_more_would_be_wanted() -> None:
    snn = converted("residual")
    quarter = {
        name: MTNeuron(item.spec, item.delta, gain=torch.tensor(0.25), clip=item.clip)
        for name, item in snn.neurons()
    }
    found, _ = transform(MembraneMean(), snn.with_neurons(quarter), samples_of(snn), True)
    offsets = [item.offset for _, item in found.neurons() if item.offset is not None]
    assert max(float(offset.max()) for offset in offsets) == MOST


@pytest.mark.slow
def test_windows_on_the_first_axis_share_offsets_by_channel() -> None:
    snn = converted("windows")
    found, rows = transform(MembraneMean(per=Per.NEURON), snn, samples_of(snn), True)
    shapes = [
        None if item.offset is None else tuple(item.offset.shape) for _, item in found.neurons()
    ]
    assert shapes == [(4, 8, 8), (1, 4)]
    assert rows[-1].after < rows[-1].before
    simulate(found, images(5), time_steps=T)


def test_an_earlier_offset_is_where_it_starts() -> None:
    snn = converted("residual")
    shifted = {
        name: MTNeuron(item.spec, item.delta, offset=torch.full((), -0.5), clip=item.clip)
        for name, item in snn.neurons()
    }
    low = snn.with_neurons(shifted)
    samples = samples_of(snn)
    found, rows = transform(MembraneMean(), low, samples, True)
    assert rows[-1].before == pytest.approx(sum(gaps(low, snn, samples.held_out)) / 5, rel=1e-4)
    assert rows[-1].after < 0.5 * rows[-1].before
    assert len(list(found.neurons())) == 5


# ------------------------------------------------------------------------------------- as a value


@pytest.mark.slow
def test_the_network_handed_in_is_unchanged_and_two_calls_agree(tmp_path: Path) -> None:
    snn = converted("residual", Uniform(3))
    before = deepcopy(snn.state_dict())
    found, rows = transform(MembraneMean(), snn, samples_of(snn), True)
    again, rows_again = transform(MembraneMean(), snn, samples_of(snn), True)
    assert snn.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
    assert rows == rows_again
    here, there = found.state_dict(), again.state_dict()
    assert here.keys() == there.keys() > before.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    save(found, tmp_path)
    x = images(3, seed=8)
    runs = [simulate(item, x, time_steps=T) for item in (found, load(tmp_path), snn)]
    assert torch.equal(runs[0].logits, runs[1].logits)
    assert not torch.equal(runs[0].logits, runs[2].logits)


@pytest.mark.slow
def test_learned_gaps_are_left_alone_and_said_so() -> None:
    spec = QuantSpec(act_bits=2, spacing=Spacing.LEARNED)
    qann = quantize(network("clamps"), spec, calibration=images(8, IMAGE, seed=2))
    snn = convert(qann)
    found, rows = transform(MembraneMean(), snn, samples_of(snn), False)
    learned = [row for row in rows if row.loss == "learned gaps"]
    assert len(learned) == 3  # the Hardtanh goes below 0
    assert not any(row.kept for row in learned)
    offsets = [
        item.offset for name, item in found.neurons() if name in {row.layer for row in learned}
    ]
    assert offsets == [None] * 3
