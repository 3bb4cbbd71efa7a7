"""`save` and `load` for networks trained from scratch, in the files of `spiking.archive`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...errors import CheckpointError
from ...neurons.layer import MTNeuron
from ...spiking.archive.layers import spiking_layer_from_json, spiking_layer_to_json
from ...spiking.archive.layouts import files_of
from ...spiking.archive.network import (
    name_file_in_errors,
    read_network,
    rebuild_layers,
    write_network,
)
from ...system.network_summary import write_summary
from .network import ScratchNetwork
from .norm_by_step import NormByStep
from .poisson import Coding
from .tensor_trains.tensor_train import ConvByStep

KIND = "spiking"


def save(network: ScratchNetwork, folder: str | Path) -> None:
    """Write a network to a folder; what stood there is replaced only when all is written.

    Surrogates belong to training and are not stored; trains of tensors are merged first.

    Raises:
        OutputError: no permission, no space.
        SpecError: convolutions that are still trains of tensors: save
            ``network.merge_tensor_trains()``.

    Example:
        >>> import tempfile, torch
        >>> from ...neurons.ladder import Uniform
        >>> from ...neurons.spec import NeuronSpec
        >>> from ...neurons.surrogate import ATan
        >>> from .network import build_from_scratch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> spec = NeuronSpec(Uniform(2), initial=0.0, surrogate=ATan())
        >>> example = torch.zeros(2, 1, 4, 4)
        >>> network = build_from_scratch(net, spec, example=example, time_steps=3).eval()
        >>> folder = tempfile.mkdtemp()
        >>> save(network, folder)
        >>> images = torch.randn(5, 1, 4, 4)
        >>> torch.equal(load(folder)(images), network(images))
        True
    """
    fields = {
        "time_steps": network.time_steps,
        "delayed": network.delayed,
        "read_out_tau": network.read_out_tau,
        "coding": str(network.coding),
        "image_shape": list(network.image_shape),
    }
    write_network(folder, KIND, network.layers, _to_json, fields)
    write_summary(folder, files_of(folder), summary_of(network))


def summary_of(network: ScratchNetwork) -> dict[str, Any]:
    """What a network is, as plain data for a reader without torch."""
    neurons = [
        {"name": name, "neuron": str(layer.spec.charge), "ladder": str(layer.spec.ladder)}
        for name, layer in network.layers.named_modules()
        if isinstance(layer, MTNeuron)
    ]
    return {"kind": KIND, "time_steps": network.time_steps, "neurons": neurons}


def load(folder: str | Path) -> ScratchNetwork:
    """The network that `save` wrote, in eval mode on the CPU.

    Raises:
        CheckpointError: files missing, damaged, changed, of another version, or a converted network
            (`mt_convert.load` reads those).
    """
    content, tensors = read_network(folder)
    if content["kind"] != KIND:
        raise CheckpointError(
            f"{folder} holds a converted or quantized network: read it with mt_convert.load"
        )
    with name_file_in_errors(folder):
        return ScratchNetwork(
            rebuild_layers(content, tensors, _from_json),
            time_steps=content["time_steps"],
            delayed=content["delayed"],
            read_out_tau=content["read_out_tau"],
            coding=Coding(content.get("coding", Coding.DIRECT)),  # which older files do not name
        ).eval()


def _to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer as plain data; one that depends on the step is two."""
    if isinstance(layer, NormByStep):
        norms = [spiking_layer_to_json(norm) for norm in layer.norms]
        return {"type": "NormByStep", "norms": norms}
    if isinstance(layer, ConvByStep):
        both = {name: layer.get_submodule(name) for name in ("early", "late")}
        halves = {name: spiking_layer_to_json(conv) for name, conv in both.items()}
        return {"type": "ConvByStep", **halves}
    return spiking_layer_to_json(layer)


def _from_json(config: Any) -> nn.Module:
    """The layer that `_to_json` described, its tensors not yet filled in."""
    if config["type"] == "NormByStep":
        norms = [spiking_layer_from_json(item) for item in config["norms"]]
        layer = NormByStep(norms[0], len(norms))
        layer.norms = nn.ModuleList(norms)
        return layer
    if config["type"] != "ConvByStep":
        return spiking_layer_from_json(config)
    early, late = (spiking_layer_from_json(config[name]) for name in ("early", "late"))
    assert isinstance(early, nn.Conv2d)
    assert isinstance(late, nn.Conv2d)
    return ConvByStep(early, late)
