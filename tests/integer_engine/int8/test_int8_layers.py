"""Int8 products on a CPU: the sums of the reference, on random numbers and saturated ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import images, quantized
from networks_of_operators import network as family
from torch import Tensor

import mt_convert as mt
from mt_convert.integer_engine.arithmetic import weighted_sums
from mt_convert.integer_engine.backends import BACKENDS, TorchBackend
from mt_convert.integer_engine.exactness import LAYERS, layer_difference
from mt_convert.integer_engine.int8 import int8_layers, torch_kernels
from mt_convert.integer_engine.program import Accumulate, Operate, Whole
from mt_convert.integer_engine.tracing import trace
from mt_convert.neurons.ladder import Uniform

GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "3x3": ((6, 5, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "3x2 strided, dilated": ((6, 5, 3, 2), ((2, 1), (0, 2), (2, 3), 1)),
    "1x1": ((6, 5, 1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    "depthwise": ((5, 1, 5, 5), ((2, 2), (2, 2), (1, 1), 5)),
    "linear": ((6, 5), ()),
}


@pytest.fixture
def kernels() -> None:
    if (why := int8_layers.missing()) is not None:
        pytest.skip(why)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(
    ("low", "high"), [(0, 15), (0, 255), (-128, 127), (-8, 240), (-240, 8), (-255, 0)]
)
@pytest.mark.parametrize("saturated", [False, True])
def test_sums_are_those_of_float64(
    kernels: None, name: str, low: int, high: int, saturated: bool
) -> None:
    shape, geometry = GEOMETRIES[name]
    weight = torch.randint(-128, 128, shape, dtype=torch.int8)
    numbers = torch.randint(low, high + 1, (3, 5, *[9] * (len(shape) - 2))).float()
    if saturated:  # products whose pairs pass 16 bits
        weight[::2], weight[1::2] = 127, -128
        numbers[0], numbers[1] = high, low
    item, whole = Accumulate(2, "layer", 1, weight, geometry, math.inf), Whole((5,), low, high)
    assert int8_layers.fits(item, whole)
    layer = int8_layers.Int8Layer(item, whole)
    expected = weighted_sums(numbers.double(), weight, geometry)
    assert torch.equal(layer(numbers).double(), expected)
    if geometry:
        last = numbers.to(memory_format=torch.channels_last)
        assert torch.equal(layer(last).double(), expected)


def test_what_bytes_cannot_hold_is_no_such_layer() -> None:
    weight = torch.ones(4, 2, dtype=torch.int8)
    item = Accumulate(1, "layer", 0, weight, (), 600)
    assert int8_layers.fits(item, Whole((2,), 0, 255))
    for low, high in ((0, 256), (1, 15), (-math.inf, math.inf)):
        assert not int8_layers.fits(item, Whole((2,), low, high))
    wide = torch.full((1, 520, 1, 1), 127, dtype=torch.int8)  # 255 * 127 * 520 passes 2^24
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    assert not int8_layers.fits(Accumulate(1, "w", 0, wide, geometry, 1), Whole((520, 1, 1), 0, 1))
    same = ((1, 1), "same", (1, 1), 1)
    assert not int8_layers.fits(Accumulate(1, "s", 0, wide[:, :5], same, 1), Whole((5, 1, 1), 0, 1))


@pytest.mark.parametrize("layer", LAYERS)
def test_next_to_thresholds_the_torch_backend_is_the_reference(layer: str) -> None:
    found = layer_difference(TorchBackend, layer, channels=20, side=7, seed=8)
    assert found.compared >= 20
    assert found.different == 0


def test_without_vnni_the_torch_backend_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(3), signed=True)
    batch = images(4, seed=3)
    expected = mt.integer(snn, backend="reference").run(batch, 3, totals=True)
    found = []
    for why in (int8_layers.missing(), "this CPU has no VNNI"):
        monkeypatch.setattr(int8_layers, "missing", lambda why=why: why)
        found.append(mt.integer(snn, backend="torch").run(batch, 3, totals=True))
        assert torch.equal(found[-1].logits, expected.logits)
        assert all(torch.equal(found[-1].totals[k], total) for k, total in expected.totals.items())


def test_images_go_through_all_layers_in_lots_that_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snn = mt.convert(quantized("residual"), ladder=Uniform(4), signed=True)
    batch = images(7, seed=4)
    model = mt.integer(snn, backend="torch")
    program = model.program()
    whole = model.run(batch, 4, totals=True)
    assert torch_kernels.images_at_once([program]) > len(batch)  # type: ignore[operator]
    monkeypatch.setattr(torch_kernels, "CHUNK", 1)
    assert torch_kernels.images_at_once([program]) == 1
    parts = mt.integer(snn, backend="torch").run(batch, 4, totals=True)
    assert torch.equal(parts.logits, whole.logits)
    assert all(torch.equal(parts.totals[name], total) for name, total in whole.totals.items())


def test_products_of_two_activations_are_whole(kernels: None) -> None:
    first, second = torch.randint(-127, 128, (2, 3, 40, 24)), torch.randint(-127, 128, (3, 24, 40))
    first[0, 0], second[0] = 127, -127
    expected = torch.matmul(first.double(), second.double())
    assert torch.equal(int8_layers.product(first.float(), second.float()).double(), expected)
    assert int8_layers.worth(first, second)
    assert int8_layers.product_fits(Whole((40, 24), -127, 127), Whole((24, 40), 0, 15))
    assert not int8_layers.product_fits(Whole((40, 24), -128, 127), Whole((24, 40), 0, 15))
    assert not int8_layers.product_fits(Whole((40, 24), 0, math.inf), Whole((24, 40), 0, 15))
    assert int8_layers.product(torch.ones(0, 3, 4), torch.ones(4, 2)).shape == (0, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_attention_multiplies_whole_numbers_in_int8(
    kernels: None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (why := BACKENDS[backend].missing()) is not None:
        pytest.skip(why)
    qann = mt.quantize(family("attention_explicit"), mt.QuantSpec(), calibration=images(8))
    snn, batch = mt.convert(qann), images(3, seed=5)
    expected = mt.integer(snn, backend="reference").run(batch, totals=True)
    products, product = list[torch.Size](), int8_layers.product

    def seen(first: Tensor, second: Tensor) -> Tensor:
        products.append(first.shape)
        return product(first, second)

    monkeypatch.setattr(int8_layers, "product", seen)
    monkeypatch.setattr(int8_layers, "SMALL", 0)
    run = mt.integer(snn, backend=backend).run(batch, totals=True)
    assert torch.equal(run.logits, expected.logits)
    assert all(torch.equal(run.totals[name], total) for name, total in expected.totals.items())
    assert products == [(3, 2, 16, 4), (3, 2, 16, 16)]


@pytest.mark.slow
def test_sums_of_attention_are_whole_where_floats_would_round() -> None:
    snn = mt.convert(
        mt.quantize(family("attention_explicit"), mt.QuantSpec(), calibration=images(8))
    )
    program = trace(snn)
    assert not [name for name in program.real if "matmul" in name]
    targets = [item.target for item in program.instructions if isinstance(item, Operate)]
    assert sum(target in int8_layers.PRODUCTS for target in targets) == 2


def test_a_layer_that_reads_windows_knows_its_levels_by_its_limit(kernels: None) -> None:
    weight = torch.tensor([[3, -4], [1, 1]], dtype=torch.int8)
    item, whole = Accumulate(2, "w", 1, weight, (), 7 * 15), Whole((2,), -math.inf, math.inf)
    assert int8_layers.fits(item, whole)
    numbers = torch.tensor([[15.0, -15.0], [-15.0, 15.0]])
    assert int8_layers.Int8Layer(item, whole)(numbers).tolist() == [[105, 0], [-105, 0]]
    wide = Accumulate(2, "w", 1, weight, (), 7 * 255)
    assert not int8_layers.fits(wide, whole)
