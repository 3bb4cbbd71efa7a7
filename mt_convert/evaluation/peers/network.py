"""Converters of other packages on our networks: SpikingJelly's recipes and sinabs.

`converters` says how each is called. All show the same image in every step and read out
the mean of the network's output over the steps so far, as their examples do.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import SpecError, UnsupportedLayerError, error_line
from .converters import PEERS, Peer, calls, peer, read_from

__all__ = ["PEERS", "Peer", "PeerNetwork", "PeerRun", "available", "calls", "peer_network"]

POINTWISE = {
    *("relu", "hardtanh", "clamp", "clamp_min", "gelu", "silu", "sigmoid", "tanh", "hardswish"),
    *("hardsigmoid", "mish", "elu", "leaky_relu", "_prelu_kernel", "softplus", "threshold", "glu"),
}


def available(name: str) -> str | None:
    """None if the peer can run here, else the reason in one line."""
    called = peer(name)
    try:
        with _quiet():
            importlib.import_module(called.package)
            importlib.metadata.version(called.package)
            _neurons(called)
    except Exception as error:  # a package that does not fit what it meets raises anything
        return error_line(error)
    return None


@dataclass(frozen=True)
class PeerRun:
    """What a peer's network showed.

    Shapes:
        logits [T, batch, classes]: the mean of its output over the steps up to each one.
        delayed, the same: the mean without the first steps, in which nothing has come through yet;
        None where the peer's documentation has no such read-out.
        spikes_per_neuron [T]: events per neuron and image up to each step; a neuron that emits k
        spikes in a step counts k.
    """

    logits: Tensor
    delayed: Tensor | None
    spikes_per_neuron: Tensor


@dataclass(frozen=True)
class PeerNetwork:
    """A network that a peer converted.

    ``neurons``: neurons per image of each spiking layer. ``shared``: spiking layers that run more
    than once a step on one and the same potential. ``left``: point-wise activations that still run
    outside spiking layers, by operator. ``version`` of the package. ``delay``: steps that a delayed
    read-out leaves out, given enough of them.
    """

    name: str
    version: str
    layers: nn.Module
    neurons: Mapping[str, int]
    shared: tuple[str, ...]
    left: Mapping[str, int]
    delay: int | None

    def run(self, images: Tensor, time_steps: int) -> PeerRun:
        """The read-out and the spikes after each step, from fresh potentials.

        Raises:
            SpecError: fewer than one step.
        """
        if time_steps < 1:
            raise SpecError(f"time_steps is {time_steps}; allowed: 1 or more")
        watch, outputs = _run(PEERS[self.name], self.layers, images, time_steps)
        delayed = None
        if self.delay is not None:
            starts = [read_from(self.delay, T) for T in range(1, time_steps + 1)]
            delayed = _means(outputs, starts)
        events = torch.tensor(watch.events, dtype=torch.float64)
        neurons = max(1, sum(self.neurons.values())) * max(1, len(images))
        return PeerRun(_means(outputs, [0] * time_steps), delayed, events / neurons)


def peer_network(name: str, ann: nn.Module, calibration: Tensor) -> PeerNetwork:
    """Convert a copy of ``ann`` as the peer's documentation does.

    The network is handed over as it is. Peers know activations that are modules, and not every
    function: our own ResNets pad channels with `F.pad`, at which SpikingJelly stops. Hand over
    ``plain(ann, images)`` then: the same function, weights and shortcuts in a form that they take.

    Shapes:
        calibration: [images, channels, height, width], normalised as in training.

    Raises:
        SpecError: no peer of this name, or it cannot run here.
        UnsupportedLayerError: the peer raises, with its reason, or it converts nothing.
    """
    called = peer(name)
    if (reason := available(name)) is not None:
        raise SpecError(f"{name} cannot run here: {reason}")
    try:
        with _quiet(), torch.no_grad():
            layers = called.convert(copy.deepcopy(ann).eval(), calibration).eval()
            probe = copy.deepcopy(layers)
            delay = called.delay(probe, calibration) if called.delay else None
        watch, _ = _run(called, layers, calibration[:1], 1, count_left=True)
    except Exception as error:  # peers raise what they meet
        raise UnsupportedLayerError(
            f"{name} cannot convert {type(ann).__name__}: {error_line(error)}"
        ) from error
    if not watch.calls:
        left = ", ".join(f"{count} {kind}" for kind, count in watch.left.items()) or "none"
        raise UnsupportedLayerError(
            f"{name} converted nothing of {type(ann).__name__}: activations left: {left}"
        )
    shared = tuple(layer for layer, times in watch.calls.items() if times > 1)
    version = importlib.metadata.version(called.package)
    return PeerNetwork(name, version, layers, watch.neurons, shared, dict(watch.left), delay)


def _means(outputs: Tensor, starts: list[int]) -> Tensor:
    """Behind each step the mean of all outputs from a step on."""
    means = (outputs[start : t + 1].mean(0) for t, start in enumerate(starts))
    return torch.stack(list(means))


def _neurons(called: Peer) -> type[nn.Module]:
    """The class of a peer's spiking layers."""
    module, _, leaf = called.neurons.rpartition(".")
    kind: type[nn.Module] = getattr(importlib.import_module(module), leaf)
    return kind


@torch.no_grad()
def _run(
    called: Peer, layers: nn.Module, images: Tensor, time_steps: int, *, count_left: bool = False
) -> tuple[_Watch, Tensor]:
    """What was seen, and the output of each step. Runs a copy: potentials go with it."""
    snn = copy.deepcopy(layers)
    watch = _Watch(snn, _neurons(called))
    outputs = []
    with _quiet(), watch if count_left else nullcontext():
        for output in called.steps(snn, images, time_steps):
            outputs.append(output.clone())
            watch.events.append(float(watch.total))
    return watch, torch.stack(outputs)


class _Watch(TorchDispatchMode):
    """Counts spikes and neurons by hooks; activations outside spiking layers where entered."""

    def __init__(self, network: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.neurons: dict[str, int] = {}
        self.left: Counter[str] = Counter()
        self.total = torch.zeros((), dtype=torch.float64)
        self.events: list[float] = []
        self._inside = 0
        for name, module in network.named_modules():
            if isinstance(module, kind):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave(name))

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.total = self.total + output.sum(dtype=torch.float64).cpu()
            self.neurons[name] = output.numel() // len(output)
            self.calls[name] += 1
            self._inside -= 1

        return count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if not self._inside and name in POINTWISE:
            self.left[name.strip("_").removesuffix("_kernel")] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress bars that peers write."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
