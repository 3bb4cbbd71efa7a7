"""The steps of a layer of neurons, one after the other: in torch's operations, or as one kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config
from torch._dynamo.exc import TorchDynamoException

from ...errors import Fault, SpecError
from ...neurons.dynamics import NeuronState, mt_step
from ...neurons.layer import MTNeuron
from ...neurons.spec import PLIF, NeuronSpec
from ...system.devices import compile_by_torch

FORMS = 10_000  # neurons, numbers of steps and kinds of numbers that one process may have


def step_through(
    neuron: MTNeuron, currents: Tensor, state: NeuronState | None
) -> tuple[Tensor, NeuronState]:
    """The spikes of a layer in each step, and its state behind the last one.

    Shapes: currents and spikes [steps, ...].

    Example:
        >>> from ...neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(2)), delta=1.0)
        >>> step_through(neuron, torch.tensor([[0.75], [0.0]]), None)[0].tolist()
        [[1.0], [0.0]]
    """
    spikes = []
    for current in currents:
        emitted, state = neuron(current, state)
        spikes.append(emitted)
    assert state is not None
    return torch.stack(spikes), state


def step_through_compiled(
    neuron: MTNeuron, currents: Tensor, state: NeuronState | None
) -> tuple[Tensor, NeuronState]:
    """The same as one kernel that torch.compile makes, once for a neuron and a number of steps.

    Its spikes are the same bits; sums of gradients (that of a leak) may round differently. Takes
    layers with one Δ for all features, and neither offset nor gain.

    Raises:
        SpecError: nothing could be compiled, as without a C++ compiler.
    """
    assert neuron.delta.numel() == 1
    assert neuron.offset is None
    assert neuron.gain is None
    before = neuron.initial_state(currents[0]) if state is None else state
    decay = neuron.w.sigmoid() if isinstance(neuron.spec.charge, PLIF) else None
    flat = [currents.flatten(1), *(item.flatten() for item in before)]
    for item in flat:
        torch._dynamo.maybe_mark_dynamic(item, item.dim() - 1)
    try:
        with config.patch(recompile_limit=FORMS, accumulated_recompile_limit=FORMS):
            spikes, v, total = _kernel()(*flat, neuron.spec, neuron.delta.reshape(()), decay)
    except TorchDynamoException as fact:
        hint = "install a C++ compiler, or train without compile"
        fault = Fault("compile", str(fact).strip().splitlines()[0], hint)
        raise SpecError("torch.compile made no kernel of the neurons", [fault]) from fact
    shape = currents.shape[1:]
    return spikes.view_as(currents), NeuronState(v.view(shape), total.view(shape))


@cache
def _kernel() -> Any:
    """The loop below, compiled; torch keeps what it made for each neuron and number of steps."""
    return compile_by_torch(_loop, fullgraph=True)


def _loop(
    currents: Tensor,
    v: Tensor,
    total: Tensor,
    spec: NeuronSpec,
    delta: Tensor,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of a layer whose features lie in one row."""
    state, spikes = NeuronState(v, total), []
    for current in currents:
        emitted, state = mt_step(state, current, spec, delta, decay)
        spikes.append(emitted)
    return torch.stack(spikes), *state
