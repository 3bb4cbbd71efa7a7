"""Spike by spike: the reference equals `simulate`, conserves charge, and differs only on ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt_convert.errors import SpecError
from mt_convert.graph.nodes import NORMS, WEIGHTED, layer_nodes
from mt_convert.neurons.ladder import Binary, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.quantization.quantize import QuantSpec, quantize
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Encoder
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

STEPS = 6
LADDERS = {"uniform": Uniform(3), "binary": Binary(2), "power_of_two": PowerOfTwo(4)}
OFFSET = 2.0**-14  # below every lattice of charge here: no input lies halfway between two levels


class Net(nn.Module):
    """Residual, max-pool, 2x2 average pool, a scaled sum with a constant, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.side, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1), nn.Linear(32, 5)
        self.shift = nn.Parameter(torch.tensor(0.375).expand(6, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.left(x)) + x * 0.5 - self.shift)
        x = nn.functional.max_pool2d(torch.cat([torch.relu(self.side(x)), x], 1), 2)
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.last(x) + 0.25


def _dyadic_(snn: SpikingModel) -> SpikingModel:
    """Powers of two for all steps and gains, eighths and ``OFFSET`` for all biases, in place."""
    generator = torch.Generator().manual_seed(4)
    for layer in snn.layers.modules():
        if isinstance(layer, Encoder):
            layer.scale.fill_(1 / 8)
        elif isinstance(layer, MTNeuron):
            layer.delta.fill_(1 / 4)
        elif isinstance(layer, WEIGHTED):
            whole = torch.round(layer.weight.data / layer.weight_scale)
            layer.weight_scale.fill_(1 / 8)
            layer.weight.data = whole / 8
            layer.bias.data = _eighths(layer.bias.shape, generator) + OFFSET
        elif isinstance(layer, NORMS):
            layer.eps = 0.0
            layer.running_var.fill_(1)
            layer.running_mean.copy_(_eighths(layer.weight.shape, generator))
            layer.weight.data = torch.tensor([1, -1, 0.5, 1, 2, 1])
            layer.bias.data = _eighths(layer.bias.shape, generator)
    return snn


def _eighths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.round(torch.randn(shape, generator=generator) * 4) / 8


def _images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.round(torch.randn(count, 3, 8, 8, generator=generator) * 8) / 8


@pytest.fixture(scope="module")
def qann() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        spec = QuantSpec(input_bits=5, first_bits=4, last_bits=4, batch_norm="keep")
        return quantize(Net().eval(), spec, calibration=_images(16))


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
@pytest.mark.parametrize("ladder", LADDERS)
def test_spike_by_spike_equals_simulate_at_every_step(
    ladder: str, presentation: str, signed: bool, qann: Any
) -> None:
    snn = _dyadic_(convert(qann, ladder=LADDERS[ladder], presentation=presentation, signed=signed))
    images = _images(4)
    run = spike_by_spike(snn, images, time_steps=STEPS)
    wanted = simulate(snn, images, time_steps=STEPS)
    assert list(run.totals) == list(wanted.totals)
    for name, total in wanted.totals.items():
        assert total.unique().numel() > 4, f"{name} is too quiet to tell anything"
        assert torch.equal(run.totals[name], total), name
    for t in range(STEPS):
        if presentation == "once" or t + 1 in (1, 2, 4):  # other means are rounded
            assert torch.equal(run.logits[t], wanted.logits[t])
        torch.testing.assert_close(run.logits[t], wanted.logits[t], rtol=1e-5, atol=1e-5)
    assert not torch.equal(run.logits[0], run.logits[-1])


@pytest.mark.slow
def test_one_step_with_all_levels_is_the_quantized_networks_answer(qann: Any) -> None:
    images = _images(4)
    run = spike_by_spike(convert(qann), images, time_steps=1)
    torch.testing.assert_close(run.logits[0], qann(images).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_charge_is_conserved_in_every_layer(presentation: str, signed: bool, qann: Any) -> None:
    snn = _dyadic_(convert(qann, ladder=Uniform(3), presentation=presentation, signed=signed))
    run = spike_by_spike(snn, _images(4), time_steps=STEPS)
    assert len(run.charges) == 3
    for name, charge in run.charges.items():
        step = run.steps[name]
        left = charge + step / 2 - run.totals[name] * step
        assert torch.equal(left, run.potentials[name]), name
        assert left.abs().max() > 0


@pytest.mark.parametrize("presentation", ["once", "every_step"])
def test_a_temporal_difference_sums_to_the_maximum_of_the_summed_input(
    presentation: str, qann: Any
) -> None:
    snn = _dyadic_(convert(qann, ladder=Uniform(3), presentation=presentation, signed=True))
    run = spike_by_spike(snn, _images(4), time_steps=STEPS)
    pools = [node for node in snn.layers.graph.nodes if "max_pool2d" in str(node.target)]
    assert len(pools) == 1
    into, out = run.arriving[pools[0].args[0].name], run.arriving[pools[0].name]
    for t in range(STEPS):
        wanted = nn.functional.max_pool2d(into[: t + 1].sum(0), 2)
        torch.testing.assert_close(out[: t + 1].sum(0), wanted, rtol=0, atol=1e-5)
    if presentation == "once":
        assert torch.equal(out.sum(0), wanted)
    each = torch.stack([nn.functional.max_pool2d(step, 2) for step in into])
    assert not torch.equal(each.sum(0), wanted), "the input never changes which entry is largest"


def test_biases_and_the_image_enter_once_or_in_every_step(qann: Any) -> None:
    images = _images(2)
    for presentation, later in (("once", False), ("every_step", True)):
        snn = _dyadic_(convert(qann, ladder=Uniform(3), presentation=presentation))
        run = spike_by_spike(snn, images, time_steps=3)
        node = next(node for node, _ in layer_nodes(snn.layers, nn.Conv2d))
        current = run.arriving[node.name]
        assert bool(current[0].any())
        assert torch.equal(current[1], current[0] if later else torch.zeros_like(current[0]))


def test_a_charge_halfway_between_two_levels_rounds_up_here_and_to_even_in_simulate() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    calibration = torch.randn(32, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    snn = convert(quantize(net, QuantSpec(), calibration=calibration))
    first = next(layer for _, layer in layer_nodes(snn.layers, nn.Linear))
    first.weight.data.fill_(1)
    first.weight_scale.fill_(1)
    name, neuron = next(snn.neurons())
    encoder = next(layer for _, layer in layer_nodes(snn.layers, Encoder))
    encoder.scale.fill_(1)
    neuron.delta.fill_(1)
    for charge, up, even in ((2.5, 3, 2), (3.5, 4, 4), (2.25, 2, 2)):
        first.bias.data.fill_(charge - 2)
        image = torch.full((1, 1, 1, 1), 2.0)
        assert spike_by_spike(snn, image, time_steps=1).totals[name].item() == up
        assert simulate(snn, image, time_steps=1).totals[name].item() == even


def test_no_steps_are_refused(qann: Any) -> None:
    for whole_window in (False, True):
        snn = convert(qann, whole_window=whole_window)
        with pytest.raises(SpecError, match="time_steps is 0"):
            spike_by_spike(snn, _images(1), time_steps=0)
