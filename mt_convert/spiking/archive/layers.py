"""The layers of a spiking network as plain data, and back; their tensors are stored apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ...graph.nodes import WEIGHTED
from ...graph.rules import DEFAULT_RULES, Rule
from ...graph.serialization import plain_layer_from_json, plain_layer_to_json
from ...neurons.ladder import Firing, ladder_from_json, ladder_to_json
from ...neurons.layer import MTNeuron
from ...neurons.spec import IF, LIF, PLIF, NeuronSpec, Reset
from ...quantization.activations.formula import Formula, table_placeholder
from ..presentation import Encoder
from ..weight_grid import weight_levels, weight_step


def spiking_layer_to_json(layer: nn.Module) -> dict[str, Any]:
    """A layer of a spiking network as plain data; its tensors are stored apart."""
    if isinstance(layer, MTNeuron):
        return {
            "type": "MTNeuron",
            **neuron_spec_to_json(layer.spec),
            "clip": [None if math.isinf(bound) else bound for bound in layer.clip],
            "offset": None if layer.offset is None else list(layer.offset.shape),
            "gain": None if layer.gain is None else list(layer.gain.shape),
            **_function_to_json(layer),
        }
    if isinstance(layer, Encoder):
        return {"type": "Encoder", "level_bounds": list(layer.level_bounds)}
    plain = plain_layer_to_json(layer)
    if isinstance(layer, WEIGHTED) and (step := weight_step(layer)) is not None:
        plain["weight_scale"] = list(step.shape)
        plain |= {} if weight_levels(layer) is None else {"weight_range": True}
    return plain


def spiking_layer_from_json(
    config: Mapping[str, Any], rules: Mapping[Any, Rule] = DEFAULT_RULES
) -> nn.Module:
    """The layer that `spiking_layer_to_json` described, its tensors not yet filled in; ``rules``
    say what may stand in a function."""
    config = dict(config)
    kind = config["type"]
    if kind == "MTNeuron":
        low, high = config.get("clip") or (0.0, None)  # files of the first version have none
        function: Any = config.get("function")
        formula = None if function is None else Formula.from_json(function, rules)
        return MTNeuron(
            neuron_spec_from_json(config),
            torch.ones(()),
            offset=_placeholder(config.get("offset")),
            gain=_placeholder(config.get("gain")),
            clip=(-math.inf if low is None else low, math.inf if high is None else high),
            table=None if formula is None else table_placeholder(function["table"], formula.axis),
            formula=formula,
        )
    if kind == "Encoder":
        low, high = config["level_bounds"]
        return Encoder(torch.ones(()), (int(low), int(high)))
    shape, uneven = config.pop("weight_scale", None), config.pop("weight_range", False)
    layer = plain_layer_from_json(config)
    if shape is not None:
        layer.register_buffer("weight_scale", torch.ones(shape))
    if uneven:
        layer.register_buffer("weight_range", torch.zeros(2, dtype=torch.int64))
    return layer


def _function_to_json(layer: MTNeuron) -> dict[str, Any]:
    """The function that a layer stands for, and the shape of its thresholds."""
    if layer.table is None:
        return {}
    assert isinstance(layer.formula, Formula)
    shape = list(layer.table.thresholds.shape)
    return {"function": {**layer.formula.to_json(), "table": shape}}


def _placeholder(shape: list[int] | None) -> torch.Tensor | None:
    """A tensor to load into, if there is one."""
    return None if shape is None else torch.ones(shape)


_CHARGES = {item.kind: item for item in (IF, LIF, PLIF)}


def neuron_spec_to_json(spec: NeuronSpec) -> dict[str, Any]:
    """A neuron spec as plain data. A surrogate belongs to training and is not stored.

    Example:
        >>> from ...neurons.ladder import Uniform
        >>> neuron_spec_to_json(NeuronSpec(Uniform(3)))["ladder"]
        {'kind': 'uniform', 'n': 3}
    """
    return {
        "ladder": ladder_to_json(spec.ladder),
        "firing": None if spec.firing is None else str(spec.firing),
        "charge": {"kind": spec.charge.kind, **asdict(spec.charge)},
        "reset": str(spec.reset),
        "signed": spec.signed,
        "initial": spec.initial,
        "bounds": None if spec.bounds is None else list(spec.bounds),
    }


def neuron_spec_from_json(stored: Mapping[str, Any]) -> NeuronSpec:
    """The inverse of `neuron_spec_to_json`.

    Raises:
        SpecError: values that no neuron can have.
    """
    charge = dict(stored["charge"])
    return NeuronSpec(
        ladder=ladder_from_json(stored["ladder"]),
        firing=None if stored["firing"] is None else Firing(stored["firing"]),
        charge=_CHARGES[charge.pop("kind")](**charge),
        reset=Reset(stored["reset"]),
        signed=bool(stored["signed"]),
        initial=float(stored["initial"]),
        bounds=None if stored["bounds"] is None else tuple(stored["bounds"]),
    )
