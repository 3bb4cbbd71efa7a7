"""Thresholds of a network that starts from a float one: as large as what its layers give."""

from __future__ import annotations

import torch
from torch import Tensor

from ...neurons.layer import MTNeuron
from .network import ScratchNetwork
from .steps import Steps

PERCENTILE = 99.9
_MOST = 2**23  # numbers of which a percentile is taken


@torch.no_grad()
def balance_thresholds_(network: ScratchNetwork, images: Tensor) -> None:
    """Set the step of each layer so that all its thresholds together emit the 99.9th percentile of
    what the float network gives there; its weights then mean what they meant.

    A layer without anything above 0 keeps its step. A layer that the network calls several times
    takes the largest.

    Shapes: images [batch, channels, height, width], normalised as in training.
    Source: robust normalisation (Rueckauer et al. 2017); as the range of a layer, not of a weight.
    """
    mode = network.training
    network.eval()
    ranges = _Ranges(network)
    ranges.run(images)
    for name, top in ranges.tops.items():
        layer = network.layers.get_submodule(name)
        assert isinstance(layer, MTNeuron)
        layer.delta.fill_(top / layer.spec.ladder.reach)
    network.train(mode)


class _Ranges(Steps):
    """The float network: each layer of neurons is the ReLU that it stands for."""

    def __init__(self, network: ScratchNetwork) -> None:
        super().__init__(network, range(1))
        self.tops: dict[str, float] = {}

    def _fire(self, neuron: MTNeuron, current: Tensor) -> Tensor:
        assert self.node is not None
        name, value = str(self.node.target), current.clamp(min=0)
        flat = value.flatten()
        few = flat[:: max(1, flat.numel() // _MOST)]
        top = float(torch.quantile(few.float(), PERCENTILE / 100))
        if top > 0:
            self.tops[name] = max(top, self.tops.get(name, 0.0))
        return value
