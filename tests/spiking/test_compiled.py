"""The compiled simulation computes what `simulate` does."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, images, quantized, shape_of

from mt_convert.errors import DataError, SpecError
from mt_convert.neurons.ladder import Binary, PowerOfTwo, Uniform
from mt_convert.spiking.compiled import CompiledSimulation
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, 2),
    "uniform": ({"ladder": Uniform(3), "signed": True}, 5),
    "binary": ({"ladder": Binary(2)}, 3),
    "power_of_two": ({"ladder": PowerOfTwo(4), "signed": True}, 4),
    "every_step": ({"ladder": Uniform(3), "presentation": "every_step"}, 5),
}


CASES = dict.fromkeys(
    [*((name, "uniform") for name in NETWORKS), *(("residual", way) for way in WAYS)]
)


@pytest.mark.parametrize(
    ("name", "way", "unrolled"),
    [
        pytest.param(
            *(name, way, unrolled),
            marks=pytest.mark.slow if name == "residual" else pytest.mark.long,
        )
        for name, way in CASES
        for unrolled in (False, True)
    ],
)
def test_its_steps_are_those_of_the_simulation(name: str, way: str, unrolled: bool) -> None:
    options, steps = WAYS[way]
    snn, batch = convert(quantized(name), **options), images(4, shape_of(name), seed=21)
    fast = CompiledSimulation(snn, backend="eager", unrolled=unrolled)
    for turn in (batch, batch.flip(0)):  # a run leaves no state
        wanted, run = simulate(snn, turn, time_steps=steps), fast(turn, time_steps=steps)
        assert torch.equal(run.logits, wanted.logits)
        assert run.neurons == wanted.neurons
        for layer, total in wanted.totals.items():
            assert torch.equal(run.totals[layer], total)
            assert torch.equal(run.spike_counts[layer], wanted.spike_counts[layer])


@pytest.mark.parametrize(
    ("way", "unrolled"),
    [
        pytest.param("uniform", False, marks=pytest.mark.slow),
        pytest.param("every_step", True, marks=pytest.mark.long),
    ],
)
def test_compiled_it_is_the_same_but_for_rounding(way: str, unrolled: bool) -> None:
    options, steps = WAYS[way]
    snn, batch = convert(quantized("residual"), **options), images(16, seed=22)
    fast = CompiledSimulation(snn, unrolled=unrolled)
    wanted, run = (f(batch, time_steps=steps) for f in (_plain(snn), fast))
    for layer, total in wanted.totals.items():
        assert float((run.totals[layer] == total).float().mean()) > 0.999
    assert torch.allclose(run.logits[0], wanted.logits[0], atol=1e-4)
    assert run.firing_rate == pytest.approx(wanted.firing_rate, rel=1e-3)


def _plain(snn: Any) -> Any:
    return lambda batch, time_steps: simulate(snn, batch, time_steps=time_steps)


@pytest.mark.slow
@pytest.mark.parametrize(("unrolled", "graphs"), [(False, 1), (True, 2)])
def test_steps_are_one_graph_compiled_once_or_once_for_each_T(unrolled: bool, graphs: int) -> None:
    snn = convert(quantized("residual"), ladder=Uniform(3), presentation="every_step")
    sizes = []

    def backend(graph: Any, inputs: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    fast = CompiledSimulation(snn, backend=backend, unrolled=unrolled)  # type: ignore[arg-type]
    for steps in (3, 6, 3):
        fast(images(4, seed=23), time_steps=steps)
    assert len(sizes) == graphs  # the loop over steps is within it, or there would be more
    assert not unrolled or sizes[1] > 1.5 * sizes[0]


@pytest.mark.slow
def test_it_warns_as_the_simulation_does_and_of_nothing_else() -> None:
    snn = convert(quantized("residual"))
    snn.report = replace(snn.report, calibrated_T=2)
    fast = CompiledSimulation(snn, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(images(2), time_steps=2)
    with pytest.warns(UserWarning, match="calibrated for T = 2 and runs for T = 1") as seen:
        fast(images(2), time_steps=1)
    assert [Path(item.filename) for item in seen] == [Path(__file__)]
    with pytest.warns(UserWarning, match="normalise them as in training"):
        fast(1e6 * images(2), time_steps=2)


@pytest.mark.slow
def test_wrong_requests_say_what_is_allowed() -> None:
    with pytest.raises(SpecError, match=r"not a QuantizedModel: convert\(qann\)"):
        CompiledSimulation(quantized("residual"))  # type: ignore[arg-type]
    waiting = convert(quantized("residual"), ladder=Uniform(3), whole_window=True)
    with pytest.raises(SpecError, match="whole_window=False"):
        CompiledSimulation(waiting)
    fast = CompiledSimulation(convert(quantized("residual")), backend="eager")
    with pytest.raises(SpecError, match="whole numbers from 1"):
        fast(images(2), time_steps=0)
    with pytest.raises(DataError):
        fast(images(2)[:, :, :4], time_steps=1)
