"""What is one parameter stays one, what is frozen stays frozen: trained, stored and converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, lived_in, network
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.errors import UnsupportedLayerError
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec, WeightCode
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.training.finetune.learner import TrainableSpikingModel


class Tied(nn.Module):
    """Two layers of one weight, with biases of their own or none."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16, bias=bias), nn.Linear(16, 16, bias=bias)
        self.b.weight = self.a.weight
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Scaled(nn.Module):
    """One batch norm, one gate and one kernel, each used twice; a fixed kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.gate = nn.Parameter(torch.full((2, 1, 1), 0.5))
        self.register_buffer("blur", torch.full((2, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        for stride in (1, 2):
            x = self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, stride, 1))
            x = F.relu(x * self.gate + F.conv2d(x, self.blur, padding=1, groups=2))
        return self.head(x.mean((2, 3)))


class Decoder(nn.Module):
    """A weight, and the same weight turned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(F.relu(self.a(x)), self.a.weight.t())))


def step(qann: QuantizedModel, x: Tensor) -> None:
    """One step of SGD."""
    optimizer = torch.optim.SGD(qann.parameters(), 0.1)
    qann.train()
    F.cross_entropy(qann(x), torch.arange(len(x)) % 3).backward()
    optimizer.step()
    qann.eval()


def names(qann: QuantizedModel, learns: bool) -> set[str]:
    """The parameters that are trained, or frozen; steps of quantizers apart."""
    found = qann.layers.named_parameters(remove_duplicate=False)
    return {name for name, item in found if item.requires_grad is learns and "quant" not in name}


@pytest.mark.sampled
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", [WeightCode.UNIFORM, WeightCode.TERNARY])
def test_a_tied_weight_is_one_parameter_trained_stored_and_read(
    bias: bool, weights: WeightCode, tmp_path: Path
) -> None:
    x = images(32, (16,))
    spec = QuantSpec(first_bits=None, weights=weights)
    qann = quantize(lived_in(Tied(bias)), spec, calibration=x)
    for turn in range(2):
        before = qann.layers.get_submodule("b").weight.detach().clone()
        shared = [p for p in qann.parameters() if p.shape == (16, 16)]
        assert len(shared) == 1
        step(qann, x)
        assert not torch.equal(shared[0], before)
        assert all(
            torch.equal(layer.weight, shared[0])
            for layer in qann.layers.modules()
            if getattr(layer, "weight", before[:1]).shape == (16, 16)
        )
        if turn == 0:
            logits = qann(x)
            save(qann, tmp_path)
            qann = load(tmp_path)
            assert torch.equal(qann(x), logits)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", list(BatchNorm))
def test_what_is_frozen_does_not_move(batch_norm: BatchNorm, tmp_path: Path) -> None:
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    net = lived_in(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)))
    for parameter in net[:5].parameters():
        parameter.requires_grad_(False)
    x = images(32)
    qann = quantize(net, QuantSpec(batch_norm=batch_norm), calibration=x)
    assert names(qann, True) == {"6.weight", "6.bias"}
    before = {name: value.clone() for name, value in qann.layers.named_parameters()}
    step(qann, x)
    moved = {n for n, value in qann.layers.named_parameters() if not torch.equal(value, before[n])}
    assert {name for name in moved if "quant" not in name} == {"6.weight", "6.bias"}
    save(qann, tmp_path)
    assert names(load(tmp_path), True) == {"6.weight", "6.bias"}
    snn = convert(qann)
    assert not snn.layers.get_submodule("3").weight.requires_grad
    assert snn.layers.get_submodule("6").weight.requires_grad


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(name=st.sampled_from(["one_relu", "bn_act", "residual", "line"]), seed=st.integers(0, 99))
def test_flags_of_any_choice_of_parameters_are_kept(name: str, seed: int) -> None:
    net = network(name)
    random = torch.Generator().manual_seed(seed)
    flags = {}
    for key, parameter in net.named_parameters():
        flags[key] = bool(torch.rand((), generator=random) < 0.5)
        parameter.requires_grad_(flags[key])
    shape = (2, 8) if name == "line" else (2, 8, 8)
    spec = QuantSpec(batch_norm=BatchNorm.KEEP)
    qann = quantize(net, spec, calibration=images(8, shape, 2))
    kept = {key: item for key, item in qann.layers.named_parameters() if "quant" not in key}
    values = [(flags[key], value) for key, value in net.named_parameters()]
    for key, item in kept.items():
        same = [flag for flag, value in values if torch.equal(value, item)]
        assert item.requires_grad in same, key
    assert len(kept) == len(flags)


@pytest.mark.slow
def test_shared_norms_gates_and_kernels_stay_shared_and_constants_constant(tmp_path: Path) -> None:
    net, x = lived_in(Scaled()), images(16)
    net.norm.num_batches_tracked.fill_(7)
    qann = quantize(net, QuantSpec(batch_norm=BatchNorm.KEEP), calibration=x)
    for _ in range(2):
        for shape, count in (((2, 2, 3, 3), 1), ((2, 1, 1), 1), ((2,), 3)):  # norm's two, a bias
            assert sum(p.shape == shape for p in qann.parameters()) == count, shape
        norms = [m for m in qann.layers.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 1
        assert int(norms[0].num_batches_tracked) == 7
        assert names(qann, False) == {
            n for n, p in qann.layers.named_parameters() if p.shape == (2, 1, 3, 3)
        }
        assert len(names(qann, False)) == 1
        save(qann, tmp_path)
        qann = load(tmp_path)
    step(qann, x)
    assert int(norms[0].num_batches_tracked) == 7


@pytest.mark.slow
def test_a_weight_in_two_forms_is_refused_by_name_unless_it_is_frozen() -> None:
    net, x = lived_in(Decoder()), images(16, (8,))
    with pytest.raises(UnsupportedLayerError, match=r"a\.weight +in 2 forms: a, .*freeze it"):
        quantize(net, QuantSpec(), calibration=x)
    net.a.weight.requires_grad_(False)
    assert quantize(net, QuantSpec(), calibration=x)(x).shape == (16, 3)


@pytest.mark.slow
def test_a_batch_norm_folded_into_a_shared_weight_stands_in_the_report(tmp_path: Path) -> None:
    qann = quantize(network("shared_conv"), QuantSpec(batch_norm="fold"), calibration=images(8))
    assert "shared is shared: each use takes a batch norm of its own" in qann.warnings[0]
    save(qann, tmp_path / "q")
    save(convert(qann), tmp_path / "s")
    for snn in (convert(qann), convert(load(tmp_path / "q")), load(tmp_path / "s")):
        assert snn.report.warnings == qann.warnings
        assert f"warning: {qann.warnings[0]}" in str(snn.report)
        assert snn.report.to_json()["warnings"] == qann.warnings
    kept = quantize(network("shared_conv"), QuantSpec(batch_norm="keep"), calibration=images(8))
    assert kept.warnings == ()


@pytest.mark.slow
def test_every_kind_of_parameter_is_trained_in_what_was_stored(tmp_path: Path) -> None:
    for number, net in enumerate([Scaled(), Tied(), Decoder()]):
        if number == 2:
            net.a.weight.requires_grad_(False)
        shape = ((2, 8, 8), (16,), (8,))[number]
        qann = quantize(lived_in(net), QuantSpec(), calibration=images(8, shape))
        save(qann, tmp_path / str(number))
        again = load(tmp_path / str(number))
        assert names(again, True) == names(qann, True)
        assert names(again, False) == names(qann, False)
        assert len(list(again.parameters())) == len(list(qann.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_weight_is_one_parameter_in_fine_tuning_too(bias: bool, tmp_path: Path) -> None:
    x = images(32, (16,))
    qann = quantize(lived_in(Tied(bias)), QuantSpec(first_bits=None), calibration=x)
    snn = convert(qann)
    save(snn, tmp_path)
    learner = TrainableSpikingModel(load(tmp_path), 1)
    (shared,) = [p for p in learner.snn.parameters() if p.shape == (16, 16)]
    before = shared.detach().clone()
    optimizer = torch.optim.SGD(learner.parameters(), 0.5)
    F.cross_entropy(learner(x), torch.arange(len(x)) % 3).backward()
    optimizer.step()
    assert not torch.equal(shared, before)
    for item, moved in ((snn, False), (learner.snapshot(), True)):
        (tied,) = [p for p in item.parameters() if p.shape == (16, 16)]
        assert torch.equal(tied, before) is not moved
    assert sum(p.shape == (16, 16) for _, p in snn.named_parameters(remove_duplicate=False)) == (
        2 if bias else 1  # without biases both are one layer
    )


@pytest.mark.slow
def test_a_tied_weight_with_two_steps_stands_in_the_report() -> None:
    qann = quantize(lived_in(Tied(True)), QuantSpec(first_bits=None), calibration=images(8, (16,)))
    for name, parameter in qann.layers.named_parameters():
        if name.startswith("b_1.weight_quant"):
            parameter.data *= 1.3
    snn = convert(qann)
    said = "b.weight and b_1.weight are one parameter with a step of its own for each layer"
    assert any(said in text for text in snn.report.warnings)
