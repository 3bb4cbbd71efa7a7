"""Trains of spikes over a window, what a run on single spikes saw, and what layers inject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from ...neurons.fixed_threshold import listen

aten = torch.ops.aten

INJECTING = (  # operators whose constant arguments are charge, injected like a bias
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.cat.default,
    aten.stack.default,
)


@dataclass(frozen=True)
class SpikeRun:
    """What a spike-by-spike run saw.

    Shapes:
        logits [T, batch, classes]: the read-out, a sum of what arrived, or its mean over the steps
        where the image is presented in every step. Per layer, [batch, ...]: totals, levels emitted;
        charges, summed input; potentials, v after the last step. arriving[node] [T, batch, ...];
        of a window, the steps of that window.
    Units: charges and potentials in the network's numbers; one level is worth steps[layer].
    """

    logits: Tensor
    totals: dict[str, Tensor]
    charges: dict[str, Tensor]
    potentials: dict[str, Tensor]
    steps: dict[str, float]
    arriving: dict[str, Tensor]


class Train(NamedTuple):
    """What arrives in each step of a window, and in which base: (R, power) for R^power, None for
    what arrives in the last step alone and goes with any base."""

    steps: list[Any]
    base: tuple[int, int] | None

    @property
    def factor(self) -> int:
        """What a membrane is multiplied by before each step."""
        return 1 if self.base is None else self.base[0] ** self.base[1]

    def so_far(self) -> list[Tensor]:
        """What has arrived behind each step, as a membrane holds it."""
        sums: list[Tensor] = []
        for arriving in self.steps:
            sums.append(listen(sums[-1], arriving, self.factor) if sums else arriving)
        return sums

    def total(self) -> Any:
        """What has arrived by the end."""
        return self.steps[-1] if self.base is None else self.so_far()[-1]


def call_without_bias(layer: Any, *args: Any) -> Any:
    """A weighted layer or batch norm without what it injects."""
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    names = ("bias", "running_mean")
    silent = {name: torch.zeros_like(held[name]) for name in names if held.get(name) is not None}
    return functional_call(layer, silent, args)
