"""Some steps of a network from scratch through all its layers, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ...graph.nodes import WEIGHTED
from ...neurons.dynamics import NeuronState
from ...neurons.layer import MTNeuron
from ...neurons.linear_recurrence import linrec
from ..surrogate_step import in_place_of
from .norm_by_step import NormByStep
from .read_out import ReadOut
from .tensor_trains.tensor_train import TTConv2d
from .tensor_trains.tensor_train_layers import BY_STEP, in_steps, same_in_all_steps


class Potential(NamedTuple):
    """A layer of neurons between two steps, and the current that waits for the next one."""

    neuron: NeuronState
    waiting: Tensor | None = None

    def detach(self) -> Potential:
        """The same numbers without their history."""
        waiting = None if self.waiting is None else self.waiting.detach()
        return Potential(_detach(self.neuron), waiting)


class Trace(NamedTuple):
    """What a weighted layer has read, fading with the leak of the neurons behind it; and the same
    of ones, which its bias has read."""

    read: Tensor
    ones: float

    def detach(self) -> Trace:
        """The same: a trace has no history."""
        return self


States = Mapping[str, Potential | Trace]


class Network(Protocol):
    """What steps and representations need of a network from scratch."""

    layers: fx.GraphModule
    time_steps: int
    delayed: bool
    reads_out: Collection[str]
    read_out: ReadOut
    image_shape: tuple[int, ...]

    def kept_share(self) -> float:
        """The share of its potential that a step leaves to a neuron."""

    def frames(self, images: Tensor, steps: Sequence[int]) -> Tensor:
        """What is shown in these steps, along the batch axis."""

    @property
    def read_out_tau(self) -> float | None:
        """The time constant of the read-out; None for the mean over the steps."""

    @property
    def in_steps(self) -> Callable[..., tuple[Tensor, NeuronState]]:
        """What runs the steps of a layer of neurons."""


class Steps(fx.Interpreter):
    """Some steps through all layers, lying along the batch axis: [steps * batch, ...].

    With ``states`` and gradients a step's graph ends at what the step before left: weighted layers
    learn by traces instead.
    """

    def __init__(
        self, network: Network, steps: Sequence[int], states: States | None = None
    ) -> None:
        super().__init__(network.layers)
        self.extra_traceback = False
        self.network, self.steps = network, steps
        self.before: dict[str, Any] = dict(states or {})
        self.after: dict[str, Potential | Trace] = {}
        self.traced = states is not None and torch.is_grad_enabled()
        self.node: fx.Node | None = None

    def run_node(self, node: fx.Node) -> Any:
        self.node = node
        return super().run_node(node)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(layer, MTNeuron):
            return self._fire(layer, args[0])
        if self.traced and isinstance(layer, (*WEIGHTED, *BY_STEP)):
            return self._by_trace(layer, args[0])
        return self._call_layer(layer, args[0])

    def _call_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer without state gives, in the weights of each step."""
        if isinstance(layer, NormByStep):
            return layer.in_steps(x, self.steps)
        if isinstance(layer, BY_STEP):
            return in_steps(layer, x, self.steps, self.network.time_steps)
        value: Tensor = layer(x)
        return value

    def _fire(self, neuron: MTNeuron, current: Tensor) -> Tensor:
        """The spikes of a layer of neurons in these steps, one after the other."""
        assert self.node is not None
        name = self.node.name
        held = self.before.get(name)
        state = None if held is None else held.neuron
        currents, waiting = current.unflatten(0, (len(self.steps), -1)), None
        if self.network.delayed:
            first = torch.zeros_like(currents[0]) if held is None else held.waiting
            assert first is not None
            currents, waiting = torch.cat([first[None], currents[:-1]]), currents[-1]
        spikes = []
        for some in currents.split(1) if self.traced else (currents,):
            emitted, state = self.network.in_steps(neuron, some, state)
            state = _detach(state) if self.traced else state
            spikes.append(emitted)
        assert state is not None
        self.after[name] = Potential(state, waiting)
        return torch.cat(spikes).flatten(0, 1)

    def _by_trace(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The layer's value, with the gradient of its parameters by what it has read so far."""
        assert self.node is not None
        if self.node.name in self.network.reads_out:
            return self._call_layer(layer, x)  # no neuron behind it remembers
        leak, name = self.network.kept_share(), self.node.name
        same_in_all_steps(str(self.node.target), layer)
        with torch.no_grad():
            value = self._call_layer(layer, x)
        shown = x.detach().unflatten(0, (len(self.steps), -1))
        before = self.before.get(name)
        start, ones = (None, 0.0) if before is None else before
        traces, smooth = linrec(shown, leak, start=start), []
        for now, read in zip(x.unflatten(0, (len(self.steps), -1)), traces, strict=True):
            ones = leak * ones + 1
            smooth.append(_learning(layer, in_place_of(now, read), ones))
        self.after[name] = Trace(traces[-1], ones)
        return in_place_of(torch.cat(smooth), value)


def _learning(layer: nn.Module, read: Tensor, ones: float) -> Tensor:
    """The layer on a trace: of what it reads, and of the ones that its bias reads."""
    held: dict[str, Tensor] = dict(layer.named_parameters())
    bias = "expand.bias" if isinstance(layer, TTConv2d) else "bias"
    if bias in held:
        held[bias] = held[bias] * ones
    value: Tensor = functional_call(layer, held, (read,))
    return value


def _detach(state: NeuronState) -> NeuronState:
    """The same potentials and totals without their history."""
    return NeuronState(*(item.detach() for item in state))
