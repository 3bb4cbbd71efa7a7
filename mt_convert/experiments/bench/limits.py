"""What the machine could do at best, measured: products of int8 and of float matrices, copying.

From these follows the shortest time in which the network's multiply-adds could be done, and that in
which its numbers could be moved once. The fastest product takes its turn with the contenders, so
that a contender's share of the limit is a ratio within rounds as well.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import error_line
from ...evaluation.energy.macs import count_macs
from ...integer_engine.backends import BACKENDS
from ...integer_engine.model import integer
from ...integer_engine.native.build import instruction_sets
from ...quantization.quantize import quantize
from ...quantization.spec import QuantSpec
from ...spiking.convert import convert
from .timing import Clock, clock_of

Work = tuple[Callable[[], Any], float]
Make = Callable[[int, torch.device], Work]
SIZES = {"cpu": 1024, "cuda": 8192}
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
SECONDS = 1.0  # spent on each


def measure_machine(device: torch.device) -> dict[str, Any]:
    """The machine, its versions and its limits.

    Units: ``int8_macs_per_s``, ``fp32_macs_per_s`` multiply-adds a second, the fastest of the ways
    tried, which is named; ``bytes_per_s`` read and written while copying; ``instruction_set``
    of the integer engine's kernels, None where they cannot run.
    """
    kind, clock = device.type, clock_of(device)
    native = kind == "cpu" and BACKENDS["native"].missing() is None
    size = SIZES.get(kind, 1024)
    int8, tried = {}, {}
    for name in _INT8:
        try:
            int8[name] = _rate(*product(name, device), clock)
        except Exception as error:  # kernels that this machine or version lacks
            tried[name] = error_line(error)
    best = max(int8, key=lambda name: int8[name], default=None)
    return {
        "name": _name(device),
        "device": kind,
        "instruction_set": instruction_sets()[0] if native else None,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "int8_macs_per_s": int8[best] if best else None,
        "int8_by": best,
        "int8_tried": int8,
        "int8_not_tried": tried,
        "fp32_macs_per_s": _float_product(size, device, clock),
        "bytes_per_s": _copy_rate(COPIED.get(kind, 2**28), device, clock),
    }


def product(name: str, device: torch.device) -> Work:
    """One of the int8 products by name, and its multiply-adds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors of torch are deprecated
        return _INT8[name](SIZES.get(device.type, 1024), device)


def share_of_limit(
    seconds: Sequence[float], macs_per_s: Sequence[float], size: Mapping[str, Any], batch: int
) -> float:
    """The shortest time for a batch, as a share of the time it took: the median of the rounds, in
    each of which the machine did so many int8 multiply-adds a second.

    Example:
        >>> share_of_limit([4.0, 5.0, 8.0], [50.0, 40.0, 25.0], {"macs": 50}, batch=2)
        0.5
    """
    least = [size["macs"] * batch / rate for rate in macs_per_s]
    return statistics.median(best / own for best, own in zip(least, seconds, strict=True))


def _rate(work: Callable[[], Any], amount: float, clock: Clock) -> float:
    """Amount a second, the best of all calls within `SECONDS`."""
    for _ in range(2):
        work()
    best, end = float("inf"), time.monotonic() + SECONDS
    while time.monotonic() < end:
        clock.finish()
        start = clock.now()
        work()
        clock.finish()
        best = min(best, clock.now() - start)
    return amount / best


def _float_product(size: int, device: torch.device, clock: Clock) -> float:
    """Multiply-adds a second."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    return _rate(lambda: left @ right, size**3, clock)


def _copy_rate(count: int, device: torch.device, clock: Clock) -> float:
    """Bytes read and written a second."""
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return _rate(lambda: target.copy_(source), 2 * count, clock)


def _levels(size: int, device: torch.device, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.randint(0, 15, (size, size), device=device).to(dtype)


def _int_mm(size: int, device: torch.device) -> Work:
    """torch's own product of int8 matrices."""
    left, right = _levels(size, device), _levels(size, device).t()
    return lambda: torch._int_mm(left, right), size**3


def _int8_linear(size: int, device: torch.device) -> Work:
    """torch's quantized linear layer: FBGEMM or oneDNN."""
    space: Any = torch.ops.quantized
    weight = torch.quantize_per_tensor(torch.randn(size, size), 0.1, 0, torch.qint8)
    inputs = torch.quantize_per_tensor(torch.rand(size, size), 0.1, 0, torch.quint8)
    packed = space.linear_prepack(weight, None)
    return lambda: space.linear(inputs, packed, 0.1, 0), size**3


def _onnxruntime(size: int, device: torch.device) -> Work:
    """onnxruntime's MatMulInteger."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    weight = onnx.numpy_helper.from_array(_levels(size, torch.device("cpu")).numpy(), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])
    graph = helper.make_graph([node], "product", [x], [y], [weight])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    content, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    inputs = {"x": _levels(size, torch.device("cpu"), torch.uint8).numpy()}
    return lambda: session.run(None, inputs), size**3


def _own(size: int, device: torch.device) -> Work:
    """Our own kernels on a stack of 3x3 convolutions of 64 channels, their neurons included."""
    if (reason := BACKENDS["native"].missing()) is not None:
        raise RuntimeError(reason)
    blocks = [layer for _ in range(4) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8)).eval()
    images = torch.randn(32, 64, 16, 16)
    qann = quantize(net, QuantSpec(weight_bits=4, act_bits=4), calibration=images)
    snn = convert(qann)
    model = integer(snn, backend="native")
    macs = sum(row.macs for row in count_macs(snn).values()) * len(images)
    return lambda: model(images), macs


def _cpu_only(make: Make) -> Make:
    def make_on_cpu(size: int, device: torch.device) -> Work:
        if device.type != "cpu":
            raise RuntimeError("runs on the CPU alone")
        return make(size, device)

    return make_on_cpu


_INT8: Mapping[str, Make] = {
    "torch._int_mm": _int_mm,
    "torch quantized linear": _cpu_only(_int8_linear),
    "onnxruntime MatMulInteger": _cpu_only(_onnxruntime),
    "our 3x3 convolutions": _cpu_only(_own),
}


def _name(device: torch.device) -> str:
    """What the processor or accelerator calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Of the packages that take part."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "onnxruntime", "brevitas", "spikingjelly", "sinabs", "timm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
