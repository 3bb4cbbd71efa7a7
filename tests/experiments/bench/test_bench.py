"""The benchmark: turns, medians, ratios, checks, stored rows and errors; never how fast it is."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import Command
from paths import ROOT
from results import ROW
from torch import Tensor, nn
from typer.testing import CliRunner

from mt_convert import cli
from mt_convert.errors import CheckpointError, SpecError, UnsupportedLayerError
from mt_convert.experiments.bench import command, layers, limits, memory, pages, picture, timing
from mt_convert.experiments.bench.contenders.contender import Case, Contender
from mt_convert.experiments.bench.contenders.registry import all_contenders, choose_contenders
from mt_convert.experiments.bench.measure import Group, check, compare, with_ratios
from mt_convert.experiments.bench.network import Network, open_network
from mt_convert.experiments.bench.rows import (
    BINARY,
    KINDS,
    Absent,
    Benchmark,
    BenchRow,
    ContenderKind,
    benchmark_from_json,
    merge,
)
from mt_convert.export.onnx_formats import qdq
from mt_convert.quantization.brevitas_layers import for_inference
from mt_convert.quantization.quantize import quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.report.pictures import FORMS
from mt_convert.report.rows import results_to_json
from mt_convert.system.storage import write_json

FOLDER = ROOT / "eval" / "benchmark"
CPU = torch.device("cpu")


class FakeClock:
    """Time that passes only while runners run."""

    def __init__(self) -> None:
        self.time, self.called, self.slow = 0.0, [], 1.0  # type: tuple[float, list[str], float]
        self.pauses = 0
        self.clock = timing.Clock(now=lambda: self.time, pause=self.pause)

    def pause(self) -> None:
        self.pauses += 1

    def runner(self, name: str, seconds: float) -> Callable[[Tensor], None]:
        def run(images: Tensor) -> None:
            self.called.append(name)
            self.time += seconds * self.slow

        return run


def no_images() -> Tensor:
    return torch.zeros(1)


def test_each_round_has_an_order_of_its_own_and_gives_everyone_one_turn() -> None:
    fake = FakeClock()
    runners = [fake.runner(name, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 3))]
    rounds = list(timing.interleave(runners, no_images, 20, fake.clock))
    assert rounds == [[1, 2, 3]] * 20
    warm, timed = fake.called[: 3 * timing.WARM_UPS], "".join(fake.called[3 * timing.WARM_UPS :])
    assert warm == [*"aaabbbccc"]
    turns = [timed[at : at + 3] for at in range(0, len(timed), 3)]
    assert len(turns) == 20
    assert all(sorted(turn) == [*"abc"] for turn in turns)
    assert {turn[0] for turn in turns} == {*"abc"}  # nobody always starts,
    assert len(set(turns)) > 3  # nor follows the same one
    assert fake.pauses == len(fake.called)


def test_short_calls_are_repeated_and_one_before_them_does_not_count() -> None:
    fake = FakeClock()
    calls = 4
    seconds = timing.AT_LEAST / calls
    rounds = list(timing.interleave([fake.runner("a", seconds)], no_images, 5, fake.clock))
    assert len(fake.called) == timing.WARM_UPS + 5 * (calls + 1)
    assert [turn[0] for turn in rounds] == pytest.approx([seconds] * 5)


def test_every_round_has_fresh_images_that_all_share() -> None:
    seen: dict[str, list[float]] = {"a": [], "b": []}
    drawn = iter(range(100))
    fake = FakeClock()

    def runner(name: str) -> Callable[[Tensor], None]:
        def run(images: Tensor) -> None:
            seen[name].append(float(images))
            fake.time += 1

        return run

    draw: Callable[[], Tensor] = lambda: torch.tensor(float(next(drawn)))  # noqa: E731
    list(timing.interleave([runner("a"), runner("b")], draw, 5, fake.clock))
    assert seen["a"][-5:] == seen["b"][-5:]
    assert len(set(seen["a"][-5:])) == 5


def test_ratios_within_rounds_do_not_see_a_machine_that_slows_down() -> None:
    fake = FakeClock()
    turns = timing.interleave([fake.runner("a", 1), fake.runner("b", 3)], no_images, 5, fake.clock)
    rounds = []
    for turn in turns:
        rounds.append(turn)
        fake.slow *= 2
    own, base = ([turn[k] for turn in rounds] for k in (0, 1))
    assert own == [1, 2, 4, 8, 16]
    assert timing.speed_ups(own, base) == timing.Spread(3, 3, 3)
    assert timing.Spread.of(own) == timing.Spread(4, 1, 16)


def test_fewer_than_five_rounds_are_refused() -> None:
    with pytest.raises(SpecError, match="5 or more"):
        next(timing.interleave([], no_images, 4))


# ------------------------------------------------------------------------------------- measurement


@pytest.fixture(scope="module")
def tiny() -> Network:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(4, 5)),
    ).eval()
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.5
    images = torch.randn(16, 2, 8, 8, generator=generator)
    return Network("tiny", net, quantize(net, QuantSpec(), calibration=images), images)


def row(contender: str = "integer_torch", **columns: Any) -> BenchRow:
    base = BenchRow("tiny", 8, 1, 15, contender, 10.0, 2.0, 5.0, True, 9.0, 12.0, 5, 1.0, 0.0, 0.5)
    return dataclasses.replace(base, **columns)


def rival(name: str, us: float) -> BenchRow:
    return row(name, T=None, n=None, us_per_image=us, bit_equal=None)


def failing(network: Network, case: Case) -> Any:
    raise RuntimeError("this cannot be made\nmore")


@pytest.mark.slow
def test_ours_are_bit_equal_and_who_cannot_run_is_named_with_the_reason(tiny: Network) -> None:
    known = all_contenders()
    wrong = Contender(
        "wrong", ContenderKind.FLOAT, "", lambda n, c: lambda x: n.ann(x) * 2, tolerance=0.1
    )
    odd = Contender(
        "odd", ContenderKind.FLOAT, "", lambda n, c: lambda x: n.ann(x)[:, :2], tolerance=0.1
    )
    nan = Contender(
        "nan", ContenderKind.PEER, "", lambda n, c: lambda x: n.ann(x) / 0, thresholds=1
    )
    gone = Contender("gone", ContenderKind.PEER, "", failing, lambda device: "not installed: gone")
    broken = Contender("broken", ContenderKind.QUANTIZED, "", failing)
    fine = [known[name] for name in ("integer_torch", "fp32_eager", "brevitas_eager")]
    entries = [
        (item, case)
        for item in (*fine, wrong, odd, nan, gone, broken)
        for case in item.cases(4, [(1, 15), (2, 8)], 15)
    ]
    limit = (lambda: turns.append(1), 1e9)
    turns: list[int] = []
    group = Group(tiny, entries, 5, limit, timing.Clock(pause=lambda: None))
    rows = group.rows()
    assert [(item.contender, item.T, item.n, item.bit_equal) for item in rows] == [
        ("integer_torch", 1, 15, True),
        ("integer_torch", 2, 8, True),
        ("fp32_eager", None, None, None),
        ("brevitas_eager", None, None, None),
    ]
    assert rows[2].ratio_to_best_float == 1
    assert all(item.us_low <= item.us_per_image <= item.us_high for item in rows)
    assert {item.rounds for item in rows} == {5}
    assert len(turns) > 5
    assert all(item.share_of_limit for item in rows)
    reasons = {item.contender: item.reason for item in group.absent}
    assert set(reasons) == {"wrong", "odd", "nan", "gone", "broken"}
    assert "computes something else" in reasons["wrong"]
    assert "its logits are (4, 2)" in reasons["odd"]
    assert "not finite" in reasons["nan"]
    assert reasons["gone"] == "not installed: gone"
    assert reasons["broken"] == "RuntimeError: this cannot be made"


@pytest.mark.slow
def test_one_wrong_bit_of_ours_is_seen(tiny: Network) -> None:
    good, case = all_contenders()["integer_torch"], Case(4, 1, 15)
    run = good.prepare(tiny, case)
    assert check(tiny, good, case, run).bit_equal is True

    def off(images: Tensor) -> Tensor:
        logits = run(images).clone()
        logits[0, 0, 0] = torch.nextafter(logits[0, 0, 0], torch.tensor(9.0))
        return logits

    assert check(tiny, good, case, off).bit_equal is False


def test_differences_are_in_units_of_what_images_differ_by() -> None:
    expected = torch.tensor([[1.0, 10.0], [-1.0, 12.0]])
    found = compare(expected, expected + 0.5, None, None)
    assert (found.agreement, found.difference, found.fault) == (1.0, 0.5, None)
    assert compare(expected, expected.flip(1), None, 0.1).agreement == 0
    assert compare(expected, expected.flip(1), None, 0.1).fault is not None


def test_ratios_are_to_the_fastest_float_network_round_by_round() -> None:
    timed = [
        (ContenderKind.INTEGER, row(us_per_image=2.0), [2.0, 1.0, 4.0]),
        (ContenderKind.FLOAT, rival("fp32_eager", 9.0), [9.0, 9.0, 9.0]),
        (ContenderKind.FLOAT, rival("fp32_compile", 4.0), [4.0, 6.0, 4.0]),
        (ContenderKind.QUANTIZED, rival("brevitas_eager", 1.0), [1.0, 1.0, 1.0]),
    ]
    assert [item.ratio_to_best_float for item in with_ratios(timed)] == [2.0, 4 / 9, 1.0, 4.0]
    alone = with_ratios(
        [
            (kind, dataclasses.replace(r, ratio_to_best_float=None), s)
            for kind, r, s in timed
            if kind is not ContenderKind.FLOAT
        ]
    )
    assert [item.ratio_to_best_float for item in alone] == [None, None]


def test_every_contender_has_a_name_of_its_own_and_says_what_it_is() -> None:
    known = all_contenders()
    assert len(known) > 15
    assert all(name == item.name and item.about for name, item in known.items())
    assert all(
        (item.thresholds is None) == (item.kind is not ContenderKind.PEER)
        for item in known.values()
    )
    assert {name: item.kind for name, item in known.items()} == KINDS
    assert tuple(name for name, item in known.items() if item.binary) == BINARY
    assert {item.available(CPU) is None for name, item in known.items() if "fp32_e" in name} == {
        True
    }
    assert known["fp16_compile"].available(CPU) == "runs on cuda, not on cpu"
    assert [str(case) for case in known["sinabs"].cases(2, [(4, 4), (4, 1)], 15)] == [
        "batch 2, T = 4, n = ∞"
    ]


@pytest.mark.slow
def test_binary_thresholds_are_as_many_as_a_level_has_bits_and_compared_with_their_own_kind(
    tiny: Network,
) -> None:
    item = all_contenders()["integer_native_binary"]
    if item.available(CPU) is not None:
        pytest.skip(f"no native backend here: {item.available(CPU)}")
    cases = item.cases(4, [(1, 15), (4, 4), (4, 8)], 15)
    assert [str(case) for case in cases] == ["batch 4, T = 1, n = 4", "batch 4, T = 4, n = 4"]
    for case in cases:
        assert check(tiny, item, case, item.prepare(tiny, case)).bit_equal is True
    uniform = all_contenders()["integer_native"].prepare(tiny, cases[1])
    assert check(tiny, item, cases[1], uniform).bit_equal is False


@pytest.mark.slow
def test_digits_take_the_steps_that_their_base_needs_and_are_compared_with_their_own_kind(
    tiny: Network,
) -> None:
    item = all_contenders()["integer_native_radix"]
    if item.available(CPU) is not None:
        pytest.skip(f"no native backend here: {item.available(CPU)}")
    cases = item.cases(4, [(1, 15), (4, 4), (15, 1), (3, 3)], 15)
    assert [(case.T, case.n) for case in cases] == [(2, 4), (4, 1), (2, 3)]
    for case in cases:
        assert check(tiny, item, case, item.prepare(tiny, case)).bit_equal is True
    early = item.prepare(tiny, Case(4, 2, 1))
    assert check(tiny, item, cases[1], early).bit_equal is False


def test_contenders_are_chosen_by_name_and_all_unknown_ones_are_told() -> None:
    assert [item.name for item in choose_contenders(["fp32_eager", "integer_torch"])] == [
        *("integer_torch", "fp32_eager")
    ]
    with pytest.raises(SpecError) as told:
        choose_contenders(["fp32_eagre", "fp32_eager", "nobody"])
    assert [fault.what for fault in told.value.faults] == ["fp32_eagre", "nobody"]
    assert "fp32_eager" in told.value.faults[0].hint


def test_what_is_slow_to_compile_is_named_unless_it_is_asked_for(tiny: Network) -> None:
    usual = command.BenchOptions(("tiny",))
    slow = {item.name for item in all_contenders().values() if item.slow}
    named = {item.contender for item in usual.left_out(tiny, 1)}
    timed = {contender.name for contender, _ in usual.entries(tiny, 1)}
    assert slow == named == {"integer_compile", "simulate_compile"}
    assert timed | named == set(all_contenders())
    assert dataclasses.replace(usual, every=True).left_out(tiny, 1) == []
    assert "simulate_compile" in {
        contender.name for contender, _ in dataclasses.replace(usual, every=True).entries(tiny, 1)
    }
    asked = dataclasses.replace(usual, contenders=("simulate_compile",))
    assert {contender.name for contender, _ in asked.entries(tiny, 1)} == {"simulate_compile"}


def test_brevitas_in_its_own_inference_mode_computes_the_same(tiny: Network) -> None:
    pytest.importorskip("onnx", reason="Brevitas keeps it beside its exporters, which import onnx")
    qann = copy.deepcopy(tiny.qann)
    for_inference(qann, tiny.calibration[:2])
    with torch.no_grad():
        assert torch.allclose(qann(tiny.calibration), tiny.qann(tiny.calibration), atol=1e-5)


@torch.no_grad()
def test_the_form_for_onnx_is_the_quantized_network_with_its_batch_norms_folded(
    tiny: Network,
) -> None:
    form = qdq.qdq_form(tiny.qann, tiny.calibration, quantize_sums=False)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in form.modules())
    # a rounding of the folded sums may move a level here and there
    images = tiny.images(64, torch.Generator().manual_seed(3))
    assert compare(tiny.qann(images), form(images), None, None).difference < 0.02


@pytest.mark.slow
def test_learned_thresholds_have_no_form_for_onnx(tiny: Network) -> None:
    spec = QuantSpec(act_bits=2, spacing="learned")
    qann = quantize(tiny.ann, spec, calibration=tiny.calibration)
    with pytest.raises(UnsupportedLayerError, match="learned thresholds"):
        qdq.qdq_form(qann, tiny.calibration, quantize_sums=False)


@pytest.mark.slow
@pytest.mark.skipif(qdq.missing() is not None, reason=str(qdq.missing()))
@pytest.mark.parametrize("name", ["onnxruntime_fp32", "onnxruntime_int8", "onnxruntime_int8_sums"])
def test_onnxruntime_runs_what_was_exported(tiny: Network, name: str) -> None:
    contender, case = all_contenders()[name], Case(4)
    assert contender.available(CPU) is None
    found = check(tiny, contender, case, contender.prepare(tiny, case))
    assert found.fault is None
    assert found.difference < (1e-4 if name == "onnxruntime_fp32" else 1)


# ------------------------------------------------------------------------------------ stored rows


MACHINE = {
    "name": "a machine",
    "device": "cpu",
    "instruction_set": "avx2",
    "threads": 2,
    "versions": {"torch": "2"},
    "int8_macs_per_s": 2e9,
    "int8_by": "x",
    "int8_tried": {"x": 2e9},
    "fp32_macs_per_s": 1e9,
    "bytes_per_s": 1e9,
}
STORED = Benchmark(
    (
        row("integer_native", us_per_image=10.0, ratio_to_best_float=4.0),
        row("integer_native", T=4, n=4, us_per_image=50.0, ratio_to_best_float=0.8),
        rival("fp32_eager", 40.0),
        dataclasses.replace(rival("onnxruntime_int8", 20.0), ratio_to_best_float=2.0),
        row("integer_native", network="large", us_per_image=90.0, ratio_to_best_float=3.0),
        dataclasses.replace(rival("fp32_eager", 270.0), network="large"),
    ),
    (Absent("tiny", "sinabs", "batch 8", "not installed"),),
    MACHINE,
    {
        "tiny": {"macs": 10_000, "weights": 100, "image": [1, 2, 2], "levels": 15},
        "large": {"macs": 90_000, "weights": 100, "image": [1, 2, 2], "levels": 15},
    },
)


def test_results_come_back_from_json_as_they_were() -> None:
    stored = json.loads(json.dumps(STORED.to_json()))
    assert stored["schema"] == "mt_convert.benchmark/1"
    wanted = {"network", "batch", "T", "n", "contender", "us_per_image", "ratio_to_best_float"}
    assert {*wanted, "peak_mib", "bit_equal"} <= set(stored["rows"][0])
    assert benchmark_from_json(stored) == STORED
    stored["rows"][0]["of_a_later_version"] = 1
    assert benchmark_from_json(stored) == STORED


def test_results_that_are_not_whole_are_refused() -> None:
    def broken(change: Callable[[Any], object]) -> Any:
        stored = json.loads(json.dumps(STORED.to_json()))
        change(stored)
        return stored

    for change, words in (
        (lambda it: it.update(schema="other/1"), "schema must be"),
        (lambda it: it["rows"][0].pop("batch"), "not whole"),
        (lambda it: it["rows"].append(it["rows"][0]), "twice"),
        (lambda it: it["rows"][0].update(us_per_image=0), "impossible"),
        (lambda it: it["rows"][0].update(T=0), "impossible"),
    ):
        with pytest.raises(CheckpointError, match=words):
            benchmark_from_json(broken(change))


def test_parts_become_one_with_the_machine_of_the_first() -> None:
    found = merge([Benchmark((), machine=MACHINE), STORED, Benchmark((), STORED.absent)])
    assert found == STORED
    assert merge([]) == Benchmark(())


def test_findings_say_the_gain_what_it_is_due_to_and_where_it_ends() -> None:
    lines = pages.findings(STORED)
    assert "4.00 times as fast as the best float network (fp32_eager, 40.0 µs)" in lines[0]
    assert "2.00 times as fast as onnxruntime_int8" in lines[0]
    assert "50 % of the machine's limit" in lines[0]
    assert "5.00 at T = 4" in lines[-2]
    assert "from T = 4 on the best float network is faster" in lines[-2]
    assert lines[-1].index("tiny") < lines[-1].index("large")


@pytest.mark.slow
def test_the_page_shows_every_row_and_who_is_absent(tmp_path: Path) -> None:
    text = pages.markdown("# Head\n", STORED)
    assert text.startswith("# Head\n\n## What was found")
    assert "Kernels of the integer engine: avx2." in text
    assert "| integer_native | 4 | 4 | 50.0 |" in text
    assert "- tiny, sinabs, batch 8: not installed" in text
    worse = dataclasses.replace(STORED, rows=(row(bit_equal=False),))
    assert "not bit-equal" in pages.markdown("", worse)
    assert pages.markdown("", Benchmark(()))
    for found in (STORED, Benchmark((rival("fp32_eager", 1.0),))):
        picture.draw(found, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(SpecError, match="nothing to draw"):
        picture.draw(Benchmark(()), tmp_path / "b.png")


# ---------------------------------------------------------------------------------------- command


def test_all_faults_of_a_request_are_told_at_once() -> None:
    with pytest.raises(SpecError) as told:
        command.BenchOptions((), contenders=("nobody",), rounds=3, device="abacus")
    assert [fault.where for fault in told.value.faults] == [
        *("RUN|MODEL", "--rounds", "--contender", "--device")
    ]


def test_steps_are_pairs_and_levels_follow_from_t(tiny: Network) -> None:
    wanted = command.BenchOptions(("tiny",), time_steps=(1, 4))
    assert wanted.steps(tiny) == [(1, 15), (4, 4)]
    assert dataclasses.replace(wanted, levels=(2, 15)).steps(tiny) == [
        *((1, 2), (1, 15), (4, 2), (4, 15))
    ]


def test_names_that_are_neither_runs_nor_architectures_are_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean resnet20_cifar"):
        open_network("resnet20_cifra", tmp_path)
    with pytest.raises(CheckpointError, match="no folder runs/nothing"):
        open_network("runs/nothing", tmp_path)
    with pytest.raises(CheckpointError, match="holds no recipe"):
        open_network(str(tmp_path), tmp_path)


def test_an_unknown_contender_is_one_message_and_exit_code_2(command: Command) -> None:
    done = command("bench", "digits_cnn", "--contender", "nobody")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: 1 fault")
    assert "allowed: integer_native" in done.stderr
    assert "Traceback" not in done.stderr


def quick(out: Path, *words: str) -> Any:
    """A small benchmark through the real command, in this process."""
    contenders = ("integer_torch", "fp32_eager", "fp16_eager")
    named = [word for name in contenders for word in ("--contender", name)]
    given = ["bench", "digits_cnn", "--batch", "2", "--time-steps", "1,2", "--out", str(out)]
    return CliRunner().invoke(cli.app, [*given, "--device", "cpu", *named, *words])


@pytest.mark.slow
def test_the_command_leaves_rows_page_and_picture_and_ctrl_c_leaves_them_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.01)
    monkeypatch.setattr(limits, "SIZES", {"cpu": 64})
    monkeypatch.setattr(limits, "COPIED", {"cpu": 4096})
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    run, out = tmp_path, tmp_path / "bench"  # a finished run, whose page shows its times
    write_json(run / "results.json", results_to_json([ROW]))
    report = {"verdict": None, "neurons": [], "weighted": [], "analog": [], "warnings": []}
    write_json(run / "convert" / "report.json", {"report": report})
    (run / "recipe.yaml").write_text("name: r20\nseed: 0\n")
    threads = torch.get_num_threads()
    done = quick(out, "--threads", "1")
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    assert "digits_cnn, batch 2" in done.output
    assert "fp16_eager" in done.output
    stored = (out / "results.json").read_text()
    found = benchmark_from_json(json.loads(stored))
    assert [(item.contender, item.T, item.bit_equal) for item in found.rows] == [
        *(("integer_torch", 1, True), ("integer_torch", 2, True), ("fp32_eager", None, None))
    ]
    assert found.machine["threads"] == 1
    assert [item.contender for item in found.absent] == ["fp16_eager"]
    assert all((out / f"benchmark.{form}").is_file() for form in FORMS)
    assert "integer_torch" in (out / "README.md").read_text()

    assert "integer_torch" in (run / "report.html").read_text().split('id="speed"')[1]

    def stopped(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_rows", stopped)
    done = quick(out)
    assert done.exit_code == 130
    assert (out / "results.json").read_text() == stored


@pytest.mark.long
def test_memory_is_measured_in_a_child_and_one_that_fails_gives_the_reason(tmp_path: Path) -> None:
    place = memory.Place("digits_cnn", tmp_path, "cpu", 1)
    entries = [("fp32_eager", Case(256)), ("fp16_eager", Case(2, 1)), ("nobody", Case(1))]
    found = {name: (mib, reason) for (name, _), mib, reason in memory.peaks(place, entries)}
    assert found["fp32_eager"][0] is not None
    assert found["fp32_eager"][0] > 1
    assert found["nobody"][0] is None
    assert "KeyError" in found["nobody"][1]


# ------------------------------------------------------------------------------------ stored page


def script() -> ModuleType:
    """The study's script, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("benchmark_study", FOLDER / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_part_of_the_study_times_what_another_does() -> None:
    base = command.BenchOptions(("resnet20_cifar",))
    parts = script().parts(base, "resnet20_cifar")
    pairs = [(name, batch) for part in parts for name in part.networks for batch in part.batches]
    assert len(pairs) == len(set(pairs))
    assert {("resnet20_cifar", batch) for batch in (1, 32, 128)} <= set(pairs)
    large = ("resnet18", "mobilenetv2_100", "tf_efficientnet_lite0")
    assert {(name, batch) for name in large for batch in (1, 32)} <= set(pairs)


def test_a_profile_is_made_beside_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script()
    row = layers.LayerRow("net", 1, 15, 1, "a", "conv 3x3", 8.0, 1.0, 100, 9, 9, 0.5, 4.0)
    before = layers.LayerTimes((row,), 1, 1e9)
    layers.publish(before, tmp_path / "old")
    now = dataclasses.replace(before, rows=(dataclasses.replace(row, microseconds=5.0),))
    monkeypatch.setattr(study, "run_layers", lambda options, out: now)
    study.write_profile(("net",), 5, tmp_path, tmp_path, tmp_path / "old" / "layers.json")
    page = (tmp_path / "profile.md").read_text()
    assert "| kind | before, µs | of limit | now, µs | of limit | share now |" in page
    assert layers.read(tmp_path) == now


def test_the_stored_page_is_what_the_stored_rows_say() -> None:
    path = FOLDER / "results.json"
    if not path.is_file():
        pytest.skip(
            "eval/benchmark/results.json is not stored yet: run eval/benchmark/regenerate.py"
        )
    found = benchmark_from_json(json.loads(path.read_text()))
    text = pages.markdown((FOLDER / "head.md").read_text(), found)
    assert (FOLDER / "README.md").read_text() == text
    ours = [item for item in found.rows if item.contender in ("integer_native", "integer_compile")]
    assert ours
    assert all(item.bit_equal for item in ours)
