"""Whole numbers in onnxruntime and in QONNX's executor: equal levels and logits, any batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import NAMES, converted, some_images
from networks import images, lived_in, network
from torch import nn

import mt_convert as mt
from mt_convert.errors import CheckpointError, SpecError, UnsupportedLayerError
from mt_convert.export import targets, verdict
from mt_convert.export.forms.float32_sums import furthest
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.forms.threshold_sums import thresholds_beside
from mt_convert.export.onnx_formats import onnx_graph, onnx_runtimes
from mt_convert.integer_engine.terms import FLOAT32_WHOLE

onnx = pytest.importorskip("onnx", reason="make installs it: it is in the extra dev")
pytest.importorskip("onnxruntime", reason="make installs it: it is in the extra dev")
pytest.importorskip("qonnx", reason="make installs it: it is in the extra dev")

WHOLE = ("residual", "kinds_of_convolution", "line", "volume")  # no sum of two accumulators


def write(target: str, name: str, path: Path, ladder: str | None = None) -> Any:
    return targets.export(converted(name, ladder), target, path, images=some_images(name))


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_gives_every_level_and_logit(name: str, tmp_path: Path) -> None:
    found = write("onnx", name, tmp_path / "network.onnx")
    assert found.exact
    assert sum(row.op == "fire" for row in found.on_images) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "network.onnx",
        "network.onnx.verdict.json",
    ]


@pytest.mark.sampled
@pytest.mark.parametrize("name", WHOLE)
def test_qonnx_gives_every_level_and_logit(name: str, tmp_path: Path) -> None:
    found = write("qonnx", name, tmp_path / "network.onnx")
    assert found.exact
    assert found.runtime.startswith("qonnx")


@pytest.mark.slow
@pytest.mark.parametrize("ladder", ["power_of_two_4", "uniform_3", "binary_4"])
@pytest.mark.parametrize("target", ["onnx", "qonnx"])
def test_every_ladder_leaves_as_its_first_step(target: str, ladder: str, tmp_path: Path) -> None:
    assert write(target, "line", tmp_path / "network.onnx", ladder).exact


@pytest.mark.slow
def test_qonnx_keeps_its_levels_through_inference_of_shapes_and_types_and_cleanup(
    tmp_path: Path,
) -> None:
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.util.cleanup import cleanup_model

    write("qonnx", "residual", tmp_path / "network.onnx")
    form, batch = integer_form(converted("residual")), some_images("residual", 3)
    model = onnx_runtimes.with_batch(onnx_runtimes.read_graph(tmp_path / "network.onnx"), 3)
    wrapped = ModelWrapper(model).transform(InferShapes()).transform(InferDataTypes())
    fire = next(node for node in form.nodes if node.op == "fire")
    name = onnx_graph.value_name(fire.out)
    assert wrapped.get_tensor_shape(name) == [3, *form.values[fire.out].shape]
    assert wrapped.get_tensor_datatype(name) == DataType["UINT4"]
    conv = next(node for node in wrapped.graph.node if node.op_type == "Conv")
    assert wrapped.get_tensor_datatype(conv.input[1]).name.startswith("INT")
    assert [node.op_type for node in wrapped.graph.node].count("MultiThreshold") == sum(
        node.op == "fire" for node in form.nodes
    )
    cleaned = cleanup_model(wrapped)
    (output,) = [item.name for item in cleaned.graph.output]
    given = {cleaned.graph.input[0].name: batch.numpy()}
    logits = execute_onnx(cleaned, given)[output]
    assert torch.equal(torch.tensor(logits), form.model.run(batch).logits[-1])


@pytest.mark.slow
def test_products_of_255_and_127_do_not_saturate(tmp_path: Path) -> None:
    layers = [nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
    net = lived_in(nn.Sequential(*layers, nn.Linear(32, 3)))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.sign_()
    snn = mt.convert(mt.quantize(net, "w8a8", calibration=images(8)))
    form = integer_form(snn)
    weights = [node.arrays["weight"] for node in form.nodes if node.op == "linear"]
    assert all(int(weight.abs().min()) == 127 for weight in weights)
    assert max(value.high for value in form.values.values() if value.low == 0) == 255
    for target in ("onnx", "qonnx"):
        assert targets.export(snn, target, tmp_path / target, images=images(4, seed=5)).exact


def wide_sums(activation: type[nn.Module], *behind: nn.Module) -> Any:
    """Levels of 8 bits summed by a pool of 64, read by weights of ±127: sums pass 2^24, where not
    every whole number is one of float32."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 40, 3, padding=1), activation(), nn.AvgPool2d(8), nn.Flatten()]
    net = lived_in(nn.Sequential(*layers, nn.Linear(40, 5), *behind))
    net[4].weight.data.sign_()
    return mt.convert(mt.quantize(net, "w8a8", calibration=images(8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "activation"),
    [("onnx", nn.SiLU), ("qonnx", nn.ReLU), ("qonnx", nn.SiLU), ("spikingjelly", nn.SiLU)],
)
def test_sums_beyond_float32_leave_in_parts(
    target: str, activation: type[nn.Module], tmp_path: Path
) -> None:
    snn = wide_sums(activation)
    form = integer_form(snn)
    last = next(node for node in form.nodes if node.op == "linear")
    assert furthest(form, last) > 4 * FLOAT32_WHOLE
    assert (form.values[last.inputs[0]].low < 0) == (activation is nn.SiLU)
    found = targets.export(snn, target, tmp_path / "network", images=images(6, seed=3))
    assert found.exact
    (row,) = [row for row in found.by_node if row.name == last.name]
    assert row.compared == 5 * 26, "random sums, and as far as they go"


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_bytes_of_levels_are_multiplied_one_by_one(signed: bool, tmp_path: Path) -> None:
    """A convolution and a linear layer on sums of two bytes, padding included, in int32."""
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.SiLU() if signed else nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 5, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(5, 3)),
    )
    snn = mt.convert(mt.quantize(lived_in(net), "w8a8", calibration=images(8)))
    form = integer_form(snn)
    read = [form.values[n.inputs[0]] for n in form.nodes if n.op in ("conv", "linear")]
    assert sum(value.high - value.low > 255 for value in read) == 2
    assert targets.export(snn, "onnx", tmp_path / "network", images=images(6, seed=3)).exact


@pytest.mark.slow
@pytest.mark.parametrize("target", ["qonnx", "spikingjelly"])
def test_neurons_read_sums_beyond_float32(target: str, tmp_path: Path) -> None:
    snn = wide_sums(nn.ReLU, nn.ReLU(), nn.Linear(5, 2))
    assert targets.export(snn, target, tmp_path / "network", images=images(6, seed=3)).exact


@pytest.mark.slow
def test_a_function_of_sums_beyond_float32_is_refused_by_name() -> None:
    snn = wide_sums(nn.ReLU, nn.SiLU(), nn.Linear(5, 2))
    with pytest.raises(UnsupportedLayerError, match=r"2\^24"):
        targets.form_for(snn, "qonnx")
    targets.form_for(snn, "onnx")


@pytest.mark.slow
def test_more_thresholds_than_are_compared_go_by_the_formula(tmp_path: Path) -> None:
    qann = mt.quantize(network("line"), "w4a8", calibration=images(8, (2, 8), 2))
    for ladder in (None, mt.Uniform(63)):
        snn = mt.convert(qann, ladder=ladder)
        path = tmp_path / "network.onnx"
        assert targets.export(snn, "onnx", path, images=some_images("line")).exact
        kinds = {node.op_type for node in onnx_runtimes.read_graph(path).graph.node}
        assert "GreaterOrEqual" not in kinds
        assert ("Gather" in kinds) == (ladder is not None)


@pytest.mark.slow
def test_qonnx_has_thresholds_for_each_level_where_no_sum_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mt_convert.export.forms.threshold_sums.MOST_SHIFT", -1
    )  # nothing is proved
    asked, name = [], "mt_convert.export.onnx_formats.qonnx_thresholds.thresholds_beside"
    monkeypatch.setattr(name, lambda *given: asked.append(given) or thresholds_beside(*given))
    path = tmp_path / "network.onnx"
    found = write("qonnx", "residual", path)
    assert found.exact
    fires = [node for node in integer_form(converted("residual")).nodes if node.op == "fire"]
    assert 0 < len(asked) == sum("levels" in node.arrays for node in fires), "each once"
    model = onnx_runtimes.read_graph(path)
    constants = {item.name: item for item in model.graph.initializer}
    beside = [name for name in constants if "_at_" in name]
    assert len(beside) in (16, 32), "a MultiThreshold for each level beside an accumulator"
    form, info = integer_form(converted("residual")), targets.TARGETS["qonnx"]
    for name in (beside[7], "level_7"):
        whole = model.SerializeToString()
        numbers = onnx.numpy_helper.to_array(constants[name]) + 1
        constants[name].CopyFrom(onnx.numpy_helper.from_array(numbers, name))
        path.write_bytes(model.SerializeToString())
        runtime = info.open(path, form)
        assert not verdict.verify("qonnx", form, runtime, some_images("residual", 2), {}).exact
        model.ParseFromString(whole)
        constants = {item.name: item for item in model.graph.initializer}


@pytest.mark.slow
def test_two_accumulators_in_one_sum_are_compared_behind_their_formula(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    found = write("qonnx", "pre_activation", path)
    assert found.exact
    form, info = integer_form(converted("pre_activation")), targets.TARGETS["qonnx"]
    model = onnx_runtimes.read_graph(path)
    by_formula = [item for item in model.graph.initializer if item.name.endswith("_half_way")]
    summed = [n for n in form.nodes if "levels" in n.arrays and len(n.inputs) > 1]
    assert len(by_formula) == len(summed) > 0
    ties = onnx.numpy_helper.to_array(by_formula[0])
    assert ties[0, 1] == 1.5, "half to even: 1.5 is level 2"
    assert 0.5 < ties[0, 0] < 0.50001
    moved = onnx.numpy_helper.from_array(ties + np.float32(0.05), by_formula[0].name)
    by_formula[0].CopyFrom(moved)
    path.write_bytes(model.SerializeToString())
    runtime = info.open(path, form)
    assert not verdict.verify("qonnx", form, runtime, some_images("pre_activation", 2), {}).exact


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "qonnx"])
def test_a_changed_file_is_red(target: str, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write(target, "line", path)
    form, info = integer_form(converted("line")), targets.TARGETS[target]
    whole = onnx_runtimes.read_graph(path)

    def is_red(change: Any) -> bool:
        model = type(whole)()
        model.CopyFrom(whole)
        change(model.graph)
        path.write_bytes(model.SerializeToString())
        runtime = info.open(path, form)
        return not verdict.verify(target, form, runtime, some_images("line", 2), {}).exact

    def plus_one(name: str) -> Any:
        def change(graph: Any) -> None:
            item = next(one for one in graph.initializer if one.name.endswith(name))
            numbers = onnx.numpy_helper.to_array(item).copy()
            numbers.flat[numbers.size // 2] += 1
            item.CopyFrom(onnx.numpy_helper.from_array(numbers, item.name))

        return change

    def no_padding(graph: Any) -> None:
        node = next(one for one in graph.node if one.op_type in ("Conv", "ConvInteger"))
        pads = next(one for one in node.attribute if one.name == "pads")
        pads.ints[:] = [pads.ints[1] + pads.ints[0], 0]  # the zeros on one side alone

    assert not is_red(lambda graph: None)
    assert is_red(plus_one("_thresholds"))
    assert is_red(plus_one("_weight"))
    assert is_red(plus_one("_bias"))
    assert is_red(no_padding)


def test_truncated_changed_and_foreign_files_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write("onnx", "line", path)
    form, whole, draw = integer_form(converted("line")), path.read_bytes(), random.Random(0)
    batch, refused = some_images("line", 2).numpy(), 0
    for index in range(30):
        content = bytearray(whole)
        if index % 2:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            onnx_runtimes.open_onnx(path, form).run(batch)
        except CheckpointError as error:
            refused += len(str(error).splitlines()) >= 1
    assert refused >= 15
    model = onnx.ModelProto.FromString(whole)
    model.graph.initializer[0].data_location = 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="no ONNX file of ours"):
        onnx_runtimes.read_graph(path)
    model = onnx.ModelProto.FromString(whole)
    model.graph.node[0].domain = "somebody.else"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="no ONNX file of ours"):
        onnx_runtimes.read_graph(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        onnx_runtimes.read_graph(tmp_path / "none")


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    for target in ("onnx", "qonnx"):
        with pytest.raises(SpecError, match=r"pip install mt-convert\[export\]") as error:
            write(target, "line", tmp_path / "network.onnx")
        assert "\n" not in str(error.value)
