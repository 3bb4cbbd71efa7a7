"""`integer`: a converted network as whole numbers, compiled once, run by one of several backends.

Every backend gives the same bits: the numbers of `arithmetic.IntegerArithmetic`, which depend on
neither batch size nor memory layout nor the number of threads. Where operators run on real numbers
(`IntegerModel.real`) that holds for what is in front of them alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import SpecError
from ..graph.float32 import in_float32, network_dtype
from ..graph.nodes import check_images, input_reach
from ..neurons.totals import leak_of
from ..spiking.model import SpikingModel, spiking_network
from ..spiking.presentation import Presentation, check_time_steps
from ..system.devices import device_of
from .backends import BACKENDS, choose_backend
from .native.segments import OpNote
from .program import Accumulate, Program
from .tracing import trace


class Backend(Protocol):
    """What runs programs."""

    def run(
        self, images: Tensor, time_steps: int, totals: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [T, batch, ...], and levels emitted by the end per layer of neurons, if wanted."""


@dataclass(frozen=True)
class IntegerRun:
    """What an integer network computed.

    Shapes: logits [T, batch, classes], float32; totals[layer] [batch, ...], levels emitted by the
    end, empty unless they were asked for.
    """

    logits: Tensor
    totals: dict[str, Tensor]


@dataclass(frozen=True)
class IntegerLayer:
    """A weighted layer: ``weight_bits`` hold its weights, signed; ``accumulator_bits`` any sum that
    its input could cause, signed, where ``largest_sum`` is the largest of them.
    """

    name: str
    shape: tuple[int, ...]
    weight_bits: int
    largest_sum: int
    accumulator_bits: int


class IntegerModel:
    """A converted network compiled to whole numbers. Made by `integer`; changes of the spiking
    network afterwards do not reach it.

    Attributes:
        backend: the name of what runs it. waits: whether its layers wait for their whole window.
        layers: its weighted layers, in order. real: operators without integer form, which run on
        real numbers between integer segments.
    """

    def __init__(self, snn: SpikingModel, backend: str) -> None:
        self._every_step = snn.presentation is Presentation.EVERY_STEP
        self.waits = snn.whole_window
        self._snn = copy.deepcopy(snn) if self._every_step or self.waits else None
        self._programs = {(0, 1): trace(snn)}
        self._image_shape, self._reach = snn.image_shape, input_reach(snn.layers)
        self._runners: dict[tuple[int, int], Backend] = {}
        self.backend = choose_backend(backend, device_of(snn))
        self.layers = tuple(
            _layer(item) for item in self.program().instructions if isinstance(item, Accumulate)
        )
        self.real = self.program().real

    def __call__(self, images: Tensor, time_steps: int = 1) -> Tensor:
        """The logits [batch, classes] behind the last of T steps."""
        check_time_steps(time_steps)
        if not self.waits:
            return self.run(images, time_steps).logits[-1]
        return self._run(images, time_steps, [time_steps - 1], False).logits[-1]

    @torch.inference_mode()
    @in_float32()
    def run(self, images: Tensor, time_steps: int = 1, *, totals: bool = False) -> IntegerRun:
        """All T steps, from fresh potentials.

        Shapes:
            images [batch, channels, height, width], normalised as in training.
        Raises:
            SpecError: fewer than one time step.
            DataError: images of another shape, or with NaN.
        """
        check_time_steps(time_steps)
        return self._run(images, time_steps, range(time_steps), totals)

    @torch.inference_mode()
    @in_float32()
    def _run(
        self, images: Tensor, time_steps: int, shown: Sequence[int], totals: bool
    ) -> IntegerRun:
        """A run of so many steps; of a window the read-outs behind some of them, the last too."""
        images = check_images(images, self._image_shape, reach=self._reach)
        if not self.waits:
            return IntegerRun(*self._runner(time_steps).run(images, time_steps, totals))
        logits = []
        for t in shown:  # nothing has a state: each is a run of one step
            runner = self._runner(time_steps, t)
            now, emitted = runner.run(images, 1, totals and t == time_steps - 1)
            logits.append(now[0])
        return IntegerRun(torch.stack(logits), emitted)

    @torch.inference_mode()
    @in_float32()
    def layer_times(self, images: Tensor, time_steps: int = 1) -> list[tuple[OpNote, float]]:
        """What the native kernels do for these images, op by op, and the seconds of each.

        Raises:
            SpecError: another backend; layers that wait for their window.
        """
        check_time_steps(time_steps)
        if self.backend != "native" or self.waits:
            waits = " and waits for its window" if self.waits else ""
            raise SpecError(
                f"layer_times: this network runs by backend {self.backend}{waits}; only the native "
                "kernels of networks that do not wait are timed by layer"
            )
        runner: Any = self._runner(time_steps)
        images = check_images(images, self._image_shape, reach=self._reach)
        times: list[tuple[OpNote, float]] = runner.op_times(images, time_steps)
        return times

    def program(self, t: int = 0, time_steps: int | None = None) -> Program:
        """What step t computes; the same in every step where the image is presented once. Where
        layers wait for their window of ``time_steps`` (t + 1 unless given): all of it, read behind
        step t."""
        t = t if self._every_step or self.waits else 0
        end = t + 1 if time_steps is None or not self.waits else time_steps
        if (t, end) not in self._programs:
            assert self._snn is not None
            self._programs[t, end] = trace(self._snn, t, end)
        return self._programs[t, end]

    def _runner(self, time_steps: int, t: int | None = None) -> Backend:
        """The backend, prepared for so many steps; or for one window, read behind step t."""
        count = time_steps if self._every_step or self.waits else 1
        key = (count, -1 if t is None else t)
        if key not in self._runners:
            programs: Sequence[Program] = (
                [self.program(step) for step in range(count)]
                if t is None
                else [self.program(t, time_steps)]
            )
            self._runners[key] = BACKENDS[self.backend].make(programs)
        return self._runners[key]

    def __str__(self) -> str:
        widest = max(self.layers, key=lambda layer: layer.accumulator_bits, default=None)
        lines = [f"integer network, backend {self.backend}: {len(self.layers)} weighted layers"]
        if widest is not None:
            lines.append(f"widest accumulator: {widest.accumulator_bits} bits ({widest.name})")
        lines += [f"on real numbers: {', '.join(self.real)}"] if self.real else []
        return "\n".join(lines)


@in_float32()
def integer(snn: SpikingModel, *, backend: str = "auto") -> IntegerModel:
    """Compile a converted network to whole numbers.

    Weights become int8, activations levels of a few bits, sums int32; scales, biases and batch norm
    go into each neuron's input, a written order of float32 operations. `arithmetic` says which.

    ``backend``: "native", C++ built on first use (CPU); "torch", any device, by int8 products
    where they are exact and quick; "compile", through torch.compile; "reference", the written
    formulas in plain torch, which the others are compared with; "auto", native where there is a
    compiler and AVX2 or more, else torch, which is said once.

    Threads do not survive a fork: a process that has run a network, with any backend, starts others
    by ``multiprocessing.get_context("spawn")``; one made by fork may hang in its first run.

    Raises:
        SpecError: an unknown backend, or one that this machine cannot run; a network whose
            layers leak; one in half or bfloat16.
        UnsupportedLayerError: weights off their grid; a sum that could pass 2^31, by layer.

    Example:
        >>> from torch import nn
        >>> from .arithmetic import IntegerArithmetic
        >>> from ..spiking.convert import convert
        >>> from ..quantization.quantize import QuantSpec, quantize
        >>> from ..spiking.simulate import simulate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> run = simulate(snn, images, time_steps=1, arithmetic=IntegerArithmetic(snn))
        >>> torch.equal(integer(snn, backend="torch")(images), run.logits[-1])
        True
    """
    snn = spiking_network(snn, "integer")
    network_dtype(snn)
    leaking = [name for name, neuron in snn.neurons() if leak_of(neuron.spec) is not None]
    if leaking:
        raise SpecError(
            f"integer: the potential of {len(leaking)} layers leaks, {leaking[0]} first, so that "
            "it is no whole number; fine-tune with leaks=False, or use simulate"
        )
    return IntegerModel(snn, backend)


def _layer(item: Accumulate) -> IntegerLayer:
    """What a weighted layer needs."""
    low, high = (int(end) for end in item.weight.aminmax())
    uneven = low < -1 and low == -high - 1  # -2^(b-1) to 2^(b-1) - 1: b bits hold them
    weights = max(high if uneven else max(-low, high), 1)
    largest = int(item.limit)
    bits = [math.ceil(math.log2(number + 1)) + 1 for number in (weights, max(largest, 1))]
    return IntegerLayer(item.name, tuple(item.weight.shape), bits[0], largest, bits[1])
