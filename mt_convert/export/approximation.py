"""Targets that are not exact: written where that is asked for, what is lost measured beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import (
    CheckpointError,
    Fault,
    OutputError,
    SpecError,
    UnsupportedLayerError,
)
from ..integer_engine.model import integer
from ..spiking.levels import levels
from ..spiking.model import SpikingModel, spiking_network
from ..system.storage import atomic, write_json
from .onnx_formats import qdq
from .onnx_formats.onnx_runtimes import read_graph
from .verdict import BATCH, images_to_compare, logits_apart, run_foreign

LOST = {
    "qdq": "products and sums are floats, or integers with steps of onnxruntime's own: levels next "
    "to a threshold can be others"
}
"""What each of these targets loses."""
FILE = "network.qdq.onnx"


@dataclass(frozen=True)
class Difference:
    """What was measured of a file that is not exact, against the integer network.

    ``other_class`` of so many ``images``; ``largest`` and ``mean`` difference of logits, as shares
    of the largest logit.

    Example:
        >>> found = Difference("qdq", "onnxruntime 1", 1000, 2, 0.031, 0.0004, 512, "levels")
        >>> str(found).split(", ")[1]
        'logits differ by 0.04 % of the largest on average'
    """

    target: str
    runtime: str
    images: int
    other_class: int
    largest: float
    mean: float
    bytes: int
    lost: str
    exact: bool = False

    def json(self) -> dict[str, Any]:
        """As it stands beside the file."""
        return asdict(self) | {"reference": "mt_convert.integer, backend torch"}

    def __str__(self) -> str:
        return (
            f"{self.target}: APPROXIMATE in {self.runtime}: {self.other_class:,} of "
            f"{self.images:,} images get another class, logits differ by {100 * self.mean:.2g} % "
            f"of the largest on average, {100 * self.largest:.2g} % at most; {self.bytes:,} bytes. "
            f"Lost: {self.lost}."
        )


def write_qdq(
    snn: SpikingModel,
    file: str | Path,
    *,
    images: Any = None,
    approximate: bool = False,
    again: bool = False,
) -> Difference:
    """Write the quantized network that a converted one equals with QDQ nodes, and measure it;
    ``again``: measure what stands there."""
    check_request(approximate=approximate)
    if (lacking := qdq.missing()) is not None:
        raise SpecError(f"qdq cannot be written here: {lacking}")
    snn, path = spiking_network(snn, "export"), Path(file)
    check_qdq(snn)
    shown = images_to_compare(snn.image_shape, images)
    if again:
        content = _read(path)
    else:
        form = qdq.qdq_form(snn, shown, quantize_sums=False)
        content = qdq.export_onnx(form, shown[:2], any_batch=True)
    found = measure(snn, path, content, shown)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    write_json(difference_file(path), found.json())
    return found


def difference_file(path: Path) -> Path:
    """Where what was measured stands."""
    return path.with_name(f"{path.name}.difference.json")


@torch.no_grad()
def measure(snn: SpikingModel, path: Path, content: bytes, images: Tensor) -> Difference:
    """Run a QDQ file in onnxruntime beside the integer network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def run() -> list[Tensor]:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        each = (session.run(None, {given.name: some.numpy()})[0] for some in images.split(BATCH))
        return [torch.from_numpy(one) for one in each]

    theirs = run_foreign(path, run)
    model = integer(snn, backend="torch")
    ours = [model.run(batch).logits[-1].float() for batch in images.split(BATCH)]
    due, have = torch.cat(ours), torch.cat(theirs)
    if due.shape != have.shape:
        raise CheckpointError(f"{path} gives {list(have.shape)}, logits {list(due.shape)}")
    other_class, largest, mean = logits_apart(due, have)
    return Difference(
        "qdq",
        f"onnxruntime {onnxruntime.__version__}",
        len(images),
        other_class,
        largest,
        mean,
        len(content),
        LOST["qdq"],
    )


def _read(path: Path) -> bytes:
    """The file, through the checks that a file of ours stands."""
    read_graph(path)
    return path.read_bytes()


def check_request(*, approximate: bool) -> None:
    """Raise `SpecError` unless an approximation was asked for."""
    if not approximate:
        hint = f"ask for it, --approximate (approximate=True): {LOST['qdq']}"
        raise SpecError("not exact", [Fault("qdq", "is an approximation", hint)])


def check_qdq(snn: SpikingModel) -> None:
    """Raise where one step is not all levels, or a layer has no QDQ nodes.

    Raises:
        UnsupportedLayerError: all of it.
    """
    faults = [
        Fault(name, f"{neuron.spec.ladder} reaches {neuron.spec.ladder.reach} levels", "use n = L")
        for name, neuron in snn.neurons()
        if neuron.spec.ladder.reach < levels(neuron.spec)
    ]
    if faults:
        raise UnsupportedLayerError("QDQ nodes have all levels in one step", faults)
    qdq.qdq_form(snn, torch.zeros(2, *snn.image_shape), quantize_sums=False)


__all__ = [
    "FILE",
    "LOST",
    "Difference",
    "check_qdq",
    "check_request",
    "difference_file",
    "measure",
    "write_qdq",
]
