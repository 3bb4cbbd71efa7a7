"""The layers of the integer network timed one by one: rows, shares, pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_training import IMAGES, normed, quantized_net

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.experiments.bench import command, layers
from mt_convert.experiments.bench.network import Network
from mt_convert.integer_engine.int8 import int8_layers
from mt_convert.integer_engine.model import integer
from mt_convert.integer_engine.native import build

if (_lacking := build.missing()) is not None:
    pytest.skip(_lacking, allow_module_level=True)


@pytest.fixture(scope="module")
def network() -> Network:
    """A small network, float and quantized."""
    return Network("small", normed(), quantized_net(), IMAGES[:8])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a million multiply-adds a second, that nobody has to measure."""
    monkeypatch.setattr(layers, "measure_machine", lambda _: {"int8_by": "any"})
    monkeypatch.setattr(layers, "product", lambda *_: (lambda: None, 1e6))


@pytest.mark.slow
def test_every_layer_has_a_row_of_its_time_and_of_what_it_does(network: Network) -> None:
    times = layers.time_layers([network], (1, 2), (1, 3), 5)
    cases = {(row.T, row.batch) for row in times.rows}
    assert cases == {(1, 1), (1, 3), (2, 1), (2, 3)}
    macs = {row.layer: row.macs for row in times.rows if row.macs}
    assert sum(macs.values()) == network.size["macs"]
    weighted = {item.name for item in integer(network.spiking(15)).layers}
    assert macs.keys() == weighted
    for _, rows in layers.groups(times):
        assert sum(row.share for row in rows) == pytest.approx(1, abs=0.01)
        assert [row.lost for row in rows] == sorted((row.lost for row in rows), reverse=True)
        assert all(row.microseconds > 0 for row in rows if row.macs)
        exact = int8_layers.missing() is None
        assert all(bool(row.library) == (exact and row.macs > 0) for row in rows)
    assert layers.layer_times_from_json(json.loads(json.dumps(times.to_json()))) == times


@pytest.mark.slow
def test_times_are_of_the_run_that_gives_the_logits_of_others(network: Network) -> None:
    model = integer(network.spiking(15), backend="native")
    images = network.images(2, torch.Generator().manual_seed(3))
    before = model(images)
    assert {note.kind for note, _ in model.layer_times(images)} >= {"image"}
    assert torch.equal(model(images), before)
    with pytest.raises(SpecError, match="backend torch; only the native kernels"):
        integer(network.spiking(15), backend="torch").layer_times(images)


def test_a_profile_sets_runs_side_by_side_by_kind_of_layer(network: Network) -> None:
    times = layers.time_layers([network], (1,), (1, 2), 5)
    page = layers.profile({"before": times, "now": times})
    assert page.count("## small, T = 1") == 2
    for row in times.rows:
        assert f"| {row.kind} | " in page
    less = layers.LayerTimes(times.rows[:1], times.threads, times.int8_macs_per_s)
    assert f"| {times.rows[0].kind} | –" not in layers.profile({"before": less, "now": less})
    assert " | – | – | 0 % | – |" in layers.profile({"before": times, "now": less})


def test_pages_say_where_the_time_goes(network: Network, tmp_path: Path) -> None:
    layers.publish(layers.time_layers([network], (1,), (1,), 5), tmp_path)
    page = (tmp_path / "layers.md").read_text()
    assert f"small, T = 1, n = {network.levels}, batch 1" in page
    assert "by kind, with the share of the limit" in page
    console = Console(width=80, record=True)
    command.show_layers(tmp_path, console)
    assert "all layers:" in console.export_text()
    assert command.plain(tmp_path, "csv", "layers").startswith("network,T,n,batch,layer,kind")
    assert json.loads(command.plain(tmp_path, "json", "layers"))["schema"] == layers.SCHEMA
    with pytest.raises(CheckpointError, match="not a file of times by layer"):
        layers.layer_times_from_json({"schema": "other"})
