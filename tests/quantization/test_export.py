"""A quantized network goes through torch's own exporters, with the same numbers behind them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch
from networks import images, network
from torch import nn

from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec


@pytest.fixture(scope="module")
def qann() -> QuantizedModel:
    return quantize(network("one_relu"), QuantSpec(), calibration=images(8))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.long)])
def test_torch_export_keeps_the_numbers_for_any_batch(qann: QuantizedModel, strict: bool) -> None:
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(qann, (images(4),), strict=strict, dynamic_shapes=batch)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (1, 5):
        assert torch.equal(loaded(images(count, seed=1)), qann(images(count, seed=1)))


@pytest.mark.slow
def test_tracing_looks_at_no_values_and_keeps_the_numbers(qann: QuantizedModel) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        traced: nn.Module = torch.jit.trace(qann, images(4), check_trace=False)  # type: ignore[assignment]
    assert not [item for item in said if "mt_convert" in item.filename]
    assert torch.equal(traced(images(4, seed=1)), qann(images(4, seed=1)))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_export_keeps_the_classes(qann: QuantizedModel, dynamo: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    file = str(tmp_path / "qann.onnx")
    torch.onnx.export(qann, (images(4),), file, dynamo=dynamo)
    session = runtime.InferenceSession(file)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images(4, seed=1).numpy()})
    expected = qann(images(4, seed=1)).detach()
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-3)
