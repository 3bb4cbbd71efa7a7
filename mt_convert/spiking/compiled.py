"""The simulation of a converted network under torch.compile: one step for all T, or the whole loop.

A step is the network's graph with `_Firing` in the place of its neurons; what changes from step to
step (units, bounds, running totals) are buffers, so that no step is compiled anew and memory does
not grow with T. The arithmetic is that of `simulate`; the compiler orders sums its own way, so that
a neuron within rounding of a threshold can fall on its other side. Exact is `integer`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import SpecError
from ..graph.float32 import in_float32
from ..neurons.layer import MTNeuron
from ..neurons.totals import count_events, totals_step
from ..system.devices import compile_by_torch
from .levels import input_unit, window_spec, worth
from .model import SpikingModel, spiking_network
from .presentation import Presentation
from .shapes import neuron_shapes
from .simulate import Run, check_run


class _Firing(nn.Module):
    """A layer of neurons whose state lies in buffers."""

    total: Tensor
    input: Tensor
    begun: Tensor
    unit: Tensor
    worth: Tensor
    low: Tensor
    high: Tensor
    events: Tensor

    def __init__(self, neuron: MTNeuron, like: Tensor) -> None:
        super().__init__()
        self.spec, self.offset, self.table = neuron.spec, neuron.offset, neuron.table
        self.dips = self.table is not None and bool((self.table.weights < 0).any())
        if self.dips:
            self.register_buffer("input", torch.zeros_like(like))
            self.register_buffer("begun", like.new_zeros((), dtype=torch.bool))
        for name in ("unit", "worth", "low", "high"):
            self.register_buffer(name, like.new_zeros(()))
        self.register_buffer("events", like.new_zeros((2,), dtype=torch.float64))
        self.register_buffer("total", torch.full_like(like, neuron.spec.start))

    def forward(self, x: Tensor) -> Tensor:
        y = x / self.unit
        pairs = self._dips(y) if self.dips else None
        if self.table is not None:
            y = self.table(y)
        if self.offset is not None:
            y = y + self.offset
        total = totals_step(y, self.total, self.spec, (self.low, self.high))
        emitted = total - self.total
        crossed = count_events(emitted, self.spec.ladder)
        crossed = crossed if pairs is None else crossed + pairs
        events = crossed.sum(-1).sum(dtype=torch.float64)
        packets = (emitted != 0).sum(dtype=torch.float64)
        self.events.copy_(torch.stack([events, packets]))
        self.total.copy_(total)
        return total * self.worth

    def _dips(self, y: Tensor) -> Tensor:
        """Thresholds of a function that are crossed up and down in this step."""
        assert self.table is not None
        first, later = self.table.crossed(None, y), self.table.crossed(self.input, y)
        pairs = torch.where(self.begun, later, first)
        self.input.copy_(y)
        self.begun.fill_(True)
        return pairs

    def reset(self) -> None:
        """Fresh potentials."""
        self.total.fill_(self.spec.start)
        if self.dips:
            self.begun.fill_(False)

    def set(self, units: Tensor) -> None:
        """Unit, worth and bounds behind a step, [4]."""
        for place, number in zip((self.unit, self.worth, self.low, self.high), units, strict=True):
            place.copy_(number)


class _Loop(nn.Module):
    """Steps of a network, one after the other, from the totals that its layers hold."""

    def __init__(self, layers: fx.GraphModule, firing: dict[str, _Firing]) -> None:
        super().__init__()
        self.layers, self.names = layers, tuple(firing)

    def forward(self, images: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T, batch, classes], events and packets [T, layers, 2]; units [T, layers, 4]."""
        logits, events = [], []
        firing = [self.layers.get_submodule(name) for name in self.names]
        for each in units:
            for layer, own in zip(firing, each, strict=True):
                layer.set(own)  # type: ignore[operator]
            logits.append(self.layers(images))
            events.append(torch.stack([layer.events for layer in firing]))  # type: ignore[misc]
        return torch.stack(logits), torch.stack(events)


class CompiledSimulation:
    """`simulate` for one converted network, as it is now, under torch.compile.

    The first call for a number of images compiles, which takes seconds to minutes. ``backend`` is
    torch.compile's: "inductor", or "eager" to compile nothing. ``unrolled`` compiles the loop over
    the steps with them, anew for each T: T times the graph, and nothing of Python between steps.

    Raises:
        SpecError: no converted network; layers that wait for their whole window; fewer than one
            step.
        DataError: images of another shape, or with NaN.

    Example:
        >>> from .convert import convert
        >>> from .simulate import simulate
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> fast = CompiledSimulation(snn, backend="eager")
        >>> run = simulate(snn, images, time_steps=2)
        >>> torch.equal(fast(images, time_steps=2).logits, run.logits)
        True
    """

    def __init__(
        self, snn: SpikingModel, *, backend: str = "inductor", unrolled: bool = False
    ) -> None:
        snn = spiking_network(snn, "CompiledSimulation")
        if snn.whole_window:
            raise SpecError(
                "CompiledSimulation: layers of this network wait for their whole window; convert "
                "with whole_window=False, or use simulate"
            )
        functions = any(neuron.table is not None for _, neuron in snn.neurons())
        if functions and snn.presentation is Presentation.EVERY_STEP:
            raise SpecError(
                "CompiledSimulation: functions have other thresholds in every step of such a "
                "window; use simulate"
            )
        self._snn, self._backend, self._unrolled = copy.deepcopy(snn), backend, unrolled
        self._loops: dict[tuple[Any, ...], tuple[Any, dict[str, _Firing]]] = {}

    @torch.no_grad()
    @in_float32()
    def __call__(self, images: Tensor, *, time_steps: int) -> Run:
        """All T steps from fresh potentials; ``spikes`` of the run are not recorded.

        Shapes:
            images [batch, channels, height, width], normalised as in training.
        """
        images = check_run(self._snn, images, time_steps)
        loop, firing = self._loop(images)
        for layer in firing.values():
            layer.reset()
        units = torch.stack([self._units(t) for t in range(time_steps)]).to(images)
        parts = [units] if self._unrolled else units.split(1)
        outputs = [tuple(item.clone() for item in loop(images, part)) for part in parts]
        logits, events = (torch.cat(item) for item in zip(*outputs, strict=True))
        batch = max(1, len(images))
        return Run(
            logits=logits,
            totals={name: layer.total.clone() for name, layer in firing.items()},
            spike_counts=dict(zip(firing, events[..., 0].unbind(1), strict=True)),
            packets=dict(zip(firing, events[..., 1].unbind(1), strict=True)),
            neurons={name: layer.total.numel() // batch for name, layer in firing.items()},
        )

    def _loop(self, images: Tensor) -> tuple[Any, dict[str, _Firing]]:
        """The loop for images of this shape, and its layers of neurons."""
        key = (tuple(images.shape), images.dtype, images.device)
        if key not in self._loops:
            shapes = neuron_shapes(self._snn.layers, len(images))
            layers, firing = copy.deepcopy(self._snn.layers), {}
            for name, neuron in self._snn.neurons():
                firing[name] = _Firing(neuron, images.new_empty(shapes[name]))
                layers.set_submodule(name, firing[name])
            loop = compile_by_torch(_Loop(layers, firing), backend=self._backend, dynamic=False)
            self._loops[key] = loop, firing
        return self._loops[key]

    def _units(self, t: int) -> Tensor:
        """Units, worths and bounds behind step t, [layers, 4]."""
        presentation, rows = self._snn.presentation, []
        for _, neuron in self._snn.neurons():
            low, high = window_spec(neuron.spec, presentation, t).limits
            step = input_unit(neuron, presentation, t)
            bounds = step.new_tensor([low, high])
            rows.append(torch.stack([step, worth(neuron, presentation, t), *bounds]))
        return torch.stack(rows)
