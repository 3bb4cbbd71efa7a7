"""The exact integer form: bit-stable, and equal to the networks it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from settling import rests_by
from torch import Tensor, nn

from mt_convert.errors import UnsupportedLayerError
from mt_convert.graph.nodes import layer_nodes
from mt_convert.integer_engine.arithmetic import (
    IntegerArithmetic,
    integer_thresholds,
    overflow_bounds,
)
from mt_convert.integer_engine.terms import Part, Terms
from mt_convert.neurons.ladder import Binary, PowerOfTwo, Uniform
from mt_convert.neurons.layer import MTNeuron
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import totals_step
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, QuantSpec, quantize
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Encoder
from mt_convert.spiking.simulate import Run, simulate


def _block(channels: int, out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class EveryOperator(nn.Module):
    """Residual, concatenation, both poolings, padding, ReLU6, depthwise, batch norm on a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = _block(3, 8, 3), _block(8, 8, 3), _block(8, 8, 1)
        self.side, self.depthwise = _block(8, 4, 1), _block(12, 12, 3, groups=12)
        self.mixed, self.norm = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.last = nn.Linear(8 + 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        x = torch.relu(self.right(torch.relu(self.left(x))) + x)
        x = torch.cat([torch.relu(self.side(x)), x], 1)  # two scales in one value
        x = nn.functional.relu6(self.depthwise(nn.functional.max_pool2d(x, 2, 1)))
        x = nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        y = nn.functional.pad(torch.relu(self.norm(self.mixed(x) * 0.5 + 0.25)), (0, 1, 1, 0))
        z = nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)
        return self.last(torch.cat([z, x[:, :4].mean((2, 3)) - 0.25 * x[:, 4:8].mean((2, 3))], 1))


class Plain(nn.Module):
    """The same without what makes the float network round: sums of products only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.last = _block(3, 8, 3), _block(8, 8, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.left(x) + x)
        return self.last(nn.functional.avg_pool2d(x, 2).flatten(1))


def _lively_(net: nn.Module) -> nn.Module:
    """Batch norms that are not the identity, some of negative gain."""
    generator = torch.Generator().manual_seed(3)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            size = norm.num_features
            norm.running_mean.copy_(torch.randn(size, generator=generator) * 0.2)
            norm.running_var.copy_(torch.rand(size, generator=generator) * 0.5 + 0.2)
            norm.weight.data.copy_(torch.rand(size, generator=generator) * 1.5 - 0.3)
            norm.bias.data.copy_(torch.randn(size, generator=generator) * 0.3 + 0.2)
    return net.eval()


def _images(count: int, size: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _qann(net: type[nn.Module] = EveryOperator, **spec: Any) -> QuantizedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _lively_(net())
        size = 12 if net is EveryOperator else 8
        return quantize(model, QuantSpec(**spec), calibration=_images(32, size, seed=2))


@pytest.fixture(scope="module")
def folded() -> QuantizedModel:
    return _qann(batch_norm="fold")


@pytest.fixture(scope="module")
def kept() -> QuantizedModel:
    return _qann(batch_norm="keep")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _run(snn: SpikingModel, images: Tensor, time_steps: int, **order: Any) -> Run:
    return simulate(snn, images, time_steps=time_steps, arithmetic=IntegerArithmetic(snn), **order)


def _dyadic(snn: SpikingModel) -> SpikingModel:
    """The same network with powers of two for all steps and eighths for all biases."""
    for layer in snn.layers.modules():
        if isinstance(layer, MTNeuron):
            layer.delta.copy_(torch.exp2(layer.delta.log2().round()))
        elif hasattr(layer, "weight_scale"):
            whole = torch.round(layer.weight.data / layer.weight_scale)
            layer.weight_scale.copy_(torch.exp2(layer.weight_scale.log2().round()))
            layer.weight.data = whole * layer.weight_scale
            layer.bias.data = torch.round(layer.bias.data * 8) / 8
        elif isinstance(layer, Encoder):
            layer.scale.copy_(torch.exp2(layer.scale.log2().round()))
    return snn


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 1),
    "uniform": ({"ladder": Uniform(3), "signed": True}, 5),
    "binary": ({"ladder": Binary(2), "signed": True}, 5),
    "power_of_two": ({"ladder": PowerOfTwo(4), "signed": True}, 4),
    "every_step": ({"ladder": Uniform(3), "presentation": "every_step"}, 5),
    "whole_window": ({"ladder": Uniform(3), "signed": True, "whole_window": True}, 5),
}


# ------------------------------------------------------------------------------------ bit-stable


@pytest.mark.slow
@pytest.mark.parametrize(("way", "norm"), [("exact", "folded"), *((way, "kept") for way in WAYS)])
def test_batch_size_layout_and_threads_change_no_bit(
    way: str, norm: str, request: pytest.FixtureRequest, one_thread: None
) -> None:
    options, steps = WAYS[way]
    snn = convert(request.getfixturevalue(norm), **options)
    images = _images(8)
    torch.set_num_threads(1)
    whole = _run(snn, images, steps)
    assert whole.logits.std() > 0.01
    parts = [_run(snn, piece, steps).logits for piece in images.split([1, 3, 4])]
    assert torch.equal(torch.cat(parts, 1), whole.logits)
    last = convert(request.getfixturevalue(norm), **options).to(memory_format=torch.channels_last)
    torch.set_num_threads(2)
    for model, other in ((snn, images), (last, images.to(memory_format=torch.channels_last))):
        assert torch.equal(_run(model, other, steps).logits, whole.logits)


@pytest.mark.sampled
@pytest.mark.parametrize("way", [way for way in WAYS if way != "whole_window"])
def test_step_by_step_equals_layer_by_layer_and_the_literal_rule(
    way: str, kept: QuantizedModel
) -> None:
    options, steps = WAYS[way]
    snn, images = convert(kept, **options), _images(4)
    run = _run(snn, images, steps)
    for order in ({"layer_by_layer": True}, {"literal": True}):
        other = _run(snn, images, steps, **order)
        assert torch.equal(other.logits, run.logits)
        assert all(torch.equal(other.totals[name], run.totals[name]) for name in run.totals)


@pytest.mark.slow
def test_autocast_and_a_fast_matmul_setting_change_no_bit(folded: QuantizedModel) -> None:
    snn, images = convert(folded), _images(4)
    wanted = _run(snn, images, 1).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_run(snn, images, 1).logits, wanted)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(_run(snn, images, 1).logits, wanted)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_float64_accumulators_give_the_same_numbers_as_float32(
    folded: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    snn, images = convert(folded), _images(4)
    wanted = _run(snn, images, 1).logits
    monkeypatch.setattr("mt_convert.integer_engine.terms.FLOAT32_WHOLE", 0)
    assert torch.equal(_run(snn, images, 1).logits, wanted)


# -------------------------------------------------------------------- equal to what it stands for


def _levels(qann: QuantizedModel, images: Tensor) -> dict[str, Tensor]:
    """The level of every quantized activation of the Brevitas network."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, _, out, name=str(node.target): found.__setitem__(
                name, torch.round(out / module.scale)
            )
        )
        for node, layer in layer_nodes(qann.layers, QuantAct)
        if not layer.encodes_input
    ]
    with torch.no_grad():
        qann(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["folded", "kept"])
def test_levels_agree_with_the_brevitas_network(norm: str, request: pytest.FixtureRequest) -> None:
    qann = request.getfixturevalue(norm)
    images = _images(32, seed=5)
    wanted, run = _levels(qann, images), _run(convert(qann), images, 1)
    assert set(wanted) == set(run.totals)
    assert len(wanted) >= 6
    for name, levels in wanted.items():
        assert levels.unique().numel() > 4, f"{name} is too quiet to tell anything"
        assert (levels == run.totals[name]).double().mean() >= 0.999, name
    with torch.no_grad():
        torch.testing.assert_close(run.logits[0], qann(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_small_network_has_an_integer_form_that_agrees(name: str) -> None:
    qann = networks.quantized(name)
    images = networks.images(16, networks.shape_of(name), seed=7)
    wanted, logits = networks.levels_of(qann, images)
    snn = convert(qann)
    run = _run(snn, images, 1)
    assert torch.equal(_run(snn, images[:1], 1).logits, run.logits[:, :1])
    for layer, levels in wanted.items():
        assert (levels == run.totals[layer]).double().mean() >= 0.999, layer
    torch.testing.assert_close(run.logits[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_dyadic_weights_make_the_float_simulation_equal(way: str) -> None:
    options, steps = WAYS[way]
    if way == "every_step":
        steps = 2  # a mean over 3 steps is rounded
    snn, images = _dyadic(convert(_qann(Plain, batch_norm="fold"), **options)), _images(6, 8)
    run, wanted = _run(snn, images, steps), simulate(snn, images, time_steps=steps)
    for name, total in wanted.totals.items():
        assert total.unique().numel() > 3
        assert torch.equal(run.totals[name], total), name
    assert torch.equal(run.logits, wanted.logits)


def test_signed_bounded_totals_are_the_quantized_networks_from_the_settling_step_on(
    kept: QuantizedModel,
) -> None:
    images, seen = _images(6), []
    exact = _run(convert(kept), images, 1)
    snn = convert(kept, ladder=Uniform(3), signed=True)
    steps = rests_by(snn, 3)
    history: dict[int, dict[str, Tensor]] = {}
    simulate(
        snn,
        images,
        time_steps=steps,
        arithmetic=IntegerArithmetic(snn),
        observe=lambda t, name, total, _: history.setdefault(t, {}).__setitem__(name, total),
    )
    for totals in history.values():
        seen.append(all(torch.equal(totals[name], exact.totals[name]) for name in exact.totals))
    settled = seen.index(True)
    assert 0 < settled < steps
    assert all(seen[settled:])
    assert torch.equal(_run(snn, images, steps).logits[-1], exact.logits[0])


# ------------------------------------------------------------------------- thresholds, adversarial


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(-2, 2, width=32), st.sampled_from([0.5, -0.25, 2.0])),
            st.one_of(st.floats(-20, 20, width=32), st.sampled_from([0.0, 0.5, 1.5, -0.5, 99.0])),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 15),
)
def test_integer_thresholds_equal_the_formula_over_the_whole_range(
    channels: list[tuple[float, float]], levels: int
) -> None:
    factor, offset = torch.tensor(channels).unbind(1)
    limit = 3000
    thresholds = integer_thresholds(factor, offset, levels, limit)
    whole = torch.arange(-limit, limit + 1)
    formula = (whole.float() * factor[:, None] + offset[:, None]).round().clamp(0, levels)
    ahead, behind = whole >= thresholds[..., None], whole <= thresholds[..., None]
    reached = torch.where(factor[:, None, None] < 0, behind, ahead).sum(1)
    assert thresholds.dtype == torch.int64
    assert thresholds.shape == (len(channels), levels)
    assert torch.equal(reached.float(), formula)


@pytest.mark.slow
def test_a_single_layers_thresholds_give_the_levels_of_the_run() -> None:
    qann = _qann(Plain, batch_norm="keep")
    snn, images = convert(qann), _images(4, 8)
    arithmetic = IntegerArithmetic(snn)
    driven: list[Terms] = []
    keep = arithmetic.drive
    arithmetic.drive = lambda value, step: (driven.append(value), keep(value, step))[1]  # type: ignore[method-assign]
    run = simulate(snn, images, time_steps=1, arithmetic=arithmetic)
    name, neuron = next(iter(snn.neurons()))
    (part,) = driven[0].parts
    assert driven[0].bias is not None
    factor = (part.multiplier / neuron.delta.double()).float().flatten()
    offset = (driven[0].bias / neuron.delta.double()).float().flatten()
    assert bool((factor < 0).any())
    assert bool((factor > 0).any())
    thresholds = integer_thresholds(factor, offset, 15, int(part.limit))[None, :, :, None, None]
    acc, sign = part.numbers[:, :, None], factor.reshape(1, -1, 1, 1, 1)
    reached = torch.where(sign < 0, acc <= thresholds, acc >= thresholds).sum(2)
    assert torch.equal(reached.float(), run.totals[name])


def _near_thresholds() -> tuple[Terms, Tensor]:
    """Accumulators whose multipliers land them within 4 ulp of a threshold; and the step."""
    step = torch.tensor(0.0371)
    acc = torch.arange(1, 400).float()
    edges = (torch.arange(len(acc)) % 15 + 0.5) * step
    ulps = torch.arange(-4, 5)[:, None] * torch.finfo(torch.float32).eps
    multiplier = (edges / acc).double() * (1 + ulps.double())
    numbers = acc.expand(9, -1).contiguous()
    return Terms((Part(numbers, multiplier, 400),)), step


@pytest.mark.slow
def test_adversarial_inputs_are_rounded_as_written_and_find_a_scale_error_of_1e_6() -> None:
    value, step = _near_thresholds()
    spec = NeuronSpec(Uniform(15), bounds=(0, 15))
    arithmetic = IntegerArithmetic(convert(_qann(Plain)))

    def fired(value: Terms, step: Tensor) -> Tensor:
        drive = arithmetic.drive(value, step)
        return totals_step(drive, torch.zeros_like(drive), spec)

    levels = fired(value, step)
    part = value.parts[0]
    written = part.numbers * (part.multiplier / step.double()).float()
    assert torch.equal(levels, written.round().clamp(0, 15))
    above, below = (levels != fired(value, step * (1 + error)) for error in (1e-6, -1e-6))
    assert above.sum() > 500
    assert below.sum() > 500


# ----------------------------------------------------------------------------- bounds and messages


@pytest.mark.slow
def test_overflow_bounds_are_a_hand_count_and_are_reached() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(64, 1, 2, 2)))
    first, last = (layer for _, layer in layer_nodes(snn.layers, nn.Linear))
    gains = [torch.round(x.weight.detach() / x.weight_scale).abs().sum(1) for x in (first, last)]
    assert overflow_bounds(snn) == {
        "1": 127 * float(gains[0].max()),
        "3": 15 * float(gains[1].max()),
    }
    arithmetic = IntegerArithmetic(snn)
    acc: list[Tensor] = []
    keep = arithmetic.drive
    arithmetic.drive = lambda value, step: (acc.append(value.parts[0].numbers), keep(value, step))[
        1
    ]  # type: ignore[method-assign]
    worst = first.weight[gains[0].argmax()].sign().reshape(1, 1, 2, 2) * 1e3
    simulate(snn, worst, time_steps=1, arithmetic=arithmetic)
    assert float(acc[0].abs().max()) == overflow_bounds(snn)["1"]


@pytest.mark.slow
def test_overflow_bounds_grow_with_the_steps_of_a_presentation_in_every_step() -> None:
    snn = convert(_qann(Plain), ladder=Uniform(15), presentation="every_step")
    one, four = overflow_bounds(snn), overflow_bounds(snn, time_steps=4)
    assert four["stem.0"] == one["stem.0"]
    assert four["left.0"] == 4 * one["left.0"]


@pytest.mark.slow
def test_an_image_that_is_not_quantized_is_refused_by_the_name_of_its_layer() -> None:
    snn = convert(_qann(Plain, input_bits=None))
    with pytest.raises(UnsupportedLayerError, match=r"stem\.0 .*input_bits"):
        _run(snn, _images(2, 8), 1)
    _run(convert(_qann(Plain, input_bits=8)), _images(2, 8), 1)  # the advice


@pytest.mark.slow
def test_weights_moved_off_their_grid_are_refused_by_the_name_of_their_layer() -> None:
    snn = convert(_qann(Plain))
    snn.layers.get_submodule("left.0").weight.data.mul_(1.01)
    with pytest.raises(UnsupportedLayerError, match=r"left\.0 .*off their grid"):
        IntegerArithmetic(snn)


@pytest.mark.slow
def test_a_maximum_over_a_biased_value_is_taken_on_its_real_numbers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )
    qann = quantize(net, QuantSpec(), calibration=_images(16, 8))
    images = _images(6, 8)
    snn = convert(qann)
    run = _run(snn, images, 1)
    assert torch.equal(_run(snn, images[:1], 1).logits, run.logits[:, :1])
    torch.testing.assert_close(run.logits[0], qann(images).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_has_no_integer_form_is_refused_by_name() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            x = nn.functional.interpolate(x, size=(9, 9), mode="bilinear")
            return self.last(x.mean((2, 3)))

    snn = convert(quantize(Bilinear(), QuantSpec(), calibration=_images(16, 8)))
    with pytest.raises(UnsupportedLayerError, match=r"upsample_bilinear2d.*without Integer"):
        _run(snn, _images(2, 8), 1)
    simulate(snn, _images(2, 8), time_steps=1)  # the advice


@pytest.mark.slow
def test_channels_split_and_shuffled_stay_exact() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)
            self.last = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.relu(self.first(x)).chunk(2, 1)
            x = torch.cat([torch.relu(self.second(left)), right], 1)
            size = x.shape[2:]
            x = x.reshape(-1, 2, 4, *size).transpose(1, 2).reshape(-1, 8, *size)
            return self.last(torch.stack([x, x.flip(3)]).sum(0).mean((2, 3)))

    qann = quantize(Shuffle(), QuantSpec(), calibration=_images(16, 8))
    images = _images(6, 8)
    snn = convert(qann, ladder=Uniform(15), presentation="every_step")
    run = _run(snn, images, 3)
    assert torch.equal(_run(snn, images, 3, layer_by_layer=True).logits, run.logits)
    torch.testing.assert_close(run.logits[0], qann(images).detach(), rtol=1e-4, atol=1e-4)
