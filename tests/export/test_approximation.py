"""QDQ files: not exact, asked for by name, measured in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from networks import images, network, quantized
from typer.testing import CliRunner

import mt_convert as mt
from mt_convert import cli
from mt_convert.errors import CheckpointError, SpecError, UnsupportedLayerError
from mt_convert.export.approximation import difference_file, measure, write_qdq
from mt_convert.export.onnx_formats import qdq

onnx = pytest.importorskip("onnx", reason="make installs it: it is in the extra dev")
pytestmark = pytest.mark.skipif(qdq.missing() is not None, reason=str(qdq.missing()))
RUN = CliRunner()


@pytest.mark.slow
def test_what_a_file_loses_is_measured_and_stands_beside_it(tmp_path: Path) -> None:
    snn, shown = mt.convert(quantized("pre_activation")), images(20, seed=3)
    path = tmp_path / "network.onnx"
    found = mt.export.qdq(snn, path, images=shown, approximate=True)
    assert not found.exact
    assert found.images == 20
    assert 0 < found.largest < 0.5
    assert json.loads(difference_file(path).read_text())["other_class"] == found.other_class
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert write_qdq(snn, path, images=shown, approximate=True, again=True) == found
    model = onnx.load(path)
    scale = next(
        item
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
        and item.dims
        and onnx.numpy_helper.to_array(item).any()
    )
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    other = measure(snn, path, model.SerializeToString(), shown)
    assert other.mean > 2 * found.mean
    del model.graph.node[3]  # whole, and no graph that runs
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="does not run"):
        write_qdq(snn, path, images=shown, approximate=True, again=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        write_qdq(snn, path, images=shown, approximate=True, again=True)


@pytest.mark.slow
def test_it_is_asked_for_and_refused_by_name(tmp_path: Path) -> None:
    snn = mt.convert(quantized("line"))
    with pytest.raises(SpecError, match="--approximate"):
        mt.export.qdq(snn, tmp_path / "a.onnx")
    few = mt.convert(quantized("line"), ladder=mt.Uniform(4))
    with pytest.raises(UnsupportedLayerError, match="use n = L"):
        mt.export.qdq(few, tmp_path / "a.onnx", approximate=True)
    own = mt.QuantSpec(4, 4, spacing="learned")  # type: ignore[arg-type]
    qann = mt.quantize(network("residual"), own, calibration=images(8))
    with pytest.raises(UnsupportedLayerError, match="equal steps"):
        mt.export.qdq(mt.convert(qann), tmp_path / "a.onnx", approximate=True)
    up = mt.quantize(
        network("residual"), mt.QuantSpec(4, 4, rounding="half_up"), calibration=images(8)
    )  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayerError, match="rounds half up"):
        mt.export.qdq(mt.convert(up), tmp_path / "a.onnx", approximate=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_what_is_lost(tmp_path: Path) -> None:
    mt.save(mt.convert(quantized("line")), tmp_path / "net")
    words = ["export", str(tmp_path / "net"), "--to", "qdq", "--out", str(tmp_path / "out")]
    refused = RUN.invoke(cli.app, words)
    assert "ask for it" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    done = RUN.invoke(cli.app, [*words, "--approximate", "--images", "20"])
    assert done.exit_code == 0, done.output
    assert "APPROXIMATE" in done.output
    assert (tmp_path / "out" / "network.qdq.onnx").is_file()
    again = RUN.invoke(cli.app, [*words, "--approximate", "--images", "20", "--check"])
    assert "measured" in again.output
