"""Networks on which floats are exact: steps are powers of two, weights and biases eighths."""

from __future__ import annotations

import torch
from torch import Tensor

from mt_convert.graph.nodes import NORMS, WEIGHTED
from mt_convert.neurons.layer import MTNeuron
from mt_convert.spiking.model import SpikingModel
from mt_convert.spiking.presentation import Encoder


def dyadic_(snn: SpikingModel, step: float = 0.5) -> SpikingModel:
    """Powers of two for all steps, eighths for all biases, in place: ties are common."""
    generator = torch.Generator().manual_seed(4)
    for layer in snn.layers.modules():
        if isinstance(layer, Encoder):
            layer.scale.fill_(1 / 8)
        elif isinstance(layer, MTNeuron):
            layer.delta.fill_(step)
        elif isinstance(layer, WEIGHTED):
            whole = torch.round(layer.weight.data / layer.weight_scale)
            layer.weight_scale.fill_(1 / 8)
            layer.weight.data = whole / 8
            if layer.bias is not None:
                layer.bias.data = in_eighths(layer.bias.shape, generator)
        elif isinstance(layer, NORMS):
            layer.eps = 0.0
            layer.running_var.fill_(1)
            layer.running_mean.copy_(in_eighths(layer.weight.shape, generator))
            layer.weight.data.copy_(in_eighths(layer.weight.shape, generator).sign())
            layer.bias.data = in_eighths(layer.bias.shape, generator)
    return snn


def in_eighths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers, rounded to eighths."""
    return torch.round(torch.randn(shape, generator=generator) * 4) / 8


def dyadic_images(count: int, shape: tuple[int, ...] = (2, 8, 8)) -> Tensor:
    """Images in eighths."""
    generator = torch.Generator().manual_seed(2)
    return torch.round(torch.randn(count, *shape, generator=generator) * 8) / 8
