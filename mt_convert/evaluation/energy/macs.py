"""Multiply-accumulates per image of every layer and product, and which of them spikes feed.

torch's own flop counter counts each node; shapes alone decide, so values are never
computed and a network of any size is counted in the memory of its graph. Element-wise products
(gates, layer scale), sums, pooling and non-linear functions hold no multiply-accumulates here, as
in every count of this kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from ...graph.operations import Operations, operations
from ...graph.signals import Signal
from ...spiking.model import SPIKING_RULES, SpikingModel
from ...spiking.shapes import ShapeRun

FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class MacRow:
    """One layer or product: what it costs, and what it works on.

    ``fed_by``: spikes where all its operands are (weights aside), else the first thing that is not.

    Units: ``macs`` multiply-accumulates for one image.

    Example:
        >>> MacRow("fc", "Linear", 20, Signal.SPIKES).spike_fed
        True
    """

    name: str
    operator: str
    macs: int
    fed_by: Signal

    @property
    def spike_fed(self) -> bool:
        """Whether every multiply-accumulate is an addition caused by a spike."""
        return self.fed_by is Signal.SPIKES


def count_macs(
    network: SpikingModel | fx.GraphModule, known: Operations | None = None
) -> dict[fx.Node, MacRow]:
    """Every layer and product of a converted network, or of a traced graph, in order of execution.

    What reads parameters alone is computed once for all images and is left out. A layer used twice
    has two rows. A converted network has its own rules, a graph the default ones, or the
    operations that are ``known`` of it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ...graph.tracing.trace import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> rows = count_macs(trace(net, torch.zeros(2, 1, 4, 4))).values()
        >>> [(row.name, row.macs, str(row.fed_by)) for row in rows]
        [('0', 144, 'image'), ('3', 32, 'spikes')]
    """
    if isinstance(network, SpikingModel):
        layers, rows = network.layers, network.operations
    else:
        layers = network
        rows = operations(network, SPIKING_RULES) if known is None else known
    counter = _Counter(layers)
    counter.infer(batch=1)
    return {
        node: MacRow(rows[node].name, rows[node].operator, macs, rows[node].fed_by)
        for node, macs in counter.macs.items()
        if macs and rows[node].inputs
    }


def spike_fed_share(rows: Iterable[MacRow]) -> float:
    """Share of multiply-accumulates that spikes feed, from 0 to 1; 0 where there are none.

    Example:
        >>> first = MacRow("a", "Conv2d", 30, Signal.IMAGE)
        >>> spike_fed_share([first, MacRow("b", "Linear", 10, Signal.SPIKES)])
        0.25
    """
    rows = list(rows)
    return sum(row.macs for row in rows if row.spike_fed) / max(1, sum(row.macs for row in rows))


class _Counter(ShapeRun):
    """Notes what each node costs while it runs on shapes alone."""

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__(layers)
        self.macs: dict[fx.Node, int] = {}

    def compute(self, node: fx.Node) -> Any:
        if node.op not in ("call_module", "call_function"):
            return super().compute(node)
        with FlopCounterMode(display=False) as counted:
            value = super().compute(node)
        self.macs[node] = counted.get_total_flops() // FLOPS_PER_MAC
        return value
