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
from typing import Protocol

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
        backend: the name of what runs it. layers: its weighted layers, in order. real: operators
        without integer form, which run on real numbers between integer segments.
    """

    def __init__(self, snn: SpikingModel, backend: str) -> None:
        self._every_step = snn.presentation is Presentation.EVERY_STEP
        self._snn = copy.deepcopy(snn) if self._every_step else None
        self._programs = [trace(snn)]
        self._image_shape, self._reach = snn.image_shape, input_reach(snn.layers)
        self._runners: dict[int, Backend] = {}
        self.backend = choose_backend(backend, device_of(snn))
        self.layers = tuple(
            _layer(item) for item in self.program().instructions if isinstance(item, Accumulate)
        )
        self.real = self.program().real

    def __call__(self, images: Tensor, time_steps: int = 1) -> Tensor:
        """The logits [batch, classes] behind the last of T steps."""
        return self.run(images, time_steps).logits[-1]

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
        images = check_images(images, self._image_shape, reach=self._reach)
        return IntegerRun(*self._runner(time_steps).run(images, time_steps, totals))

    def program(self, t: int = 0) -> Program:
        """What step t computes; the same in every step where the image is presented once."""
        if self._snn is None:
            return self._programs[0]
        while len(self._programs) <= t:
            self._programs.append(trace(self._snn, len(self._programs)))
        return self._programs[t]

    def _runner(self, time_steps: int) -> Backend:
        """The backend, prepared for so many steps."""
        count = time_steps if self._every_step else 1
        if count not in self._runners:
            programs: Sequence[Program] = [self.program(t) for t in range(count)]
            self._runners[count] = BACKENDS[self.backend].make(programs)
        return self._runners[count]

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

    ``backend``: "native", C++ built on first use (CPU); "torch", the reference, any device;
    "compile", the same through torch.compile; "auto", native where there is a compiler and AVX2 or
    AVX-512 VNNI, else torch, which is said once.

    Threads do not survive a fork: a process that has run a network, with any backend, starts others
    by ``multiprocessing.get_context("spawn")``; one made by fork may hang in its first run.

    Raises:
        SpecError: an unknown backend, or one that this machine cannot run; a network whose layers
            wait for their whole window, or leak; one in half or bfloat16.
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
    if snn.whole_window:
        raise SpecError(
            "integer: layers of this network wait for their whole window, which has no integer "
            "form yet; convert with whole_window=False, or use simulate"
        )
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
