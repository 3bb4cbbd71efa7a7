"""The integer network: every backend is bit-equal to the canonical arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import NETWORKS, images, quantized, shape_of
from networks_of_operators import FAMILIES
from networks_of_operators import network as family
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.errors import DataError, SpecError, UnsupportedLayerError
from mt_convert.integer_engine import arithmetic as canonical
from mt_convert.integer_engine import torch_backend
from mt_convert.integer_engine.arithmetic import IntegerArithmetic
from mt_convert.integer_engine.backends import BACKENDS, ReferenceBackend
from mt_convert.integer_engine.exactness import LAYERS, layer_difference, next_to_thresholds
from mt_convert.integer_engine.int8 import int8_matmul
from mt_convert.integer_engine.int8.torch_kernels import in_int8
from mt_convert.integer_engine.native.build import instruction_sets
from mt_convert.integer_engine.program import Accumulate, Encode, Fire, Program, Whole
from mt_convert.integer_engine.tracing import trace
from mt_convert.neurons.ladder import Binary, PowerOfTwo, Uniform
from mt_convert.quantization.quantize import QuantizedModel
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import Run, simulate

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 1),
    "uniform": ({"ladder": Uniform(3), "signed": True}, 4),
    "unsigned": ({"ladder": Uniform(3)}, 4),
    "binary": ({"ladder": Binary(2), "signed": True}, 4),
    "power_of_two": ({"ladder": PowerOfTwo(4), "signed": True}, 3),
    "every_step": ({"ladder": Uniform(3), "presentation": "every_step"}, 4),
    "every_step_signed": (
        {"ladder": Uniform(3), "signed": True, "presentation": "every_step"},
        4,
    ),
}
FAST = ["torch", "native"]


def _reference(snn: SpikingModel, batch: Tensor, time_steps: int) -> Run:
    arithmetic = IntegerArithmetic(snn, real_segments=True)
    return simulate(snn, batch, time_steps=time_steps, arithmetic=arithmetic)


def _check(backend: str, snn: SpikingModel, batch: Tensor, time_steps: int) -> None:
    """Every layer's totals and every step's logits, whole and image by image."""
    if (why := BACKENDS[backend].missing()) is not None:
        pytest.skip(why)
    wanted = _reference(snn, batch, time_steps)
    model = mt.integer(snn, backend=backend)
    run = model.run(batch, time_steps, totals=True)
    assert torch.equal(run.logits, wanted.logits)
    assert run.totals.keys() == wanted.totals.keys()
    for name, total in wanted.totals.items():
        assert torch.equal(run.totals[name], total), name
    for at in (0, len(batch) - 1):
        alone = model.run(batch[at : at + 1], time_steps)
        assert torch.equal(alone.logits, wanted.logits[:, at : at + 1])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", FAST)
def test_every_backend_is_the_canonical_arithmetic(backend: str, way: str, name: str) -> None:
    options, steps = WAYS[way]
    snn = mt.convert(quantized(name), **options)
    _check(backend, snn, 2 * images(5, shape_of(name), seed=11), steps)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("exact", marks=pytest.mark.long),
        pytest.param("uniform", marks=pytest.mark.slow),
        pytest.param("every_step", marks=pytest.mark.long),
    ],
)
def test_compiled_by_torch_it_is_the_same(way: str) -> None:
    options, steps = WAYS[way]
    _check("compile", mt.convert(quantized("residual"), **options), images(4, seed=12), steps)


class _Int8(ReferenceBackend):
    """What accelerators run, on this machine's CPU."""

    def _step(self, program: Program) -> torch_backend.Step:
        kernels = torch_backend.Kernels(in_int8(program))
        return lambda images, totals: torch_backend.step(program, images, totals, kernels)


@pytest.mark.parametrize("layer", LAYERS)
def test_products_of_int8_are_the_reference(layer: str) -> None:
    found = layer_difference(_Int8, layer, channels=20, side=7, seed=8)
    assert found.compared >= 20
    assert found.different == 0


@pytest.mark.parametrize(
    ("kernel", "geometry"),
    [
        ((3, 3), ((1, 1), (1, 1), (1, 1), 1)),
        ((3, 2), ((2, 1), (0, 2), (2, 3), 1)),
        ((1, 1), ((2, 2), (0, 0), (1, 1), 1)),
        ((4,), ((2,), (3,), (2,), 1)),
        ((2, 3, 1), ((1, 2, 1), (1, 0, 2), (1, 1, 1), 1)),
        ((), ()),
    ],
)
@pytest.mark.parametrize(("low", "high"), [(0, 15), (0, 255), (-128, 127), (-8, 240)])
def test_a_product_of_int8_is_the_layer(
    low: int, high: int, kernel: tuple[int, ...], geometry: tuple[Any, ...]
) -> None:
    weight = torch.randint(-128, 128, (5, 3, *kernel), dtype=torch.int8)
    numbers = torch.randint(low, high + 1, (2, 3, *[9] * len(kernel))).float()
    known = Whole(tuple(numbers.shape[1:]), low, high)
    layer = Accumulate(2, "layer", 1, weight, geometry, 2.0**24)
    assert int8_matmul.fits(layer, known)
    found = int8_matmul.product(layer, numbers, known)
    assert found.dtype == torch.int32
    assert torch.equal(found.double(), canonical.weighted_sums(numbers.double(), weight, geometry))


def test_what_is_not_a_product_of_int8_is_exact_all_the_same() -> None:
    weight = torch.ones(4, 2, dtype=torch.int8)
    layer = Accumulate(1, "layer", 0, weight, (), 600)
    assert int8_matmul.fits(layer, Whole((2,), 0, 255))
    for low, high in ((0, 256), (1, 15), (-math.inf, math.inf)):
        assert not int8_matmul.fits(layer, Whole((2,), low, high))
    grouped = Accumulate(1, "layer", 0, weight.reshape(4, 2, 1, 1), ((1, 1), (0, 0), (1, 1), 2), 1)
    assert not int8_matmul.fits(grouped, Whole((4, 3, 3), 0, 15))
    program = Program((), {0: Whole((2,), 0, 300)}, ())
    assert in_int8(program)(layer, torch.tensor([[300.0, 300.0]])).tolist() == [[600.0] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("backend", FAST)
def test_threads_layout_and_settings_change_no_bit(backend: str, threads: None) -> None:
    if (why := BACKENDS[backend].missing()) is not None:
        pytest.skip(why)
    batch = images(6, seed=13)
    snn = mt.convert(quantized("residual"), ladder=Uniform(2), signed=True)
    model = mt.integer(snn, backend=backend)
    torch.set_num_threads(1)
    wanted = model.run(batch, 3).logits
    assert wanted.std() > 0.01
    torch.set_num_threads(2)
    assert torch.equal(model.run(batch, 3).logits, wanted)
    last = batch.to(memory_format=torch.channels_last)
    assert torch.equal(model.run(last, 3).logits, wanted)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.run(batch, 3).logits, wanted)
    finally:
        torch.set_float32_matmul_precision(before)


BY_WINDOW = {"1.1.attn"}  # a mask for each window, which one image more moves to other places


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if number % 4 else pytest.mark.slow)
        for number, name in enumerate(FAMILIES)
    ],
)
def test_real_operators_run_between_integer_segments_and_are_listed(name: str) -> None:
    qann = mt.quantize(family(name), mt.QuantSpec(), calibration=images(8))
    snn = mt.convert(qann)
    for backend in FAST:
        _check(backend, snn, images(3, seed=14), 1)
    arithmetic = IntegerArithmetic(snn, real_segments=True)
    simulate(snn, images(2), time_steps=1, arithmetic=arithmetic)
    ran = [item for item in mt.integer(snn, backend="torch").real if item not in BY_WINDOW]
    assert ran == [*arithmetic.real]


@pytest.mark.long
def test_what_is_integer_is_not_listed_as_real() -> None:
    for name in NETWORKS:
        assert mt.integer(mt.convert(quantized(name)), backend="torch").real == (), name


@pytest.mark.parametrize("layer", LAYERS)
def test_next_to_thresholds_every_neuron_is_that_of_the_reference(layer: str) -> None:
    program, image = next_to_thresholds(layer, channels=48, side=9, bits=8, seed=5)
    fire = next(item for item in program.instructions if isinstance(item, Fire))
    values = {0: image, 1: image}
    for item in program.instructions:
        if isinstance(item, Accumulate):
            values[item.out] = canonical.weighted_sums(image, item.weight, item.geometry)
    y = torch_backend.real_sum(fire.input, values)
    away = (y - 0.5 - (y - 0.5).round()).abs()
    assert float(away.max()) < 1e-2
    assert float((away == 0).float().mean()) > 0.01
    for name in FAST:
        if BACKENDS[name].missing() is None:
            found = layer_difference(BACKENDS[name].make, layer, channels=24, side=9, seed=6)
            assert found.compared > 0
            assert found.different == 0


def test_a_backend_that_fuses_a_multiplication_and_an_addition_would_be_seen() -> None:
    def fused(numbers: list[Tensor], multipliers: list[Tensor], bias: Any) -> Tensor:
        pairs = zip(numbers, multipliers, strict=True)
        total = sum(number.double() * factor.double() for number, factor in pairs)
        return (total + (0 if bias is None else bias.double())).float()

    class Fused(ReferenceBackend):
        def run(self, *words: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch_backend, "written_sum", fused)
                return super().run(*words)

    found = layer_difference(Fused, "convolution 3x3", seed=7)
    assert found.different > found.compared / 100


# ------------------------------------------------------------------------------------ the program


def test_a_program_names_layers_with_their_widths() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    snn = mt.convert(mt.quantize(net, mt.QuantSpec(), calibration=images(8)))
    model = mt.integer(snn, backend="torch")
    first, last = model.layers
    assert (first.name, first.shape, last.shape) == ("0", (4, 2, 3, 3), (3, 144))
    assert first.weight_bits == 8  # first and last layers keep 8 bits
    assert first.largest_sum <= 18 * 127 * 127
    assert (
        2 ** (first.accumulator_bits - 2) <= first.largest_sum < 2 ** (first.accumulator_bits - 1)
    )
    program = model.program()
    kinds = [type(item) for item in program.instructions]
    assert [kind for kind in kinds if kind in (Encode, Accumulate, Fire)] == [
        *(Encode, Accumulate, Fire, Accumulate),
    ]
    weight = next(item for item in program.instructions if isinstance(item, Accumulate)).weight
    assert weight.dtype == torch.int8


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["residual", "pools", "kinds_of_convolution"])
def test_no_sum_passes_the_limit_that_the_program_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def weighted_sums(numbers: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        sums = canonical.weighted_sums(numbers, weight, geometry)
        seen.append(float(sums.abs().max()))
        return sums

    monkeypatch.setattr(torch_backend, "weighted_sums", weighted_sums)
    model = mt.integer(mt.convert(quantized(name)), backend="reference")
    model(9 * images(8, shape_of(name), seed=15))
    limits = [layer.largest_sum for layer in model.layers]
    assert len(seen) == len(limits)
    assert all(0 < sums <= limit for sums, limit in zip(seen, limits, strict=True))


def test_later_steps_are_of_the_network_as_it_was() -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(3), presentation="every_step")
    batch = images(3, seed=16)
    model = mt.integer(snn, backend="torch")
    wanted = model.run(batch, 3).logits
    model = mt.integer(snn, backend="torch")
    with torch.no_grad():
        for layer in snn.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
    assert torch.equal(model.run(batch, 3).logits, wanted)


# ------------------------------------------------------------------------------------ bad input


def _wide(features: int, weight: float) -> QuantizedModel:
    net = nn.Sequential(nn.Flatten(), nn.Linear(features, 1), nn.ReLU(), nn.Linear(1, 2))
    nn.init.constant_(net[1].weight, weight)
    return mt.quantize(net, mt.QuantSpec(), calibration=torch.rand(4, 1, 1, features))


@pytest.mark.slow
def test_an_accumulator_that_could_overflow_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"1\b.*past the 2\^31"):
        mt.integer(mt.convert(_wide(140_000, 0.1)), backend="torch")


def test_wrong_requests_say_what_is_allowed() -> None:
    snn = mt.convert(quantized("residual"))
    with pytest.raises(SpecError, match="allowed are auto, native, torch, compile"):
        mt.integer(snn, backend="cuda")
    model = mt.integer(snn, backend="torch")
    with pytest.raises(SpecError, match="whole numbers from 1"):
        model(images(2), time_steps=0)
    with pytest.raises(DataError):
        model(images(2)[:, :, :4])
    with pytest.raises(DataError, match="NaN"):
        model(images(2) * float("nan"))


def test_auto_takes_the_native_backend_where_there_is_one() -> None:
    model = mt.integer(mt.convert(quantized("residual")))
    native = BACKENDS["native"].missing() is None and instruction_sets()[0] != "portable"
    assert model.backend == ("native" if native else "torch")
    assert f"backend {model.backend}: 6 weighted layers" in str(model)


@pytest.mark.slow
@pytest.mark.parametrize("side", [7, 10, 13, 14])
def test_an_average_over_all_pixels_is_a_plain_sum(side: int) -> None:
    """49 · (1/49) is not 1 in floating point; the sum is to stay whole."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    )
    calibration = torch.randn(8, 1, side, side)
    snn = mt.convert(mt.quantize(net.eval(), mt.QuantSpec(), calibration=calibration))
    program = trace(snn)
    assert Tensor.mul not in {getattr(item, "target", None) for item in program.instructions}
    for backend in {info for info in ("torch", "native") if BACKENDS[info].missing() is None}:
        found = mt.integer(snn, backend=backend)(calibration)
        assert torch.equal(found, mt.integer(snn, backend="torch")(calibration))
