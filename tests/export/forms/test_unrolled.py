"""Several time steps as one file: all levels behind the last step, and the logits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from commands import Command
from dyadic import dyadic_, dyadic_images
from export_networks import LADDERS, NAMES, converted, shape_of, some_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mt_convert as mt
from mt_convert.errors import CheckpointError, SpecError, UnsupportedLayerError
from mt_convert.experiments import export
from mt_convert.export import targets, verdict
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.unrolled import emission
from mt_convert.export.onnx_formats import onnx_runtimes
from mt_convert.neurons.spec import NeuronSpec
from mt_convert.neurons.totals import totals_step_literal

onnx = pytest.importorskip("onnx", reason="make installs it: it is in the extra dev")
pytest.importorskip("onnxruntime", reason="make installs it: it is in the extra dev")


def run_whole_numbers(snn: Any, images: Tensor, time_steps: int) -> Any:
    arithmetic = mt.integer_engine.IntegerArithmetic(snn)
    return mt.simulate(snn, images, time_steps=time_steps, arithmetic=arithmetic)


def check_whole(snn: Any, path: Path, images: Tensor, time_steps: int) -> verdict.Verdict:
    """Exact by its verdict, and equal to the simulation for batches of several sizes."""
    found = mt.export.onnx(snn, path, images=images, time_steps=time_steps)
    form = integer_form(snn, time_steps)
    runtime = onnx_runtimes.open_onnx(path, form)
    for count in (1, 3, len(images)):
        batch = images[:count]
        run, values = run_whole_numbers(snn, batch, time_steps), runtime.run(batch.numpy())
        assert torch.equal(torch.from_numpy(values[form.nodes[-1].out]), run.logits[-1])
        for out, name in form.levels.items():
            assert torch.equal(torch.from_numpy(values[out]).float(), run.totals[name])
    assert found.exact
    assert found.time_steps == time_steps
    assert found.neurons == sum(run.neurons.values())
    return found


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "ladder"),
    [("residual", "uniform_3"), ("line", "power_of_two_4"), ("line", "every_step")],
)
def test_networks_leave_unrolled(name: str, ladder: str, tmp_path: Path) -> None:
    snn = converted(name, ladder)
    found = check_whole(snn, tmp_path / "network.onnx", some_images(name), 3)
    assert sum(row.next_to for row in found.by_node) > 0
    stored = json.loads((tmp_path / "network.onnx.verdict.json").read_text())
    assert stored["time_steps"] == 3


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ladder", LADDERS)
def test_every_network_leaves_unrolled(name: str, ladder: str, tmp_path: Path) -> None:
    for time_steps in (2, 5):
        snn = converted(name, ladder)
        check_whole(snn, tmp_path / "network.onnx", some_images(name, 5), time_steps)


def test_ties_fall_as_in_the_simulation(tmp_path: Path) -> None:
    snn, images = dyadic_(copy.deepcopy(converted("residual", "uniform_3"))), dyadic_images(8)
    left = mt.simulate(snn, images, time_steps=4, record=True).potentials
    assert left is not None
    ties = {name: int((one == one.round()).sum()) for name, one in left.items()}
    assert min(ties.values()) > 20, "drives half-way between two levels"
    check_whole(snn, tmp_path / "network.onnx", images, 2)


@settings(max_examples=60)
@given(st.data())
def test_what_a_step_adds_is_what_the_thresholds_fire(data: Any) -> None:
    ladder = data.draw(
        st.one_of(
            st.integers(1, 9).map(mt.Uniform),
            st.integers(1, 4).map(mt.Binary),
            st.integers(1, 5).map(mt.PowerOfTwo),
        )
    )
    low, high = data.draw(st.integers(-9, 0)), data.draw(st.integers(1, 20))
    spec = NeuronSpec(ladder, signed=low < 0 or data.draw(st.booleans()), bounds=(low, high))
    step = emission(spec)
    levels = torch.arange(low, high + 1).float()
    asked, before = torch.cartesian_prod(levels, levels).unbind(1)
    distance = (asked - before).long()
    added = distance.clamp(step.least, step.most)
    if step.steps is not None:
        added = step.steps[distance + step.span].long()
    assert torch.equal(before + added, totals_step_literal(asked, before, spec))


def test_all_thresholds_at_once_need_one_step_whatever_is_asked_for(tmp_path: Path) -> None:
    for signed in (False, True):
        snn = mt.convert(networks.quantized("residual"), signed=signed)
        one, three = integer_form(snn), integer_form(snn, 3)
        assert [node.op for node in three.nodes] == [node.op for node in one.nodes]
        assert (three.time_steps, len(three.levels)) == (3, len(one.levels))
    images = some_images("residual")
    assert targets.export(snn, "tables", tmp_path / "out", images=images, time_steps=3).exact


def test_what_is_the_same_in_every_step_is_written_once() -> None:
    form = integer_form(converted("residual", "uniform_3"), 3)
    first = next(node for node in form.nodes if node.op == "conv")
    firsts = [node for node in form.nodes if node.inputs == first.inputs and node.op == "conv"]
    assert firsts == [first]
    assert sum(node.op == "encode" for node in form.nodes) == 1
    assert sum(node.op == "read_out" for node in form.nodes) == 1
    emits = [node.name for node in form.nodes if node.op == "emit"]
    assert emits[-1].endswith(", step 3")
    assert len(emits) == 3 * len(form.levels)


@pytest.mark.slow
def test_a_changed_file_is_red_and_checking_again_knows_its_steps(tmp_path: Path) -> None:
    snn, images, path = converted("line", "uniform_3"), some_images("line"), tmp_path / "a.onnx"
    mt.export.onnx(snn, path, images=images, time_steps=3)
    assert targets.export(snn, "onnx", path, images=images, again=True).time_steps == 3
    with pytest.raises(CheckpointError, match=r"lacks|run|answer"):
        targets.export(snn, "onnx", path, images=images, time_steps=2, again=True)
    mt.export.onnx(snn, path, images=images, time_steps=3)
    whole = onnx_runtimes.read_graph(path)
    assert {item.key: item.value for item in whole.metadata_props} == {"time_steps": "3"}
    for name in ("_thresholds", "_weight", "_bias", "_least", "_most"):
        model = type(whole)()
        model.CopyFrom(whole)
        item = next(one for one in model.graph.initializer if one.name.endswith(name))
        numbers = onnx.numpy_helper.to_array(item).copy()
        numbers.flat[numbers.size // 2] += 1
        item.CopyFrom(onnx.numpy_helper.from_array(numbers, item.name))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match="does not answer"):
            targets.export(snn, "onnx", path, images=images, again=True)


@pytest.mark.slow
def test_a_changed_step_of_a_table_is_red(tmp_path: Path) -> None:
    snn, images, path = converted("line", "power_of_two_4"), some_images("line"), tmp_path / "a"
    mt.export.onnx(snn, path, images=images, time_steps=2)
    form, whole = integer_form(snn, 2), onnx_runtimes.read_graph(path)
    item = next(one for one in whole.graph.initializer if one.name.endswith("_steps"))
    numbers = onnx.numpy_helper.to_array(item).copy()
    for place in range(len(numbers) // 2, len(numbers)):  # an unsigned layer takes nothing back
        moved = numbers.copy()
        moved[place] += 1
        item.CopyFrom(onnx.numpy_helper.from_array(moved, item.name))
        path.write_bytes(whole.SerializeToString())
        runtime = onnx_runtimes.open_onnx(path, form)
        assert not verdict.verify("onnx", form, runtime, images[:2], {}).exact


@pytest.mark.parametrize("target", ["tables", "c", "nir"])
def test_other_targets_refuse_several_steps_by_the_layer(target: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match="fires in several steps") as error:
        targets.export(converted("line", "uniform_3"), target, tmp_path / "out", time_steps=2)
    assert len(error.value.faults) == 2
    assert list(tmp_path.iterdir()) == []


def test_steps_that_are_none_are_refused(tmp_path: Path) -> None:
    for steps in (0, -1, True, 2.0, 257):
        with pytest.raises(SpecError, match="time_steps is"):
            mt.export.onnx(converted("line"), tmp_path / "out", time_steps=steps)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_window_is_one_pass_of_as_many_steps_as_are_asked_for(tmp_path: Path) -> None:
    images = some_images("line")
    for ladder in (mt.Radix(1), mt.Uniform(4)):
        snn = mt.convert(networks.quantized("line"), ladder=ladder, whole_window=True)
        for time_steps in (2, 4):
            form = integer_form(snn, time_steps)
            assert "emit" not in {node.op for node in form.nodes}
            check_whole(snn, tmp_path / "network.onnx", images, time_steps)


@pytest.mark.long
def test_functions_fire_step_by_step(tmp_path: Path) -> None:
    qann = mt.quantize(
        networks.lived_in(
            torch.nn.Sequential(
                *(torch.nn.Conv2d(2, 4, 3), torch.nn.SiLU(), torch.nn.Conv2d(4, 4, 3)),
                *(torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(64, 3)),
            )
        ),
        4,
        calibration=networks.images(8, shape_of("residual"), 2),
    )
    snn = mt.convert(qann, ladder=mt.Uniform(3), signed=True)
    check_whole(snn, tmp_path / "network.onnx", some_images("residual"), 3)


@pytest.mark.slow
def test_the_command_writes_steps_and_its_page_says_so(command: Command, tmp_path: Path) -> None:
    mt.save(converted("line", "uniform_3"), tmp_path / "net")
    words = ("export", "net", "--to", "onnx", "--out", "out", "--images", "4")
    done = command(*words, "--time-steps", "3")
    assert done.returncode == 0, done.stderr
    assert "3 time steps, exact in onnxruntime" in done.stdout
    again = command(*words, "--check")
    assert "3 time steps, exact" in again.stdout, again.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "--time-steps 3" in page
    assert "Time steps, onnx" in page
    for target in (export.HUB, export.QDQ):
        wrong = ("export", "net", "--to", target, "--out", "b", "--time-steps", "2")
        refused = command(*wrong)
        assert refused.returncode == 2
        assert "writes no time steps" in refused.stderr


@pytest.mark.long
@pytest.mark.parametrize("ladder", ["uniform_3", "power_of_two_4", "every_step"])
def test_torch_programs_leave_unrolled(ladder: str, tmp_path: Path) -> None:
    snn, images = converted("residual", ladder), some_images("residual", 5)
    found = mt.export.torch(snn, tmp_path / "network.pt2", images=images, time_steps=3)
    assert found.exact
    assert found.time_steps == 3
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 4):
        assert torch.equal(
            program(images[:count]), run_whole_numbers(snn, images[:count], 3).logits[-1]
        )
