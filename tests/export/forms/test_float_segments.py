"""Attention leaves with its norms and softmax in float: equal in torch, measured in onnxruntime."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import Command
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import mt_convert as mt
from mt_convert.errors import CheckpointError, UnsupportedLayerError
from mt_convert.export import targets
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.onnx_formats import onnx_runtimes
from mt_convert.spiking.model import SpikingModel

onnx = pytest.importorskip("onnx", reason="make installs it: it is in the extra dev")
pytest.importorskip("onnxruntime", reason="make installs it: it is in the extra dev")

SIDE = 6


def some(count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@cache
def attention(few: bool = False) -> SpikingModel:
    """One block on nine patches; nobody changes it."""
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 2, "in_chans": 1, "num_classes": 3}
    net = VisionTransformer(**sizes, embed_dim=8, depth=1, num_heads=2).eval()
    qann = mt.quantize(net, 4, calibration=some(16))
    return mt.convert(qann, **({"ladder": mt.Uniform(3), "signed": True} if few else {}))


@pytest.mark.slow
def test_whole_numbers_of_attention_are_exact_in_onnxruntime_and_the_rest_is_measured(
    tmp_path: Path,
) -> None:
    path = tmp_path / "network.onnx"
    with pytest.raises(UnsupportedLayerError, match="onnx with --approximate") as error:
        mt.export.onnx(attention(), path, images=some(4))
    assert "blocks.0.norm1  no integer form" in str(error.value)
    found = mt.export.onnx(attention(), path, images=some(70), approximate=True)
    assert found.is_measured
    assert not found.exact
    assert "blocks.0.attn" in found.real
    whole = [row for row in found.by_node if row.op != "float"]
    assert not any(row.different for row in whole)
    assert sum(row.next_to for row in whole) > 1000
    assert found.largest is not None
    assert found.largest < 0.2
    stored = json.loads((tmp_path / "network.onnx.verdict.json").read_text())
    assert (stored["exact"], stored["other_class"]) == (False, found.other_class)
    assert "images get another class" in str(found)
    runtime = onnx_runtimes.open_onnx(path, integer_form(attention(), real=True))
    for count in (1, 5):  # any batch
        assert [len(one) for one in runtime.run(some(count).numpy()).values()] == [count] * (
            len(found.on_images)
        )


@pytest.mark.slow
def test_a_changed_approximation_is_red(tmp_path: Path) -> None:
    path, images = tmp_path / "network.onnx", some(4)
    mt.export.onnx(attention(), path, images=images, approximate=True)
    asked = {"images": images, "approximate": True, "again": True}
    assert targets.export(attention(), "onnx", path, **asked).is_measured
    whole = onnx_runtimes.read_graph(path)
    norms = [node for node in whole.graph.node if node.op_type == "LayerNormalization"]
    for name, step in (("_thresholds", 1), (norms[0].input[1], 0.001)):
        model = type(whole)()
        model.CopyFrom(whole)
        item = next(one for one in model.graph.initializer if one.name.endswith(name))
        numbers = onnx.numpy_helper.to_array(item).copy()
        numbers.flat[numbers.size // 2] += step
        item.CopyFrom(onnx.numpy_helper.from_array(numbers, item.name))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match="does not answer"):
            targets.export(attention(), "onnx", path, **asked)


def test_operators_without_a_form_are_refused_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3))
    )
    snn = mt.convert(mt.quantize(net.eval(), 4, calibration=some(8)))
    with pytest.raises(UnsupportedLayerError, match="has no ONNX nodes here: write torch"):
        mt.export.onnx(snn, tmp_path / "out", images=some(2), approximate=True)
    with pytest.raises(UnsupportedLayerError, match="no integer form"):
        mt.export.tables(snn, tmp_path / "out", images=some(2))
    assert list(tmp_path.iterdir()) == []


def test_only_operators_that_are_no_moves_are_floats() -> None:
    form = integer_form(attention(), real=True)
    floats = [node for node in form.nodes if node.op == "float"]
    names = {node.name.split()[0] for node in floats}
    assert names == {"cat", "mul", "add", "layer_norm", "matmul", "softmax"}
    assert all(form.values[node.out].real for node in floats)
    splits = [node for node in form.nodes if node.name.startswith("unbind")]
    assert [node.op for node in splits] == ["gather"] * 3, "with the move before it"
    assert not any(form.values[node.out].real for node in splits)


@pytest.mark.long
def test_attention_is_equal_in_torch(tmp_path: Path) -> None:
    found = mt.export.torch(attention(), tmp_path / "network.pt2", images=some(70))
    assert found.exact
    assert "norm" in found.real
    assert "in float32, as this version has it on this machine" in str(found)
    program = torch.export.load(tmp_path / "network.pt2").module()
    run = mt.integer(attention(), backend="torch").run(some(5))
    assert torch.equal(program(some(5)), run.logits[-1])


@pytest.mark.long
def test_attention_leaves_unrolled_too(tmp_path: Path) -> None:
    snn = attention(few=True)
    assert mt.export.torch(snn, tmp_path / "a.pt2", images=some(5), time_steps=2).exact
    found = mt.export.onnx(snn, tmp_path / "b", images=some(5), time_steps=2, approximate=True)
    assert found.is_measured


@pytest.mark.slow
def test_the_command_says_what_is_lost(command: Command, tmp_path: Path) -> None:
    mt.save(attention(), tmp_path / "net")
    words = ("export", "net", "--to", "onnx", "--out", "out", "--images", "4")
    refused = command(*words)
    assert refused.returncode == 2
    assert "onnx with --approximate" in refused.stderr
    done = command(*words, "--approximate")
    assert done.returncode == 0, done.stderr
    assert "APPROXIMATE in onnxruntime" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "≈ Approximate as onnx" in page
    assert "--approximate" in page
