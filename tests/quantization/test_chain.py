"""A chain of widths: the next network has the weights of the one before, and steps of its own."""

from __future__ import annotations

import pytest
import torch
from small_training import IMAGES, normed, quantized_net

from mt_convert.errors import CheckpointError
from mt_convert.quantization.brevitas_layers import step_parameters
from mt_convert.quantization.chain import float_tensors
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec, WeightCode

WIDE = QuantSpec(weight_bits=4, act_bits=4)
FEW = QuantSpec(weight_bits=2, act_bits=2)


def moved(spec: QuantSpec = WIDE) -> QuantizedModel:
    """A quantized network that training has moved away from its float network."""
    qann = quantized_net(spec)
    with torch.no_grad():
        for parameter in qann.parameters():
            parameter.mul_(1.25)
    return qann


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", BatchNorm)
def test_weights_and_batch_norms_are_those_of_the_start(batch_norm: BatchNorm) -> None:
    wide = QuantSpec(weight_bits=4, act_bits=4, batch_norm=batch_norm)
    few = QuantSpec(weight_bits=2, act_bits=2, batch_norm=batch_norm)
    start = moved(wide)
    qann = quantize(normed(1), few, calibration=IMAGES[:16], start=start)
    taken, given = float_tensors(qann.layers), float_tensors(start.layers)
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in given)
    assert qann.spec == few
    assert not qann.training


@pytest.mark.slow
def test_steps_are_fitted_to_the_weights_of_the_start() -> None:
    """As if the float network had been trained to these weights."""
    start = moved()
    ann = normed()
    ann.load_state_dict(float_tensors(start.layers))
    expected = quantize(ann, FEW, calibration=IMAGES[:16])
    qann = quantize(normed(1), FEW, calibration=IMAGES[:16], start=start)
    for one, other in zip(step_parameters(qann), step_parameters(expected), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(qann(IMAGES), expected(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wide", "few"),
    [
        (QuantSpec(weight_bits=4, normalize_weights=True), QuantSpec(weight_bits=2)),
        (QuantSpec(weight_bits=4), QuantSpec(weight_bits=2, normalize_weights=True)),
        (QuantSpec(weight_bits=4), QuantSpec(weights=WeightCode.TERNARY)),
        (QuantSpec(weights=WeightCode.TERNARY), QuantSpec(weight_bits=2)),
    ],
)
def test_any_kind_of_weights_follows_any_other(wide: QuantSpec, few: QuantSpec) -> None:
    start = quantized_net(wide)
    qann = quantize(normed(1), few, calibration=IMAGES[:16], start=start)
    logits = start(IMAGES)
    error = (qann(IMAGES) - logits).square().mean().sqrt() / logits.std()
    other = (normed(1)(IMAGES) - logits).square().mean().sqrt() / logits.std()
    assert error < other / 2


@pytest.mark.slow
def test_another_architecture_is_refused_with_all_that_differs() -> None:
    wrong = normed()
    wrong[11] = torch.nn.Linear(24, 4)  # type: ignore[index, operator]
    with pytest.raises(CheckpointError, match="2 tensors do not fit") as caught:
        quantize(wrong, FEW, calibration=IMAGES[:16], start=moved())
    assert [(fault.where, fault.what) for fault in caught.value.faults] == [
        ("11.bias", "is [3] there"),
        ("11.weight", "is [3, 24] there"),
    ]
    folded = QuantSpec(batch_norm=BatchNorm.FOLD)
    with pytest.raises(CheckpointError, match="batch norms are folded") as caught:
        quantize(normed(), FEW, calibration=IMAGES[:16], start=moved(folded))
    assert ("0.bias", "only there") in {(f.where, f.what) for f in caught.value.faults}
