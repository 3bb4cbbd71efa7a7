"""Networks that others quantized: steps, levels and weights to the last bit, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.quantization import adopt
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.brevitas_layers import qnn


class QCFS(nn.Module):
    """Quantization clip-floor-shift, as published with its code: thresh, L, floor(x + 1/2)."""

    def __init__(self, levels: int, thresh: float) -> None:
        super().__init__()
        self.L, self.thresh = levels, nn.Parameter(torch.tensor([thresh]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x / self.thresh, 0, 1)
        return torch.floor(x * self.L + 0.5) / self.L * self.thresh


class PACT(nn.Module):
    """Parameterized clipping: alpha and bits, torch.round."""

    def __init__(self, bits: int, alpha: float) -> None:
        super().__init__()
        self.bits, self.alpha = bits, nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        step = self.alpha / (2**self.bits - 1)
        return torch.round(torch.minimum(torch.relu(x), self.alpha) / step) * step


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def cnn(first: nn.Module, second: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), first, nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 5, 2), second, nn.Flatten(), nn.Linear(5, 3)),
    ).eval()


def of_brevitas(**settings: Any) -> nn.Module:
    torch.manual_seed(2)
    net = nn.Sequential(
        *(qnn.QuantIdentity(bit_width=8), qnn.QuantConv2d(3, 6, 3, weight_bit_width=4)),
        *(qnn.QuantReLU(bit_width=4), qnn.QuantConv2d(6, 5, 3, weight_bit_width=3, **settings)),
        *(qnn.QuantReLU(bit_width=3), nn.Flatten(), qnn.QuantLinear(20, 3, weight_bit_width=8)),
    ).train()
    for _ in range(3):
        net(images())
    return net.eval()


@pytest.mark.slow
def test_a_qcfs_network_is_its_own_ladder_at_one_step_without_error() -> None:
    net = cnn(QCFS(4, 1.234), QCFS(8, 0.777))
    qann = adopt(net, calibration=images())
    assert qann.warnings == ()
    assert qann.float_agreement == 1.0
    with torch.no_grad():
        assert torch.equal(qann(images(32)), net(images(32)))
    snn = mt.convert(qann, verify=images(4))
    assert [str(neuron.spec.ladder) for _, neuron in snn.neurons()] == [
        "Uniform(n=4)",
        "Uniform(n=8)",
    ]
    verdict = snn.report.verdict
    assert verdict is not None
    assert verdict.exact_t1
    run = mt.simulate(snn, images(32), time_steps=1)
    assert torch.equal(run.logits[-1], qann(images(32)))


@pytest.mark.slow
def test_a_pact_network_keeps_its_levels() -> None:
    net = cnn(PACT(2, 0.9), PACT(4, 0.613))
    qann = adopt(net, calibration=images())
    bounds = [layer.level_bounds for _, layer in layer_nodes(qann.layers, QuantAct)]
    assert bounds == [(0, 3), (0, 15)]
    with torch.no_grad():
        assert torch.allclose(qann(images(32)), net(images(32)), atol=1e-5)


@pytest.mark.slow
def test_a_brevitas_network_is_taken_over_stored_and_exported(tmp_path: Path) -> None:
    net = of_brevitas()
    qann = adopt(net, calibration=images())
    x = images(24)
    with torch.no_grad():
        assert torch.equal(qann(x), net(x).detach())
    bits = [layer.weight_bits for _, layer in layer_nodes(qann.layers, nn.Module) if has(layer)]
    assert bits == [4, 3, 8]
    first = next(layer for _, layer in layer_nodes(qann.layers, QuantAct))
    assert first.encodes_input
    assert first.level_bounds == (-128, 127)
    mt.save(qann, tmp_path / "q")
    assert torch.equal(mt.load(tmp_path / "q")(x), qann(x))
    snn = mt.convert(qann)
    assert mt.export.tables(snn, tmp_path / "t", images=x[:4]).exact


def has(layer: nn.Module) -> bool:
    return hasattr(layer, "weight_bits")


@pytest.mark.slow
def test_a_quantizer_in_a_layer_and_one_that_is_used_twice_have_names_of_their_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.act, self.head = QCFS(6, 0.9), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.b(self.act(self.a(x)))).flatten(1))

    torch.manual_seed(0)
    net = Twice().eval()
    qann = adopt(net, calibration=images())
    assert len(list(layer_nodes(qann.layers, QuantAct))) == 2
    assert qann.warnings == ()
    with torch.no_grad():  # sixths of a top are sixths of it only to a unit in the last place
        assert torch.allclose(qann(images()), net(images()), rtol=1e-5, atol=1e-6)
    from brevitas.quant import Int8ActPerTensorFloat

    inner = of_brevitas(input_quant=Int8ActPerTensorFloat)
    taken = adopt(inner, calibration=images())
    with torch.no_grad():
        assert torch.equal(taken(images()), inner(images()))


@pytest.mark.slow
def test_it_trains_on_and_the_given_network_is_untouched() -> None:
    net = of_brevitas()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    qann = adopt(net, calibration=images()).train()
    qann(images()).square().sum().backward()
    gradients = [one.grad for one in qann.parameters() if one.requires_grad]
    assert gradients
    assert all(gradient is not None for gradient in gradients)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.slow
def test_every_step_is_held_to_the_last_bit_by_some_width() -> None:
    random = torch.Generator().manual_seed(0)
    for step in torch.rand(12, generator=random) + 0.01:
        for levels in (1, 3, 4, 15, 100):
            stairs = mt.quantization.adoption.Staircase(step, 0, levels)
            held = False
            for bits in mt.quantization.adoption._widths(stairs):
                act = mt.quantization.adoption.QuantAct(bits, stairs.clip, "learned", False)
                held = held or act.take_step_(step, None)
            assert held, (float(step), levels)


def test_what_no_ladder_describes_is_refused_by_name() -> None:
    from brevitas.quant import ShiftedUint8ActPerTensorFloat

    class Sawtooth(QCFS):
        def forward(self, x: Tensor) -> Tensor:
            return x - torch.floor(x)

    with pytest.raises(UnsupportedLayerError, match="does not round to equal steps") as error:
        adopt(cnn(Sawtooth(4, 1.0), QCFS(300, 1.0)), calibration=images())
    assert "300 levels" in str(error.value)
    assert len(error.value.faults) == 2
    net = of_brevitas()
    net[2] = qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat)
    net.train()(images())
    with pytest.raises(UnsupportedLayerError, match="zero point"):
        adopt(net.eval(), calibration=images())
    other = type("QuantOther", (nn.Identity,), {"__module__": "brevitas.nn.other"})
    net[2] = other()
    with pytest.raises(UnsupportedLayerError, match=r"QuantOther +is a layer of Brevitas"):
        adopt(net, calibration=images())
    with pytest.raises(SpecError, match="nothing in Sequential quantizes"):
        adopt(cnn(nn.ReLU(), nn.ReLU()), calibration=images())


@pytest.mark.slow
def test_ties_go_up_where_they_do_in_the_given_network() -> None:
    net = cnn(QCFS(4, 2.0), QCFS(4, 2.0))
    net[1] = nn.Identity()
    with torch.no_grad():
        net[0].weight.copy_(torch.randint(-2, 3, net[0].weight.shape) / 4)
        net[0].bias.zero_()
    dyadic = torch.randint(-2, 3, (16, 3, 6, 6)).float()
    qann = adopt(net, calibration=dyadic)
    assert not qann.warnings
    assert torch.equal(qann(dyadic), net(dyadic))
    assert qann.spec.rounding == "half_up"
    snn = mt.convert(qann, verify=dyadic)
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    act = next(item for item in qann.layers.modules() if isinstance(item, QuantAct))
    ties = ((act.function(net[0](dyadic)) / act.scale) % 1 == 0.5).float().mean()
    assert ties > 0.01, "ties are met"
