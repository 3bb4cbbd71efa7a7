"""Whole numbers on an accelerator: skipped without one, run by eval/gpu/regenerate.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import images, quantized

import mt_convert as mt
from mt_convert.integer_engine.arithmetic import weighted_sums
from mt_convert.integer_engine.int8 import int8_matmul
from mt_convert.integer_engine.program import Accumulate, Whole
from mt_convert.neurons.ladder import Uniform
from mt_convert.spiking.simulate import simulate
from mt_convert.system import devices

pytestmark = pytest.mark.gpu
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 1),
    "uniform": ({"ladder": Uniform(3), "signed": True}, 4),
    "every_step": ({"ladder": Uniform(3), "presentation": "every_step"}, 4),
}


@pytest.fixture
def device() -> torch.device:
    """The accelerator."""
    found = devices.device()
    if found.type == "cpu":
        pytest.skip("torch finds no accelerator here")
    return found


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("way", WAYS)
def test_an_accelerator_gives_the_bits_of_the_cpu(
    device: torch.device, way: str, backend: str, tf32: bool, request: pytest.FixtureRequest
) -> None:
    before = torch.get_float32_matmul_precision()
    request.addfinalizer(lambda: torch.set_float32_matmul_precision(before))
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    options, steps = WAYS[way]
    batch = images(20, seed=3)
    expected = mt.integer(mt.convert(quantized("residual"), **options), backend="reference").run(
        batch, steps, totals=True
    )
    snn = mt.convert(quantized("residual").to(device), **options)
    run = mt.integer(snn, backend=backend).run(batch.to(device), steps, totals=True)
    assert torch.equal(run.logits.cpu(), expected.logits)
    for name, total in expected.totals.items():
        assert torch.equal(run.totals[name].cpu(), total), name


def test_one_step_is_the_quantized_network(device: torch.device) -> None:
    qann = quantized("residual").to(device)
    batch = images(20, seed=4).to(device)
    with torch.inference_mode():
        expected = qann(batch)
        assert torch.equal(simulate(mt.convert(qann), batch, time_steps=1).logits[-1], expected)


@pytest.mark.parametrize("high", [15, 127, 255])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_products_of_int8_are_the_sums_of_float64(
    device: torch.device, kernel: tuple[int, ...], high: int
) -> None:
    weight = torch.randint(-128, 128, (5, 3, *kernel), dtype=torch.int8)
    geometry = ((1, 1), (1, 1), (1, 1), 1) if kernel else ()
    numbers = torch.randint(0, high + 1, (2, 3, *[9] * len(kernel))).float()
    numbers[0] = high
    item = Accumulate(2, "layer", 1, weight.to(device), geometry, math.inf)
    found = int8_matmul.product(item, numbers.to(device), Whole((3,), 0, high))
    assert torch.equal(found.cpu().double(), weighted_sums(numbers.double(), weight, geometry))
