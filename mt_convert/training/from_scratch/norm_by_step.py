"""Batch norm per time step: statistics, scale and shift of their own for each step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, SpecError
from ...graph.nodes import NORMS, layer_nodes, node_name


class NormByStep(nn.Module):
    """A batch norm for each of T steps, all started from the same one.

    No single convolution takes all of them up, so that a network with such layers does not fold.

    Example:
        >>> layer = NormByStep(nn.BatchNorm2d(2), 3)
        >>> layer.eval().in_steps(torch.ones(2, 2, 1, 1), (0, 2)).shape
        torch.Size([2, 2, 1, 1])
    """

    def __init__(self, norm: nn.Module, time_steps: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(time_steps))
        self.train(norm.training)

    def in_steps(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """Each step by its own.

        Shapes: x [steps * batch, ...].
        """
        parts = x.unflatten(0, (len(steps), -1))
        return torch.cat([self.norms[t](part) for t, part in zip(steps, parts, strict=True)])


def norm_by_step_(layers: fx.GraphModule, time_steps: int) -> None:
    """Put one batch norm for each step in the place of each, in place.

    Raises:
        SpecError: the network has none.
    """
    norms = {str(node.target): layer for node, layer in layer_nodes(layers, NORMS)}
    if not norms:
        hint = "leave norm_by_step false, or take a network with batch norm"
        raise SpecError("nothing is normalised", [Fault("norm_by_step", "true", hint)])
    for name, norm in norms.items():
        layers.set_submodule(name, NormByStep(norm, time_steps))


def with_shared_norms(layers: nn.Module) -> nn.Module:
    """A copy with the first step's batch norms in all steps, for shapes; the same network where
    there are none by step."""
    if not any(isinstance(layer, NormByStep) for layer in layers.modules()):
        return layers
    plain = copy.deepcopy(layers)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, NormByStep):
            plain.set_submodule(name, layer.norms[0])
    return plain


def refuse_to_fold(layers: fx.GraphModule) -> None:
    """Raise where batch norms of each step stand in front of what would take them up.

    Raises:
        SpecError: each of them, by name.
    """
    faults = [
        Fault(node_name(node), "has a batch norm for each step", "train without norm_by_step")
        for node, _ in layer_nodes(layers, NormByStep)
    ]
    if faults:
        raise SpecError("one convolution cannot take up the batch norms of several steps", faults)
