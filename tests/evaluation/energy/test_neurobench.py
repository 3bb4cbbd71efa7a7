"""NeuroBench's metrics, against its definitions written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.neurobench import neurobench
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate

T = 5


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def snn(images: Tensor) -> SpikingModel:
    """Two convolutions and a linear layer after ReLU, with neurons of one signed threshold."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 5)),
    )
    images = torch.where(images < 0.2, torch.zeros(()), images)
    return convert(
        quantize(net, QuantSpec(4, 4), calibration=images), ladder=Uniform(1), signed=True
    )


def products(layer: nn.Module, value: Tensor) -> float:
    """Products of an input and a weight that are both not 0."""
    weight = (layer.weight != 0).double()  # type: ignore[union-attr, operator]
    present = (value != 0).double()
    if isinstance(layer, nn.Linear):
        return float(F.linear(present, weight).sum())
    return float(F.conv2d(present, weight, stride=layer.stride, padding=layer.padding).sum())  # type: ignore[arg-type]


@pytest.mark.slow
def test_effective_operations_are_those_of_what_is_not_zero(
    snn: SpikingModel, images: Tensor
) -> None:
    run = simulate(snn, images, time_steps=T, record=True)
    assert run.spikes is not None
    first, second, last = (
        layer for layer in snn.layers.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    )
    one, two = run.spikes.values()
    additions = sum(products(second, step) for step in one)
    additions += sum(products(last, step.flatten(1)) for step in two)
    assert additions > 0
    measured = neurobench(snn, images, time_steps=T, batch_size=4)
    operations = measured.synaptic_operations
    assert operations.Effective_ACs == additions / len(images)
    (encoder,) = (layer for layer in snn.layers.modules() if type(layer).__name__ == "Encoder")
    assert operations.Effective_MACs == products(first, encoder(images)) / len(images)
    assert 0 < operations.Effective_MACs < 16 * 27
    assert operations.Dense == 16 * 27 + T * (4 * 4 * 27 + 16 * 5)
    silent = sum(int((step == 0).sum()) for spikes in (one, two) for step in spikes)
    assert measured.activation_sparsity == pytest.approx(silent / (one.numel() + two.numel()))


@pytest.mark.slow
def test_without_weights_of_zero_the_additions_are_the_synops_of_the_energy(
    snn: SpikingModel, images: Tensor
) -> None:
    counted = energy(snn, images, time_steps=T).totals[0].synops
    measured = neurobench(snn, images, time_steps=T)
    weights = [
        layer.weight for layer in snn.layers.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    zeros = sum(int((item == 0).sum()) for item in weights)
    assert zeros > 0, "or the next line says nothing"
    assert measured.synaptic_operations.Effective_ACs < counted
    assert measured.connection_sparsity == zeros / sum(item.numel() for item in weights)
    filled = fill_zeros(snn)
    counted = energy(filled, images, time_steps=T).totals[0].synops
    measured = neurobench(filled, images, time_steps=T)
    assert measured.connection_sparsity == 0
    whole = measured.synaptic_operations.Effective_ACs * len(images)
    assert whole == pytest.approx(counted * len(images), rel=1e-12)


def fill_zeros(snn: SpikingModel) -> SpikingModel:
    """A copy whose weights of 0 are one step of their grid."""
    filled = copy.deepcopy(snn)
    with torch.no_grad():
        for layer in filled.layers.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                smallest = layer.weight.abs()[layer.weight != 0].min()
                layer.weight[layer.weight == 0] = smallest
    return filled


def test_the_footprint_has_weights_in_their_bits_and_the_rest_in_32(snn: SpikingModel) -> None:
    measured = neurobench(snn, torch.rand(2, 1, 6, 6), time_steps=1)
    whole = sum(item.numel() for item in snn.layers.state_dict().values()) * 4
    weights = 27 + 4 * 27 + 16 * 5
    assert measured.footprint < whole
    spared = whole - measured.footprint
    assert weights * 4 - weights * 8 / 8 <= spared <= weights * 4 - weights * 2 / 8
