"""A look into a converted network on a few images, as plain numbers: what a page draws.

Its graph and what feeds each layer, how each layer of neurons is used, the spikes and potentials of
one image, the images on which it is farthest from the quantized network, errors by cause, energy.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor, fx

from ..calibration.lockstep import channel_axis
from ..data import batches
from ..errors import MTConvertError
from ..graph.nodes import layer_nodes
from ..graph.operations import Operation, Operations
from ..graph.rules import OperatorKind
from ..graph.signals import Signal
from ..integer_engine.model import integer
from ..neurons.ladder import Ladder, Radix
from ..neurons.layer import MTNeuron
from ..quantization.quantize import QuantizedModel, levels_of
from ..spiking.levels import levels
from ..spiking.model import SpikingModel
from ..spiking.presentation import Encoder
from ..spiking.shapes import images_not_first
from ..spiking.simulate import Run, simulate
from ..system.devices import device_of
from .analysis import analyse
from .energy.account import account
from .energy.macs import count_macs
from .energy.measure import energy
from .energy.neurobench import neurobench
from .energy.prices import EnergySpec
from .energy.report import EnergyReport
from .evaluate import convert_for
from .settings import OwnThresholds, Setting
from .subject import Subject

INSPECTION_SCHEMA = "mt_convert.inspection/1"
IMAGES, FEWEST, MACS = 64, 4, 4e10
"""Images that are looked at: as many as are 40 G multiply-accumulates, never fewer than 4."""
STEPS = 16
NEURONS = 36
WORST = 6


def inspect(
    subject: Subject,
    settings: Sequence[Any],
    built: SpikingModel,
    prices: EnergySpec | None = None,
) -> dict[str, Any]:
    """What a page shows of a network beside its rows, on the first test images.

    ``settings`` are those of its table: the one with the most thresholds below the levels, which
    needs several steps, is looked into. ``built`` is the network of the run's convert stage;
    energy is accounted for at ``prices``.
    """
    qann = subject.qann
    assert isinstance(qann, QuantizedModel)
    setting = pick_setting(settings, qann.spec.levels)
    T = min(STEPS, setting.time_steps[-1])
    snn, _ = convert_for(qann, setting, subject.calibration)
    macs = {node: row.macs for node, row in count_macs(snn).items()}
    reasons = {(row.name, row.operator): row.reason for row in built.report.analog}
    count = int(max(FEWEST, min(IMAGES, MACS / max(1, sum(macs.values())) / T)))
    images, labels = first_images(subject, count)
    run = simulate(snn, images, time_steps=T)
    with levels_of(qann) as reached, torch.no_grad():
        logits = qann(images)
    analysis = _analysis(subject, setting, T, len(images))
    try:
        paid: dict[str, Any] = {"account": _account(snn, built, images, setting, T, prices)}
    except MTConvertError as error:
        paid = {"not_counted": str(error)}
    return {
        "schema": INSPECTION_SCHEMA,
        "images": len(images),
        "setting": setting_json(setting, T),
        "nodes": graph_nodes(snn.operations, macs, reasons),
        "layers": _layers(snn, reached, run),
        "example": example_of(snn, images[:1], int(labels[0]), T),
        "worst": _worst(images, labels, logits, run.logits[-1]),
        "backends": [_whole_numbers(built, images)],
        **analysis,
        **paid,
    }


def setting_json(setting: Setting, T: int) -> dict[str, Any]:
    """How a network was run, as a page says it."""
    return {
        "n": setting.ladder.n,
        "T": T,
        "ladder": setting.ladder_name,
        "method": setting.method,
        "mode": str(setting.firing),
        "signed": setting.signed,
        "presentation": str(setting.presentation),
    }


def pick_setting(settings: Sequence[Any], L: int) -> Setting:
    """The setting that is looked into: uncalibrated and signed where there is one, that takes
    several steps, its thresholds nearest to a quarter of the levels.

    Example:
        >>> from ..neurons.ladder import Uniform
        >>> pick_setting([Setting(Uniform(n), (1, 4)) for n in (1, 3, 15)], 15).ladder
        Uniform(n=3)
    """
    own = [item for item in settings if isinstance(item, Setting)]

    def order(item: Setting) -> tuple[bool, ...]:
        return (item.time_steps[-1] > 1, _reach(item.ladder) < L, not item.calibration, item.signed)

    best = max(map(order, own))
    alike = [item for item in own if order(item) == best]
    return min(alike, key=lambda item: abs(_reach(item.ladder) - L / 4))


def _reach(ladder: Ladder | OwnThresholds) -> float:
    """The most levels that a neuron emits in a step: all of them, where thresholds are its own."""
    return math.inf if isinstance(ladder, OwnThresholds) else ladder.reach


def first_images(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    """The first test images and their labels, on the network's device."""
    read = list(islice(batches(subject.test, count), 1))
    device = device_of(subject.qann)
    return read[0][0][:count].to(device), read[0][1][:count].to(device)


def _analysis(subject: Subject, setting: Setting, T: int, count: int) -> dict[str, Any]:
    """Errors by cause and energy; where they cannot be measured, why not."""
    try:
        done = analyse(subject, [_until(setting, T)], count)
    except MTConvertError as error:
        return {"not_analysed": str(error)}
    (counted,) = done.energy.values()
    return {"errors": done.errors.to_json(), "energy": counted}


def _account(
    snn: SpikingModel,
    built: SpikingModel,
    images: Tensor,
    setting: Setting,
    T: int,
    prices: EnergySpec | None,
) -> dict[str, Any]:
    """What it costs, as it was converted where that is exact, and in the setting looked into."""
    ladders = [neuron.spec.ladder for _, neuron in built.neurons()]
    ways: dict[str, tuple[EnergyReport, int]] = {}
    networks: dict[str, tuple[SpikingModel, int]] = {}
    thresholds: dict[str, int] = {}
    if ladders and isinstance(ladders[0], Radix) and ladders[0].steps:
        steps = max(item.steps for item in ladders if isinstance(item, Radix) and item.steps)
        name, n = f"n = {ladders[0].n}, T = {steps}", ladders[0].n
        ways[name], thresholds[name] = (energy(built, images, time_steps=steps), steps), n
        networks[name] = built, steps
    elif ladders and all(
        _reach(neuron.spec.ladder) >= levels(neuron.spec) for _, neuron in built.neurons()
    ):
        n = max(item.n for item in ladders)
        name = f"n = {n}, T = 1"
        ways[name], thresholds[name] = (energy(built, images, time_steps=1), 1), n
        networks[name] = built, 1
    name, n = f"n = {setting.ladder.n}, T = {T}", setting.ladder.n
    if name not in ways:
        reported = (T,) if snn.whole_window else _until(setting, T).time_steps
        ways[name], thresholds[name] = (energy(snn, images, time_steps=reported), T), n
        networks[name] = snn, T
    measured = {
        way: neurobench(network, images, time_steps=steps).to_json()
        for way, (network, steps) in networks.items()
    }
    return account(ways, prices) | {"thresholds": thresholds, "neurobench": measured}


def _whole_numbers(built: SpikingModel, images: Tensor) -> dict[str, Any]:
    """How many activations the integer engine's reference gives otherwise than the simulation, as
    the network was converted; or why it cannot run it."""
    ladders = [neuron.spec.ladder for _, neuron in built.neurons()]
    digits = [item.steps or 1 for item in ladders if isinstance(item, Radix)]
    T, name = max(digits, default=1), "whole numbers (integer engine, torch)"
    try:
        totals = integer(built, backend="torch").run(images, T, totals=True).totals
    except MTConvertError as error:
        return {"name": name, "refused": error.headline}
    due = simulate(built, images, time_steps=T).totals
    differ = sum(int((totals[layer] != levels).sum()) for layer, levels in due.items())
    return {
        **{"name": name, "T": T, "images": len(images), "differ": differ},
        "neurons": sum(levels.numel() for levels in due.values()),
    }


def _until(setting: Setting, T: int) -> Setting:
    """The setting, reported for no more than T steps."""
    return replace(setting, time_steps=tuple(min(item, T) for item in setting.time_steps))


# ------------------------------------------------------------------------------------- the graph


def graph_nodes(
    operations: Operations, macs: Mapping[fx.Node, int], reasons: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """The nodes that a picture of a network shows, in order of execution, each with the places of
    those that feed it: the image, layers of neurons, what multiplies, what stays analog and why."""
    places: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    for node, row in operations.items():
        kind = _kind(row, reasons)
        if kind is None or (row.constant and node.op != "placeholder"):
            continue
        places[node] = len(nodes)
        nodes.append(
            {
                "name": row.name if node.op != "output" else "read-out",
                "operator": row.operator,
                "kind": kind,
                "feeders": _feeders(row, operations, places),
                "spike_fed": row.fed_by is Signal.SPIKES,
                "reason": reasons.get((row.name, row.operator), ""),
                "macs": macs.get(node, 0),
            }
        )
    return nodes


def _kind(row: Operation, reasons: Mapping[tuple[str, str], str]) -> str | None:
    """What a node is in the picture; None of what it leaves out."""
    if row.node.op == "placeholder":
        return "image"
    if row.node.op == "output":
        return "output"
    if isinstance(row.layer, MTNeuron):
        return "neurons"
    if isinstance(row.layer, Encoder):
        return "encoder"
    if row.kind in (OperatorKind.WEIGHTED, OperatorKind.PRODUCT):
        return "weighted"
    return "analog" if (row.name, row.operator) in reasons else None


def _feeders(row: Operation, operations: Operations, places: dict[fx.Node, int]) -> list[int]:
    """Places of the nodes of the picture that reach this one without another between."""
    reached: dict[int, None] = {}
    stack, seen = list(row.node.all_input_nodes), set()
    while stack:
        node = stack.pop()
        if node in seen or (operations[node].constant and node not in places):
            continue
        seen.add(node)
        if node in places:
            reached[places[node]] = None
        else:
            stack.extend(node.all_input_nodes)
    return sorted(reached)


# ------------------------------------------------------------------------------------ the layers


def _layers(snn: SpikingModel, reached: Mapping[str, Tensor], run: Run) -> list[dict[str, Any]]:
    """How each layer of neurons is used."""
    mixed, rows = set(images_not_first(snn.layers)), []
    for node, neuron in layer_nodes(snn.layers, MTNeuron):
        levels = reached[str(node.target)]
        axis = channel_axis(snn.layers, node, levels.dim(), mixed)
        silent = (levels == 0).movedim(axis, 0).reshape(levels.shape[axis], -1).all(1)
        rows.append(
            _layer(str(node.target), neuron, levels, run)
            | {"channels": int(silent.numel()), "dead": int(silent.sum())}
        )
    return rows


def _layer(name: str, neuron: MTNeuron, levels: Tensor, run: Run) -> dict[str, Any]:
    """Its quantizer's ends, its spikes."""
    low, high = (int(item) for item in neuron.spec.limits)
    ends = (levels == high) | ((levels == low) if low < 0 else torch.zeros_like(levels).bool())
    return {
        "name": name,
        "ladder": str(neuron.spec.ladder),
        "thresholds": neuron.spec.ladder.n,
        "signed": neuron.spec.signed,
        "levels": [low, high],
        "step": float(neuron.delta.detach()),
        "neurons": run.neurons[name],
        "rate": run.firing_rates[name],
        "saturated": float(ends.double().mean()),
        "typical": _typical(levels),
    }


def _typical(levels: Tensor) -> int:
    """The level that a thousandth of all that are not 0 exceeds, whatever their sign."""
    sizes = levels.abs().flatten()
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 0
    return int(sizes.kthvalue(max(1, math.ceil(0.999 * len(sizes)))).values)


# ----------------------------------------------------------------------------- spikes of one image


def example_of(snn: SpikingModel, image: Tensor, label: int, T: int) -> dict[str, Any]:
    """Spikes and potentials of one image in the first, the middle and the last layer of neurons.

    Units: spikes in levels of a step, with their sign; potentials in thresholds Δ behind the step.
    """
    layers = dict(snn.neurons())
    names = list(layers)
    shown = list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]])) if names else []
    run = simulate(snn, image, time_steps=T, record=True)
    spikes, potentials = run.spikes or {}, run.potentials or {}
    return {
        "label": label,
        "classes": run.logits[:, 0].argmax(1).tolist(),
        "picture": picture(image[0]),
        "layers": [
            traces(name, spikes[name].flatten(1), potentials[name].flatten(1), layers[name])
            for name in shown
        ],
    }


def traces(name: str, spikes: Tensor, potentials: Tensor, neuron: Any) -> dict[str, Any]:
    """Some neurons of a layer: those that fire, evenly over the layer, then silent ones.

    Shapes: spikes, potentials [T, neurons].
    """
    emitted = spikes.T
    fires = emitted.abs().sum(1) > 0
    active, silent = torch.where(fires)[0], torch.where(~fires)[0]
    chosen = _evenly(active, NEURONS)
    chosen = torch.cat([chosen, _evenly(silent, NEURONS - len(chosen))]).sort().values
    left = potentials.T[chosen]
    return {
        "name": name,
        "neurons": len(emitted),
        "active": int(fires.sum()),
        "events": float(emitted.abs().sum()),
        "thresholds": neuron.spec.ladder.n,
        "chosen": chosen.tolist(),
        "spikes": emitted[chosen].tolist(),
        "potentials": [[round(value, 3) for value in row] for row in left.tolist()],
    }


def _evenly(places: Tensor, count: int) -> Tensor:
    """So many of them, evenly spaced; all if there are fewer."""
    if len(places) <= count:
        return places
    return places[torch.arange(count, device=places.device) * len(places) // max(1, count)]


def _worst(images: Tensor, labels: Tensor, quantized: Tensor, spiking: Tensor) -> dict[str, Any]:
    """The images on which two read-outs are farthest apart, relative to the quantized one's size;
    none where they are equal."""
    distance = (quantized - spiking).flatten(1).norm(dim=1)
    size = quantized.flatten(1).norm(dim=1).clamp(min=1e-12)
    order = (distance / size).argsort(descending=True, stable=True)[:WORST].tolist()
    rows = [
        {
            "image": k,
            "label": int(labels[k]),
            "quantized": int(quantized[k].argmax()),
            "spiking": int(spiking[k].argmax()),
            "distance": float(distance[k] / size[k]),
            "picture": picture(images[k]),
        }
        for k in order
        if distance[k] > 0
    ]
    return {"differ": int((distance > 0).sum()), "rows": rows}


def picture(image: Tensor, side: int = 64) -> str:
    """An image as a small PNG in base64, its values stretched from 0 to 255.

    Shapes: [channels, height, width]; the first three channels, or the first alone, are shown.

    Example:
        >>> picture(torch.rand(3, 8, 8)).startswith("iVBOR")
        True
    """
    shown = image.detach().cpu().float()[: 3 if image.shape[0] >= 3 else 1]
    low, high = shown.min(), shown.max()
    scaled = ((shown - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
    plain = scaled.permute(1, 2, 0).squeeze(-1).numpy()
    drawn = Image.fromarray(plain)
    if max(drawn.size) > side:
        drawn.thumbnail((side, side))
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
