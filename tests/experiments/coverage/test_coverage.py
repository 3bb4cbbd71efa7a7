"""Sweeps over timm's registry: bounds, crashes, resuming, the table, the pages, the command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from odd_networks import _Odd
from paths import HELPERS
from PIL import Image
from torch import nn

from mt_convert.errors import CheckpointError, OutputError, SpecError
from mt_convert.experiments.coverage import sweep as sweeps
from mt_convert.experiments.coverage.pages import page, summary, write_pages
from mt_convert.experiments.coverage.registry import (
    Architecture,
    choose,
    count_parameters,
    families,
    matching,
    parameter_counts,
)
from mt_convert.experiments.coverage.rows import (
    CoverageRow,
    Extent,
    Settings,
    Table,
    read_table,
)
from mt_convert.experiments.coverage.trial import extent_of, trial
from mt_convert.experiments.models.lived_in import TrialError, build, live_in_
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.report.pictures import PAGE
from mt_convert.spiking.convert import convert
from mt_convert.system.bounded import Limits, Note, Outcome, Task, run_bounded

SETTINGS = Settings(modules=("odd_networks",))
FAMILY = "odd_networks"
BAD = ("odd_unsupported", "odd_failing", "odd_leaving", "odd_crashing")


def odd(*names: str) -> list[Architecture]:
    return [Architecture(name, FAMILY) for name in names]


def sweep_in(folder: Path, **limits: float) -> sweeps.Sweep:
    return sweeps.Sweep(folder, SETTINGS, Limits(**{"workers": 2, **limits}))  # type: ignore[arg-type]


def no_note(found: dict[str, Any]) -> None:
    """Nobody listens."""


# ---------------------------------------------------------------------------- bounds on a process


def answer(value: int, *, note: Note) -> int:
    sys.stdout.write("a line for the log\n")
    sys.stdout.flush()
    note({"stage": "thinking"})
    return value + 1


def leave(*, note: Note) -> None:
    note({"stage": "leaving", "seen": 3})
    os._exit(7)


def refuse(*, note: Note) -> None:
    raise ValueError("a reason\nand more")


def sleep(*, note: Note) -> None:
    note({"stage": "sleeping"})
    time.sleep(600)


def grow(*, note: Note) -> None:
    blocks = []
    while True:
        blocks.append(b"x" * 2**26)
        time.sleep(0.02)


def outcomes(folder: Path, calls: dict[str, tuple[Any, ...]], limits: Limits) -> dict[str, Outcome]:
    tasks = [
        Task(name, function, arguments, folder / f"{name}.txt")
        for name, (function, *arguments) in calls.items()  # type: ignore[assignment]
    ]
    return {item.key: item for item in run_bounded(tasks, limits, sweeps.PRELOAD)}


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server has imported what children need before any limit of seconds counts."""
    folder = tmp_path_factory.mktemp("server")
    assert outcomes(folder, {"one": (answer, 1)}, Limits())["one"].value == 2


@pytest.mark.slow
def test_values_errors_and_crashes_are_outcomes_and_none_stops_the_rest(tmp_path: Path) -> None:
    calls = {"leave": (leave,), "refuse": (refuse,), "one": (answer, 1), "two": (answer, 2)}
    found = outcomes(tmp_path, calls, Limits(workers=2))
    assert (found["one"].value, found["two"].value) == (2, 3)
    assert found["one"].error is None
    assert found["leave"].error == "ended with exit code 7 and no result during leaving"
    assert found["leave"].noted["seen"] == 3
    assert found["refuse"].error == "ValueError: a reason"
    assert (tmp_path / "one.txt").read_text() == "a line for the log\n"
    assert "and more" in (tmp_path / "refuse.txt").read_text()


@pytest.mark.long
def test_a_process_that_takes_too_long_or_too_much_is_stopped_and_the_limit_named(
    tmp_path: Path,
) -> None:
    assert (
        outcomes(tmp_path, {"sleep": (sleep,)}, Limits(seconds=9))["sleep"].error
        == "stopped at the time limit of 0.15 min during sleeping"
    )
    grown = outcomes(tmp_path, {"grow": (grow,)}, Limits(memory=1.5))["grow"]
    assert grown.error == "stopped at the memory limit of 1.5 GiB"
    assert 1.5 * 1024 < grown.memory < 4 * 1024


@pytest.mark.slow
def test_closing_the_iterator_ends_the_processes(tmp_path: Path) -> None:
    tasks = [
        Task("one", answer, (1,), tmp_path / "a.txt"),
        Task("sleep", sleep, (), tmp_path / "b.txt"),
    ]
    running = run_bounded(tasks, Limits(workers=2), sweeps.PRELOAD)
    assert next(running).key == "one"
    child = running.gi_frame.f_locals["running"][0].process
    running.close()
    assert child.exitcode is not None


# ------------------------------------------------------------------------------------------ trials


@pytest.mark.slow
def test_branches_behind_tiny_gains_are_opened_and_norms_see_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(_Odd(), nn.BatchNorm1d(5), nn.Linear(5, 5))
    nn.init.zeros_(net[2].weight)
    before = net[0].conv.weight.clone()
    images = torch.randn(4, 3, 8, 8, generator=generator)
    live_in_(net, images, generator)
    gamma = net[0].gamma.detach()
    assert 0.2 <= float(gamma.min()) < float(gamma.max()) <= 0.8
    assert torch.equal(net[0].conv.weight, before)  # random already
    assert float(net[2].weight.detach().std()) > 0.1
    assert len(set(net[1].weight.tolist())) == 5
    with torch.no_grad():
        torch.testing.assert_close(net[1].running_mean, net[0](images).mean(0))
    assert not any(module.training for module in net.modules())
    assert net[1].momentum == 0.1


@pytest.mark.slow
def test_the_same_seed_builds_the_same_network_and_leaves_the_caller_s_numbers_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (build("odd_fine", size=None, images=2, seed=3) for _ in range(2))
    other = build("odd_fine", size=None, images=2, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.model(first.images), second.model(second.images))
    assert not torch.equal(first.images, other.images)


def test_the_size_is_the_smallest_that_runs_or_the_one_asked_for() -> None:
    assert build("test_vit", size=None, images=2, seed=0).images.shape[-1] == 64
    assert build("test_vit", size=96, images=2, seed=0).images.shape[-1] == 96
    assert build("test_resnet", size=40, images=2, seed=0).images.shape[-1] == 40
    with pytest.raises(TrialError, match="runs at no size of 50: "):
        build("test_vit", size=50, images=2, seed=0)
    with pytest.raises(
        TrialError, match=r"no size of 64 to 256, or its default: 224: .*this network"
    ):
        build("odd_failing", size=None, images=2, seed=0)


@pytest.mark.slow
def test_a_trial_measures_every_column() -> None:
    noted: list[dict[str, Any]] = []
    found = trial(Architecture("odd_fine", FAMILY), SETTINGS, note=noted.append)
    row = CoverageRow.from_json({"architecture": "odd_fine", "family": FAMILY, **found})
    assert row.proven
    assert row.error is None
    assert (row.input_size, row.params) == (64, 4 * 27 + 4 + 4 + 4 * 5 + 5)
    conv, head = 32 * 32 * 4 * 27, 4 * 5
    assert row.macs == conv + head
    assert row.spike_fed_mac_share == head / (conv + head)
    assert len(row.not_spike_fed) == 1
    assert "100.0 % of MACs) fed by the encoded image" in row.not_spike_fed[0]
    assert sum(row.analog.values()) == 1
    assert row.spiking_layers >= 1
    assert row.silent_layers == 0
    assert row.settling_t is not None
    assert row.thresholds is not None
    assert row.time_steps is not None
    assert (row.radix_exact, row.radix_steps, row.radix_differs) == (True, 4, [])
    assert row.settling_t <= 4 <= row.time_steps  # one layer: four times a quarter of its levels
    stages = ("building", "quantizing", "converting and verifying", "counting", "digits")
    assert [item["stage"] for item in noted] == [*stages, "without ladders", "ending"]
    assert row.extent == row.extent_without_ladders  # it has no function
    assert row.extent is not None
    assert row.extent.first_layer_only
    assert row.extent.all_integer
    assert row.extent.integer_mac_share == 1


@pytest.mark.slow
def test_a_trial_names_the_operators_that_are_in_the_way() -> None:
    found = trial(Architecture("odd_unsupported", FAMILY), SETTINGS, note=no_note)
    assert found["converted"] is False
    assert found["params"] == 4 * 27 + 4 + 4 + 4 * 5 + 5
    assert found["error"].startswith("UnsupportedLayerError: ")
    assert "\n" not in found["error"]
    assert "aten.sort" in found["error"]
    assert "rules={" in found["error"]


# ------------------------------------------------------------------------------------------ sweeps


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[sweeps.Sweep, Table]:
    """A sweep over one network that converts and four that do not."""
    sweep = sweep_in(tmp_path_factory.mktemp("sweep"))
    return sweep, sweeps.run(sweep, odd(*BAD, "odd_fine"))


@pytest.mark.slow
def test_failures_and_crashes_are_rows_that_name_their_cause(
    swept: tuple[sweeps.Sweep, Table],
) -> None:
    sweep, table = swept
    rows = {row.architecture: row for row in table.rows}
    assert set(rows) == {*BAD, "odd_fine"}
    assert rows["odd_fine"].proven
    assert not any(rows[name].converted for name in BAD)
    assert str(rows["odd_unsupported"].error).startswith("UnsupportedLayerError")
    assert "ValueError: this network" in str(rows["odd_failing"].error)
    assert rows["odd_leaving"].error == "ended with exit code 3 and no result during building"
    assert rows["odd_crashing"].error == "crashed with SIGSEGV during building"
    assert rows["odd_unsupported"].input_size == 64
    assert "Traceback" in (sweep.out / "logs" / "odd_unsupported.txt").read_text()
    assert not (sweep.out / "logs" / "odd_fine.txt").exists()


@pytest.mark.slow
def test_the_table_is_stored_with_its_settings_and_reads_back(
    swept: tuple[sweeps.Sweep, Table],
) -> None:
    sweep, table = swept
    path = sweep.out / "results.json"
    stored = json.loads(path.read_text())
    assert stored["schema"] == "mt_convert.coverage/1"
    assert {
        *("architecture", "family", "params", "converted", "spiking_layers", "analog", "exact_t1"),
        *("spike_fed_mac_share", "settling_t", "seconds", "error"),
    } <= set(stored["rows"][0])
    assert read_table(path) == table
    assert table.settings["weight_bits"] == SETTINGS.weight_bits
    assert set(table.settings["versions"]) == {"mt-convert", "torch", "timm", "brevitas"}
    assert table.known["families"] >= 98


@pytest.mark.long
def test_a_network_beyond_its_bounds_is_a_row_that_names_the_bound(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, memory=1.5, seconds=300)
    (row,) = sweeps.run(sweep, odd("odd_hungry")).rows
    assert row.error == "stopped at the memory limit of 1.5 GiB during building"
    assert row.memory is not None
    assert row.memory > 1.5 * 1024
    rows = sweeps.run(sweep_in(tmp_path, seconds=15), odd("odd_slow")).rows
    assert rows[0] == row
    assert rows[1].error == "stopped at the time limit of 0.25 min during building"
    assert rows[1].seconds >= 15


class _Recorder:
    """Stands for the processes: every network that it is asked to try converts."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def __call__(
        self, tasks: Iterable[Task], limits: Limits, preload: Iterable[str]
    ) -> Generator[Outcome, None, None]:
        for task in tasks:
            self.tried.append(task.key)
            task.log.parent.mkdir(parents=True, exist_ok=True)
            task.log.touch()
            yield Outcome(task.key, value={"converted": True, "exact_t1": True})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> _Recorder:
    made = _Recorder()
    monkeypatch.setattr(sweeps, "run_bounded", made)
    return made


def test_a_sweep_goes_on_where_it_was_and_tries_failures_again_when_asked(
    tmp_path: Path, recorder: _Recorder
) -> None:
    sweep = sweep_in(tmp_path)
    first = sweeps.run(sweep, odd("odd_fine", "odd_slow"))
    path = tmp_path / "rows" / "odd_slow.json"
    entry = json.loads(path.read_text())
    entry["row"] |= {"converted": False, "error": "stopped at the time limit of 1 min"}
    path.write_text(json.dumps(entry))
    (tmp_path / "results.json").unlink()
    (tmp_path / "rows" / "odd_large.json").write_text('{"settings": {')  # damaged
    recorder.tried.clear()
    second = sweeps.run(sweep, odd("odd_fine", "odd_slow", "odd_large"))
    assert recorder.tried == ["odd_large"]
    assert len(first.rows), len(second.rows) == (2, 3)
    assert read_table(tmp_path / "results.json") == second
    recorder.tried.clear()
    sweeps.run(sweep, odd("odd_fine", "odd_slow", "odd_large"), again=True)
    assert recorder.tried == ["odd_slow"]
    recorder.tried.clear()
    other = dataclasses.replace(sweep, settings=dataclasses.replace(SETTINGS, size=96))
    assert len(sweeps.run(other, odd("odd_fine")).rows) == 1
    assert recorder.tried == ["odd_fine"]


def test_rows_found_before_a_stop_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(tasks: Iterable[Task], *rest: Any) -> Generator[Outcome, None, None]:
        yield Outcome(next(iter(tasks)).key, value={"converted": True})
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_bounded", stopped)
    sweep = sweep_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(sweep, odd("odd_fine", "odd_slow"))
    assert set(sweeps.stored_rows(sweep)) == {"odd_fine"}
    assert [row.architecture for row in read_table(tmp_path / "results.json").rows] == ["odd_fine"]


@pytest.mark.slow
def test_of_each_family_the_smallest_comes_first_then_the_names_given_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "parameter_counts", dict)
    sweep = sweeps.Sweep(tmp_path, Settings(), Limits(workers=2))
    names = [item.name for item in sweeps.plan(sweep, ["starnet", "test_resnet"], every=False)]
    assert names == ["starnet_s050", "test_resnet"]
    everything = sweeps.plan(sweep, ["starnet"], every=True)
    assert [item.name for item in everything] == [
        *("starnet_s050", "starnet_s100", "starnet_s150", "starnet_s1", "starnet_s2"),
        *("starnet_s3", "starnet_s4"),
    ]
    assert json.loads((tmp_path / "sizes.json").read_text())["params"]["starnet_s4"] > 7_000_000


# ----------------------------------------------------------------------------------- the registry


def test_the_sizes_that_come_with_the_package_are_timm_s() -> None:
    stored = parameter_counts()
    names = ["test_resnet", "starnet_s4", "test_vit"]
    assert count_parameters(names, note=no_note) == {name: stored[name] for name in names}
    known = {name for group in families().values() for name in group}
    assert len(known & set(stored)) >= 0.9 * len(stored)
    assert count_parameters(["no_such_network"], note=no_note) == {"no_such_network": None}


def test_the_registry_has_every_family_and_architecture_of_timm_once() -> None:
    known = families()
    names = [name for group in known.values() for name in group]
    assert len(known) >= 90
    assert len(names) == len(set(names)) >= 1000
    assert "resnet18" in known["resnet"]


def test_patterns_match_architectures_and_families_and_misspelt_ones_are_all_told() -> None:
    known = {"resnet": ["resnet18", "wide_resnet50_2"], "vgg": ["vgg11", "vgg13"]}
    assert matching([], known) == known
    assert matching(["vgg"], known) == {"vgg": ["vgg11", "vgg13"]}
    assert matching(["*11", "resnet1?"], known) == {"resnet": ["resnet18"], "vgg": ["vgg11"]}
    with pytest.raises(SpecError) as caught:
        matching(["vgg11", "resnt18", "%"], known)
    assert "vgg11 " not in str(caught.value)
    assert "resnt18  matches nothing  did you mean resnet18" in str(caught.value)
    assert "timm.list_models()" in str(caught.value)


def test_an_architecture_of_unknown_size_comes_last() -> None:
    found = {"a": ["a1", "a2", "a3"], "b": ["b1"]}
    params = {"a1": None, "a2": 7, "a3": 5}
    chosen = [item.name for item in choose(found, params, lambda name: True)]
    assert chosen == ["a3", "b1", "a2", "a1"]


# -------------------------------------------------------------------------------------- the pages

GOOD = CoverageRow(
    "a1",
    "alpha",
    params=1000,
    input_size=64,
    converted=True,
    spiking_layers=7,
    spike_fed_mac_share=0.99,
    analog={"softmax": 2},
    exact_t1=True,
    settling_t=3,
)
LOW = dataclasses.replace(
    GOOD, architecture="a2", spike_fed_mac_share=0.9499, not_spike_fed=["stem (Conv2d) image"]
)
WRONG = dataclasses.replace(
    GOOD, architecture="b1", family="beta", exact_t1=False, differs=["layer9"]
)
RESTLESS = dataclasses.replace(
    GOOD, architecture="g1", family="gamma", settling_t=None, thresholds=8, time_steps=32
)
FAILED = CoverageRow("d1", "delta", error="TrialError: runs|not")


def table(*rows: CoverageRow) -> Table:
    return Table(
        {"limits": {"memory": 8, "seconds": 600}}, {"families": 98, "architectures": 1371}, rows
    )


def section(text: str, title: str) -> str:
    """A section of a page, without the others."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_summary_counts_families_only_where_everything_tried_is_exact() -> None:
    lines = summary(table(GOOD, LOW, WRONG, RESTLESS, FAILED))
    assert lines == [
        "4 of 98 families and 5 of 1,371 architectures of timm's registry were tried.",
        "2 of 4 families (50.0 %) convert, exact at T = 1, with every architecture tried.",
        "4 of 5 architectures (80.0 %) convert, 3 of these are exact at T = 1.",
        "3 of 4 converted architectures have 95 % or more of their MACs fed by spikes.",
    ]
    digits = dataclasses.replace(GOOD, radix_exact=True, radix_steps=4)
    wrong = dataclasses.replace(digits, radix_exact=False, radix_differs=["layer3"])
    assert summary(table(digits, wrong))[4:] == [
        "1 of 2 converted architectures are exact in digits with one threshold, in windows of "
        "T = 4."
    ]
    assert "differs: layer3" in section(page(table(digits, wrong)), "Not exact in digits")
    many = [dataclasses.replace(GOOD, family=str(count)) for count in range(2999)]
    assert "2999 of 3000 families (99.9 %)" in summary(table(*many, FAILED))[1]


def test_the_page_lists_everything_that_is_short_of_the_aim_with_its_reason() -> None:
    text = page(table(GOOD, LOW, WRONG, RESTLESS, FAILED))
    assert "| d1 | delta | – | TrialError: runs\\|not |" in section(text, "Not converted")
    assert "| b1 | beta | 64 | differs: layer9 |" in section(text, "Converted, not exact at T = 1")
    restless = section(text, "Exact at T = 1, not settled with few thresholds")
    assert "| g1 | gamma | 64 | n = 8: not within 32 steps |" in restless
    low = section(text, "Less than 95 % of MACs fed by spikes")
    assert "| a2 | alpha | 64 | 94.9 %: stem (Conv2d) image |" in low
    assert "a1" not in low
    assert "| softmax | 4 | 8 |" in section(text, "Analog operators")
    assert "| alpha | 2 | 2 | 2 | 3 | 7 | 95.0–99.0 | a1 | softmax |" in text
    assert section(page(table(GOOD)), "Not converted").strip() == "None."


@pytest.mark.slow
def test_functions_as_ladders_leave_fewer_analog_operators_and_real_numbers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kept, ladders = (
        extent_of(convert(quantize(net, QuantSpec(8, 4, functions=word), calibration=images)))
        for word in ("analog", "ladder")
    )
    assert (kept.analog, kept.real) == ({"Conv2d": 1, "silu": 1}, {"silu": 1})
    assert (kept.beside_first, kept.integer_mac_share) == ({"silu": 1}, 1)
    assert (ladders.analog, ladders.real, ladders.first_layer_only) == ({"Conv2d": 1}, {}, True)
    assert (kept.all_integer, ladders.all_integer) == (False, True)


def test_the_page_says_what_functions_as_ladders_changed() -> None:
    after = Extent({"Conv2d": 1, "amax": 1}, {"amax": 1}, 0.9, 1.0)
    kinds = {"amax": 1, "gelu": 4}
    before = Extent({"Conv2d": 1, **kinds}, kinds, 0.5, 0.75, {"gelu": 4})
    row = dataclasses.replace(GOOD, extent=after, extent_without_ladders=before)
    assert summary(table(row, LOW))[4] == (
        "Functions as ladders, tried on 1: in 1 nothing but the first layer and maxima is analog "
        "(0 with analog functions), 1 are whole numbers throughout (0)."
    )
    text = section(page(table(row, LOW)), "Functions as ladders")
    assert "| analog operators | 6 | 2 |" in text
    assert "| operators on real numbers | 4 | 0 |" in text
    assert "| MACs fed by spikes, mean | 50.0 % | 90.0 % |" in text
    line = "| a1 | Conv2d 1, amax 1, gelu 4 | Conv2d 1, amax 1 | 50.0 → 90.0 | 75.0 → 100.0 |"
    assert line in text
    assert "Functions as ladders" not in page(table(LOW))


@pytest.mark.slow
def test_pages_and_picture_come_from_the_stored_table_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(
        json.dumps(table(GOOD, LOW, WRONG, RESTLESS, FAILED).to_json())
    )
    write_pages(read_table(tmp_path / "results.json"), tmp_path / "pages")
    folder = tmp_path / "pages"
    assert "families.png" in (folder / "README.md").read_text()
    assert (folder / "architectures.md").read_text().count("| alpha |") == 2
    with Image.open(folder / "families.png") as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**16) or ()}
    assert width > 300
    assert height > 150
    assert (0xF4, 0xA2, 0x61) in colours  # the family of which nothing converts
    assert (folder / "families.pdf").read_bytes()[:4] == b"%PDF"
    width_of = re.compile(r'width="([0-9.]+)pt"')
    found = width_of.search((folder / "families.svg").read_text())
    assert found is not None
    assert float(found[1]) <= 72 * PAGE
    write_pages(table(GOOD), folder)
    with Image.open(folder / "families.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**16) or ()}
    assert (0xF4, 0xA2, 0x61) not in colours


def test_another_file_is_refused_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"schema": "mt_convert.results/1", "rows": []}')
    with pytest.raises(CheckpointError, match=r"mt_convert\.coverage/1"):
        read_table(path)
    path.write_text('{"schema": "mt_convert.coverage/1", "rows": [{"family": "x"}]}')
    with pytest.raises(CheckpointError, match="damaged"):
        read_table(path)


# ------------------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_the_command_sweeps_tells_and_exits_with_0_where_networks_fail(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    words = ("odd_fine", "odd_leaving", "--import", "odd_networks", "--out", "out")
    done = command("coverage", *words, "--workers", "2", "--memory", "4", "--size", "16")
    assert done.returncode == 0, done.stderr
    assert "odd_leaving: ended with exit code 3 and no result during building" in done.stdout
    assert "1 of 2 architectures (50.0 %) convert, 1 of these are exact" in done.stdout
    assert "all 2 rows and the pages are in out" in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "architectures.md", "families.png", "results.json"} <= files
    rows = {row.architecture: row for row in read_table(tmp_path / "out" / "results.json").rows}
    assert rows["odd_fine"].input_size == 16


@pytest.mark.slow
def test_a_misspelt_name_is_one_message_and_writes_nothing(
    command: Command, tmp_path: Path
) -> None:
    done = command("coverage", "rsenet18")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "rsenet18  matches nothing  did you mean resnet18" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_module_or_a_folder_that_is_not_there_is_told_before_any_trial(
    tmp_path: Path, recorder: _Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "parameter_counts", dict)
    sweep = sweeps.Sweep(tmp_path, Settings(modules=("no.such",)), Limits())
    with pytest.raises(SpecError, match=r"no\.such  No module named"):
        sweeps.plan(sweep, [], every=False)
    (tmp_path / "file").touch()
    sweep = sweep_in(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot write"):
        sweeps.run(sweep, odd("odd_fine"))
    with pytest.raises(OutputError, match="cannot write"):
        sweeps.plan(sweep, ["starnet"], every=False)
    assert recorder.tried == []
