"""Bits in which the quantized network that a converted one came from stores its numbers."""

from __future__ import annotations

from torch import nn

from ...neurons.layer import MTNeuron
from ...spiking.presentation import Encoder
from ...spiking.weight_grid import weight_levels, weight_step

FLOAT_BITS = 32


def weight_bits(layer: nn.Module) -> int:
    """Bits of a layer's largest whole-number weight and its sign; 32 where weights are floats.

    Example:
        >>> weight_bits(nn.Linear(2, 2))
        32
    """
    step = weight_step(layer)
    if step is None:
        return FLOAT_BITS
    if (bounds := weight_levels(layer)) is not None:
        return (bounds[1] - bounds[0]).bit_length()
    whole = (layer.get_parameter("weight").detach() / step).abs().max().round()
    return int(whole).bit_length() + 1


def level_bits(layer: nn.Module | None) -> int | None:
    """Bits of the levels of a layer of neurons, or of the image's; None of any other layer.

    Example:
        >>> import torch
        >>> level_bits(Encoder(torch.tensor(0.5), (-127, 127)))
        8
    """
    if isinstance(layer, MTNeuron) and layer.spec.bounds is not None:
        low, high = layer.spec.bounds
        return ((high or 0) - (low or 0)).bit_length()
    if isinstance(layer, Encoder):
        low, high = layer.level_bounds
        return (high - low).bit_length()
    return None
