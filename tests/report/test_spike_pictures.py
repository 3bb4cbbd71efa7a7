"""Rasters, rates and potentials: drawn are the numbers of the run; what is missing is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import images as made_up
from networks import quantized

import mt_convert as mt
from mt_convert.errors import SpecError

T, BATCH = 6, 2


def recorded() -> Any:
    """Spikes and potentials of two layers, made up: neuron 3 of image 1 takes back in step 5."""
    spikes = torch.zeros(T, BATCH, 2, 4)
    spikes[1, 1, 0, 3], spikes[4, 1, 0, 3], spikes[2, 0, 1, 1] = 3, -1, 1
    potentials = torch.linspace(-1, 2, T * BATCH * 8).reshape(T, BATCH, 2, 4)
    return SimpleNamespace(
        spikes={"act": spikes, "out": spikes[..., :1, :]},
        potentials={"act": potentials, "out": potentials[..., :1, :]},
        firing_rates={"act": 0.25, "out": 0.125},
    )


def test_a_raster_shows_the_spikes_of_one_image_with_their_signs() -> None:
    run = recorded()
    figure = mt.report.raster(run, "act", image=1)
    shown = figure.axes[0].images[0]
    due = run.spikes["act"][:, 1].reshape(T, 8).T.numpy()
    assert np.array_equal(np.asarray(shown.get_array()), due)
    assert (shown.norm.vmin, shown.norm.vmax) == (-3, 3)
    assert figure.axes[0].get_title() == "act: 3 levels up, 1 down, 8 of 8 neurons"
    assert tuple(figure.axes[1].get_ylim()) == (-3, 3), "the key to the colours"


def test_of_a_large_layer_those_that_fire_are_shown_first() -> None:
    spikes = np.zeros((3, 1, 1000))
    spikes[0, 0, [5, 700]] = 1
    figure = mt.report.raster(SimpleNamespace(spikes={"a": spikes}), "a", neurons=4)
    array = np.asarray(figure.axes[0].images[0].get_array())
    assert array.shape == (4, 3)
    assert array.any(1).sum() == 2
    labels = [item.get_text() for item in figure.axes[0].get_yticklabels()]
    assert {"5", "700"} <= {*labels}


def test_rates_are_those_of_the_run_from_above_in_order() -> None:
    figure = mt.report.rates(recorded())
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.125]
    assert [item.get_text() for item in axes.get_yticklabels()] == ["act", "out"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_a_histogram_holds_every_neuron_of_every_image_behind_the_last_step() -> None:
    run = recorded()
    figure = mt.report.histogram(run)
    assert len(figure.axes) == 2
    last = run.potentials["act"][-1].numpy()
    rest = 100 * ((last >= 0) & (last < 1)).mean()
    assert figure.axes[0].get_title() == f"act: {rest:.1f} % at rest"
    heights = [bar.get_height() for bar in figure.axes[0].patches[1:]]  # the first is the band
    assert sum(heights) == pytest.approx(100)


def test_the_potential_of_a_neuron_is_its_trace_with_its_spikes() -> None:
    run = recorded()
    figure = mt.report.potential(run, "act", 3, image=1)
    trace, up, down = figure.axes[0].lines
    due = run.potentials["act"][:, 1].reshape(T, 8)[:, 3]
    assert np.array_equal(np.asarray(trace.get_ydata()), due.numpy())
    assert list(up.get_xdata()) == [2]
    assert list(down.get_xdata()) == [5]


WRONG = (
    (lambda run: mt.report.raster(run, "atc"), "did you mean act"),
    (lambda run: mt.report.raster(run, "act", image=2), "images 0 to 1"),
    (lambda run: mt.report.raster(run, "act", neurons=0), "whole numbers from 1"),
    (lambda run: mt.report.potential(run, "act", 8), "has neurons 0 to 7"),
    (lambda run: mt.report.potential(run, "act", -1), "has neurons 0 to 7"),
    (lambda run: mt.report.histogram(run, ["act"] * 33), "name some"),
    (lambda run: mt.report.histogram(run, "x"), "is no layer of neurons"),
)


@pytest.mark.parametrize(("draw", "message"), WRONG)
def test_what_is_not_there_is_told(draw: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        draw(recorded())


@pytest.mark.slow
def test_a_run_is_drawn_and_written_as_it_was_simulated(tmp_path: Path) -> None:
    snn = mt.convert(quantized("residual"), ladder=mt.Uniform(3), signed=True)
    shown = made_up(2, seed=2)
    with pytest.raises(SpecError, match="record=True"):
        mt.report.raster(mt.simulate(snn, shown, time_steps=3), "x")
    run = mt.simulate(snn, shown, time_steps=3, record=True)
    layer = next(iter(run.neurons))
    for form in ("png", "pdf", "svg"):
        path = tmp_path / f"raster.{form}"
        mt.report.raster(run, layer, path)
        assert path.stat().st_size > 1000
    mt.report.rates(run, tmp_path / "rates.png")
    mt.report.histogram(run, path=tmp_path / "histogram.png")
    mt.report.potential(run, layer, 0, tmp_path / "potential.png")
    assert len(list(tmp_path.iterdir())) == 6
