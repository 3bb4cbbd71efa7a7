"""Whole windows spike by spike: each layer listens for a window, then speaks for one.

A value of the graph is a *train*: what arrives in each step of the window. A train of radix digits
has a base R: its total is a_1 R^(T-1) + … + a_T, which a membrane finds by V <- R V + a_t. Plain
spikes have base 1. Image, biases and constants arrive in the last step, where nothing multiplies
them any more. Linear operators act on each step by itself; a product of two trains hands over
a_t B_t + R A_(t-1) b_t (A, B what has arrived so far), a train of base R^2; the largest of what one
layer emits is handed over digit by digit. All other operators wait, and hand over once, in the last
step: that is no spike, and the report lists them as analog. Nothing here knows running totals of
emissions in advance, nor the code that computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import Fault, SpecError
from ...graph.by_values import call
from ...graph.nodes import NORMS, WEIGHTED, attribute
from ...graph.operations import Operation, reaching_output
from ...graph.rules import NON_LINEAR, OperatorKind
from ...graph.signals import Signal
from ...neurons.dynamics import NeuronState, initial_state, mt_step_literal
from ...neurons.fixed_threshold import fixed_threshold_step, start_speaking
from ...neurons.ladder import Learned, Radix
from ...neurons.layer import MTNeuron
from ...neurons.spec import IF
from ...neurons.totals import totals_step_literal
from ..levels import table_at, unit, window_spec
from ..model import SpikingModel
from ..presentation import Presentation
from .trains import INJECTING, SpikeRun, Train, call_without_bias

aten = torch.ops.aten

_JUST = 2.0**-30  # what decides a tie, in levels: halves go to even


class _NotHeld(Exception):
    """Trains of different powers meet: the operator waits for both."""


def run_windows(snn: SpikingModel, images: Tensor, time_steps: int) -> SpikeRun:
    """`spike_by_spike` where layers wait for their whole window.

    Raises:
        SpecError: layers whose digits are in different bases, where they meet.
    """
    run = _Windows(snn, images, time_steps)
    run.walk({}, time_steps)
    last = reaching_output(run.operations)
    logits = []
    for t in range(time_steps):
        known = {
            node: run.cut(node, t)
            for node, value in run.values.items()
            if node not in last or run.speaks(node)
        }
        tail = _Windows(snn, images, t + 1 if run.every_step else time_steps)
        tail.walk(known, t + 1)
        logits.append(tail.read_out)
    return SpikeRun(
        logits=torch.stack(logits),
        totals=run.totals,
        charges=run.charges,
        potentials=run.potentials,
        steps={name: float(step) for name, step in run.steps.items()},
        arriving={
            node.name: torch.stack(value.steps)
            for node, value in run.values.items()
            if isinstance(value, Train) and isinstance(value.steps[0], Tensor)
        },
    )


class _Windows:
    """One run: the trains of all values, and what neurons have heard and said."""

    def __init__(self, snn: SpikingModel, images: Tensor, time_steps: int) -> None:
        self.layers, self.images, self.time_steps = snn.layers, images, time_steps
        self.presentation = snn.presentation
        self.every_step = snn.presentation is Presentation.EVERY_STEP
        self.operations = snn.operations
        windows = [
            neuron.spec.ladder.steps or 1
            for _, neuron in snn.neurons()
            if isinstance(neuron.spec.ladder, Radix)
        ]
        self.length = max(*windows, time_steps) if windows else time_steps  # of a window
        self.lead = self.length - max(windows) if windows else 0  # steps before the first digit
        self.values: dict[fx.Node, Any] = {}
        self.totals: dict[str, Tensor] = {}
        self.charges: dict[str, Tensor] = {}
        self.potentials: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.lifts: dict[str, Tensor] = {}  # what a layer counts from, a constant to its readers
        self.read_out: Tensor

    def walk(self, known: Mapping[fx.Node, Any], read_steps: int) -> None:
        """All values that are not known, in order; the read-out is a mean over ``read_steps`` where
        the image is presented in every step."""
        self.values = dict(known)
        for node in self.layers.graph.nodes:
            if node.op == "output":
                self.read_out = self._mean(self.values[node.args[0]], read_steps)
            elif node not in self.values:
                self.values[node] = self._value(node)

    def speaks(self, node: fx.Node) -> bool:
        """Whether a node is a layer of neurons."""
        return isinstance(self.operations[node].layer, MTNeuron)

    def cut(self, node: fx.Node, t: int) -> Any:
        """What a layer of neurons has said behind step t, before it is silent; presented in every
        step a window that ends there. Any other value is what it is."""
        value = self.values[node]
        if not isinstance(value, Train):
            return value
        if self.every_step:
            return value._replace(steps=value.steps[: t + 1])
        if not self.speaks(node):
            return value
        end = t if value.factor == 1 else t + self.lead
        silent = torch.zeros_like(value.steps[0])
        steps = [item if at <= end else silent for at, item in enumerate(value.steps)]
        if end < len(steps) - 1:  # what layers count from is known from the start
            steps[-1] = steps[-1] + self.lifts[str(node.target)]
        return value._replace(steps=steps)

    def _mean(self, value: Any, steps: int) -> Tensor:
        """The total of a train, or its mean."""
        total: Tensor = value.total() if isinstance(value, Train) else value
        return total / steps if self.every_step else total

    # --------------------------------------------------------------------------------- operators

    def _value(self, node: fx.Node) -> Any:
        """The train of one node, or a constant."""
        row = self.operations[node]
        if node.op == "placeholder":
            return self._once(self.images)
        if node.op == "get_attr":
            return attribute(self.layers, str(node.target))
        if isinstance(row.layer, MTNeuron):
            return self._neuron(str(node.target), row.layer, self.values[node.all_input_nodes[0]])
        if row.signal is Signal.CONSTANT:
            return self._operate(node, self.length - 1, row.call)
        try:
            return self._over_time(node, row)
        except _NotHeld:
            return self._wait(node, row)

    def _once(self, value: Any) -> Train:
        """What arrives in the last step alone; an image presented in every step, in each."""
        if self.every_step:
            return Train([value] * self.length, (1, 1))
        silent = _map(torch.zeros_like, value)
        return Train([silent] * (self.length - 1) + [value], None)

    def _operate(self, node: fx.Node, t: int, function: Callable[..., Any]) -> Any:
        """A function of what arrives in step t."""

        def now(item: fx.Node) -> Any:
            value = self.values[item]
            return value.steps[t] if isinstance(value, Train) else value

        args, kwargs = fx.map_arg((node.args, node.kwargs), now)
        return call(function, args, kwargs)

    def _over_time(self, node: fx.Node, row: Operation) -> Train:
        """The train of an operator, step by step where that is possible."""
        if row.kind in (*NON_LINEAR, OperatorKind.PRODUCT):
            if self.every_step:
                return self._difference(node, row)
            moving = [item for item in row.inputs if isinstance(self.values[item], Train)]
            if row.kind is OperatorKind.PRODUCT and len(node.args) == 2:
                if len(moving) == 2 or node.args[0] is node.args[1]:
                    return self._product(node, row)
            elif row.rule is not None and row.rule.selects and self._is_one_layer(node):
                return self._largest(node, row)
            if not (row.kind is OperatorKind.PRODUCT and len(node.args) == 2 and len(moving) == 1):
                return self._wait(node, row)
        base = self._common_base(row)
        early = row.call if self.every_step else self._without_injection(node, row)
        steps = [self._operate(node, t, early) for t in range(self.length - 1)]
        return Train([*steps, self._operate(node, self.length - 1, row.call)], base)

    def _without_injection(self, node: fx.Node, row: Operation) -> Callable[..., Any]:
        """An operator without its bias or constants, which arrive in the last step."""
        if isinstance(row.layer, (*WEIGHTED, *NORMS)):
            return partial(call_without_bias, row.layer)
        return self._without_constants(node, row.call) if node.target in INJECTING else row.call

    def _without_constants(self, node: fx.Node, operator: Any) -> Callable[..., Any]:
        """An adding operator with 0 for what is constant."""

        def silence(item: Any, value: Any) -> Any:
            if isinstance(item, (list, tuple)):
                return [silence(*pair) for pair in zip(item, value, strict=True)]
            if isinstance(item, fx.Node) and isinstance(self.values[item], Train):
                return value
            return torch.zeros_like(value) if isinstance(value, Tensor) else 0.0

        joins = isinstance(node.args[0], (list, tuple))

        def operate(*args: Any, **kwargs: Any) -> Any:
            first = silence(node.args[0], args[0])
            rest = (
                args[1:]
                if joins
                else [silence(*p) for p in zip(node.args[1:], args[1:], strict=True)]
            )
            return call(operator, (first, *rest), kwargs)

        return operate

    def _bases(self, row: Operation) -> set[tuple[int, int]]:
        """The bases and powers of all trains that meet in an operator.

        Raises:
            SpecError: they count in different bases.
        """
        trains = {item: self.values[item] for item in row.inputs}
        bases = {item: train.base for item, train in trains.items() if isinstance(train, Train)}
        different = {base for base in bases.values() if base is not None}
        if len({base for base, _ in different}) > 1:
            names = ", ".join(f"{item} in base {base[0]}" for item, base in bases.items() if base)
            fault = Fault(row.name, names, "use one n for layers that meet; simulate runs them all")
            raise SpecError("trains in different bases meet, which no one membrane adds", [fault])
        return different

    def _common_base(self, row: Operation) -> tuple[int, int] | None:
        """The base of all trains that meet in an operator.

        Raises:
            SpecError: they count in different bases.
            _NotHeld: they are different powers of one.
        """
        bases = self._bases(row)
        if len(bases) > 1:
            raise _NotHeld
        return next(iter(bases), None)

    def _product(self, node: fx.Node, row: Operation) -> Train:
        """a * b of two trains: this step's a meet all b so far, this step's b all a before, which
        the membrane of a has multiplied by its base since."""
        sides: list[Any] = list(node.args)
        one, two = (self.values[item] for item in sides)
        if None in (one.base, two.base):
            return self._wait(node, row)
        self._bases(row)
        first, second, steps = one.so_far(), two.so_far(), []
        for t in range(self.length):
            here = call(row.call, (one.steps[t], second[t]), node.kwargs)
            if t:
                before = first[t - 1] * one.factor
                here = here + call(row.call, (before, two.steps[t]), node.kwargs)
            steps.append(here)
        return Train(steps, (one.base[0], one.base[1] + two.base[1]))

    def _largest(self, node: fx.Node, row: Operation) -> Train:
        """The largest of what one layer emits: the largest prefix is the prefix of the largest."""
        (item,) = row.inputs
        train: Train = self.values[item]
        prefixes, steps = train.so_far(), list[Tensor]()
        before: Tensor | None = None
        for prefix in prefixes:

            def so_far(_: fx.Node, prefix: Tensor = prefix) -> Tensor:
                return prefix

            args, kwargs = fx.map_arg((node.args, node.kwargs), so_far)
            now = call(row.call, args, kwargs)
            steps.append(now if before is None else now - before * train.factor)
            before = now
        return Train(steps, train.base)

    def _is_one_layer(self, node: fx.Node) -> bool:
        """Whether all that an operator reads is what one layer of neurons emits, moved at most."""
        row = self.operations[node]
        while len(row.inputs) == 1 and row.node.all_input_nodes == list(row.inputs):
            row = self.operations[row.inputs[0]]
            if isinstance(row.layer, MTNeuron):
                return True
            if row.kind is not OperatorKind.MOVE and not (row.rule and row.rule.selects):
                return False
        return False

    def _wait(self, node: fx.Node, row: Operation) -> Train:
        """The operator on all that has arrived, handed over once."""

        def complete(item: fx.Node) -> Any:
            value = self.values[item]
            return value.total() if isinstance(value, Train) else value

        args, kwargs = fx.map_arg((node.args, node.kwargs), complete)
        return self._once(call(row.call, args, kwargs))

    def _difference(self, node: fx.Node, row: Operation) -> Train:
        """Presented in every step: f of the mean so far, times the steps, less that of before."""
        steps: list[Tensor] = []
        before: Tensor | None = None
        for t in range(self.length):

            def mean(item: fx.Node, t: int = t) -> Any:
                value = self.values[item]
                if not isinstance(value, Train):
                    return value
                counted = value.steps[0].dtype is not torch.bool
                return value.so_far()[t] / (t + 1) if counted else value.steps[t]

            args, kwargs = fx.map_arg((node.args, node.kwargs), mean)
            now = call(row.call, args, kwargs)
            if now.dtype is torch.bool:
                steps.append(now)
                continue
            now = now * (t + 1)
            steps.append(now if before is None else now - before)
            before = now
        return Train(steps, (1, 1))

    # ------------------------------------------------------------------------------------ neurons

    def _neuron(self, name: str, neuron: MTNeuron, train: Train) -> Train:
        """A layer listens to a window, then it speaks for one."""
        heard = self._mean(train, self.length)
        self.charges[name], self.steps[name] = heard, neuron.delta
        y = heard / neuron.delta if neuron.table is None else neuron.table.literal(heard)
        if neuron.offset is not None:
            y = y + neuron.offset
        ladder = neuron.spec.ladder
        base = ladder.base if isinstance(ladder, Radix) else 1
        if neuron.table is not None and self.every_step:
            emitted = self._compare(neuron, heard)
        elif not isinstance(neuron.spec.charge, IF) or self.every_step:
            emitted = self._integrate(name, neuron, heard)
        elif isinstance(ladder, Radix) and not ladder.gaps:
            emitted = self._digits(neuron, y)
        elif isinstance(ladder, Radix):
            emitted = self._look_up(neuron, ladder, y)
        elif isinstance(ladder, Learned):
            emitted = self._count(neuron, y)
        else:
            emitted = self._spikes(neuron, y)
        silent = torch.zeros_like(emitted[0])
        emitted = [silent] * (self.lead if base > 1 else 0) + emitted
        emitted += [silent] * (self.length - len(emitted))
        self.totals[name] = Train(emitted, (base, 1)).total() + neuron.spec.start
        if name not in self.potentials:
            said = self.totals[name] * neuron.delta
            self.potentials[name] = heard + neuron.spec.initial * neuron.delta - said
        worth = unit(neuron, self.presentation, 0)
        worth = worth if neuron.gain is None else worth * neuron.gain
        spikes = [item * worth for item in emitted]
        self.lifts[name] = neuron.spec.start * worth
        return Train([*spikes[:-1], spikes[-1] + self.lifts[name]], (base, 1))

    def _digit_count(self, neuron: MTNeuron) -> int:
        """How many digits a layer says: all of its level's, or as many as there are steps."""
        assert isinstance(neuron.spec.ladder, Radix)
        return min(self.time_steps, neuron.spec.ladder.steps or 1)

    def _digits(self, neuron: MTNeuron, y: Tensor) -> list[Tensor]:
        """Digits by one fixed ladder and a membrane that multiplies."""
        state, said = start_speaking(y, neuron.spec), []
        for _ in range(self._digit_count(neuron)):
            digits, state = fixed_threshold_step(state, neuron.spec)
            said.append(digits.to(y.dtype))
        return said

    def _look_up(self, neuron: MTNeuron, ladder: Radix, y: Tensor) -> list[Tensor]:
        """Digits by a table of learned thresholds: those of level said + k units, k = 1 … n."""
        assert not neuron.spec.signed, "learned gaps are those of levels from 0"
        high = neuron.spec.limits[1]
        edges = [-torch.inf, *accumulate(ladder.gaps), torch.inf]
        table = torch.tensor(edges, dtype=y.dtype, device=y.device)
        most = torch.tensor(min(high, len(ladder.gaps)), device=y.device)
        level, said = torch.zeros_like(y), []
        assert ladder.steps is not None
        for t in range(self._digit_count(neuron)):
            size = ladder.base ** (ladder.steps - 1 - t)
            digit = torch.zeros_like(y)
            for k in range(1, ladder.n + 1):
                place = level + k * size
                reached = y >= table[place.clamp(0, len(table) - 1).long()]
                digit = digit + (reached & (place <= most)).to(y.dtype)
            level = level + digit * size
            said.append(digit)
        return said

    def _count(self, neuron: MTNeuron, y: Tensor) -> list[Tensor]:
        """All learned thresholds that are reached, in one step."""
        low, high = neuron.spec.limits
        table = torch.tensor(neuron.spec.ladder.thresholds, dtype=y.dtype, device=y.device)
        level = torch.zeros_like(y)
        for threshold in table:
            level = level + (y >= threshold).to(y.dtype)
        return [level.clamp(low, high)]

    def _spikes(self, neuron: MTNeuron, y: Tensor) -> list[Tensor]:
        """The charge at once, then step by step what is left, in float64: halves go to even."""
        spec, said = neuron.spec, []
        v = y.double() + spec.initial
        v = torch.where(v == v.round(), torch.where(v % 2 == 1, v - _JUST, v + _JUST), v)
        state = NeuronState(v, torch.zeros_like(v))
        for _ in range(self.time_steps):
            spikes, state = mt_step_literal(state, torch.zeros_like(v), spec, 1.0)
            said.append(spikes.to(y.dtype))
        return said

    def _compare(self, neuron: MTNeuron, heard: Tensor) -> list[Tensor]:
        """A constant current on the thresholds of a function, which get finer step by step."""
        said, total = [], torch.zeros_like(heard)
        for t in range(self.time_steps):
            level = table_at(neuron, self.presentation, t).literal(heard)
            if neuron.offset is not None:
                level = level + neuron.offset
            spec = window_spec(neuron.spec, self.presentation, t)
            now = totals_step_literal(level, total, spec)
            said.append(now - total)
            total = now
        return said

    def _integrate(self, name: str, neuron: MTNeuron, heard: Tensor) -> list[Tensor]:
        """Step by step on the membrane: a constant current, or neurons that leak."""
        delta = unit(neuron, self.presentation, 0)
        state = initial_state(heard, neuron.spec, delta)
        if neuron.offset is not None:
            state = state._replace(v=state.v + neuron.offset * delta)
        said = []
        for t in range(self.time_steps):
            spec = window_spec(neuron.spec, self.presentation, t)
            current = heard if self.every_step or t == 0 else torch.zeros_like(heard)
            before = state.total
            _, state = mt_step_literal(state, current, spec, delta)
            said.append(state.total - before)
        self.steps[name], self.potentials[name] = delta, state.v
        return said


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A function of all tensors in lists."""
    if isinstance(value, (list, tuple)):
        return [_map(function, item) for item in value]
    return function(value)
