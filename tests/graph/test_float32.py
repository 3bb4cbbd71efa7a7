"""Images of any floating type, torch's default type, autocast: the same numbers, or one error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, lived_in, network, quantized
from torch import Tensor, nn

from mt_convert.calibration.calibrate import calibrate
from mt_convert.calibration.spec import MembraneMean
from mt_convert.errors import DataError, SpecError
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.energy.report import EnergyReport
from mt_convert.graph.float32 import in_float32, network_dtype
from mt_convert.integer_engine.model import IntegerModel, integer
from mt_convert.integer_engine.native.build import missing
from mt_convert.integer_engine.shift_add import shift_add
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.compiled import CompiledSimulation
from mt_convert.spiking.convert import convert
from mt_convert.spiking.interpreter import forward_with
from mt_convert.spiking.levels import quantized_activation
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SMALL = tuple(item for item in FLOATS if item is not torch.float32)
BACKENDS = ("torch",) if missing() else ("torch", "native")


class Defaults:
    """torch's default type and autocast, as a caller may have set them."""

    def __init__(self, default: torch.dtype, autocast: torch.dtype | None) -> None:
        self.default, self.autocast = default, autocast

    def __enter__(self) -> None:
        self.casting = torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)
        torch.set_default_dtype(self.default)
        self.casting.__enter__()

    def __exit__(self, *error: object) -> None:
        self.casting.__exit__(*error)
        torch.set_default_dtype(torch.float32)


@cache
def subject() -> tuple[QuantizedModel, SpikingModel]:
    """A network and its conversion, not changed by any test."""
    qann = quantized("residual")
    return qann, convert(qann, ladder=Uniform(3), signed=True)


@cache
def compiled(backend: str) -> IntegerModel:
    return integer(subject()[1], backend=backend)


def walk(x: Tensor) -> Tensor:
    return forward_with(subject()[1], x, lambda name, layer, y: quantized_activation(layer, y))


RUNS: dict[str, Callable[[Tensor], Any]] = {
    "quantized": lambda x: subject()[0](x),
    "simulate": lambda x: simulate(subject()[1], x, time_steps=2).logits,
    "spike by spike": lambda x: spike_by_spike(subject()[1], x, time_steps=2).logits,
    "walk": walk,
    **{
        f"integer {name}": lambda x, name=name: compiled(name).run(x, 2, totals=True).logits
        for name in BACKENDS
    },
    "shift add": lambda x: shift_add(compiled("torch"), x).logits,
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(RUNS)),
    dtype=st.sampled_from(FLOATS),
    default=st.sampled_from(FLOATS),
    autocast=st.sampled_from([None, torch.bfloat16]),
    batch=st.integers(1, 4),
)
def test_a_run_gives_the_bits_of_float32_images_under_every_setting(
    name: str, dtype: torch.dtype, default: torch.dtype, autocast: torch.dtype | None, batch: int
) -> None:
    x = images(batch, seed=batch).to(dtype)
    with torch.no_grad():
        expected = RUNS[name](x.float())
        with Defaults(default, autocast):
            logits = RUNS[name](x)
    assert logits.dtype is torch.float32
    assert torch.equal(logits, expected)


@pytest.mark.skipif(bool(missing()), reason="needs the native backend")
@pytest.mark.parametrize("default", SMALL)
def test_the_native_backend_writes_float32_whatever_the_default(default: torch.dtype) -> None:
    x = images(5, seed=4)
    expected = compiled("native").run(x, 2, totals=True)
    with Defaults(default, None):
        run = compiled("native").run(x, 2, totals=True)
        empty = compiled("native").run(x[:0], 2, totals=True)
    assert torch.equal(run.logits, expected.logits)
    assert all(torch.equal(run.totals[name], total) for name, total in expected.totals.items())
    assert {total.dtype for total in empty.totals.values()} == {torch.float32}


@dataclass(frozen=True)
class InFloat32:
    """What becomes of a network under torch's own default type."""

    net: nn.Module
    x: Tensor
    qann: QuantizedModel
    snn: SpikingModel
    few: SpikingModel
    tuned: SpikingModel
    counted: EnergyReport


@pytest.fixture(scope="module")
def in_float_32() -> InFloat32:
    net, x = network("residual"), images(8, seed=2)
    qann = quantize(net, QuantSpec(), calibration=x)
    snn = convert(qann, verify=x[:2])
    few = convert(qann, ladder=Uniform(3), signed=True)
    tuned = calibrate(few, x, [MembraneMean()], time_steps=2).snn
    return InFloat32(net, x, qann, snn, few, tuned, energy(snn, x, time_steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("default", SMALL)
def test_networks_are_made_and_stored_in_float32_whatever_the_default(
    in_float_32: InFloat32, default: torch.dtype, tmp_path: Path
) -> None:
    net, x, qann, snn = (in_float_32.net, in_float_32.x, in_float_32.qann, in_float_32.snn)
    expected = simulate(snn, x, time_steps=1).logits
    with Defaults(default, torch.bfloat16):
        own = quantize(net, QuantSpec(), calibration=x)
        other = convert(own, verify=x[:2])
        assert other.report == snn.report
        save(other, tmp_path / "snn")
        save(own, tmp_path / "qann")
        for item in (other, load(tmp_path / "snn")):
            assert torch.equal(simulate(item, x, time_steps=1).logits, expected)
        assert torch.equal(load(tmp_path / "qann")(x), qann(x))
        again = calibrate(in_float_32.few, x, [MembraneMean()], time_steps=2).snn
        assert energy(other, x, time_steps=1) == in_float_32.counted
    for name, tensor in in_float_32.tuned.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert again.state_dict()[name].dtype == tensor.dtype, name


def test_images_that_no_network_takes_are_refused_everywhere_in_the_same_words() -> None:
    x = images(2)
    for bad, words in (
        (x.int(), "images hold torch.int32"),
        (x.to(torch.complex64), "images hold torch.complex64"),
        ((x * 1e300).double() * 1e300, "of the batch hold NaN or infinity"),
        (1e300 * x.double(), "of the batch hold NaN or infinity"),  # in float32
        (x[0], "do not fit"),
        (x.tolist(), "images are a list"),
        (x.numpy(), "images are a ndarray"),
    ):
        for name, run in RUNS.items():
            with pytest.raises(DataError, match=words):
                run(bad)  # type: ignore[arg-type]
            assert name
    for name in ("quantized", "simulate", "spike by spike", "walk"):
        with pytest.raises(DataError, match="images are on meta, the network on cpu"):
            RUNS[name](x.to("meta"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SMALL)
def test_a_network_in_another_type_is_refused_before_it_is_quantized_or_converted(
    dtype: torch.dtype,
) -> None:
    net, x = network("residual").to(dtype), images(4)
    for calibration in (x, x.to(dtype)):
        with pytest.raises(SpecError, match=r"not in float32 alone\n.*pass network.float\(\)"):
            quantize(net, QuantSpec(), calibration=calibration)
    assert quantize(net.float(), QuantSpec(), calibration=x.to(dtype))(x).dtype is torch.float32
    with pytest.raises(SpecError, match="not in float32 alone"):
        convert(quantized("residual").to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_spiking_network_in_half_is_refused_by_all_that_run_it(dtype: torch.dtype) -> None:
    snn, x = copy.deepcopy(subject()[1]).to(dtype), images(2)
    for run in (
        lambda: simulate(snn, x, time_steps=1),
        lambda: simulate(snn, x.to(dtype), time_steps=1),
        lambda: spike_by_spike(snn, x, time_steps=1),
        lambda: integer(snn, backend="torch"),
        lambda: calibrate(snn, x, [MembraneMean()], time_steps=2),
        lambda: CompiledSimulation(snn, backend="eager")(x, time_steps=1),
        lambda: energy(snn, x, time_steps=1),
    ):
        with pytest.raises(SpecError, match="not in float32 or float64 alone"):
            run()


def test_a_network_of_two_types_is_refused_with_a_tensor_of_each() -> None:
    net = lived_in(nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.ReLU(), nn.Linear(4, 2)))
    net[3].double()
    with pytest.raises(SpecError, match=r"(?s)3\.weight +torch.float64"):
        quantize(net, QuantSpec(), calibration=images(4))
    with pytest.raises(SpecError, match=r"(?s)1\.weight +torch.float32 .*3\.weight +torch.float64"):
        network_dtype(net)


def test_a_spiking_network_in_float64_takes_images_of_every_type() -> None:
    snn, x = copy.deepcopy(subject()[1]).double(), images(2)
    logits = simulate(snn, x.double(), time_steps=2).logits
    assert logits.dtype is torch.float64
    assert torch.equal(simulate(snn, x, time_steps=2).logits, logits)


def test_what_was_set_before_is_set_again_behind_an_error() -> None:
    def fail() -> None:
        with in_float32():
            assert torch.get_default_dtype() is torch.float32
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError

    with Defaults(torch.float64, torch.bfloat16):
        with pytest.raises(KeyError):
            fail()
        assert torch.get_default_dtype() is torch.float64
        assert torch.is_autocast_enabled("cpu")
