"""Half-way values that go up: in the quantizer, its neuron and every engine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from dyadic import dyadic_images
from function_networks import Net
from networks import dense, eighths, levels_of, network
from torch import Tensor

from mt_convert.export.verbs import tables
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native import build
from mt_convert.neurons.ladder import Radix
from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec, Rounding, Scale
from mt_convert.spiking.archive import load, save
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate
from mt_convert.spiking.single_spikes.spike_by_spike import spike_by_spike
from mt_convert.training.finetune.finetune import FinetuneSpec, finetune
from mt_convert.training.spec import TrainSpec

NETWORKS = {
    "dense": dense,
    "residual": lambda: network("residual"),
    "clamps": lambda: network("clamps"),
}


@cache
def dyadic_network(name: str, rounding: Rounding) -> QuantizedModel:
    """Weights, images and steps on one grid, so that half-way values are common."""
    spec = QuantSpec(4, 3, scale=Scale.POWER_OF_TWO, rounding=rounding, batch_norm="fold")
    return quantize(eighths(NETWORKS[name]()), spec, calibration=dyadic_images(8))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("clip", [(0.0, float("inf")), (0.0, 3.0), (float("-inf"), float("inf"))])
def test_a_quantizer_takes_ties_to_the_upper_level(
    clip: tuple[float, float], training: bool
) -> None:
    from mt_convert.quantization.activations.formula import clip_formula

    below = 7 if clip[0] < 0 else None
    act = QuantAct(4, clip, Scale.LEARNED, False, below=below, formula=clip_formula(*clip))
    assert act.take_step_(torch.tensor(0.5), below)
    act.train(training)
    x = torch.arange(-48, 48) / 16
    low, high = act.level_bounds
    due = torch.floor(x.clamp(*clip) / 0.5 + 0.5).clamp(low, high) * 0.5
    assert torch.equal(act(x), due)
    assert not torch.equal(due, torch.round(x.clamp(*clip) / 0.5).clamp(low, high) * 0.5)
    assert high == (6 if clip[1] == 3 else 8 if below else 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_round_half_up_are_exact_in_every_engine(name: str, tmp_path: Path) -> None:
    qann, images = dyadic_network(name, Rounding.HALF_UP), dyadic_images(4)
    levels, logits = levels_of(qann, images)
    even, _ = levels_of(dyadic_network(name, Rounding.HALF_EVEN), images)
    assert any(not torch.equal(levels[key], even[key]) for key in even), "no tie was met"
    snn = convert(qann, verify=images, literal="all")
    assert snn.report.verdict is not None
    assert snn.report.verdict.exact_t1
    save(snn, tmp_path)
    for net in (snn, load(tmp_path)):
        assert torch.equal(simulate(net, images, time_steps=1).logits[-1], logits)
    assert torch.equal(spike_by_spike(snn, images, time_steps=1).logits[-1], logits)
    digits = convert(qann, ladder=Radix(1), whole_window=True)
    assert torch.equal(simulate(digits, images, time_steps=3).logits[-1], logits)
    for backend in ("reference", "torch", *["native"] * (build.missing() is None)):
        assert_totals(integer(snn, backend=backend).run(images, 1, totals=True), levels, logits)
        assert torch.equal(integer(digits, backend=backend)(images, 3), logits)


def assert_totals(run: object, levels: dict[str, Tensor], logits: Tensor) -> None:
    """The engine's levels and logits are the quantizers'."""
    assert torch.equal(run.logits[-1], logits)  # type: ignore[attr-defined]
    totals = run.totals  # type: ignore[attr-defined]
    assert all(torch.equal(totals[key].float(), level) for key, level in levels.items())


@pytest.mark.slow
def test_what_rounds_half_up_leaves_and_trains_on(tmp_path: Path) -> None:
    qann, images = dyadic_network("dense", Rounding.HALF_UP), dyadic_images(4)
    snn = convert(qann)
    tables(snn, tmp_path / "tables")  # runs what it wrote, next to every threshold
    batches = [(images, torch.tensor([0, 1, 2, 0]))]
    spec = TrainSpec(epochs=1, batch_size=4)
    tuned = finetune(
        snn, (batches, batches), FinetuneSpec(time_steps=2), spec, tmp_path / "tuned", classes=3
    )
    assert torch.isfinite(simulate(tuned.snn, images, time_steps=2).logits).all()


def test_functions_round_half_up_too_and_the_image_does_not() -> None:
    net = Net(lambda net, x: torch.nn.functional.hardswish(x)).eval()
    spec = QuantSpec(4, 4, rounding="half_up")  # type: ignore[arg-type]
    qann = quantize(net, spec, calibration=torch.randn(8, 2, 6, 6))
    acts = [layer for layer in qann.layers.modules() if isinstance(layer, QuantAct)]
    assert [act.formula is None for act in acts if act.encodes_input] == [True]
    assert all(act.formula.half_up for act in acts if not act.encodes_input)  # type: ignore[union-attr]
    assert convert(qann, verify=torch.randn(2, 2, 6, 6)).report.verdict.exact_t1  # type: ignore[union-attr]


@pytest.mark.slow
def test_off_ties_both_roundings_are_one_network() -> None:
    images = torch.randn(2, 2, 8, 8)
    spec = QuantSpec(4, 4)
    even, up = (
        quantize(network("residual"), item, calibration=dyadic_images(8))
        for item in (spec, QuantSpec(4, 4, rounding=Rounding.HALF_UP))
    )
    assert torch.equal(even(images), up(images))
    assert not up.functions
