"""`finetune`: a converted network learns through time, and is given back converted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...data import Splits, own_splits
from ...errors import Fault, SpecError, many
from ...graph.float32 import in_float32
from ...neurons.surrogate import Surrogate
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import check_time_steps
from ..gradients import ALGORITHMS, BPTT, DSR, Algorithm, Tandem
from ..loop import fit
from ..spec import History, TrainSpec
from .learner import TrainableSpikingModel
from .neuron import TrainableParts


@dataclass(frozen=True)
class FinetuneSpec:
    """How a converted network learns: for T ``time_steps``, by which gradients, which of its parts.

    ``surrogate`` None takes straight-through, or rectangular for learned gaps. With
    ``detach_reset`` False gradients pass through resets too.

    Raises:
        SpecError: what the algorithm would pass over: a surrogate for DSR or tandem learning, leaks
            and gradients through resets for any but BPTT, thresholds and potentials for tandem
            learning.

    Example:
        >>> FinetuneSpec(time_steps=2).algorithm
        BPTT(every_step=0.0)
    """

    time_steps: int
    algorithm: Algorithm | str = field(default_factory=BPTT)
    learns: TrainableParts = field(default_factory=TrainableParts)
    surrogate: Surrogate | None = None
    detach_reset: bool = True

    def __post_init__(self) -> None:
        check_time_steps(self.time_steps)
        if isinstance(self.algorithm, str) and self.algorithm in ALGORITHMS:
            object.__setattr__(self, "algorithm", ALGORITHMS[self.algorithm])
        algorithm, faults = self.algorithm, []
        faults += [
            Fault(name, repr(value), f"allowed: {allowed}")
            for name, value, kind, allowed in (
                ("algorithm", algorithm, Algorithm, ", ".join(ALGORITHMS)),
                ("learns", self.learns, TrainableParts, "a TrainableParts"),
            )
            if not isinstance(value, kind)
        ]
        if faults:
            raise SpecError("FinetuneSpec: " + many(faults, "wrong value", "wrong values"), faults)
        if self.surrogate is not None and isinstance(algorithm, DSR | Tandem):
            hint = "it looks at totals, not spikes: give none"
            faults.append(Fault("surrogate", repr(self.surrogate), hint))
        if self.learns.leaks and not isinstance(algorithm, BPTT):
            faults.append(Fault("learns", "leaks", "leave leaks out, or train by BPTT"))
        if not self.detach_reset and not isinstance(algorithm, BPTT):
            hint = "nothing passes from step to step: leave it true, or train by BPTT"
            faults.append(Fault("detach_reset", "false", hint))
        if isinstance(algorithm, Tandem):
            faults += [
                Fault("learns", part, "the analog path has none: leave them out")
                for part in ("thresholds", "potentials")
                if getattr(self.learns, part)
            ]
        if faults:
            raise SpecError(f"{algorithm} would pass over what it was given", faults)


class Finetuned(NamedTuple):
    """The network after, and how it came about; epoch 0 of the history is the start."""

    snn: SpikingModel
    history: History


@in_float32()
def finetune(
    snn: SpikingModel,
    splits: Splits | Any,
    how: FinetuneSpec,
    spec: TrainSpec,
    folder: str | Path,
    *,
    classes: int,
    teacher: nn.Module | None = None,
) -> Finetuned:
    """Fine-tune a converted network; ``snn`` is untouched.

    ``splits`` are those of `open_data`, or a pair (training, validation) of data sets, DataLoaders,
    tensors with labels, or lists of batches, images normalised as for the float network.

    It starts from exactly the converted network and ends with the weights that are best on the
    validation images, those of the start among them: never below it. Killed at any moment it goes
    on from ``folder`` as `fit` does. ``teacher``, the quantized or the float network, is asked if
    ``spec.distillation_weight`` is above 0.

    Raises:
        SpecError: no validation images; a network or an algorithm that cannot learn so.
        CheckpointError: the folder holds another run.
    """
    snn, splits = spiking_network(snn, "finetune"), own_splits(splits, classes)
    assert not isinstance(how.algorithm, str)  # its name has become a value
    learner = TrainableSpikingModel(
        snn,
        how.time_steps,
        learns=how.learns,
        surrogate=how.surrogate,
        detach_reset=how.detach_reset,
    )
    history = fit(
        learner,
        splits,
        spec,
        folder,
        classes=classes,
        teacher=teacher,
        algorithm=how.algorithm,
        keep_start=True,
    )
    return Finetuned(learner.snapshot(), history)
