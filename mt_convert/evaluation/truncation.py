"""What a network of digits says before all digits are there: two curves over network steps.

Either only the read-out is early: each layer has heard all T digits of those before it, and the
class is read behind t digits of the last layers, at network step T depth + t. Or every layer hands
on no more than its first t digits: a network of shorter windows, done at step t (depth + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError
from ..graph.float32 import in_float32
from ..spiking.latency import latency_of
from ..spiking.model import SpikingModel
from ..spiking.simulate import simulate
from ..system.devices import device_of
from .counter import percent

READ_OUT, EVERY_LAYER = "read_out", "every_layer"


@dataclass(frozen=True)
class Truncation:
    """One point of a curve: the accuracy, in percent, behind a network step."""

    curve: str
    digits: int
    network_step: int
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
@in_float32()
def truncations(snn: SpikingModel, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Truncation]:
    """Both curves of a network whose layers speak in digits.

    Shapes:
        batches of images [batch, channels, height, width] and labels [batch].
    Raises:
        SpecError: no layer speaks in digits; no images.

    Example:
        >>> from torch import nn
        >>> from ..neurons.ladder import Radix
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, QuantSpec(act_bits=2), calibration=images)
        >>> snn = convert(qann, ladder=Radix(1), whole_window=True)
        >>> points = truncations(snn, [(images, qann(images).argmax(1))])
        >>> [(point.curve, point.digits, point.network_step) for point in points]
        [('read_out', 1, 3), ('read_out', 2, 4), ('every_layer', 1, 2), ('every_layer', 2, 4)]
        >>> points[1].accuracy, points[3].accuracy
        (100.0, 100.0)
    """
    latency = latency_of(snn.operations)
    if latency.steps is None:
        raise SpecError(
            "no layer speaks in digits: convert with ladder=Radix(n), whole_window=True"
        )
    T, depth = latency.steps, latency.depth
    right = {name: torch.zeros(T, dtype=torch.float64) for name in (READ_OUT, EVERY_LAYER)}
    seen, device = 0, device_of(snn)
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        seen += len(labels)
        for digits in range(1, T + 1):
            logits = simulate(snn, images, time_steps=digits).logits
            right[EVERY_LAYER][digits - 1] += float((logits[-1].argmax(1) == labels).sum())
        right[READ_OUT] += (logits.argmax(2) == labels).sum(1).double().cpu()
    if not seen:
        raise SpecError("no images to read digits of: give at least one batch that is not empty")
    steps = {READ_OUT: lambda t: T * depth + t, EVERY_LAYER: lambda t: t * (depth + 1)}
    return [
        Truncation(name, t, steps[name](t), percent(float(right[name][t - 1]), seen))
        for name in right
        for t in range(1, T + 1)
    ]


_HEADS = {
    READ_OUT: "read-out of the first digits, all layers complete",
    EVERY_LAYER: "every layer hands on its first digits",
}


def markdown(points: Sequence[Truncation]) -> str:
    """The curves as a table.

    Example:
        >>> print(markdown([Truncation("read_out", 1, 3, 50.0)]).splitlines()[-1])
        | read-out of the first digits, all layers complete | 1 | 3 | 50.00 |
    """
    lines = ["| what is early | digits | network step | SNN % |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {_HEADS[item.curve]} | {item.digits} | {item.network_step} | {item.accuracy:.2f} |"
        for item in points
    ]
    return "\n".join(lines) + "\n"
