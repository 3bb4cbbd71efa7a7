"""What can run an integer network, by name, and which of them this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Fault, SpecError
from ..system.devices import compile_by_torch
from ..system.progress import notice
from . import torch_backend
from .int8 import torch_kernels
from .program import Accumulate, Program

FORMS = 4096  # of one function that torch.compile keeps
AS_WRITTEN = (  # no operator fused with another or rounded its own way, where torch has the option
    "emulate_precision_casts",
    "eager_numerics.division_rounding",
    "eager_numerics.disable_ftz",
)


class ReferenceBackend:
    """Plain torch by the written formulas alone: what the others are compared with."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._steps = [self._step(program) for program in programs]

    def _step(self, program: Program) -> torch_backend.Step:
        return lambda images, totals: torch_backend.step(program, images, totals)

    def run(
        self, images: Tensor, time_steps: int, totals: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits: list[Tensor] = []
        state: torch_backend.Totals = {}
        with _exact(images.device):
            for t in range(time_steps):
                now, state = self._steps[min(t, len(self._steps) - 1)](images, state)
                logits.append(now)
        return torch.stack(logits), state if totals else {}


class TorchBackend(ReferenceBackend):
    """Plain torch by its fastest exact kernels, so many images at a time as stay in the cache."""

    def __init__(self, programs: Sequence[Program]) -> None:
        super().__init__(programs)
        self._at_once = torch_kernels.images_at_once(programs)

    def _step(self, program: Program) -> torch_backend.Step:
        kernels = torch_kernels.fast_kernels(program)
        return lambda images, totals: torch_backend.step(program, images, totals, kernels)

    def run(
        self, images: Tensor, time_steps: int, totals: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        together = self._at_once is None or images.device.type != "cpu"
        size = len(images) if together else (self._at_once or 1) * torch.get_num_threads()
        if len(images) <= size:
            return super().run(images, time_steps, totals)
        parts = [
            super(TorchBackend, self).run(part, time_steps, totals) for part in images.split(size)
        ]
        names = parts[0][1]
        return (
            torch.cat([logits for logits, _ in parts], 1),
            {name: torch.cat([state[name] for _, state in parts]) for name in names},
        )


class CompiledBackend(ReferenceBackend):
    """The same through torch.compile; on accelerators weighted layers are products of int8."""

    def _step(self, program: Program) -> torch_backend.Step:
        narrow = torch_kernels.in_int8(program)

        def layer(item: Accumulate, numbers: Tensor) -> Tensor:
            if numbers.device.type != "cpu":
                return narrow(item, numbers)
            # `run` made the settings that `in_exact_type` reads
            held = torch_kernels.in_floats(numbers, item.limit)
            return torch_backend.weighted_sums(held, item.weight, item.geometry)

        kernels = torch_backend.Kernels(layer)

        def step(images: Tensor, totals: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return torch_backend.step(program, images, totals, kernels)

        options: dict[str, Any] = {
            name: True for name in AS_WRITTEN if name in torch._inductor.list_options()
        }
        return compile_by_torch(step, fullgraph=True, options=options)

    def run(
        self, images: Tensor, time_steps: int, totals: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # all networks and steps share one function, each of which is a form of it
        config: Any = torch._dynamo.config
        with config.patch(recompile_limit=FORMS, accumulated_recompile_limit=FORMS):
            return super().run(images, time_steps, totals)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Products as they are, whatever the caller's settings for mixed precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _native(programs: Sequence[Program]) -> Any:
    from .native.backend import NativeBackend

    return NativeBackend(programs)


def _native_missing() -> str | None:
    from .native.build import missing

    return missing()


def _native_slow() -> bool:
    from .native.build import instruction_sets

    return instruction_sets()[0] == "portable"


@dataclass(frozen=True)
class BackendInfo:
    """How to make a backend, the devices it runs on (empty: any), and what this machine lacks."""

    make: Callable[[Sequence[Program]], Any]
    devices: tuple[str, ...] = ()
    missing: Callable[[], str | None] = lambda: None


BACKENDS = {
    "native": BackendInfo(_native, ("cpu",), _native_missing),
    "torch": BackendInfo(TorchBackend),
    "compile": BackendInfo(CompiledBackend),
    "reference": BackendInfo(ReferenceBackend),
}


def choose_backend(name: str, device: torch.device) -> str:
    """The backend of a name, "auto" included.

    Raises: SpecError: unknown, or not for this device or machine.
    """
    if name == "auto":
        info = BACKENDS["native"]
        if device.type not in info.devices or _native_slow():
            return "torch"
        if (lacking := info.missing()) is None:
            return "native"
        notice(f"{lacking.strip()}; the torch backend runs instead: the same numbers, slower")
        return "torch"
    allowed = f"allowed are auto, {', '.join(BACKENDS)}"
    if name not in BACKENDS:
        raise SpecError("unknown backend", [Fault("backend", name, allowed)])
    info = BACKENDS[name]
    if info.devices and device.type not in info.devices:
        why = f"runs on {', '.join(info.devices)}, the network is on {device}"
        raise SpecError("this backend cannot run here", [Fault("backend", name, why)])
    if (lacking := info.missing()) is not None:
        raise SpecError("this backend cannot run here", [Fault("backend", name, lacking)])
    return name
