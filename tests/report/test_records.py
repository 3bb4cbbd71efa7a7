"""Networks, runs and reports as tables: short in a console, whole in a file."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mt_convert.errors import SpecError
from mt_convert.evaluation.energy.measure import energy
from mt_convert.evaluation.errors.layer_errors import layer_errors
from mt_convert.neurons.ladder import Uniform
from mt_convert.quantization.quantize import quantize
from mt_convert.report.records import SHOWN, html_of
from mt_convert.spiking.convert import convert
from mt_convert.spiking.simulate import simulate

LONGEST = 400


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    """One of each, of a small network."""
    torch.manual_seed(0)
    images = torch.rand(8, 1, 6, 6)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    qann = quantize(net, 4, calibration=images)
    snn = convert(qann, ladder=Uniform(3), signed=True)
    return {
        "quantized": qann,
        "spiking": snn,
        "run": simulate(snn, images, time_steps=4),
        "report": snn.report,
        "energy": energy(snn, images, time_steps=(1, 4)),
        "errors": layer_errors({3: snn}, [images], time_steps=(1, 4), reference=convert(qann)),
    }


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quantized", ("weights: 2 of", "L = 15", "images 1x6x6")),
        ("spiking", ("1 layer of neurons", "Uniform(n=3)", "presented once")),
        ("run", ("T=4", "images=8", "events per neuron and step")),
        ("report", ("1 of 2 weighted layers", "1 analog")),
        ("energy", ("8 images", "T=4")),
        ("errors", ("8 images", "(3, 1), (3, 4)")),
    ],
)
def test_what_a_console_prints_is_short_and_says_what_it_is(
    things: dict[str, Any], name: str, words: tuple[str, ...]
) -> None:
    text = repr(things[name])
    assert len(text) < LONGEST
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("name", ["run", "report", "energy", "errors"])
def test_the_rows_are_the_same_in_a_file_in_a_frame_and_as_records(
    things: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = things[name]
    records = thing.records()
    assert records
    text = thing.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == text
    assert len(list(csv.DictReader(io.StringIO(text)))) == len(records)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert thing.to_frame() == records
    assert thing._repr_html_().count("<tr>") == 1 + min(len(records), SHOWN)


def test_without_pandas_it_is_said_what_to_do(
    things: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SpecError, match=r"pip install pandas, or take records\(\)"):
        things["run"].to_frame()


def test_rates_of_layers_are_events_by_neurons_steps_and_images(things: dict[str, Any]) -> None:
    run = things["run"]
    (name,) = run.spike_counts
    assert run.firing_rates[name] == float(run.spike_counts[name].sum()) / (64 * 4 * 8)
    assert run.firing_rates[name] == pytest.approx(run.firing_rate)


def test_a_notebook_shows_the_report_of_a_network_and_only_so_many_rows(
    things: dict[str, Any],
) -> None:
    assert "direct coding" in things["spiking"]._repr_html_()
    shown = html_of([{"a": k} for k in range(SHOWN + 5)], "many")
    assert shown.count("<tr>") == SHOWN + 1
    assert "and 5 more" in shown
