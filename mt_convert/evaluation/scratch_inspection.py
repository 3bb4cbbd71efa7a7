"""A look into a network trained from scratch on a few images, as plain numbers: what a page draws.

Its graph and what feeds each layer, how its neurons fire, spikes and potentials of one image, and
the account of its energy beside the float network of the same architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor, fx

from ..calibration.lockstep import channel_axis
from ..data import ImageSet, batches
from ..errors import MTConvertError
from ..graph.operations import Operations
from ..graph.rules import NON_LINEAR, OperatorKind
from ..graph.signals import Signal
from ..neurons.layer import MTNeuron
from ..neurons.spec import IF, PLIF
from ..spiking.presentation import Presentation
from ..spiking.shapes import images_not_first
from ..system.devices import device_of
from ..training.from_scratch.network import ScratchNetwork
from ..training.from_scratch.poisson import Coding
from ..training.from_scratch.record import counted_network, names_of, record_run, watch
from .energy.account import FLOAT, account
from .energy.from_scratch import Counted, counted_layers
from .energy.macs import count_macs
from .energy.measure import energy
from .energy.neurobench import neurobench
from .energy.prices import FLOAT_STATE, EnergySpec
from .inspection import FEWEST, IMAGES, INSPECTION_SCHEMA, MACS, graph_nodes, picture, traces

STEPS = 64


def inspect_scratch(
    network: ScratchNetwork, test: ImageSet, prices: EnergySpec | None = None
) -> dict[str, Any]:
    """What a page shows of a network from scratch beside its rows, on the first test images.

    Energy is accounted for at ``prices``, without them with potentials of 32 bits.
    """
    counted = counted_network(network)
    plain, T = counted_layers(counted), counted.time_steps
    macs = {node: row.macs for node, row in count_macs(plain.layers, plain.operations).items()}
    count = int(max(FEWEST, min(IMAGES, MACS / max(1, sum(macs.values())) / T)))
    images, label = _first_images(counted, test, count)
    frames = images.dim() > 1 + len(counted.image_shape)
    reasons = _reasons(plain.operations, frames=frames)
    neurons = [layer for _, layer in counted.neurons()]
    widest = max((layer.spec.ladder for layer in neurons), key=lambda ladder: ladder.n)
    first = neurons[0].spec
    shown = "frames" if frames else str(Presentation.EVERY_STEP)
    if counted.coding is Coding.POISSON:
        shown = "as Poisson spikes"
    return {
        "schema": INSPECTION_SCHEMA,
        "from_scratch": True,
        "images": len(images),
        "setting": {
            "n": widest.n,
            "T": T,
            "ladder": widest.kind,
            "method": f"mt_{first.charge.kind.lower()}",
            "mode": str(first.rule),
            "signed": any(layer.spec.signed for layer in neurons),
            "presentation": shown,
        },
        "nodes": graph_nodes(plain.operations, macs, reasons),
        "analog": [
            {"name": name, "operator": operator, "reason": reason}
            for (name, operator), reason in reasons.items()
        ],
        "layers": _layers(counted, plain, images),
        "example": _example(counted, images[:1], label),
        **_account(counted, images, widest.n, prices),
    }


def _first_images(network: ScratchNetwork, test: ImageSet, count: int) -> tuple[Tensor, int]:
    """The first test images or recordings on the network's device, and the label of the first."""
    ((images, labels),) = islice(batches(test, count), 1)
    return images[:count].to(device_of(network)), int(labels[0])


def _reasons(operations: Operations, *, frames: bool) -> dict[tuple[str, str], str]:
    """Why what spikes do not feed is multiplied."""
    image = "fed by frames of numbers" if frames else "fed by the image (direct coding)"
    feeding = {Signal.IMAGE: f"{image}, not by spikes"}
    reasons: dict[tuple[str, str], str] = {}
    for row in operations.values():
        reason = ""
        if row.constant:
            continue
        if row.kind in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
            if row.fed_by is not Signal.SPIKES:
                reason = feeding.get(row.fed_by, "fed by weighted sums, not by spikes")
            elif row.kind is OperatorKind.PRODUCT:
                reason = "multiplies what two layers emit in one step"
        elif row.kind in NON_LINEAR and row.rule is not None and not row.rule.selects:
            reason = "a function of the sums of one step"
        if reason:
            reasons[row.name, row.operator] = reason
    return reasons


def _layers(network: ScratchNetwork, plain: Counted, images: Tensor) -> list[dict[str, Any]]:
    """How each layer of neurons fires."""
    names = names_of(network)
    fired: dict[fx.Node, Tensor] = {}

    def observe(t: int, node: fx.Node, levels: Tensor, v: Tensor | None) -> None:
        if v is not None:
            fires = levels != 0
            fired[node] = fired[node] | fires if node in fired else fires

    watch(network, images, observe)
    run = record_run(network, images)
    mixed = set(images_not_first(plain.layers))
    places = {node.name: node for node in plain.layers.graph.nodes}
    rows = []
    for node, name in names.items():
        layer = network.layers.get_submodule(str(node.target))
        assert isinstance(layer, MTNeuron)
        fires = fired[node]
        axis = channel_axis(plain.layers, places[node.name], fires.dim(), mixed)
        alive = fires.movedim(axis, 0).reshape(fires.shape[axis], -1).any(1)
        reach = layer.spec.ladder.reach
        rows.append(
            {
                "name": name,
                "ladder": str(layer.spec.ladder),
                "thresholds": layer.spec.ladder.n,
                "signed": layer.spec.signed,
                "levels": [-reach if layer.spec.signed else 0, reach],
                "step": float(layer.delta.detach()),
                "tau": _tau(layer),
                "neurons": run.neurons[name],
                "rate": run.firing_rates[name],
                "saturated": None,
                "channels": int(alive.numel()),
                "dead": int((~alive).sum()),
            }
        )
    return rows


def _tau(layer: MTNeuron) -> float | None:
    """The time constant of its leak, learned or fixed; None of IF."""
    charge = layer.spec.charge
    if isinstance(charge, IF):
        return None
    if not isinstance(charge, PLIF):
        return charge.tau
    return 1 + math.exp(-max(float(layer.w.detach()), -700.0))  # 1 / sigmoid(w), which can be 0


def _example(network: ScratchNetwork, image: Tensor, label: int) -> dict[str, Any]:
    """Spikes and potentials of one image in the first, the middle and the last layer of neurons."""
    run = record_run(network, image, record=True)
    layers = {
        name: network.layers.get_submodule(str(node.target))
        for node, name in names_of(network).items()
    }
    names = list(layers)
    chosen = list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    spikes, potentials = run.spikes or {}, run.potentials or {}
    seen = image[0]
    if seen.dim() > len(network.image_shape):  # frames: everything that arrives, in one picture
        seen = seen.sum(0)
    return {
        "label": label,
        "classes": run.logits[:, 0].argmax(1).tolist(),
        "picture": picture(seen if seen.shape[0] in (1, 3) else seen.sum(0, keepdim=True)),
        "layers": [
            traces(name, spikes[name].flatten(1), potentials[name].flatten(1), layers[name])
            for name in chosen
        ],
    }


def _account(
    network: ScratchNetwork, images: Tensor, n: int, prices: EnergySpec | None
) -> Mapping[str, Any]:
    """What it costs after each of its steps, or why that cannot be counted."""
    T, way = network.time_steps, f"n = {n}, T = {network.time_steps}"
    steps = sorted({*range(1, min(T, STEPS) + 1), T})
    try:
        report = energy(network, images, time_steps=steps)
        paid = account({way: (report, T)}, prices or FLOAT_STATE, FLOAT)
        measured = {way: neurobench(network, images, time_steps=T).to_json()}
    except MTConvertError as error:
        return {"not_counted": str(error)}
    return {"account": paid | {"thresholds": {way: n}, "neurobench": measured}}
