"""Peak memory of one contender, in a process that runs nothing else.

The contender is made twice, and the second one counts: what its package takes by being loaded is
there by then (as are a few MiB that the first one freed). On the CPU: the most that the process
held while it ran, beyond what it held before it was made; so what it keeps (weights, packed or
compiled forms) and what it needs while running count, but not what making it took for a while. On
an accelerator: the most memory allocated there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._inductor import config as compiler

from ...system.bounded import Limits, Note, Task, run_bounded
from ...system.peak_memory import meter_of
from .contenders.contender import Case
from .contenders.registry import all_contenders
from .network import Network, open_network

CALLS = 3
GENEROUS = Limits(memory=1024.0, seconds=1800.0, workers=1)


@dataclass(frozen=True)
class Place:
    """What a child needs to make the same network again, and where it is to run."""

    word: str
    store: Path
    device: str
    threads: int

    def network(self) -> Network:
        """The network, on its device."""
        return open_network(self.word, self.store).on(torch.device(self.device))


def peaks(
    place: Place, entries: Sequence[tuple[str, Case]], limits: Limits = GENEROUS
) -> Iterator[tuple[tuple[str, Case], float | None, str]]:
    """For each contender by name and case its peak in MiB, or None and the reason."""
    tasks = [
        Task(str(k), peak, (place, name, case), place.store / "logs" / f"{name}.txt")
        for k, (name, case) in enumerate(entries)
    ]
    for outcome in run_bounded(tasks, limits, preload=[__name__]):
        yield entries[int(outcome.key)], outcome.value, outcome.error or ""


def peak(place: Place, name: str, case: Case, *, note: Note) -> float:
    """MiB of one contender; called in its own process."""
    torch.set_num_threads(place.threads)
    compiler.compile_threads = 1  # no processes of its own, which would outlive this one
    note({"stage": "making the network"})
    network = place.network()
    images = network.images(case.batch, torch.Generator().manual_seed(0))
    note({"stage": "preparing"})
    contender = all_contenders()[name]
    contender.prepare(network, case)(images)
    meter = meter_of(images.device)
    runner = contender.prepare(network, case)
    runner(images)  # compiles
    meter.start()
    note({"stage": "running"})
    for _ in range(CALLS):
        runner(images)
    return round(meter.stop(), 1)
