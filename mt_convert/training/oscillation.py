"""Weights that jump to and fro between two levels of their quantizer: counted, and frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import Fault, SpecError
from ..quantization.brevitas_layers import LEARNED_BITS, is_normalized, quantized_weight
from ..quantization.weight_norm import denormalize
from .spec import FreezeOscillating

OSCILLATES = 0.005
"""The frequency above which a weight is counted as oscillating."""


class Oscillation(nn.Module):
    """What became of each quantized weight of a network while it trains; its state is its buffers.

    Behind each step of the optimizer, with the level k of a weight and Δ the change of k::

        o = 1 if Δ ≠ 0 and its sign is not that of the change before, else 0
        f ← (1 − m) f + m o
        a ← (1 − m) a + m k
        f above the bound: the weight stays at level round(a) from now on

    The bound falls along a cosine from ``bound`` to ``final_bound``. Levels are those of layers
    whose steps are learned (4 bits and fewer).

    Raises:
        SpecError: no such layer.

    Source:
        Nagel et al., Overcoming Oscillations in Quantization-Aware Training (ICML 2022),
        algorithm 1.
    """

    def __init__(self, model: nn.Module, spec: FreezeOscillating) -> None:
        super().__init__()
        self.spec = spec
        self._layers = [layer for layer in model.modules() if _is_watched(layer)]
        if not self._layers:
            what, hint = "no weights of 4 bits or fewer", "leave freeze_oscillating out"
            fault = Fault("freeze_oscillating", what, hint)
            raise SpecError("no weight of this network could be frozen", [fault])
        for i, layer in enumerate(self._layers):
            levels, _ = _levels(layer)
            self.register_buffer(f"level{i}", levels)
            self.register_buffer(f"change{i}", torch.zeros_like(levels))
            self.register_buffer(f"frequency{i}", torch.zeros_like(levels, dtype=torch.float32))
            self.register_buffer(f"average{i}", levels.float())
            self.register_buffer(f"frozen{i}", torch.zeros_like(levels, dtype=torch.bool))
            self.register_buffer(f"held{i}", torch.zeros_like(levels))

    @torch.no_grad()
    def update_(self, progress: float) -> None:
        """Look at all weights behind a step of the optimizer; put those that are frozen back.

        ``progress`` goes from 0 to 1 over the training.
        """
        share = (1 + math.cos(math.pi * progress)) / 2
        bound = self.spec.final_bound + (self.spec.bound - self.spec.final_bound) * share
        for i, layer in enumerate(self._layers):
            levels, step = _levels(layer)
            before, change, frequency, average, frozen, held = self._of(i)
            delta = (levels - before).sign()
            turned = (delta * change) < 0
            frequency.lerp_(turned.float(), self.spec.momentum)
            average.lerp_(levels.float(), self.spec.momentum)
            change.copy_(torch.where(delta != 0, delta, change))
            new = (frequency > bound) & ~frozen
            held.copy_(torch.where(new, average.round().to(held.dtype), held))
            frozen |= new
            weight = layer.get_parameter("weight")
            value = held * step
            if is_normalized(layer):
                value = denormalize(value, weight)
            weight.copy_(torch.where(frozen, value, weight))
            before.copy_(torch.where(frozen, held, levels))

    def counts(self) -> tuple[int, int]:
        """How many weights oscillate and are not frozen; how many are frozen."""
        oscillating, frozen = 0, 0
        for i in range(len(self._layers)):
            _, _, frequency, _, still, _ = self._of(i)
            oscillating += int(((frequency > OSCILLATES) & ~still).sum())
            frozen += int(still.sum())
        return oscillating, frozen

    def _of(self, i: int) -> Iterator[Tensor]:
        """The buffers of a layer."""
        for name in ("level", "change", "frequency", "average", "frozen", "held"):
            yield self.get_buffer(f"{name}{i}")


def _is_watched(layer: nn.Module) -> bool:
    """Whether a layer's weights have a learned step."""
    return hasattr(layer, "weight_quant") and getattr(layer, "weight_bits", 0) in LEARNED_BITS


def _levels(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The levels of a layer's weights, and their step."""
    value, step = quantized_weight(layer)
    return (value / step).round().to(torch.int8), step
