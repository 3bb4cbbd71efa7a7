"""NeuroBench's metrics, against its definitions written out."""

from __future__ import annotations

import copy
import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_convert.errors import SpecError
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.neurobench import neurobench
from mt_convert.evaluation.energy.neurobench_adapter import Neurons, neurobench_model
from mt_convert.neurons.ladder import Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import IF, NeuronSpec
from mt_convert.neurons.surrogate import ATan
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.training.from_scratch.network import build_from_scratch
from mt_convert.training.from_scratch.poisson import Coding
from mt_convert.training.from_scratch.record import record_run

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


class Hooked:
    """What NeuroBench's model and its SynapticOperations do, written out: every layer of weights
    is watched, −1, 0 and 1 alone are spikes, effective are products of what is not 0."""

    def __init__(self) -> None:
        self.additions = self.macs = 0.0
        self.activations: list[type] = []

    def add_activation_module(self, kind: type) -> None:
        self.activations.append(kind)

    def measure(self, images: Tensor) -> Tensor:
        handles = [
            layer.register_forward_pre_hook(self._watch)
            for layer in self.__net__().modules()  # type: ignore[attr-defined]
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        ]
        logits: Tensor = self(images)  # type: ignore[operator]
        for handle in handles:
            handle.remove()
        return logits

    def _watch(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        (value,) = given
        spikes = bool(((value == 0) | (value.abs() == 1)).all())
        self.additions += products(layer, value) * spikes
        self.macs += products(layer, value) * (not spikes)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    models = SimpleNamespace(NeuroBenchModel=Hooked)
    monkeypatch.setitem(sys.modules, "neurobench.models", models)
    monkeypatch.setitem(sys.modules, "neurobench", SimpleNamespace(models=models))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("n", [1, 3])
def test_neurobench_counts_our_synops_as_its_effective_acs(
    snn: SpikingModel, images: Tensor, n: int
) -> None:
    spiking = snn if n == 1 else snn.with_neurons({k: more(v, n) for k, v in snn.neurons()})
    model = neurobench_model(spiking, time_steps=T)
    logits = model.measure(images)
    assert torch.allclose(logits, simulate(spiking, images, time_steps=T).logits[-1], atol=1e-4)
    own = neurobench(spiking, images, time_steps=T).synaptic_operations
    assert model.additions > 0
    assert model.additions / len(images) == pytest.approx(own.Effective_ACs)
    assert model.macs / len(images) == pytest.approx(own.Effective_MACs)
    assert model.activations == [Neurons]


def more(neuron: MTNeuron, n: int) -> MTNeuron:
    """The neuron with n thresholds."""
    return neuron.with_(spec=dataclasses.replace(neuron.spec, ladder=Uniform(n)))


def test_where_neurobench_is_missing_one_line_says_so(
    snn: SpikingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "neurobench", None)
    monkeypatch.setitem(sys.modules, "neurobench.models", None)
    with pytest.raises(SpecError, match="pip install neurobench") as raised:
        neurobench_model(snn, time_steps=2)
    assert "\n" not in str(raised.value)


@pytest.mark.long
def test_the_package_itself_counts_the_same(snn: SpikingModel, images: Tensor) -> None:
    metrics = pytest.importorskip("neurobench.metrics.workload", reason="no neurobench")
    model = neurobench_model(snn, time_steps=T)
    model.register_hooks()
    metric = metrics.SynapticOperations()
    metric(model, model(images), (images, None))
    own = neurobench(snn, images, time_steps=T).synaptic_operations
    assert metric.compute()["Effective_ACs"] == pytest.approx(own.Effective_ACs)
    assert metric.compute()["Effective_MACs"] == pytest.approx(own.Effective_MACs)


@pytest.mark.parametrize(
    "coding", [Coding.DIRECT, pytest.param(Coding.POISSON, marks=pytest.mark.long)]
)
def test_a_network_from_scratch_has_the_metrics_of_what_arrives_at_its_layers(
    coding: Coding,
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
    )
    with torch.no_grad():
        net[3].weight[0] = 0.0
    spec = NeuronSpec(Uniform(1), charge=IF(), initial=0.0, surrogate=ATan())
    shown = torch.rand(2, 1, 8, 8) * (torch.rand(2, 1, 8, 8) > 0.3)
    example = torch.zeros(2, 1, 8, 8)
    network = build_from_scratch(net, spec, example=example, time_steps=T, coding=coding).eval()
    own = neurobench(network, shown, time_steps=T)
    run, hooked = record_run(network, shown), Hooked()
    handles = [
        layer.register_forward_pre_hook(hooked._watch)
        for layer in network.layers.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network(shown)
    for handle in handles:
        handle.remove()
    operations = own.synaptic_operations
    assert operations.Effective_ACs == pytest.approx(hooked.additions / len(shown))
    times = T if coding is Coding.DIRECT else 1  # NeuroBench's model multiplies in every step
    assert operations.Effective_MACs == pytest.approx(hooked.macs / len(shown) / times)
    assert (operations.Effective_MACs > 0) == (coding is Coding.DIRECT)
    packets = sum(float(item.sum()) for item in run.packets.values())
    emissions = sum(run.neurons.values()) * T * len(shown)
    assert own.activation_sparsity == pytest.approx(1 - packets / emissions)
    weights = 4 * 9 + 2 * 4 * 9 + 8 * 3
    assert own.connection_sparsity == pytest.approx(4 * 9 / weights)
    assert own.footprint == 4 * (weights + 4 + 2 + 3 + 2), "biases, and a step for each layer"
    with pytest.raises(SpecError, match="with all of them"):
        neurobench(network, shown, time_steps=T + 1)
