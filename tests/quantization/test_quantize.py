"""A quantized network has the bits it was asked for, is calibrated, and can be trained."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from networks import (
    KEPT,
    conv,
    dense,
    images,
    levels_of,
    lived_in,
    network,
    quantized,
    shape_of,
)
from torch import nn

from mt_convert.data import borrow_random
from mt_convert.errors import DataError, SpecError
from mt_convert.graph.nodes import NORMS, WEIGHTED, layer_nodes
from mt_convert.quantization.activations.quant_act import QuantAct, calibrating
from mt_convert.quantization.brevitas_layers import (
    quant_layer_from_json,
    quant_layer_to_json,
    quantized_weight,
)
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import ActNoise, BatchNorm, Override, QuantSpec, Scale, Spacing
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate


def bits(qann: QuantizedModel) -> dict[str, int]:
    """The bits of all weights and activations, by name."""
    return {
        str(node.target): layer.bits if isinstance(layer, QuantAct) else layer.weight_bits
        for node, layer in layer_nodes(qann.layers, (*WEIGHTED, QuantAct))
    }


def weight_levels(layer: nn.Module) -> torch.Tensor:
    """A layer's quantized weights in levels, checked to be whole numbers."""
    value, step = quantized_weight(layer)
    assert step.shape == (value.shape[0], *[1] * (value.dim() - 1))
    levels = (value / step).round()
    torch.testing.assert_close(levels * step, value)
    return levels


# ------------------------------------------------------------------------------------------ spec


def test_a_spec_lists_all_values_out_of_range_at_once() -> None:
    with pytest.raises(SpecError, match="QuantSpec: 8 values out of range") as caught:
        QuantSpec(
            weight_bits=1,
            act_bits=9,
            first_bits=True,
            last_bits="8",  # type: ignore[arg-type]
            input_bits=1,
            scale="linear",  # type: ignore[arg-type]
            batch_norm="drop",  # type: ignore[arg-type]
            overrides=(Override("a", weight_bits=0), Override("b", act_bits=1)),
        )
    found = {fault.where: (fault.what, fault.hint) for fault in caught.value.faults}
    assert found == {
        "weight_bits": ("1", "allowed: 2 to 8 or none"),
        "act_bits": ("9", "allowed: 1 to 8"),
        "first_bits": ("True", "allowed: 2 to 8 or none"),
        "last_bits": ("'8'", "allowed: 2 to 8 or none"),
        "input_bits": ("1", "allowed: 2 to 8 or none"),
        "overrides[a].weight_bits": ("0", "allowed: 2 to 8 or none"),
        "scale": ("'linear'", "allowed: learned, power_of_two"),
        "batch_norm": ("'drop'", "allowed: fold, keep"),
    }


def test_a_spec_comes_back_from_json() -> None:
    spec = QuantSpec(
        act_bits=3, first_bits=None, scale=Scale.POWER_OF_TWO, overrides=(Override("a.*", 8),)
    )
    assert QuantSpec.from_json(spec.to_json()) == spec
    assert spec.levels == 7


# ------------------------------------------------------------------------------------------ bits


@pytest.mark.slow
def test_first_last_input_and_overrides_get_their_bits() -> None:
    spec = QuantSpec(
        weight_bits=3,
        act_bits=2,
        first_bits=7,
        last_bits=6,
        input_bits=5,
        overrides=(Override("*", act_bits=3), Override("3", act_bits=4), Override("2", 4)),
    )
    found = bits(quantize(dense(), spec, calibration=images(8)))
    assert found == {"input_quant": 5, "0": 7, "1": 3, "2": 4, "3": 4, "5": 6}


@pytest.mark.slow
def test_without_special_bits_all_layers_are_alike() -> None:
    spec = QuantSpec(weight_bits=3, act_bits=2, first_bits=None, last_bits=None, input_bits=None)
    found = bits(quantize(dense(), spec, calibration=images(8)))
    assert found == {"0": 3, "1": 2, "2": 3, "3": 2, "5": 3}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_weights_have_the_levels_of_their_bits(count: int) -> None:
    spec = QuantSpec(weight_bits=count, first_bits=None, last_bits=None)
    qann = quantize(dense(), spec, calibration=images(8))
    for _, layer in layer_nodes(qann.layers, WEIGHTED):
        most = weight_levels(layer).abs().max()
        assert most <= 2 ** (count - 1) - 1
        assert count > 4 or most > 2 ** (count - 2) - 1, "the range is not used"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 8])
def test_activations_have_the_levels_of_their_bits(count: int) -> None:
    qann = quantize(dense(), QuantSpec(act_bits=count), calibration=images(64))
    found, _ = levels_of(qann, 3 * images(64))
    assert found.keys() == {"1", "3"}
    for levels in found.values():
        assert (levels.min(), levels.max()) == (0, 2**count - 1)


def test_an_override_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    spec = QuantSpec(overrides=(Override("0", 8), Override("layer9.*", 8), Override("x", 8)))
    with pytest.raises(SpecError, match="2 overrides match no layer") as caught:
        quantize(dense(), spec, calibration=images(8))
    assert [fault.where for fault in caught.value.faults] == ["layer9.*", "x"]
    assert caught.value.faults[0].hint == "layers: input_quant, 0, 1, 2, 3, 5"


@pytest.mark.slow
def test_power_of_two_steps_are_powers_of_two() -> None:
    spec = QuantSpec(scale=Scale.POWER_OF_TWO)
    qann = quantize(dense(), spec, calibration=images(8))
    steps = [layer.scale.reshape(1) for _, layer in layer_nodes(qann.layers, QuantAct)]
    steps += [
        quantized_weight(layer)[1].flatten() for _, layer in layer_nodes(qann.layers, WEIGHTED)
    ]
    assert len(steps) == 6
    for step in torch.cat(steps).tolist():
        fraction = Fraction(step)
        assert 1 in (fraction.numerator, fraction.denominator)
        assert (fraction.numerator * fraction.denominator).bit_count() == 1
    learned = quantize(dense(), QuantSpec(), calibration=images(8))
    control = Fraction(float(next(layer_nodes(learned.layers, QuantAct))[1].scale))
    assert (control.numerator * control.denominator).bit_count() > 1


# --------------------------------------------------------------------------------- what is where


@pytest.mark.slow
def test_a_linear_bottleneck_gets_a_signed_quantizer() -> None:
    qann = quantized("bottleneck")
    layer = qann.layers.get_submodule("expand2_input")
    assert isinstance(layer, QuantAct)
    low, high = layer.level_bounds
    assert layer.signed
    assert low < 0 < high
    assert high - low == 15, "as many levels besides 0 as an unsigned one"
    found, _ = levels_of(qann, 3 * images(8))
    assert (found["expand2_input"].min(), found["expand2_input"].max()) == (low, high)


@pytest.mark.slow
def test_each_input_without_activation_gets_a_quantizer_of_its_own() -> None:
    qann = quantized("shared_without_activation")
    names = [str(node.target) for node, _ in layer_nodes(qann.layers, QuantAct)]
    assert names == ["input_quant", "shared_input", "shared_input_1", "relu"]


@pytest.mark.slow
def test_a_model_that_has_an_input_quant_already_keeps_it() -> None:
    model = lived_in(nn.Sequential())
    model.add_module("input_quant", conv(2, 3))
    model.add_module("act", nn.ReLU())
    qann = quantize(model, QuantSpec(), calibration=images(8))
    names = [str(node.target) for node, _ in layer_nodes(qann.layers, nn.Module)]
    assert names == ["input_quant_1", "input_quant", "act"]
    assert qann.layers.get_submodule("input_quant_1").encodes_input


@pytest.mark.slow
def test_relu6_and_hardtanh_reach_no_level_above_their_bounds() -> None:
    qann = quantized("clamps")
    step = 0.9  # round(6 / 0.9) = 7: levels 8 to 15 cannot occur
    for name, expected in (("act6", (0, 7)), ("tanh", (-1, 2)), ("clamp", (0, 1))):
        layer = qann.layers.get_submodule(name)
        assert isinstance(layer, QuantAct)
        for parameter in layer.parameters():
            parameter.data.mul_(step / layer.scale)
        assert layer.scale.item() == pytest.approx(step)
        wide = torch.linspace(-100, 100, 4001)
        found = (layer(wide) / layer.scale).round()
        assert (found.min(), found.max()) == layer.level_bounds == expected


@pytest.mark.slow
def test_one_bit_and_levels_below_zero_do_not_go_together() -> None:
    model = nn.Sequential(conv(2, 2), nn.Hardtanh(-1, 1), conv(2, 2), conv(2, 2), nn.Flatten())
    spec = QuantSpec(act_bits=1)
    with pytest.raises(SpecError, match="1-bit activations cannot be signed") as caught:
        quantize(model, spec, calibration=images(8))
    assert caught.value.faults[0].where == "1"
    spec = QuantSpec(act_bits=1, overrides=(Override("1", act_bits=2),))
    found = bits(quantize(model, spec, calibration=images(8)))
    assert (found["1"], found["3_input"]) == (2, 2), "what we put in ourselves takes 2 bits"


@pytest.mark.slow
def test_a_clamp_that_excludes_zero_is_a_function_and_no_other_neuron() -> None:
    """A neuron at rest emits 0, which such a clamp never gives: its level at rest is another."""
    model = lived_in(nn.Sequential(conv(2, 2), nn.Hardtanh(0.5, 2), conv(2, 2)))
    qann = quantize(model, QuantSpec(), calibration=images(4))
    names = [str(node.target) for node, _ in layer_nodes(qann.layers, QuantAct)]
    assert names == ["input_quant", "1"]
    act = qann.layers.get_submodule("1")
    assert isinstance(act, QuantAct)
    assert act.formula is not None
    given = act(torch.tensor([-3.0, 0.7, 5.0]))
    assert torch.equal(given, act.scale * torch.round(torch.tensor([0.5, 0.7, 2.0]) / act.scale))


@pytest.mark.slow
def test_levels_below_zero_are_as_many_as_the_data_ask_for() -> None:
    found = {}
    for shift in (-3.0, 0.0, 3.0):
        model = lived_in(nn.Sequential(conv(2, 2), conv(2, 2)))
        model[0].bias.data.fill_(shift)  # type: ignore[index, union-attr, operator]
        qann = quantize(model, QuantSpec(), calibration=images(8))
        layer = qann.layers.get_submodule("1_input")
        assert isinstance(layer, QuantAct)
        low, high = layer.level_bounds
        assert high - low == 15
        found[shift] = -low
    assert found[-3.0] > found[0.0] > found[3.0] > 0
    assert 5 <= found[0.0] <= 10


@pytest.mark.parametrize("scale", list(Scale))
def test_a_fitted_range_beats_a_symmetric_one_and_trains(scale: Scale) -> None:
    x = nn.functional.gelu(3 * images(64).flatten())
    layer, even = (
        QuantAct(4, (float("-inf"), float("inf")), scale, encodes_input=False) for _ in range(2)
    )
    for quantizer, seen in ((layer, x), (even, torch.cat([x, -x]))):
        with calibrating(quantizer):
            quantizer(seen)
    low, high = layer.level_bounds
    assert low in (-1, 0)
    assert high - low == 15
    error, worse = ((item(x) - x).square().mean() for item in (layer, even))
    assert error < worse / 2
    levels = layer(torch.linspace(-50, 50, 999)) / layer.scale
    assert (levels.round().min(), levels.round().max()) == (low, high)
    layer(torch.tensor([-50.0, 0.0])).sum().backward()
    slopes = [parameter.grad for parameter in layer.parameters()]
    assert len(slopes) == 1
    assert slopes[0] is not None
    assert (slopes[0] != 0) == (low != 0), "the lower bound moves with the step"


@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [(0.0, float("inf")), (0.0, 1.3)])
def test_the_short_way_of_positive_values_is_brevitas_bit_for_bit(
    clip: tuple[float, float], dtype: torch.dtype, scale: Scale
) -> None:
    layer = QuantAct(3, clip, scale, encodes_input=False)
    with calibrating(layer):
        layer(images(64))
    edges = (torch.arange(-3, 12) - 0.5) * layer.scale
    beside = [edges]
    for _ in range(2):
        beside += [torch.nextafter(item, torch.tensor(math.inf)) for item in beside[-1:]]
    x = torch.cat([*beside, -beside[0], 3 * images(8).flatten(), torch.tensor([0.0, -0.0])])
    (step,) = layer.parameters()
    for training in (True, False):
        layer.train(training)
        results = []
        for way in (layer, lambda given: layer.quant(layer.function(given))):
            given = x.to(dtype).requires_grad_()
            step.grad = None
            out = way(given)
            (out * torch.linspace(-1, 2, len(x)).to(dtype)).sum().backward()
            assert step.grad is not None
            assert given.grad is not None
            results.append((out.detach(), given.grad, step.grad.clone()))
        assert all(map(torch.equal, *results))
        assert results[0][0].dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_batch_norms_are_folded_or_kept(name: str) -> None:
    norms = nn.modules.batchnorm._BatchNorm
    count = sum(isinstance(module, norms) for module in network(name).modules())
    kept = len(list(layer_nodes(quantized(name, BatchNorm.KEEP).layers, NORMS)))
    folded = len(list(layer_nodes(quantized(name, BatchNorm.FOLD).layers, NORMS)))
    assert (kept, folded) == (count, 2 if name == "pre_activation" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", BatchNorm)
def test_quantizing_to_8_bits_stays_close_to_the_model(batch_norm: BatchNorm) -> None:
    model, x = network("line"), images(32, shape_of("line"))
    spec = QuantSpec(weight_bits=8, act_bits=8, batch_norm=batch_norm)
    logits = quantize(model, spec, calibration=x)(x)
    error = (logits - model(x)).square().mean().sqrt() / model(x).std()
    assert error < 0.1


# ------------------------------------------------------------------------------------ calibration


@pytest.mark.slow
def test_the_model_is_untouched_and_the_quantized_one_is_in_eval_mode() -> None:
    model = network("one_relu").train()
    before = copy.deepcopy(model.state_dict())
    qann = quantize(model, QuantSpec(batch_norm=BatchNorm.KEEP), calibration=images(8))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in qann.modules())
    kept = qann.layers.get_submodule("bn1")
    assert torch.equal(kept.running_mean, before["bn1.running_mean"]), "calibration moved it"
    with torch.no_grad():
        next(iter(qann.layers.get_submodule("conv1").parameters())).add_(1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_steps_follow_the_calibration_images_and_are_trained() -> None:
    small = quantize(dense(), QuantSpec(), calibration=images(8))
    large = quantize(dense(), QuantSpec(), calibration=10 * images(8))
    for _, layer in layer_nodes(small.layers, QuantAct):
        assert layer.scale > 0
        assert layer.scale != pytest.approx(1 / 15), "Brevitas's step before calibration"
    for name in ("input_quant", "1"):
        ratio = large.layers.get_submodule(name).scale / small.layers.get_submodule(name).scale
        assert 5 < ratio < 15
    before = {name: small.layers.get_submodule(name).scale for name in ("input_quant", "1", "3")}
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        small(images(8)).square().mean().backward()
        optimizer.step()
    for name, step in before.items():
        assert small.layers.get_submodule(name).scale != step, name


@pytest.mark.slow
def test_calibration_in_batches_takes_all_images() -> None:
    quiet = torch.cat([images(8), 0.01 * images(300)])
    loud = torch.cat([quiet, 10 * images(150)])
    steps = [
        quantize(dense(), QuantSpec(), calibration=batch).layers.get_submodule("1").scale
        for batch in (quiet, loud)
    ]
    assert steps[1] > 2 * steps[0]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.full((2, 2, 8, 8), float("nan")), r"images \[0, 1\] of the batch hold NaN"),
        (torch.zeros(0, 2, 8, 8), "no calibration images"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_calibration_images_are_refused(calibration: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        quantize(dense(), QuantSpec(), calibration=calibration)


@pytest.mark.slow
def test_images_of_another_size_or_with_nan_are_refused() -> None:
    qann = quantized("one_relu")
    with pytest.raises(DataError, match=r"\(1, 2, 9, 9\) do not fit.*\[batch, 2, 8, 8\]"):
        qann(torch.zeros(1, 2, 9, 9))
    with pytest.raises(DataError, match="NaN"):
        qann(torch.full((1, 2, 8, 8), float("nan")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(weight_bits=2, act_bits=2, batch_norm=BatchNorm.KEEP),
        pytest.param(
            QuantSpec(weight_bits=3, spacing=Spacing.LEARNED, act_noise=ActNoise.DROP),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_training_step_is_one_graph_without_breaks(spec: QuantSpec) -> None:
    qann = quantize(network("one_relu"), spec, calibration=images(8)).train()
    plain = copy.deepcopy(qann)
    compiled = torch.compile(qann, fullgraph=True, backend="eager")
    for seed in (1, 2):  # also when a graph is there
        outputs = []
        for one in (compiled, plain):
            with borrow_random(seed):
                outputs.append(one(images(6, seed=seed)))
        assert torch.equal(*outputs)
    outputs[0].square().sum().backward()
    outputs[1].square().sum().backward()
    for one, other in zip(qann.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.slow
def test_compiled_networks_leave_the_look_at_the_images_to_check() -> None:
    qann = quantized("one_relu")
    with pytest.raises(DataError, match="NaN"):
        qann.check(torch.full((1, 2, 8, 8), float("nan")))


# ------------------------------------------------------------------------------------ stored form


@pytest.mark.slow
@pytest.mark.parametrize("scale", Scale)
def test_quantized_layers_come_back_from_json(scale: Scale) -> None:
    spec = QuantSpec(scale=scale, act_bits=3, batch_norm=BatchNorm.KEEP)
    model = nn.Sequential(
        *(conv(2, 4, groups=2), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding="same")),
        *(nn.Hardtanh(-1, 1), nn.Flatten(), nn.Linear(256, 3, bias=False)),
    )
    qann = quantize(lived_in(model), spec, calibration=images(8))
    x = images(4, seed=3)
    expected = qann(x)
    for node, layer in layer_nodes(qann.layers, nn.Module):
        again = quant_layer_from_json(quant_layer_to_json(layer))
        again.load_state_dict(layer.state_dict())
        qann.layers.add_submodule(str(node.target), again.eval())
        assert quant_layer_to_json(again) == quant_layer_to_json(layer)
    assert torch.equal(qann(x), expected)


@pytest.mark.slow
def test_a_clone_is_whole_and_independent() -> None:
    qann, x = quantized("one_relu"), images(3)
    copied = copy.deepcopy(qann)
    expected = qann(x)
    assert torch.equal(copied(x), expected)
    assert (copied.spec, copied.image_shape) == (qann.spec, (2, 8, 8))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    assert torch.equal(qann(x), expected)


# --------------------------------------------------------------------------------- float weights


@pytest.mark.slow
def test_without_weight_bits_weights_stay_floats_in_plain_layers() -> None:
    model = dense()
    spec = QuantSpec(weight_bits=None, first_bits=None, last_bits=None)
    qann = quantize(model, spec, calibration=images(8))
    for node, layer in layer_nodes(qann.layers, WEIGHTED):
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert torch.equal(layer.weight, model.get_submodule(str(node.target)).weight)
    assert "weights: 3 float" in repr(qann)
    x = 2 * images(8, seed=4)
    assert torch.equal(simulate(convert(qann), x, time_steps=1).logits[-1], qann(x))


@pytest.mark.slow
def test_single_layers_have_weight_bits_where_others_are_floats() -> None:
    spec = QuantSpec(weight_bits=None, last_bits=None, overrides=(Override("2", weight_bits=3),))
    qann = quantize(dense(), spec, calibration=images(8))
    found = {
        str(node.target): getattr(layer, "weight_bits", None)
        for node, layer in layer_nodes(qann.layers, WEIGHTED)
    }
    assert found == {"0": 8, "2": 3, "5": None}
    assert QuantSpec.from_json(spec.to_json()) == spec


def test_a_float_network_with_many_levels_is_the_model_itself() -> None:
    model = dense()
    spec = QuantSpec(weight_bits=None, first_bits=None, last_bits=None, input_bits=None, act_bits=8)
    x = images(64)
    qann = quantize(model, spec, calibration=x)
    error = (qann(x) - model(x)).square().mean().sqrt() / model(x).std()
    assert 0 < error < 0.01
