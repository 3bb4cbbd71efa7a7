"""What else runs the network: float, quantized, and as spiking networks of other packages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ....evaluation import peers
from ....evaluation.peers.converters import PEERS
from ....export.onnx_formats import qdq
from ....quantization.brevitas_layers import for_inference
from ....system.devices import compile_by_torch
from ..network import Network
from .contender import Case, Contender, ContenderKind, Runner

NCHW, NHWC = torch.contiguous_format, torch.channels_last


@dataclass(frozen=True)
class _Float:
    """The float network in one number format and layout, eager or compiled.

    Under ``autocast`` weights stay float32, else they are of ``dtype`` too.
    """

    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = NHWC
    compiled: bool = False
    autocast: bool = False

    def __call__(self, network: Network, case: Case) -> Runner:
        weights = torch.float32 if self.autocast else self.dtype
        model: Any = copy.deepcopy(network.ann).eval().to(weights)
        model = model.to(memory_format=self.layout)
        if self.compiled:
            model = _compile(model, network.device)
        kind = network.device.type

        def run(images: Tensor) -> Tensor:
            mixed = torch.autocast(kind, self.dtype) if self.autocast else nullcontext()
            with torch.no_grad(), mixed:
                logits: Tensor = model(images.to(weights, memory_format=self.layout))
            return logits

        return run


def _compile(model: nn.Module, device: torch.device) -> Any:
    """`torch.compile` at its best: weights frozen and packed, on accelerators as one CUDA graph."""
    options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": device.type == "cuda"}
    return compile_by_torch(model, dynamic=False, options=options)


def _only_on(kind: str) -> Callable[[torch.device], str | None]:
    def missing(device: torch.device) -> str | None:
        return None if device.type == kind else f"runs on {kind}, not on {device.type}"

    return missing


def _onnx_missing(device: torch.device) -> str | None:
    """Whether onnxruntime can run on a device."""
    if (reason := qdq.missing()) is not None:
        return reason
    import onnxruntime

    provider = _PROVIDERS.get(device.type)
    if provider in onnxruntime.get_available_providers():
        return None
    return f"this onnxruntime has no provider for {device.type}"


_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _session(content: bytes, device: torch.device) -> Runner:
    """An ONNX file in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = [_PROVIDERS[device.type]]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])

    return run


def _onnx_float(network: Network, case: Case) -> Runner:
    images = torch.zeros(case.batch, *network.qann.image_shape)
    ann = copy.deepcopy(network.ann).cpu().eval()
    return _session(qdq.export_onnx(ann, images), network.device)


def _onnx_int8(quantize_sums: bool) -> Callable[[Network, Case], Runner]:
    def prepare(network: Network, case: Case) -> Runner:
        qann, seen = copy.deepcopy(network.qann).cpu(), network.calibration.cpu()
        form = qdq.qdq_form(qann, seen, quantize_sums=quantize_sums)
        images = torch.zeros(case.batch, *network.qann.image_shape)
        return _session(qdq.export_onnx(form, images), network.device)

    return prepare


def _brevitas(network: Network, case: Case) -> Runner:
    return _without_gradients(copy.deepcopy(network.qann).eval())


def _brevitas_inference(network: Network, case: Case) -> Runner:
    qann = copy.deepcopy(network.qann).eval()
    for_inference(qann, network.calibration[:2])
    return _without_gradients(qann)


def _inference_missing(device: torch.device) -> str | None:
    """Brevitas keeps its inference mode beside its exporters, which import onnx."""
    return None if find_spec("onnx") else "Brevitas' inference mode needs onnx: pip install onnx"


def _without_gradients(model: nn.Module) -> Runner:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return run


def _peer(name: str) -> Contender:
    """A spiking network of another package: all T steps, and the mean of its output."""
    peer = PEERS[name]

    def prepare(network: Network, case: Case) -> Runner:
        assert case.T is not None
        form = peers.plain(network.ann, network.calibration[:2])
        layers, steps = peers.peer_network(name, form, network.calibration).layers, case.T

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.stack(list(peer.steps(layers, images, steps))).mean(0)

        return run

    about = f"{peer.package}, float network converted without training"
    thresholds = 0 if peer.package == "sinabs" else 1
    missing: Callable[[torch.device], str | None] = lambda device: peers.available(name)  # noqa: E731
    return Contender(name, ContenderKind.PEER, about, prepare, missing, thresholds=thresholds)


def _float(name: str, about: str, form: _Float, tolerance: float, only: str = "") -> Contender:
    missing = _only_on(only) if only else lambda device: None
    return Contender(name, ContenderKind.FLOAT, about, form, missing, tolerance)


_BF16, _FP16 = torch.bfloat16, torch.float16

CONTENDERS = (
    _float("fp32_eager", "plain torch", _Float(layout=NCHW), 1e-2),
    _float("fp32_channels_last", "plain torch, channels last", _Float(), 1e-2),
    _float("fp32_compile", "torch.compile, weights frozen", _Float(compiled=True), 1e-2),
    _float("bf16_autocast", "plain torch under autocast", _Float(_BF16, autocast=True), 0.1),
    _float("bf16_eager", "plain torch, weights too", _Float(_BF16), 0.1),
    _float("bf16_compile", "torch.compile, weights too", _Float(_BF16, compiled=True), 0.1),
    _float("fp16_eager", "plain torch, weights too", _Float(_FP16), 0.05, "cuda"),
    _float("fp16_compile", "torch.compile", _Float(_FP16, compiled=True), 0.05, "cuda"),
    Contender(
        "onnxruntime_fp32", ContenderKind.FLOAT, "onnxruntime", _onnx_float, _onnx_missing, 1e-2
    ),
    Contender(
        "onnxruntime_int8",
        ContenderKind.QUANTIZED,
        "onnxruntime, QDQ nodes where the quantized network has its quantizers; it rounds biases "
        "to whole sums, and without VNNI sums of 8-bit layers may saturate",
        _onnx_int8(quantize_sums=False),
        _onnx_missing,
    ),
    Contender(
        "onnxruntime_int8_sums",
        ContenderKind.QUANTIZED,
        "the same with 8-bit QDQ nodes before sums too: every convolution in integers",
        _onnx_int8(quantize_sums=True),
        _onnx_missing,
    ),
    Contender("brevitas_eager", ContenderKind.QUANTIZED, "Brevitas, as trained", _brevitas),
    Contender(
        "brevitas_inference",
        ContenderKind.QUANTIZED,
        "Brevitas' quant_inference_mode, weights cached",
        _brevitas_inference,
        _inference_missing,
    ),
    _peer("spikingjelly_rate"),
    _peer("sinabs"),
)
