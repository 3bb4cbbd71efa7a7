"""A converted network written down as a `Program`: the canonical arithmetic, run on stand-ins.

`arithmetic.IntegerArithmetic` does what it always does, but on tensors without data that write down
each operator applied to them. So there is one place that says what the integers are, and a program
says the same as instructions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..errors import Fault, UnsupportedLayerError
from ..graph.operations import Operation, reaching_output
from ..graph.rules import DEFAULT_RULES, OperatorKind
from ..neurons.layer import MTNeuron
from ..spiking.levels import in_one_step, input_unit, table_at, window_spec, worth
from ..spiking.model import SpikingModel
from ..spiking.presentation import Encoder, Presentation
from ..system.devices import device_of
from .arithmetic import IntegerArithmetic, geometry_of, weighted_sums
from .program import (
    Accumulate,
    Encode,
    Fire,
    Instruction,
    Operate,
    Program,
    ReadOut,
    Slot,
    Sum,
    Term,
    Whole,
)
from .terms import BATCH, Part, Terms, along_axes, as_terms, holds_terms, whole_numbers

INT32 = 2**31
aten = torch.ops.aten
_KEEPING = frozenset(  # results hold the numbers of their inputs, and perhaps zeros
    {
        *(target for target, rule in DEFAULT_RULES.items() if rule.kind is OperatorKind.MOVE),
        *(aten.cat.default, aten.stack.default, aten.pad.default, aten.constant_pad_nd.default),
        *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
        *(aten.amax.default, torch.cat, F.pad),
        *(Tensor.float, Tensor.double, Tensor.expand, Tensor.contiguous, Tensor.__getitem__),
    }
)
_IDLE = frozenset({Tensor.float, Tensor.double, Tensor.contiguous, Tensor.expand})


class Tracing:
    """The instructions written so far, and the stand-ins of values."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.instructions: list[Instruction] = []
        self.values: dict[int, Whole] = {}

    def value(self, like: Tensor, low: float, high: float) -> StandIn:
        """A new value with the shape of ``like``; not bounded unless its first axis is images."""
        if like.dim() == 0 or like.shape[0] != BATCH:
            low, high = -math.inf, math.inf
        index = len(self.values)
        self.values[index] = Whole(tuple(like.shape[1:]), low, high)
        with torch._C.DisableTorchFunctionSubclass():
            stand_in = torch.empty_like(like, device="meta").as_subclass(StandIn)
        stand_in.tracing, stand_in.slot = self, index
        return stand_in

    def bounds(self, value: Tensor) -> tuple[float, float]:
        """The least and the largest number of a value."""
        assert isinstance(value, StandIn)
        whole = self.values[value.slot]
        return whole.low, whole.high

    def narrow(self, value: Tensor, limit: float) -> Tensor:
        """The same value, now known to stay within ``limit`` of 0."""
        assert isinstance(value, StandIn)
        whole = self.values[value.slot]
        if value.shape[0] == BATCH:
            low, high = max(whole.low, -limit), min(whole.high, limit)
            self.values[value.slot] = Whole(whole.shape, low, high)
        return value

    def sum(self, value: Terms, step: Tensor) -> Sum:
        """What the written formula makes of a value, in units of ``step``."""
        multipliers, bias = value.factors(step)
        terms = []
        for part, multiplier in zip(value.parts, multipliers, strict=True):
            assert isinstance(part.numbers, StandIn)
            terms.append(Term(part.numbers.slot, _slots(multiplier)))
        return Sum(tuple(terms), _slots(bias))


class StandIn(Tensor):
    """A tensor without data that writes down what is done to it."""

    tracing: Tracing
    slot: int

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return next(_stand_ins(args)).tracing.device
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*_on_meta(args), **_on_meta(kwargs))
        pieces = result if isinstance(result, (list, tuple)) else [result]
        if not (pieces and all(isinstance(item, Tensor) for item in pieces)):
            return result  # a size, a number of axes
        first = next(_stand_ins([args, kwargs]))
        if func in _IDLE and result.dtype == first.dtype and result.shape == first.shape:
            return first
        return _write_down(first.tracing, func, args, kwargs, result)


def _write_down(
    tracing: Tracing, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any
) -> Any:
    """One operator, written down; its results as new stand-ins."""
    sources = list(_stand_ins([args, kwargs]))
    bounds = [tracing.bounds(source) for source in sources]
    low, high = min([0, *(low for low, _ in bounds)]), max([0, *(high for _, high in bounds)])
    if func not in _KEEPING or not sources:
        low, high = -math.inf, math.inf
    single = isinstance(result, Tensor)
    stand_ins = [tracing.value(item, low, high) for item in ([result] if single else result)]
    out = tuple(item.slot for item in stand_ins)
    args, kwargs = _slots(args), _slots(kwargs)
    tracing.instructions.append(Operate(out, func, args, kwargs))
    return stand_ins[0] if single else type(result)(stand_ins)


def _stand_ins(values: Any) -> Iterator[StandIn]:
    """All stand-ins within lists and mappings."""
    if isinstance(values, StandIn):
        yield values
    elif isinstance(values, Mapping):
        yield from _stand_ins(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _stand_ins(value)


def _grows_with_images(values: Any) -> bool:
    """Whether lists and mappings hold a size that grows with the number of images."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return any(map(_grows_with_images, values))
    return type(values) is int and values > 0 and values % BATCH == 0


def _map_tensors(values: Any, change: Any) -> Any:
    """The same structure with ``change`` applied to every tensor."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {name: _map_tensors(value, change) for name, value in values.items()}
    if isinstance(values, (list, tuple)) and not isinstance(values, torch.Size):
        return type(values)(_map_tensors(value, change) for value in values)
    return values


def _slots(values: Any) -> Any:
    return _map_tensors(values, lambda item: Slot(item.slot) if isinstance(item, StandIn) else item)


def _on_meta(values: Any) -> Any:
    """Arguments without data; what is to be copied to a device stays without."""
    if isinstance(values, torch.device):
        return torch.device("meta")
    if isinstance(values, Mapping):
        return {name: _on_meta(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)) and not isinstance(values, torch.Size):
        return type(values)(map(_on_meta, values))
    return _map_tensors(values, lambda item: item if isinstance(item, StandIn) else item.to("meta"))


class _Writer(IntegerArithmetic):
    """The canonical arithmetic on stand-ins."""

    def __init__(self, snn: SpikingModel, tracing: Tracing) -> None:
        super().__init__(snn, real_segments=True)
        self.tracing = tracing

    def encode(self, encoder: Encoder, images: Tensor) -> Terms:
        low, high = encoder.level_bounds
        numbers = self.tracing.value(images, low, high)
        self.tracing.instructions.append(Encode(numbers.slot, encoder.scale, (low, high)))
        return Terms((Part(numbers, along_axes(encoder.scale, numbers), max(abs(low), abs(high))),))

    def operate(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        """As it is; constants with an entry for every image are written down too."""
        arguments = [args, kwargs]
        stand_ins = holds_terms(args) or next(_stand_ins(arguments), None) is not None
        if operation.layer is not None or stand_ins or not _grows_with_images(arguments):
            return super().operate(operation, args, kwargs)
        placed = {name: "meta" if name == "device" else item for name, item in kwargs.items()}
        result = operation.call(*_on_meta(args), **_on_meta(placed))
        if not isinstance(result, Tensor):
            return operation.call(*args, **kwargs)
        return _write_down(self.tracing, operation.call, args, kwargs, result)

    def accumulate(self, name: str, layer: Any, part: Part, weight: Tensor, limit: float) -> Tensor:
        source = whole_numbers(part, limit)
        assert isinstance(source, StandIn)
        if limit >= INT32:
            hint = f"sums could reach {limit:.1e}, past the 2^31 of its accumulator: use fewer bits"
            fault = Fault(name, type(layer).__name__, hint)
            raise UnsupportedLayerError("an accumulator could overflow", [fault])
        self.tracing.narrow(source, part.limit)
        geometry = geometry_of(layer)
        with torch._C.DisableTorchFunctionSubclass():
            shaped = weighted_sums(torch.empty_like(source), weight.to("meta"), geometry)
        sums = self.tracing.value(shaped, -limit, limit)
        numbers = (sums.slot, name, source.slot, weight.to(torch.int8))
        self.tracing.instructions.append(Accumulate(*numbers, geometry, limit))
        return sums


class _Walk(fx.Interpreter):
    """One step through the graph, on stand-ins; or a whole window, read behind its step ``t``."""

    def __init__(self, snn: SpikingModel, t: int, time_steps: int) -> None:
        super().__init__(snn.layers, garbage_collect_values=not snn.whole_window)
        self.extra_traceback = False
        self.snn, self.t, self.tracing = snn, t, Tracing(device_of(snn))
        self.time_steps = time_steps
        self.operations = snn.operations
        self.writer = _Writer(snn, self.tracing)

    def program(self) -> Program:
        """The whole step."""
        image = torch.empty(BATCH, *self.snn.image_shape, device="meta")
        read_at, self.t = self.t, self.time_steps - 1 if self.snn.whole_window else self.t
        logits = as_terms(self.run(self.tracing.value(image, -math.inf, math.inf)))
        if read_at != self.t:
            self.t = read_at
            logits = as_terms(self._read_again())
        read_out = ReadOut(self.tracing.sum(logits, torch.ones(())))
        instructions = (*self.tracing.instructions, read_out)
        return Program(instructions, self.tracing.values, tuple(self.writer.real))

    def _read_again(self) -> Any:
        """The read-out of what the last layers of neurons have emitted behind an earlier step; all
        that lies before them has been complete."""
        reading = reaching_output(self.operations)
        fired = [node for node in reading if isinstance(self.operations[node].layer, MTNeuron)]
        inputs = {node: self.env[node.all_input_nodes[0]] for node in fired}  # complete ones
        for node in self.operations:
            if node.op == "output":
                return self.env[node.all_input_nodes[0]]
            if node in inputs:
                row = self.operations[node]
                assert isinstance(row.layer, MTNeuron)
                self.env[node] = self._fire(row.name, row.layer, as_terms(inputs[node]))
            elif node in reading and node.op not in ("placeholder", "get_attr"):
                self.env[node] = self.run_node(node)
        raise AssertionError("a graph has an output")

    def run_node(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "get_attr", "output"):
            return super().run_node(node)
        row = self.operations[node]
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if isinstance(row.layer, MTNeuron):
            return self._fire(row.name, row.layer, as_terms(args[0]))
        if isinstance(row.layer, Encoder):
            return self.writer.encode(row.layer, args[0])
        return self.writer.operate(row, args, dict(kwargs))

    def _fire(self, name: str, neuron: MTNeuron, value: Terms) -> Terms:
        """One step of a layer of neurons."""
        presentation, t = self.snn.presentation, self.t
        spec = window_spec(neuron.spec, presentation, t)
        total = self.tracing.value(value.parts[0].numbers, *spec.limits)
        drive = self.tracing.sum(value, input_unit(neuron, presentation, t))
        table = None if neuron.table is None else table_at(neuron, presentation, t)
        fire = Fire(total.slot, name, drive, neuron.offset, spec, table=table)
        if self.snn.whole_window:
            fire = self._whole_window(fire, neuron, value)
        self.tracing.instructions.append(fire)
        return self.writer.emit(total, worth(neuron, presentation, t), neuron)

    def _whole_window(self, fire: Fire, neuron: MTNeuron, value: Terms) -> Fire:
        """All steps of a window at once."""
        presentation, steps = self.snn.presentation, range(self.t + 1)
        specs = [window_spec(neuron.spec, presentation, t) for t in steps]
        if presentation is Presentation.ONCE:
            one = in_one_step(neuron.spec, self.t + 1)
            window = tuple((fire.input, spec) for spec in specs)
            return replace(fire, spec=one or fire.spec, window=window, together=one is not None)
        units = [input_unit(neuron, presentation, t) for t in steps[:-1]]
        drives = [*(self.tracing.sum(value, step) for step in units), fire.input]
        window = tuple(zip(drives, specs, strict=True))
        steps = range(0) if neuron.table is None else steps
        tables = tuple(table_at(neuron, presentation, t) for t in steps)
        return replace(fire, window=window, together=len(window) == 1, tables=tables)


@torch.no_grad()
def trace(snn: SpikingModel, t: int = 0, time_steps: int | None = None) -> Program:
    """Step ``t`` of a converted network, from 0, as a program; where layers wait for their whole
    window of T steps (t + 1 unless given), all of it, with the read-out behind step ``t``.

    Raises:
        UnsupportedLayerError: weights off their grid; an accumulator that could pass 2^31.

    Example:
        >>> from torch import nn
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
        >>> [type(item).__name__ for item in trace(snn).instructions if type(item) is not Operate]
        ['Encode', 'Accumulate', 'Fire', 'Accumulate', 'ReadOut']
    """
    return _Walk(snn, t, t + 1 if time_steps is None else time_steps).program()
