"""Our own contenders: the integer network on each backend, and the simulation in float."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ....integer_engine.backends import BACKENDS
from ....integer_engine.model import integer
from ....spiking.compiled import CompiledSimulation
from ....spiking.model import SpikingModel
from ....spiking.simulate import Run, simulate
from ..network import Network
from .contender import Case, Contender, ContenderKind, Runner

REFERENCE = "reference"
Prepare = Callable[[Network, Case], Runner]


def _prepare(name: str, spiking: Callable[[Network, int], SpikingModel]) -> Prepare:
    """The integer network on one backend."""

    def prepare(network: Network, case: Case) -> Runner:
        assert case.T is not None
        assert case.n is not None
        steps = case.T
        model = integer(spiking(network, case.n), backend=name)
        if model.waits:  # what is read behind the last step
            return lambda images: model(images, steps)
        return lambda images: model.run(images, steps).logits

    return prepare


def _backend(name: str, about: str, *, slow: bool = False) -> Contender:
    """The integer network of equal thresholds on one backend."""
    prepare = _prepare(name, Network.spiking)
    kind, missing = ContenderKind.INTEGER, _missing(name)
    return Contender(f"integer_{name}", kind, about, prepare, missing, slow=slow)


def _missing(name: str) -> Callable[[torch.device], str | None]:
    """Why a backend cannot run on a device."""

    def missing(device: torch.device) -> str | None:
        info = BACKENDS[name]
        if info.devices and device.type not in info.devices:
            return f"runs on {', '.join(info.devices)}, not on {device.type}"
        return info.missing()

    return missing


def _simulation(simulator: Callable[[SpikingModel], Callable[..., Run]]) -> Prepare:
    """The simulation in float, as what a converted network becomes."""

    def prepare(network: Network, case: Case) -> Runner:
        assert case.T is not None
        assert case.n is not None
        run, steps = simulator(network.spiking(case.n)), case.T
        return lambda images: run(images, time_steps=steps).logits

    return prepare


prepare_reference = _prepare(REFERENCE, Network.spiking)

CONTENDERS = (
    _backend("native", "integer network, our kernels in C++"),
    Contender(
        "integer_native_binary",
        ContenderKind.INTEGER,
        "the same on binary thresholds: a cascade of n emits all n bits in a step",
        _prepare("native", Network.binary),
        _missing("native"),
        binary=True,
        reference=_prepare(REFERENCE, Network.binary),
    ),
    Contender(
        "integer_native_radix",
        ContenderKind.INTEGER,
        "the same in digits, one a step: layers wait for T steps and work once",
        _prepare("native", Network.radix),
        _missing("native"),
        digits=True,
        reference=_prepare(REFERENCE, Network.radix),
    ),
    _backend("compile", "integer network in float containers, torch.compile", slow=True),
    _backend("torch", "integer network in plain torch, int8 products where they are exact"),
    Contender(
        "simulate",
        ContenderKind.INTEGER,
        "simulation in float, plain torch",
        _simulation(lambda snn: partial(simulate, snn)),
    ),
    Contender(
        "simulate_compile",
        ContenderKind.INTEGER,
        "simulation in float, torch.compile",
        _simulation(CompiledSimulation),
        slow=True,
    ),
)
