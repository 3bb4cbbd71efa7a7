"""Rows of a network at one batch size: make all contenders ready, check them, then take turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import error_line
from ...system.progress import progress
from .contenders.contender import Case, Contender, ContenderKind, Runner
from .contenders.ours import prepare_reference
from .limits import Work, share_of_limit
from .network import Network
from .rows import Absent, BenchRow
from .timing import Clock, Spread, clock_of, interleave, speed_ups

Item = TypeVar("Item")
CHECKED_IMAGES = 16  # images, at least
RECOMPILED = 64  # forms of one function that torch.compile keeps


@dataclass(frozen=True)
class Verdict:
    """The columns of `BenchRow` of these names; ``fault`` if it computes something else."""

    bit_equal: bool | None
    agreement: float
    difference: float
    fault: str | None = None


@dataclass
class Group:
    """Contenders of one network at one batch size, which are timed together.

    ``limit``: what the machine can do at best, and its multiply-adds; it takes its turn as well.
    """

    network: Network
    entries: Sequence[tuple[Contender, Case]]
    rounds: int
    limit: Work | None = None
    clock: Clock | None = None
    absent: list[Absent] = field(default_factory=list)
    seed: int = 0

    def rows(self) -> list[BenchRow]:
        """Time them; those that cannot run are in ``absent`` afterwards, with reasons."""
        config: Any = torch._dynamo.config
        with config.patch(recompile_limit=RECOMPILED):
            return self._rows()

    def _rows(self) -> list[BenchRow]:
        torch._dynamo.reset()
        ready = [
            (entry, runner)
            for entry in self._with_progress(self.entries, "preparing", len(self.entries))
            if (runner := self._prepare(*entry))
        ]
        good = [
            (contender, case, runner, verdict)
            for (contender, case), runner in self._with_progress(ready, "checking", len(ready))
            if (verdict := self._check(contender, case, runner))
        ]
        if not good:
            return []
        generator = torch.Generator().manual_seed(self.seed)
        batch = good[0][1].batch
        runners = [runner for _, _, runner, _ in good]
        if self.limit is not None:
            product = self.limit[0]
            runners.append(lambda images: product())
        clock = self.clock or clock_of(self.network.device)
        turns = interleave(
            runners, lambda: self.network.images(batch, generator), self.rounds, clock
        )
        rounds = list(self._with_progress(turns, "timing", self.rounds))
        seconds = [[turn[k] for turn in rounds] for k in range(len(runners))]
        peak = [] if self.limit is None else [self.limit[1] / taken for taken in seconds.pop()]
        return with_ratios(
            [
                (contender.kind, self._row(contender, case, verdict, (taken, peak)), taken)
                for (contender, case, _, verdict), taken in zip(good, seconds, strict=True)
            ]
        )

    def _with_progress(self, items: Iterable[Item], doing: str, total: int) -> Iterator[Item]:
        """The same, with progress shown."""
        batch = self.entries[0][1].batch if self.entries else 0
        return progress(items, f"{self.network.name}, batch {batch}: {doing}", total)

    def _row(
        self,
        contender: Contender,
        case: Case,
        verdict: Verdict,
        rounds: tuple[list[float], list[float]],
    ) -> BenchRow:
        """A row whose ratio is still to come. ``rounds``: seconds, and the machine's best rate."""
        seconds, peak = rounds
        size, batch = self.network.size, case.batch
        us = Spread.of([1e6 * taken / case.batch for taken in seconds])
        return BenchRow(
            network=self.network.name,
            batch=case.batch,
            T=case.T,
            n=case.n,
            contender=contender.name,
            us_per_image=us.median,
            ratio_to_best_float=None,
            peak_mib=None,
            bit_equal=verdict.bit_equal,
            us_low=us.low,
            us_high=us.high,
            rounds=len(seconds),
            agreement=verdict.agreement,
            difference=verdict.difference,
            share_of_limit=share_of_limit(seconds, peak, size, batch) if peak else None,
        )

    def _prepare(self, contender: Contender, case: Case) -> Runner | None:
        """What runs, or None and a line in ``absent``."""
        reason = contender.available(self.network.device)
        if reason is None:
            try:
                return contender.prepare(self.network, case)
            except Exception as error:  # other packages raise what they meet
                reason = error_line(error)
        self._leave_out(contender, case, reason)
        return None

    def _check(self, contender: Contender, case: Case, runner: Runner) -> Verdict | None:
        """What its logits are worth; None and a line in ``absent`` if it cannot be timed."""
        try:
            verdict = check(self.network, contender, case, runner)
        except Exception as error:
            self._leave_out(contender, case, error_line(error))
            return None
        if verdict.fault is not None:
            self._leave_out(contender, case, verdict.fault)
            return None
        return verdict

    def _leave_out(self, contender: Contender, case: Case, reason: str) -> None:
        self.absent.append(Absent(self.network.name, contender.name, str(case), reason))


def with_ratios(timed: Sequence[tuple[ContenderKind, BenchRow, Sequence[float]]]) -> list[BenchRow]:
    """The rows with their speed relative to the fastest float network among them.

    Each comes with its kind and the seconds of its rounds.
    """
    floats = [item for item in timed if item[0] is ContenderKind.FLOAT]
    best = min(floats, key=lambda item: item[1].us_per_image, default=None)
    if best is None:
        return [row for _, row, _ in timed]
    return [
        replace(row, ratio_to_best_float=speed_ups(seconds, best[2]).median)
        for _, row, seconds in timed
    ]


@torch.no_grad()
def check(network: Network, contender: Contender, case: Case, runner: Runner) -> Verdict:
    """Compare a contender's logits with those of the network that it stands for, on fresh images.

    Ours with the reference backend, bit by bit; float networks and other packages' with the float
    network, quantized ones with Brevitas.
    """
    reference = _reference(network, contender, case)
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(max(1, -(-CHECKED_IMAGES // case.batch))):
        images = network.images(case.batch, generator)
        pairs.append([_plain(run(images.clone())) for run in (reference, runner)])
        if pairs[-1][0].shape != pairs[-1][1].shape:
            return Verdict(None, 0, 0, f"its logits are {tuple(pairs[-1][1].shape)}")
    expected, logits = (torch.cat(side, dim=-2) for side in zip(*pairs, strict=True))
    bits = torch.equal(expected, logits) if contender.kind is ContenderKind.INTEGER else None
    return compare(expected, logits, bits, contender.tolerance)


def compare(
    expected: Tensor, actual: Tensor, bits: bool | None, tolerance: float | None
) -> Verdict:
    """How far logits are from those expected, [images, classes] or [T, images, classes].

    Example:
        >>> compare(torch.eye(3), torch.eye(3), None, 0.1)
        Verdict(bit_equal=None, agreement=1.0, difference=0.0, fault=None)
    """
    if not bool(actual.isfinite().all()):
        return Verdict(bits, 0, 0, "its logits are not finite")
    expected, actual = (
        logits[-1] if logits.dim() == 3 else logits for logits in (expected, actual)
    )
    agreement = float((actual.argmax(1) == expected.argmax(1)).float().mean())
    apart = actual - expected
    spread = (expected - expected.mean(0)).square().mean().sqrt().clamp(min=1e-30)
    largest = float(apart.abs().max() / expected.abs().max().clamp(min=1e-30))
    fault = None
    if tolerance is not None and largest > tolerance:
        fault = f"computes something else: differs by {100 * largest:.1f} % of the largest logit"
    return Verdict(bits, agreement, float(apart.square().mean().sqrt() / spread), fault)


def _reference(network: Network, contender: Contender, case: Case) -> Runner:
    """What a contender is to compute."""
    if contender.reference is not None:
        return contender.reference(network, case)
    if contender.kind is ContenderKind.INTEGER:
        return prepare_reference(network, case)
    return network.qann if contender.kind is ContenderKind.QUANTIZED else network.ann


def _plain(logits: Any) -> Tensor:
    """In float32 on the CPU, apart from what a later call overwrites."""
    copied: Tensor = logits.detach().float().cpu().clone()
    return copied
