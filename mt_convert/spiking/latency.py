"""How long an image takes where layers wait for their whole window, and who waits for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from ..graph.operations import Operations
from ..neurons.ladder import Radix
from ..neurons.layer import MTNeuron


@dataclass(frozen=True)
class Latency:
    """Time in a network whose layers wait, in windows of T steps.

    ``depth``: layers of neurons on the longest way. ``steps``: T, where digits say it; None where
    any number may be asked for. ``skips``: where ways of different lengths meet, by how many layers
    the shorter has to wait.

    Example:
        >>> str(Latency(19, 4, (("add", 2),)))
        'T = 4: one image takes 4 x (19 + 1) = 80 steps, one comes every 4 steps; of 1 skips the \
longest waits 8 steps (add)'
    """

    depth: int
    steps: int | None = None
    skips: tuple[tuple[str, int], ...] = ()

    def latency(self, time_steps: int | None = None) -> int:
        """Steps from an image to its class scores: T times the depth, and T for the read-out."""
        return (time_steps or self.steps or 1) * (self.depth + 1)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Latency:
        """The inverse of `to_json`."""
        skips = tuple((str(name), int(layers)) for name, layers in stored["skips"])
        return cls(stored["depth"], stored["steps"], skips)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        way = f"({self.depth} + 1)"
        if self.steps is None:
            head = f"T steps a window: one image takes T x {way} steps, one comes every T steps"
        else:
            head = (
                f"T = {self.steps}: one image takes {self.steps} x {way} = {self.latency()} steps, "
                f"one comes every {self.steps} steps"
            )
        if not self.skips:
            return head
        name, most = max(self.skips, key=lambda item: item[1])
        wait = f"{most} windows" if self.steps is None else f"{most * self.steps} steps"
        return f"{head}; of {len(self.skips)} skips the longest waits {wait} ({name})"


def latency_of(operations: Operations) -> Latency:
    """The latency of a network whose layers wait.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from .convert import convert
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
        >>> snn = convert(qann, ladder=Radix(1), whole_window=True)
        >>> latency_of(snn.operations)
        Latency(depth=1, steps=4, skips=())
    """
    depths: dict[fx.Node, int] = {}
    skips, steps = [], []
    for node, row in operations.items():
        ways = [depths[item] for item in row.inputs]
        if node.op == "output":
            ways = [depths[item] for item in node.all_input_nodes]
        depths[node] = max(ways, default=0)
        if isinstance(row.layer, MTNeuron):
            depths[node] += 1
            if isinstance(row.layer.spec.ladder, Radix):
                steps.append(row.layer.spec.ladder.steps or 1)
        elif ways and min(ways) < max(ways):
            skips.append((row.name, max(ways) - min(ways)))
    return Latency(max(depths.values(), default=0), max(steps, default=None), tuple(skips))
