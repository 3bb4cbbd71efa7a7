"""Corrections without training: what each makes better, and when it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import conv, images, lived_in
from torch import nn

from mt_convert.errors import SpecError
from mt_convert.graph.tracing.trace import trace
from mt_convert.quantization.batch_norm import estimate_batch_norm_
from mt_convert.quantization.brevitas_layers import quantized_weight
from mt_convert.quantization.corrections import equalize_
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import AFTER, BatchNorm, QuantSpec, WeightCode
from mt_convert.spiking import archive
from mt_convert.spiking.convert import convert

IMAGES = images(64)
FOLDED = BatchNorm.FOLD


def uneven(last: nn.Module | None = None, decades: float = 1.5) -> nn.Module:
    """Two convolutions with channels of very different ranges between them, and a read-out."""
    net = lived_in(
        nn.Sequential(
            conv(2, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU() if last is None else last,
            conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, 5),
        )
    )  # fmt: skip
    norms = [module for module in net if isinstance(module, nn.BatchNorm2d)]
    estimate_batch_norm_(net, norms, [IMAGES])  # as training leaves them
    factor = torch.logspace(-decades, decades, 8, base=10)
    norm, behind = net[1], net[3]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(behind, nn.Conv2d)
    with torch.no_grad():
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
        behind.weight.div_(factor.reshape(1, -1, 1, 1))
    return net


def spec(*after: str, act_bits: int = 3, batch_norm: BatchNorm = BatchNorm.KEEP) -> QuantSpec:
    """Weights of three bits, corrected so."""
    bits = {"weight_bits": 3, "first_bits": 3, "last_bits": 3}
    return QuantSpec(**bits, act_bits=act_bits, batch_norm=batch_norm, after=after)


def error(net: nn.Module, qann: nn.Module) -> float:
    """How far logits of new images are from the float network's."""
    fresh = images(64, seed=1)
    with torch.no_grad():
        difference: torch.Tensor = qann(fresh) - net(fresh)
    return float(difference.square().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "decades", "act_bits", "batch_norm"),
    [
        (("equalize",), 1.5, 3, BatchNorm.KEEP),
        (("gptq",), 0, 8, BatchNorm.KEEP),
        (("reestimate_bn",), 0, 8, BatchNorm.KEEP),
        (("correct_bias",), 0, 8, FOLDED),
        (("output_steps",), 0, 8, BatchNorm.KEEP),
        (("match_bn",), 0, 8, BatchNorm.KEEP),
        (("equalize", "gptq", "reestimate_bn"), 1.5, 3, BatchNorm.KEEP),
        (("output_steps", "gptq", "match_bn"), 0, 3, BatchNorm.KEEP),
    ],
    ids=[
        *("equalized", "rounded", "norms", "biases", "steps", "matched", "three"),
        "layer by layer",
    ],
)
def test_corrections_come_closer_to_the_float_network(
    after: tuple[str, ...], decades: float, act_bits: int, batch_norm: BatchNorm
) -> None:
    net = uneven(decades=decades)
    before = copy.deepcopy(net.state_dict())
    plain, corrected = (
        quantize(net, spec(*names, act_bits=act_bits, batch_norm=batch_norm), calibration=IMAGES)
        for names in ((), after)
    )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert error(net, corrected) < 0.9 * error(net, plain)


@pytest.mark.slow
def test_a_corrected_network_is_exact_and_trains_and_is_stored(tmp_path: object) -> None:
    net = uneven()
    qann = quantize(net, spec("equalize", "gptq", "reestimate_bn"), calibration=IMAGES)
    assert convert(qann, verify=images(32, seed=2)).report.verdict.exact_t1
    archive.save(qann, str(tmp_path))
    stored = archive.load(str(tmp_path))
    assert isinstance(stored, QuantizedModel)
    assert stored.spec == qann.spec
    fresh = images(8, seed=3)
    assert torch.equal(stored(fresh), qann(fresh))
    qann.train()
    qann(IMAGES).square().mean().backward()
    assert all(value.grad is not None for value in qann.parameters())
    assert copy.deepcopy(qann)(IMAGES).shape == (64, 5)


@pytest.mark.slow
def test_gptq_leaves_weights_on_the_levels_of_their_quantizers() -> None:
    qann = quantize(uneven(), spec("gptq"), calibration=IMAGES)
    for name in ("3", "8"):
        layer = qann.layers.get_submodule(name)
        value, step = quantized_weight(layer)
        weight = layer.get_parameter("weight")
        inside = (weight - value).abs() <= step / 2 * 1.001
        assert inside.float().mean() > 0.95, "the others lie beyond the last level"


@pytest.mark.slow
def test_equalizing_changes_the_form_and_not_the_function() -> None:
    layers = trace(uneven(), IMAGES)
    before, ranges = layers(IMAGES), layers.get_parameter("3.weight").abs().amax((0, 2, 3))
    equalize_(layers, IMAGES)
    torch.testing.assert_close(layers(IMAGES), before, rtol=1e-4, atol=1e-4)
    after = layers.get_parameter("3.weight").abs().amax((0, 2, 3))
    assert after.max() / after.min() < 0.1 * ranges.max() / ranges.min()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (uneven(nn.ReLU6()), {"after": ("equalize",)}, "have only a ReLU between them"),
        (nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), {"after": ("reestimate_bn",)},
         "no batch norm whose statistics"),
        (nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), {"after": ("match_bn",)},
         "no batch norm whose statistics could be matched"),
        (uneven(), {"weight_bits": 8, "after": ("output_steps",)}, "no weight steps to choose"),
        (uneven(), {"weight_bits": None, "first_bits": None, "last_bits": None,
                    "after": ("gptq",)}, "no weights to round"),
        (uneven(), {"normalize_weights": True, "after": ("gptq",)}, "no weights to round"),
        (nn.Sequential(conv(2, 3, bias=False), nn.ReLU(), nn.Flatten()),
         {"after": ("correct_bias",)}, "no layer has a bias to correct"),
    ],
    ids=["bounded", "no batch norm", "none to match", "wide",
         "float weights", "normalised", "no bias"],
)  # fmt: skip
def test_a_correction_that_finds_nothing_is_refused(
    net: nn.Module, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        quantize(net.eval(), QuantSpec(**settings), calibration=IMAGES)  # type: ignore[arg-type]


@pytest.mark.slow
def test_coded_weights_pass_through_untouched() -> None:
    """Ternary layers have no columns to round; first and last, which are uniform, do."""
    qann = quantize(
        uneven(), QuantSpec(weights=WeightCode.TERNARY, after=("gptq",)), calibration=IMAGES
    )
    assert convert(qann, verify=IMAGES[:4]).report.verdict.exact_t1


def test_names_of_corrections_are_checked() -> None:
    for after, message in (
        (("bias",), "after  'bias'  allowed: equalize, output_steps, gptq, match_bn,"),
        (("gptq", "gptq"), "name each once"),
        (("gptq", "equalize"), "equalize comes first"),
        ("gptq", "allowed: a list of"),
    ):
        with pytest.raises(SpecError) as caught:
            QuantSpec(after=after)  # type: ignore[arg-type]
        assert message in str(caught.value)
    assert QuantSpec.from_json(QuantSpec(after=AFTER).to_json()) == QuantSpec(after=AFTER)
