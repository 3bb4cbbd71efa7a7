"""A look into a fine-tuned network on a few images, as plain numbers: what its page draws.

It is run as it was trained: its graph and what feeds each layer, how its neurons fire, spikes and
potentials of one image, and the account of its energy beside the quantized network of its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calibration.lockstep import channel_axis
from ..errors import MTConvertError
from ..graph.nodes import layer_nodes
from ..neurons.layer import MTNeuron
from ..spiking.model import SpikingModel
from ..spiking.shapes import images_not_first
from ..spiking.simulate import simulate
from .energy.account import account
from .energy.macs import count_macs
from .energy.measure import energy
from .energy.neurobench import neurobench
from .energy.prices import EnergySpec
from .inspection import (
    FEWEST,
    IMAGES,
    INSPECTION_SCHEMA,
    MACS,
    example_of,
    first_images,
    graph_nodes,
    setting_json,
)
from .settings import Setting
from .subject import Subject


def inspect_tuned(
    subject: Subject, snn: SpikingModel, setting: Setting, prices: EnergySpec | None = None
) -> dict[str, Any]:
    """What a page shows of a network that learned from its conversion, on the first test images.

    ``setting`` is how it was converted, and for how many steps it learned.
    """
    T = setting.time_steps[-1]
    macs = {node: row.macs for node, row in count_macs(snn).items()}
    count = int(max(FEWEST, min(IMAGES, MACS / max(1, sum(macs.values())) / T)))
    images, labels = first_images(subject, count)
    reasons = {(row.name, row.operator): row.reason for row in snn.report.analog}
    analog = [
        {"name": name, "operator": kind, "reason": why} for (name, kind), why in reasons.items()
    ]
    return {
        "schema": INSPECTION_SCHEMA,
        "images": len(images),
        "setting": setting_json(setting, T),
        "nodes": graph_nodes(snn.operations, macs, reasons),
        "analog": analog,
        "layers": _layers(snn, images, T),
        "example": example_of(snn, images[:1], int(labels[0]), T),
        **_account(snn, images, setting, T, prices),
    }


def _layers(snn: SpikingModel, images: Tensor, T: int) -> list[dict[str, Any]]:
    """How each layer of neurons fires."""
    fired: dict[str, Tensor] = {}

    def observe(t: int, name: str, total: Tensor, emitted: Tensor) -> None:
        fires = emitted != 0
        fired[name] = fired[name] | fires if name in fired else fires

    run = simulate(snn, images, time_steps=T, observe=observe)
    mixed, rows = set(images_not_first(snn.layers)), []
    for node, neuron in layer_nodes(snn.layers, MTNeuron):
        name = str(node.target)
        axis = channel_axis(snn.layers, node, fired[name].dim(), mixed)
        alive = fired[name].movedim(axis, 0).reshape(fired[name].shape[axis], -1).any(1)
        low, high = neuron.spec.bounds or (None, None)
        rows.append(
            {
                "name": name,
                "ladder": str(neuron.spec.ladder),
                "thresholds": neuron.spec.ladder.n,
                "signed": neuron.spec.signed,
                "levels": [low, high],
                "step": float(neuron.delta.detach().mean()),
                "tau": getattr(neuron.spec.charge, "tau", None),
                "neurons": run.neurons[name],
                "rate": run.firing_rates[name],
                "saturated": None,
                "channels": int(alive.numel()),
                "dead": int((~alive).sum()),
            }
        )
    return rows


@torch.no_grad()
def _account(
    snn: SpikingModel, images: Tensor, setting: Setting, T: int, prices: EnergySpec | None
) -> dict[str, Any]:
    """What it costs in the steps for which it learned, or why that cannot be counted."""
    way = f"n = {setting.ladder.n}, T = {T}"
    try:
        paid = account({way: (energy(snn, images, time_steps=T), T)}, prices)
        measured = {way: neurobench(snn, images, time_steps=T).to_json()}
    except MTConvertError as error:
        return {"not_counted": str(error)}
    return {"account": paid | {"thresholds": {way: setting.ladder.n}, "neurobench": measured}}
