"""The whole network spike by spike: the reference of `simulate`, slow and plain.

Every value of the graph is what arrives *in this step*: neurons integrate it into a membrane
potential that starts at v0 = step/2 and fire threshold by threshold (`mt_step_literal`), weighted
layers act on this step's spikes alone and inject their bias at t = 0 (in every step, where the
image is presented in every step), a product of two activations adds what this step's spikes on
either side cause, and a non-linear operator f stores its input and emits
out[t] = f(input up to t) - f(input up to t-1). Networks whose layers wait for their whole window
run layer by layer instead, in `window_spikes`.

Potentials fire at equality: a charge exactly halfway between two levels rounds up, and a signed
neuron left exactly there takes back what it emitted. `simulate` rounds half to even, as quantizers
do. Off such ties, and where sums of charge are exact in float32, both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.by_values import call
from ...graph.float32 import in_float32
from ...graph.nodes import NORMS, WEIGHTED, attribute, check_images
from ...graph.rules import NON_LINEAR, OperatorKind
from ...graph.signals import Signal
from ...neurons.dynamics import NeuronState, initial_state, mt_step_literal
from ...neurons.layer import MTNeuron
from ...neurons.spec import NeuronSpec
from ...neurons.totals import totals_step_literal
from ..levels import table_at, unit, window_spec
from ..model import SpikingModel
from ..presentation import Presentation, check_time_steps
from ..simulate import like_network
from .trains import INJECTING, SpikeRun, call_without_bias
from .window_spikes import run_windows


@torch.no_grad()
@in_float32()
def spike_by_spike(snn: SpikingModel, images: Tensor, *, time_steps: int) -> SpikeRun:
    """Run a converted network on each step's spikes, from fresh potentials.

    Shapes:
        images [batch, channels, height, width], normalised as in training.
    Raises:
        SpecError: fewer than one time step; digits in different bases that meet in a window.

    Example:
        >>> from torch import nn
        >>> from ..convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> from ..simulate import simulate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> run = spike_by_spike(snn, images, time_steps=2)
        >>> torch.equal(run.totals["1"], simulate(snn, images, time_steps=2).totals["1"])
        True
    """
    check_time_steps(time_steps)
    images = check_images(images, snn.image_shape, like_network(snn))
    if snn.whole_window:
        return run_windows(snn, images, time_steps)
    walk = _Walk(snn)
    arriving: dict[str, list[Tensor]] = {}
    logits = []
    for t in range(time_steps):
        values = walk.step(t, images)
        logits.append(walk.read_out / (t + 1 if walk.every_step else 1))
        for node, value in values.items():
            if isinstance(value, Tensor) and node.op != "get_attr":
                arriving.setdefault(node.name, []).append(value)
    return SpikeRun(
        logits=torch.stack(logits),
        totals={name: state.total for name, state in walk.states.items()},
        charges=walk.charges,
        potentials={name: state.v for name, state in walk.states.items()},
        steps={name: float(step) for name, step in walk.steps.items()},
        arriving={name: torch.stack(values) for name, values in arriving.items()},
    )


class _Walk:
    """One run: the potentials of all neurons and what non-linear operators have stored."""

    def __init__(self, snn: SpikingModel) -> None:
        self.layers = snn.layers
        self.presentation = snn.presentation
        self.every_step = snn.presentation is Presentation.EVERY_STEP
        self.operations = snn.operations
        self.states: dict[str, NeuronState] = {}
        self.charges: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.stored: dict[fx.Node, dict[fx.Node, Tensor]] = {}
        self.before: dict[fx.Node, Tensor] = {}
        self.read_out: Any = 0

    def step(self, t: int, images: Tensor) -> dict[fx.Node, Any]:
        """What arrives at every node in step t."""
        values: dict[fx.Node, Any] = {}
        for node in self.layers.graph.nodes:
            if node.op == "output":
                self.read_out = self.read_out + values[node.args[0]]
            elif node.op == "placeholder":
                values[node] = images if self._injects(t) else torch.zeros_like(images)
            else:
                values[node] = self._arriving(node, t, values)
        return values

    def _injects(self, t: int) -> bool:
        """Whether the image, biases and constants enter in step t."""
        return t == 0 or self.every_step

    def _arriving(self, node: fx.Node, t: int, values: dict[fx.Node, Any]) -> Any:
        """What arrives at one node in step t."""
        row = self.operations[node]
        layer = row.layer
        if node.op == "get_attr":
            return attribute(self.layers, str(node.target))
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if isinstance(layer, MTNeuron):
            return self._fire(str(node.target), layer, args[0], t)

        def operate(*args: Any, **kwargs: Any) -> Any:
            return call(row.call, args, kwargs)

        if row.signal is Signal.CONSTANT:
            return operate(*args, **kwargs)
        if row.kind is OperatorKind.PRODUCT and not self.every_step and len(node.args) == 2:
            return self._product(node, operate, values)
        if row.kind in (*NON_LINEAR, OperatorKind.PRODUCT):
            return self._difference(node, operate, t, values)
        if layer is not None and isinstance(layer, (*WEIGHTED, *NORMS)) and not self._injects(t):
            return call_without_bias(layer, *args)
        if node.target in INJECTING and not self._injects(t):
            args = self._without_constants(node.args, values)
        return operate(*args, **kwargs)

    def _without_constants(self, args: Any, values: dict[fx.Node, Any]) -> Any:
        """The arguments of an adding operator with 0 for what is constant; cat and stack keep
        their axis."""
        if isinstance(args[0], (list, tuple)):
            return (tuple(self._charge(item, values) for item in args[0]), *args[1:])
        return tuple(self._charge(item, values) for item in args)

    def _charge(self, item: Any, values: dict[fx.Node, Any]) -> Any:
        """One summand: 0 for a number or a constant."""
        if not isinstance(item, fx.Node):
            return 0.0
        constant = self.operations[item].signal is Signal.CONSTANT
        return torch.zeros_like(values[item]) if constant else values[item]

    def _product(
        self, node: fx.Node, operate: Callable[..., Any], values: dict[fx.Node, Any]
    ) -> Tensor:
        """a * b of two values that arrive over time, driven by spikes alone: this step's a meet
        all b so far, this step's b meet all a before. A constant side is there from the start."""
        sides: list[Any] = list(node.args)
        now = [values[item] for item in sides]
        moving = [self.operations[item].signal is not Signal.CONSTANT for item in sides]
        if not all(moving):
            return operate(*now)
        stored = self.stored.setdefault(node, {})
        first, second = (stored.get(item, torch.zeros_like(values[item])) for item in sides)
        stored.update(zip(sides, (first + now[0], second + now[1]), strict=True))
        return operate(now[0], second + now[1]) + operate(first, now[1])

    def _difference(
        self, node: fx.Node, operate: Callable[..., Any], t: int, values: dict[fx.Node, Any]
    ) -> Tensor:
        """f of all input so far, less f of all input before this step."""
        stored = self.stored.setdefault(node, {})
        for item in node.all_input_nodes:
            if self.operations[item].signal is not Signal.CONSTANT:
                adds = item in stored and values[item].dtype is not torch.bool
                stored[item] = stored[item] + values[item] if adds else values[item]
        steps = t + 1 if self.every_step else 1

        def value_so_far(item: fx.Node) -> Any:
            counted = item in stored and stored[item].dtype is not torch.bool
            return stored[item] / steps if counted else values[item]

        args, kwargs = fx.map_arg((node.args, node.kwargs), value_so_far)
        now = operate(*args, **kwargs)
        if now.dtype is torch.bool:  # a condition, not a charge: it holds from this step on
            return now
        now = now * steps
        before = self.before.get(node, torch.zeros_like(now))
        self.before[node] = now
        return now - before

    def _compare(
        self, name: str, neuron: MTNeuron, spec: NeuronSpec, state: NeuronState, t: int
    ) -> tuple[Tensor, NeuronState]:
        """One step of a function: its thresholds look at all charge so far, and what they say
        beyond what was emitted is fired."""
        heard = self.charges[name] / (t + 1 if self.every_step else 1)
        level = table_at(neuron, self.presentation, t).literal(heard)
        if neuron.offset is not None:
            level = level + neuron.offset
        total = totals_step_literal(level, state.total, spec)
        emitted = total - state.total
        return emitted * unit(neuron, self.presentation, 0), NeuronState(heard, total)

    def _fire(self, name: str, neuron: MTNeuron, current: Tensor, t: int) -> Tensor:
        """One step of a layer of neurons, on its membrane potential."""
        spec = window_spec(neuron.spec, self.presentation, t)
        delta = unit(neuron, self.presentation, 0)
        state = self.states.get(name)
        if state is None:
            state = initial_state(current, spec, delta)
            if neuron.offset is not None:
                state = state._replace(v=state.v + neuron.offset * delta)
        self.charges[name] = self.charges.get(name, torch.zeros_like(current)) + current
        if neuron.table is None:
            spikes, self.states[name] = mt_step_literal(state, current, spec, delta)
        else:
            spikes, self.states[name] = self._compare(name, neuron, spec, state, t)
        self.steps[name] = delta
        return spikes if neuron.gain is None else spikes * neuron.gain
