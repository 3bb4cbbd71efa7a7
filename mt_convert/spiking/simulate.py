"""`simulate`: the time loop and the state of a converted network.

The network runs on running values: behind step t every value of the graph is what has arrived so
far (its total where the image is presented once, its mean over the steps where it is presented in
every step). A linear operator applied to a total is the total of the operator applied to each
step's spikes, its bias injected once; a non-linear operator f applied to totals *is* its temporal
difference, out[t] = f(total up to t) - f(total up to t-1) (invariant 7). Only neurons have state:
what they have emitted so far. So steps cannot accumulate rounding, and memory does not grow with T.
`literal.spike_by_spike` runs the same network on each step's spikes; tests show them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from warnings import warn

import torch
from torch import Tensor, fx

from ..errors import Fault, SpecError, many
from ..graph.by_values import call
from ..graph.float32 import in_float32, network_dtype
from ..graph.nodes import attribute, check_images, input_reach, node_name
from ..graph.operations import Operation, reaching_output
from ..neurons.ladder import Radix
from ..neurons.layer import MTNeuron
from ..neurons.totals import (
    count_events,
    count_packets,
    leak_of,
    totals_step,
    totals_step_literal,
    without_leak,
)
from ..report.records import Records
from ..system.devices import device_of
from .levels import input_unit, ladder_at, level_at, table_at, window_spec, worth
from .model import SpikingModel, spiking_network
from .presentation import Encoder, Presentation, check_time_steps
from .shapes import images_not_first

Observer = Callable[[int, str, Tensor, Tensor], None]
PairObserver = Callable[[int, str, Tensor], None]


@dataclass(frozen=True, repr=False)
class Run(Records):
    """What a simulation saw.

    Shapes:
        logits [T, batch, classes]: the read-out after each step. totals[layer] [batch, ...]: levels
        emitted by the end. spike_counts[layer] [T]: events in each step, summed over the batch.
        packets[layer] [T]: neurons that emit anything in each step, summed over the batch.
        spikes[layer] [T, batch, ...]: levels emitted in each step, only where recorded.
        potentials[layer] [T, batch, ...]: v behind each step, in levels, only where recorded.
    Units: levels are multiples of the layer's step; an event is one threshold crossed (a set bit of
        a binary ladder, one spike of a power-of-two ladder; a digit of a radix ladder is as many as
        its size; on the dip of a function those really passed, up and down). neurons[layer] counts
        one image's.
    """

    logits: Tensor
    totals: dict[str, Tensor]
    spike_counts: dict[str, Tensor]
    neurons: dict[str, int]
    packets: dict[str, Tensor]
    spikes: dict[str, Tensor] | None = None
    potentials: dict[str, Tensor] | None = None

    @property
    def firing_rates(self) -> dict[str, float]:
        """Events per neuron and step of each layer, over all steps and images."""
        steps, batch = self.logits.shape[:2]
        return {
            name: float(count.sum()) / max(1, self.neurons[name] * steps * batch)
            for name, count in self.spike_counts.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer: its neurons, events, packets, and rate."""
        rates = self.firing_rates
        return [
            {
                "layer": name,
                "neurons": self.neurons[name],
                "events": float(count.sum()),
                "packets": float(self.packets[name].sum()),
                "rate": rates[name],
            }
            for name, count in self.spike_counts.items()
        ]

    def __repr__(self) -> str:
        steps, batch = self.logits.shape[:2]
        return (
            f"Run(T={steps}, images={batch}, {many(self.neurons, 'layer', 'layers')} of neurons, "
            f"{self.firing_rate:.3g} events per neuron and step)"
        )

    @property
    def firing_rate(self) -> float:
        """Events per neuron and step, over all layers, steps and images."""
        steps, batch = self.logits.shape[:2]
        events = sum(float(count.sum()) for count in self.spike_counts.values())
        return events / (max(1, sum(self.neurons.values())) * steps * max(1, batch))


class Arithmetic(Protocol):
    """The numbers a network runs on; `FloatArithmetic` here, integers in the engine."""

    def encode(self, encoder: Encoder, images: Tensor) -> Any:
        """The value of the encoded image."""

    def operate(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        """The value of any other operator or layer."""

    def drive(self, value: Any, step: Tensor) -> Tensor:
        """A neuron's input in levels. ``step`` is one number, or one per entry of the batch."""

    def emit(self, total: Tensor, step: Tensor, neuron: MTNeuron) -> Any:
        """The value of what a neuron has emitted."""

    def read_out(self, value: Any) -> Tensor:
        """The logits as a tensor."""


class FloatArithmetic:
    """The layers' own floating-point numbers: at T = 1 bit-equal to the quantized network."""

    def encode(self, encoder: Encoder, images: Tensor) -> Tensor:
        return encoder(images)

    def operate(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        return call(operation.call, args, kwargs)

    def drive(self, value: Tensor, step: Tensor) -> Tensor:
        return value / along_batch(step, value)

    def emit(self, total: Tensor, step: Tensor, neuron: MTNeuron) -> Tensor:
        return total * along_batch(step, total)

    def read_out(self, value: Tensor) -> Tensor:
        return value


def along_batch(step: Tensor, like: Tensor) -> Tensor:
    """A step, or one per entry of the batch axis, shaped to multiply ``like``."""
    return step if step.dim() == 0 else step.reshape(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
@in_float32()
def simulate(
    snn: SpikingModel,
    images: Tensor,
    *,
    time_steps: int,
    record: bool = False,
    observe: Observer | None = None,
    observe_pairs: PairObserver | None = None,
    arithmetic: Arithmetic | None = None,
    layer_by_layer: bool = False,
    literal: bool = False,
) -> Run:
    """Run a converted network for T steps from fresh potentials; the network itself is unchanged.

    ``layer_by_layer`` takes each layer through all T steps at once instead of each step through all
    layers: the same numbers (invariant 3), T times the memory. ``literal`` fires threshold by
    threshold, the reference. ``observe(t, layer, total, emitted)`` is called after each layer and
    step with tensors in levels, t from 0; before it ``observe_pairs(t, layer, pairs)`` where the
    thresholds of a function were crossed up and down. ``record`` keeps every step's spikes and
    potentials.

    Shapes:
        images [batch, channels, height, width], normalised as in training.
    Raises:
        SpecError: fewer than one time step; ``layer_by_layer`` where a layer does not keep images
            apart on its first axis (attention over windows, tokens first).
        DataError: images of another shape, or with NaN.

    Example:
        >>> from torch import nn
        >>> from .convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> qann = quantize(net, QuantSpec(), calibration=images)
        >>> torch.equal(simulate(convert(qann), images, time_steps=1).logits[0], qann(images))
        True
    """
    snn = spiking_network(snn, "simulate")
    images = check_run(snn, images, time_steps)
    loop = _Loop(snn, time_steps, arithmetic or FloatArithmetic(), literal)
    if observe is not None:
        loop.observers.append(observe)
    loop.observe_pairs = observe_pairs
    recording: dict[str, list[Tensor]] = {}
    if record:
        loop.residuals = {}
        loop.observers.append(
            lambda t, name, total, out: recording.setdefault(name, []).append(out)
        )
    if layer_by_layer:
        _check_images_first(snn)
    if snn.whole_window:
        logits = loop.window_by_window(images)
    else:
        logits = loop.all_steps_at_once(images) if layer_by_layer else loop.step_by_step(images)
    return Run(
        logits=logits,
        totals=loop.totals,
        spike_counts={name: torch.stack(counts) for name, counts in loop.counts.items()},
        neurons={name: total.numel() // max(1, len(images)) for name, total in loop.totals.items()},
        packets={name: torch.stack(counts) for name, counts in loop.packets.items()},
        spikes=_stack(recording) if record else None,
        potentials=None if loop.residuals is None else _stack(loop.residuals),
    )


def _stack(steps: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The tensors of all steps of each layer as one, in the order of the layers."""
    return {name: torch.stack(tensors) for name, tensors in steps.items()}


def check_run(snn: SpikingModel, images: Tensor, time_steps: int) -> Tensor:
    """The images in the network's type; a warning where it was calibrated for other steps.

    Raises:
        SpecError: fewer than one time step.
        DataError: images of another shape, or with NaN.
    """
    check_time_steps(time_steps)
    images = check_images(images, snn.image_shape, like_network(snn), input_reach(snn.layers))
    if snn.report.calibrated_T not in (None, time_steps):
        warn(
            f"this network was calibrated for T = {snn.report.calibrated_T} and runs for T = "
            f"{time_steps}: it may be worse than without calibration",
            stacklevel=5,
        )
    return images


def like_network(snn: SpikingModel) -> Tensor:
    """An empty tensor of the floating type and on the device of a network's layers."""
    return torch.empty(0, dtype=network_dtype(snn), device=device_of(snn))


def _check_images_first(snn: SpikingModel) -> None:
    """All steps can lie along the batch axis only where nothing else does."""
    faults = [
        Fault(node_name(node), str(node.target), "step by step works")
        for node in images_not_first(snn.layers)
    ]
    if faults:
        raise SpecError(
            "layer_by_layer=True: images are not alone on the first axis in this network",
            faults[:5],
        )


class _Loop:
    """One simulation: the totals of all neurons, and three orders of running layers and steps."""

    def __init__(
        self, snn: SpikingModel, time_steps: int, arithmetic: Arithmetic, literal: bool
    ) -> None:
        self.snn, self.time_steps, self.arithmetic = snn, time_steps, arithmetic
        self.every_step = snn.presentation is Presentation.EVERY_STEP
        self.advance = totals_step_literal if literal else totals_step
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, list[Tensor]] = {}
        self.packets: dict[str, list[Tensor]] = {}
        self.potentials: dict[str, Tensor] = {}
        self.lost: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.observers: list[Observer] = []
        self.residuals: dict[str, list[Tensor]] | None = None  # potentials of each step, if asked
        self.observe_pairs: PairObserver | None = None
        self.moved = False
        nodes = snn.layers.graph.nodes
        self.operations = snn.operations
        self.last_use = {item: node for node in nodes for item in node.all_input_nodes}

    # ---------------------------------------------------------------- three orders, same numbers

    def step_by_step(self, images: Tensor) -> Tensor:
        """Each step through all layers. A network that has come to rest repeats its read-out."""
        logits: list[Tensor] = []
        for t in range(self.time_steps):
            if t > 0 and not self.moved and not self.every_step:
                for row in self.operations.values():
                    if isinstance(row.layer, MTNeuron):
                        self._record(t, row.name, row.layer, self.totals[row.name])
                        if self.residuals is not None:
                            self.residuals[row.name].append(self.residuals[row.name][-1])
                logits.append(logits[-1])
                continue
            self.moved = False

            def neuron(node: fx.Node, layer: MTNeuron, value: Any, t: int = t) -> Any:
                drive = self.arithmetic.drive(value, self._unit(layer, t))
                total = self._fire(t, node, layer, drive)
                return self.arithmetic.emit(total, self._worth(layer, t), layer)

            logits.append(self._walk(images, neuron, {}))
        return torch.stack(logits)

    def all_steps_at_once(self, images: Tensor) -> Tensor:
        """Each layer through all steps, which lie along the batch axis: [T * batch, ...]."""
        steps, batch = self.time_steps, images.shape[0]

        def neuron(node: fx.Node, layer: MTNeuron, value: Any) -> Any:
            def each(amount: Callable[[MTNeuron, int], Tensor]) -> Tensor:
                amounts = [amount(layer, t) for t in range(steps)]
                return torch.stack(amounts).repeat_interleave(batch)

            drives = self.arithmetic.drive(value, each(self._unit)).unflatten(0, (steps, batch))
            totals = [self._fire(t, node, layer, drives[t]) for t in range(steps)]
            return self.arithmetic.emit(torch.cat(totals), each(self._worth), layer)

        logits = self._walk(images.repeat(steps, *[1] * (images.dim() - 1)), neuron, {})
        return logits.unflatten(0, (steps, batch))

    def window_by_window(self, images: Tensor) -> Tensor:
        """Each layer waits for all T steps of those before it; the read-out sees every step."""
        series: dict[fx.Node, list[Tensor]] = {}

        def neuron(node: fx.Node, layer: MTNeuron, value: Any) -> Any:
            drives = (
                self.arithmetic.drive(value, self._unit(layer, t)) for t in range(self.time_steps)
            )
            series[node] = [self._fire(t, node, layer, drive) for t, drive in enumerate(drives)]
            return self.arithmetic.emit(
                series[node][-1], self._worth(layer, self.time_steps - 1), layer
            )

        values: dict[fx.Node, Any] = {}
        self._walk(images, neuron, values, keep=True)
        last = reaching_output(self.operations)
        reading = [node for node in values if node in last]
        for node in reading:
            if node not in series:
                del values[node]  # computed afresh from what the last neurons emit in each step
        logits = []
        for t in range(self.time_steps):
            for node in reading:
                layer = self.operations[node].layer
                if isinstance(layer, MTNeuron):
                    worth_now = self._worth(layer, t)
                    values[node] = self.arithmetic.emit(series[node][t], worth_now, layer)
            logits.append(self._walk(images, neuron, dict(values), keep=True))
        return torch.stack(logits)

    # ------------------------------------------------------------------------------- one walk

    def _walk(
        self,
        images: Tensor,
        neuron: Callable[[fx.Node, MTNeuron, Any], Any],
        values: dict[fx.Node, Any],
        keep: bool = False,
    ) -> Tensor:
        """Evaluate all nodes that ``values`` does not hold yet, in order; return the read-out."""
        for node in self.snn.layers.graph.nodes:
            if node in values:
                continue
            if node.op == "output":
                return self.arithmetic.read_out(values[node.args[0]])
            values[node] = self._value(node, images, neuron, values)
            if not keep:
                for item in node.all_input_nodes:
                    if self.last_use[item] is node:
                        del values[item]
        raise AssertionError("a graph has an output")

    def _value(
        self,
        node: fx.Node,
        images: Tensor,
        neuron: Callable[[fx.Node, MTNeuron, Any], Any],
        values: dict[fx.Node, Any],
    ) -> Any:
        """The value of one node."""
        row = self.operations[node]
        if node.op == "placeholder":
            return images
        if node.op == "get_attr":
            return attribute(self.snn.layers, str(node.target))
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if isinstance(row.layer, MTNeuron):
            return neuron(node, row.layer, args[0])
        if isinstance(row.layer, Encoder):
            return self.arithmetic.encode(row.layer, args[0])
        return self.arithmetic.operate(row, args, kwargs)

    # ---------------------------------------------------------------------------- one neuron layer

    def _unit(self, neuron: MTNeuron, t: int) -> Tensor:
        """What a neuron's input is measured in behind step t."""
        return input_unit(neuron, self.snn.presentation, t)

    def _worth(self, neuron: MTNeuron, t: int) -> Tensor:
        """What one level that it has emitted is worth behind step t."""
        return worth(neuron, self.snn.presentation, t)

    def _fire(self, t: int, node: fx.Node, neuron: MTNeuron, drive: Tensor) -> Tensor:
        """The layer's total behind step t, from its input in levels."""
        name = str(node.target)
        spec = window_spec(neuron.spec, self.snn.presentation, t)
        before = self.totals.get(name)
        pairs = None
        if neuron.table is not None:
            pairs = self._dips(t, name, neuron, drive)
            if self.advance is totals_step_literal:
                drive = table_at(neuron, self.snn.presentation, t).literal(drive)
            else:
                drive = level_at(neuron, self.snn.presentation, t, drive)
        if neuron.offset is not None:
            drive = drive + neuron.offset
        leak = leak_of(spec)
        if leak is not None:
            spec = without_leak(spec)
            drive = self._after_leak(name, neuron, drive, leak)
        start = torch.full_like(drive, spec.start) if before is None else before
        total = self.advance(drive, start, spec)
        if leak is not None:
            self.moved = True  # a potential that leaks is not at rest
            self.potentials[name] = drive - total + spec.initial
        if self.residuals is not None:
            self.residuals.setdefault(name, []).append(drive - total + spec.initial)
        self._record(t, name, neuron, total, pairs)
        return total

    def _dips(self, t: int, name: str, neuron: MTNeuron, drive: Tensor) -> Tensor | None:
        """Thresholds of a function that were crossed up and down in this step; none in digits."""
        assert neuron.table is not None
        if isinstance(neuron.spec.ladder, Radix) or bool((neuron.table.weights >= 0).all()):
            return None
        before, self.inputs[name] = self.inputs.get(name), drive
        return table_at(neuron, self.snn.presentation, t).crossed(before, drive)

    def _after_leak(self, name: str, neuron: MTNeuron, drive: Tensor, leak: float) -> Tensor:
        """The input so far, less all that leaked away."""
        if name not in self.potentials:
            v = torch.zeros_like(drive) + neuron.spec.initial
            self.potentials[name] = v if neuron.offset is None else v + neuron.offset
            self.lost[name] = torch.zeros_like(drive)
        self.lost[name] = self.lost[name] + leak * self.potentials[name]
        return drive - self.lost[name]

    def _record(
        self, t: int, name: str, neuron: MTNeuron, total: Tensor, pairs: Tensor | None = None
    ) -> None:
        """Keep the new total, count events, tell the observers."""
        before = self.totals.get(name)
        emitted = total - (neuron.spec.start if before is None else before)
        self.totals[name] = total
        events = count_events(emitted, ladder_at(neuron.spec.ladder, t))
        if pairs is not None:
            events = events + pairs
            if self.observe_pairs is not None:
                self.observe_pairs(t, name, pairs)
        count = events.sum(-1).sum(dtype=torch.float64)  # exact: one row stays below 2^24
        self.moved = self.moved or bool(count)
        self.counts.setdefault(name, []).append(count)
        self.packets.setdefault(name, []).append(count_packets(emitted))
        for observe in self.observers:
            observe(t, name, total, emitted)
