"""The simulation of a converted network under torch.compile: one step, compiled once for all T.

A step is the network's graph with `_Firing` in the place of its neurons; what changes from step to
step (units, bounds, running totals) are buffers, so that no step is compiled anew and memory does
not grow with T. The arithmetic is that of `simulate`; the compiler orders sums its own way, so that
a neuron within rounding of a threshold can fall on its other side. Exact is `integer`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError
from .graph import check_images
from .neurons import MTNeuron
from .running import running_step
from .simulate import Run, count_events, simulate
from .spiking import SpikingModel
from .windows import unit, window_spec, worth


class _Firing(nn.Module):
    """A layer of neurons whose state lies in buffers."""

    total: Tensor
    unit: Tensor
    worth: Tensor
    low: Tensor
    high: Tensor
    events: Tensor

    def __init__(self, neuron: MTNeuron, like: Tensor) -> None:
        super().__init__()
        self.spec, self.offset = neuron.spec, neuron.offset
        for name in ("unit", "worth", "low", "high"):
            self.register_buffer(name, like.new_zeros(()))
        self.register_buffer("events", like.new_zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros_like(like))

    def forward(self, x: Tensor) -> Tensor:
        y = x / self.unit
        if self.offset is not None:
            y = y + self.offset
        total = running_step(y, self.total, self.spec, (self.low, self.high))
        events = count_events(total - self.total, self.spec.ladder)
        self.events.copy_(events.sum(-1).sum(dtype=torch.float64))
        self.total.copy_(total)
        return total * self.worth


class CompiledSimulation:
    """`simulate` for one converted network, as it is now, under torch.compile.

    The first call for a number of images compiles, which takes seconds to minutes. ``backend`` is
    torch.compile's: "inductor", or "eager" to compile nothing.

    Raises:
        SpecError: layers that wait for their whole window; fewer than one step.
        DataError: images of another shape, or with NaN.

    Example:
        >>> from .convert import convert
        >>> from .quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> fast = CompiledSimulation(snn, backend="eager")
        >>> run = simulate(snn, images, time_steps=2)
        >>> torch.equal(fast(images, time_steps=2).logits, run.logits)
        True
    """

    def __init__(self, snn: SpikingModel, *, backend: str = "inductor") -> None:
        if snn.whole_window:
            raise SpecError(
                "CompiledSimulation: layers of this network wait for their whole window; convert "
                "with whole_window=False, or use simulate"
            )
        self._snn, self._backend = copy.deepcopy(snn), backend
        self._steps: dict[tuple[Any, ...], tuple[Any, dict[str, _Firing]]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, *, time_steps: int) -> Run:
        """All T steps from fresh potentials; ``spikes`` of the run are not recorded.

        Shapes:
            images [batch, channels, height, width], normalised as in training.
        """
        if not isinstance(time_steps, int) or time_steps < 1:
            raise SpecError(f"time_steps is {time_steps!r}: allowed are whole numbers from 1")
        check_images(images, self._snn.image_shape)
        step, firing = self._step(images)
        for layer in firing.values():
            layer.total.zero_()
        logits: list[Tensor] = []
        counts: dict[str, list[Tensor]] = {name: [] for name in firing}
        for t in range(time_steps):
            self._set(t, firing)
            logits.append(step(images).clone())
            for name, layer in firing.items():
                counts[name].append(layer.events.clone())
        batch = max(1, len(images))
        return Run(
            logits=torch.stack(logits),
            totals={name: layer.total.clone() for name, layer in firing.items()},
            spike_counts={name: torch.stack(steps) for name, steps in counts.items()},
            neurons={name: layer.total.numel() // batch for name, layer in firing.items()},
        )

    def _step(self, images: Tensor) -> tuple[Any, dict[str, _Firing]]:
        """One step for images of this shape, and its layers of neurons."""
        key = (tuple(images.shape), images.dtype, images.device)
        if key not in self._steps:
            shapes = simulate(self._snn, images, time_steps=1).totals
            layers, firing = copy.deepcopy(self._snn.layers), {}
            for name, neuron in self._snn.neurons():
                firing[name] = _Firing(neuron, shapes[name])
                layers.set_submodule(name, firing[name])
            self._steps[key] = torch.compile(layers, backend=self._backend, dynamic=False), firing
        return self._steps[key]

    def _set(self, t: int, firing: dict[str, _Firing]) -> None:
        """Units, worths and bounds behind step t."""
        presentation = self._snn.presentation
        for name, neuron in self._snn.neurons():
            layer, spec = firing[name], window_spec(neuron.spec, presentation, t)
            layer.unit.copy_(unit(neuron, presentation, t))
            layer.worth.copy_(worth(neuron, presentation, t))
            layer.low.fill_(spec.limits[0])
            layer.high.fill_(spec.limits[1])
