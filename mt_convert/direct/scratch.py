"""Spiking networks trained from scratch: an architecture with neurons where its activations stood.

A step's spikes go through all layers in that step; the read-out of T steps is the mean of what the
last layer gives in each. Operators that are not linear (a maximum) look at one step alone, and
batch norm normalises over images and steps together where several steps run at once: one set of
statistics for all of them, which folds into one convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..carries import reaching_output
from ..errors import DataError, Fault, SpecError, UnsupportedLayerError
from ..graph import WEIGHTED, fold_batch_norm_, is_constant, layer_nodes, set_image_shape
from ..neurons import IF, LIF, MTNeuron, NeuronSpec, NeuronState, Reset
from ..rules import DEFAULT_RULES, Rule, unknown_operators
from ..shapes import images_not_first
from ..spiking import SPIKING_RULES
from ..surrogate import SpikeTime
from ..trace import trace
from .firing import in_place_of
from .parts import Derivative


class Potential(NamedTuple):
    """A layer of neurons between two steps, and the current that waits for the next one."""

    neuron: NeuronState
    waiting: Tensor | None = None

    def detached(self) -> Potential:
        """The same numbers without their history."""
        waiting = None if self.waiting is None else self.waiting.detach()
        return Potential(NeuronState(*(item.detach() for item in self.neuron)), waiting)


class Trace(NamedTuple):
    """What a weighted layer has read, fading with the leak of the neurons behind it; and the same
    of ones, which its bias has read."""

    read: Tensor
    ones: float

    def detached(self) -> Trace:
        """The same: a trace has no history."""
        return self


States = Mapping[str, Potential | Trace]


def spiking(
    model: nn.Module,
    neuron: NeuronSpec,
    *,
    example: Tensor,
    time_steps: int,
    delayed: bool = False,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
) -> SpikingNetwork:
    """A spiking network with the layers of ``model`` and ``neuron`` for each of its activations.

    ``delayed``: a layer answers to a step's input in the next step, as in STDB's code, so that T
    has to exceed the depth. The largest emission of a step is 1, as that of a single threshold: n
    thresholds part it in n.

    Shapes: example [batch, channels, height, width], one step's input.
    Raises:
        UnsupportedLayerError: operators without a rule, or a model that cannot be traced.
        SpecError: no activation to replace; a neuron without surrogate, which cannot learn, or with
            `SpikeTime`, which only converted networks keep the times for.

    Example:
        >>> from ..ladder import Uniform
        >>> from ..neurons import PLIF
        >>> from ..surrogate import ATan
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> spec = NeuronSpec(Uniform(4), charge=PLIF(), initial=0.0, surrogate=ATan())
        >>> network = spiking(net, spec, example=torch.zeros(2, 1, 4, 4), time_steps=3)
        >>> network(torch.randn(5, 1, 4, 4)).shape
        torch.Size([5, 2])
    """
    if neuron.surrogate is None:
        hint = "give it a surrogate, such as ATan()"
        raise SpecError("neurons without a gradient cannot learn", [Fault("neuron", "", hint)])
    if isinstance(neuron.surrogate, SpikeTime):
        hint = "take Linear(), or another surrogate of the potential"
        fault = Fault("surrogate", "SpikeTime", hint)
        raise SpecError("networks from scratch keep no spike times", [fault])
    layers = trace(model, example)
    faults = unknown_operators(layers, rules)
    if faults:
        raise UnsupportedLayerError(
            f"{len(faults)} operators of {type(model).__name__} have no rule", faults
        )
    found = [
        str(node.target)
        for node, _ in layer_nodes(layers, (nn.ReLU, nn.Hardtanh))
        if not is_constant(node)
    ]
    if not found:
        hint = "a ReLU, ReLU6 or Hardtanh, as module or function"
        raise SpecError("nothing becomes a layer of neurons", [Fault("model", "no ReLU", hint)])
    for name in dict.fromkeys(found):
        layers.set_submodule(name, MTNeuron(neuron, 1 / neuron.ladder.reach))
    return SpikingNetwork(layers, time_steps, delayed)


class SpikingNetwork(nn.Module):
    """Layers and neurons that run T steps on single spikes, with gradients.

    Shapes: images [batch, channels, height, width], the same in every step; or frames
        [batch, T, channels, height, width], one for each. Logits [batch, classes].
    """

    def __init__(self, layers: fx.GraphModule, time_steps: int, delayed: bool = False) -> None:
        super().__init__()
        if not isinstance(time_steps, int) or time_steps < 1:
            raise SpecError(f"time_steps is {time_steps!r}: allowed are whole numbers from 1")
        faults = [
            Fault(str(node.meta.get("path") or node.name), str(node.target), "")
            for node in images_not_first(layers)
        ]
        if faults:
            raise UnsupportedLayerError(
                "images are not alone on the first axis, where steps lie beside them", faults[:5]
            )
        self.layers, self.time_steps, self.delayed = layers, time_steps, delayed
        self.image_shape: tuple[int, ...] = tuple(layers.image_shape)  # type: ignore[arg-type]
        self.reads_out = reaching_output(layers, SPIKING_RULES)

    def forward(
        self,
        images: Tensor,
        steps: Sequence[int] | None = None,
        states: States | None = None,
        derivative: Derivative = Derivative.SPIKES,
    ) -> Any:
        """The mean read-out of all T steps; with ``steps``, the means so far behind each of them;
        with ``states`` of the steps before too, each step's own, its gradient by traces (OTTT).

        Returns: logits [batch, classes]; with ``steps``, [len(steps), batch, classes] and states.
        """
        if derivative is not Derivative.SPIKES:
            raise SpecError(
                "DSR stands on the totals of a converted network: train this one by BPTT or OTTT"
            )
        shown = range(self.time_steps) if steps is None else steps
        walk = _Steps(self, len(shown), states)
        each = walk.run(self._frames(images, shown)).unflatten(0, (len(shown), -1))
        if states is not None:
            return each, walk.after
        count = torch.arange(1, len(shown) + 1, dtype=each.dtype, device=each.device)
        so_far = each.cumsum(0) / count.reshape(-1, 1, 1)
        return so_far[-1] if steps is None else (so_far, walk.after)

    def kept(self) -> float:
        """The share of a potential that is left after a step, the same in all layers.

        Raises:
            SpecError: traces need a fixed leak and soft reset.
        """
        specs = [layer.spec for _, layer in layer_nodes(self.layers, MTNeuron)]
        for spec in specs:
            if spec.reset is not Reset.SOFT or not isinstance(spec.charge, (IF, LIF)):
                raise SpecError(
                    f"OTTT: {spec.charge}, {spec.reset} reset; its traces need soft reset and a "
                    "fixed leak, IF or LIF: train by BPTT otherwise"
                )
        charge = specs[0].charge
        return 1 - 1 / charge.tau if isinstance(charge, LIF) else 1.0

    def folded(self) -> SpikingNetwork:
        """A copy with each batch norm in the convolution or linear layer in front of it, in eval
        mode; its statistics are shared by all steps, so one layer does for all of them."""
        layers = copy.deepcopy(self.layers).eval()
        set_image_shape(layers, self.image_shape)
        fold_batch_norm_(layers)
        return SpikingNetwork(layers, self.time_steps, self.delayed).eval()

    def no_weight_decay(self) -> set[str]:
        """Leaks and thresholds (timm asks)."""
        return {
            f"layers.{node.target}.{name}"
            for node, layer in layer_nodes(self.layers, MTNeuron)
            for name, _ in layer.named_parameters()
        }

    def _frames(self, images: Tensor, steps: Sequence[int]) -> Tensor:
        """What is shown in these steps: [steps * batch, ...]."""
        if images.shape[1:] == self.image_shape:
            return images.repeat(len(steps), *[1] * (images.dim() - 1))
        shape = ", ".join(map(str, self.image_shape))
        if images.shape[2:] != self.image_shape or images.shape[1] != self.time_steps:
            raise DataError(
                f"images of shape {tuple(images.shape)} do not fit: this network takes [batch, "
                f"{shape}], the same in every step, or frames [batch, {self.time_steps}, {shape}]"
            )
        return images[:, list(steps)].transpose(0, 1).flatten(0, 1)


class _Steps(fx.Interpreter):
    """Some steps through all layers, lying along the batch axis: [steps * batch, ...]."""

    def __init__(self, network: SpikingNetwork, steps: int, states: States | None) -> None:
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
            return self._fired(layer, args[0])
        if self.traced and isinstance(layer, WEIGHTED):
            return self._by_trace(layer, args[0])
        return layer(*args, **kwargs)

    def _fired(self, neuron: MTNeuron, current: Tensor) -> Tensor:
        """The spikes of a layer of neurons in these steps, one after the other."""
        assert self.node is not None
        name = self.node.name
        held = self.before.get(name)
        state = None if held is None else held.neuron
        currents, waiting = list(current.unflatten(0, (self.steps, -1))), None
        if self.network.delayed:
            first = torch.zeros_like(currents[0]) if held is None else held.waiting
            currents, waiting = [first, *currents[:-1]], currents[-1]
        spikes = []
        for now in currents:
            emitted, state = neuron(now, state)
            spikes.append(emitted)
        assert state is not None
        self.after[name] = Potential(state, waiting)
        return torch.cat(spikes)

    def _by_trace(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The layer's value, with the gradient of its parameters by what it has read so far."""
        value: Tensor = layer(x)
        assert self.node is not None
        if self.node in self.network.reads_out:
            return value  # no neuron behind it remembers
        leak = self.network.kept()
        before = self.before.get(self.node.name, Trace(torch.zeros_like(x), 0.0))
        trace = Trace(leak * before.read + x.detach(), leak * before.ones + 1)
        self.after[self.node.name] = trace
        held: dict[str, Tensor] = dict(layer.named_parameters())
        if "bias" in held:
            held["bias"] = held["bias"] * trace.ones
        read = trace.read + (x - x.detach())
        return in_place_of(functional_call(layer, held, (read,)), value.detach())
