"""`save` and `load` for networks of every kind: quantized, converted, fine-tuned, from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..graph.rules import DEFAULT_RULES, Rule
from ..quantization.quantize import QuantizedModel
from ..spiking import archive as converted
from ..spiking.archive.layouts import read_description
from ..spiking.archive.network import summary_of as converted_summary
from ..spiking.model import SpikingModel
from .from_scratch import archive as from_scratch
from .from_scratch.network import ScratchNetwork


def save(network: QuantizedModel | SpikingModel | ScratchNetwork, folder: str | Path) -> None:
    """Write a network to a folder, as the Hub knows models: `config.json`, `model.safetensors`;
    what stood there is replaced only when all is written.

    Weights of a converted network that lie on a grid are stored as whole numbers of as few bits as
    they need: of W4 two to a byte. A quantized network, which trains on, keeps its floats.

    Of a network trained from scratch trains of tensors are merged, and weights are stored as they
    count. Surrogates belong to training and are not stored.

    Raises:
        OutputError: no permission, no space.
        SpecError: weights that hold NaN or infinity.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
        >>> folder = tempfile.mkdtemp()
        >>> save(qann, folder)
        >>> type(load(folder)).__name__
        'QuantizedModel'
    """
    if isinstance(network, ScratchNetwork):
        from_scratch.save(network.merge_tensor_trains(), folder)
    else:
        converted.save(network, folder)


def summary_of(network: QuantizedModel | SpikingModel | ScratchNetwork) -> dict[str, Any]:
    """What a network is, as plain data for a reader without torch."""
    if isinstance(network, ScratchNetwork):
        return from_scratch.summary_of(network)
    return converted_summary(network)


def load(folder: str | Path, *, rules: Mapping[Any, Rule] = DEFAULT_RULES) -> Any:
    """The network that `save` wrote, in eval mode on the CPU: a QuantizedModel, a SpikingModel or a
    ScratchNetwork.

    Rules are code and are not stored: a network converted with rules of your own needs them again.

    Raises:
        UnsupportedLayerError: the network holds operators that ``rules`` do not know.
        CheckpointError: files missing, damaged, of different networks, or of another version.
    """
    if kind_of(folder) == from_scratch.KIND:
        return from_scratch.load(folder)
    return converted.load(folder, rules=rules)


def kind_of(folder: str | Path) -> str | None:
    """What a folder says that it holds: "qann", "snn" or "spiking" (from scratch).

    Raises:
        CheckpointError: no description there, or a damaged one.
    """
    content = read_description(folder)
    return content.get("kind") if isinstance(content, dict) else None
