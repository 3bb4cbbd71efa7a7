"""Networks trained as spiking networks: what recipes say of one, and its rows of the table.

`SpikingSpec` is the ``spiking`` block of a recipe; `build_spiking` makes its network,
`train_from_scratch` trains it, `rows_of` evaluates it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...data import Splits
from ...errors import Fault, SpecError, many
from ...neurons.ladder import LADDERS, Firing, Ladder, Learned, Radix
from ...neurons.spec import IF, LIF, PLIF, Charge, NeuronSpec, Reset
from ...spiking.presentation import is_step_count
from ...system.peak_memory import store_peak, stored_peak
from ..gradients import ALGORITHMS, SURROGATES
from ..loop import fit
from ..spec import History, TrainSpec
from .network import ScratchNetwork, build_from_scratch
from .poisson import Coding
from .tensor_trains.tensor_train import TensorTrain

NEURONS = ("if", "lif", "plif")
LEARNS_BY = tuple(name for name in ALGORITHMS if name != "tandem")
THROUGH = tuple(name for name in SURROGATES if name != "stdb")
STARTS = ("random", "ann")


@dataclass(frozen=True)
class SpikingSpec:
    """Which neurons stand where a network has activations, for how many steps, and how they learn.

    ``surrogate`` and ``detach_reset`` say what gradients pass through, ``algorithm`` how they are
    made.
    ``ladder`` null is the mode's own: equal steps for parallel thresholds, powers of two for a
    cascade. All n thresholds together emit at most 1, as a single one does. ``tau`` is the leak of
    lif, and where that of plif starts. ``start`` "ann" takes over the weights of the recipe's float
    network; "random" draws them from the recipe's seed. ``tensor_train`` trains 3x3 convolutions as
    products of small ones, and merges them when training is over. ``read_out_tau`` null means the
    read-out is the mean over the steps, a number that it leaks; with ``learn_read_out`` that is
    where its leak starts to learn. ``compile`` makes one kernel of
    the neurons' steps by torch.compile, which needs a C++ compiler: seconds once, then a training
    that takes about half the time; the same spikes, gradients up to rounding. ``coding`` "poisson"
    shows an image as spikes of its rate; ``delayed`` lets each layer answer a step later, so that T
    has to exceed the number of layers; ``standardize_weights`` learns weights that are normalised
    in every pass; ``learn_thresholds`` the step of each layer too. With ``start`` "ann" each
    threshold is balanced: it begins at the 99.9th
    percentile of what the float layer gives.
    ``norm_by_step`` gives each step a batch norm of its own, which does not fold.

    Units: ``initial`` potential in thresholds (of the lowest); ``fires_at`` the share of its
        threshold at which a neuron fires, while it still emits, and loses, the whole of it.

    Raises:
        SpecError: values outside what is allowed, or that do not go together; all of them at once.

    Example:
        >>> SpikingSpec("lif", mode="cascade", n=4).neuron_spec().ladder
        Binary(bits=4)
    """

    neuron: str = "plif"
    mode: Firing = Firing.PARALLEL
    n: int = 1
    ladder: str | None = None
    time_steps: int = 1
    reset: Reset = Reset.SOFT
    tau: float = 2.0
    decay_input: bool = True
    signed: bool = False
    initial: float = 0.0
    surrogate: str = "atan"
    detach_reset: bool = True
    algorithm: str = "bptt"
    start: str = "random"
    tensor_train: TensorTrain | None = None
    read_out_tau: float | None = None
    learn_read_out: bool = False
    compile: bool = False
    coding: str = "direct"
    delayed: bool = False
    fires_at: float = 1.0
    standardize_weights: bool = False
    learn_thresholds: bool = False
    norm_by_step: bool = False

    def __post_init__(self) -> None:
        names = {
            "neuron": NEURONS,
            "mode": tuple(Firing),
            "ladder": (None, *(name for name in LADDERS if name != Radix.kind)),
            "reset": tuple(Reset),
            "surrogate": THROUGH,
            "algorithm": LEARNS_BY,
            "start": STARTS,
            "coding": tuple(Coding),
        }
        faults = [
            Fault(where, repr(getattr(self, where)), f"allowed: {', '.join(map(str, allowed))}")
            for where, allowed in names.items()
            if getattr(self, where) not in allowed
        ]
        if not 0 < self.fires_at <= 1:
            faults.append(Fault("fires_at", str(self.fires_at), "allowed: above 0 up to 1"))
        if not is_step_count(self.time_steps):
            hint = "allowed: whole numbers from 1"
            faults.append(Fault("time_steps", str(self.time_steps), hint))
        faults = faults or list(self._mismatches())
        if faults:
            raise SpecError(
                f"{many(faults, 'value', 'values')} of SpikingSpec not allowed",
                faults,
            )

    def _mismatches(self) -> Iterator[Fault]:
        """What each value allows, and all together do not."""
        try:
            self.neuron_spec()
        except SpecError as error:
            yield Fault("neuron", self.neuron, str(error))
        if self.learn_read_out and self.read_out_tau is None:
            yield Fault("learn_read_out", "true", "give read_out_tau, where its leak starts")
        if self.fires_at != 1 and self.ladder not in (None, "uniform"):
            yield Fault("fires_at", str(self.fires_at), "it is for equal steps: ladder uniform")
        if self.fires_at != 1 and Firing(self.mode) is not Firing.PARALLEL:
            yield Fault("fires_at", str(self.fires_at), "it is for parallel thresholds")
        if self.learn_thresholds and self.algorithm in ("ottt_a", "ottt_o", "dsr"):
            hint = "it passes nothing to them: leave it false, or train by bptt"
            yield Fault("learn_thresholds", "true", hint)
        if self.norm_by_step and self.algorithm == "dsr":
            hint = "representations weigh steps alike: leave it false, or train by bptt"
            yield Fault("norm_by_step", "true", hint)
        if self.delayed and self.algorithm in ("ottt_a", "ottt_o", "dsr"):
            hint = "no gradient of a step reaches what caused it: leave it false, or train by bptt"
            yield Fault("delayed", "true", hint)
        if self.algorithm not in ("ottt_a", "ottt_o", "dsr"):
            return
        if self.learn_read_out:
            yield Fault("learn_read_out", "true", "leave it false, or train by bptt")
        if self.neuron == "plif":
            yield Fault(
                "algorithm", self.algorithm, "it cannot learn the leak of plif: take bptt, or lif"
            )
        if Reset(self.reset) is Reset.HARD:
            yield Fault("algorithm", self.algorithm, "it needs reset: soft; or train by bptt")
        if not self.detach_reset:
            yield Fault("detach_reset", "false", "leave it true, or train by bptt")
        if self.tensor_train is not None and self.tensor_train.form == "htt":
            yield Fault("tensor_train", "htt", "take form stt or ptt, or train by bptt")
        leak = self.tau if self.neuron == "lif" else None
        if self.algorithm == "dsr" and self.time_steps > 1 and self.read_out_tau != leak:
            hint = f"read-out and neurons weigh steps alike: take {leak}, or train by bptt"
            yield Fault("read_out_tau", str(self.read_out_tau), hint)

    def neuron_spec(self) -> NeuronSpec:
        """The neurons."""
        return NeuronSpec(
            self._ladder(),
            firing=Firing(self.mode),
            charge=self._charge(),
            reset=Reset(self.reset),
            signed=self.signed,
            initial=self.initial,
            surrogate=SURROGATES[self.surrogate],
            detach_reset=self.detach_reset,
        )

    def _ladder(self) -> Ladder:
        if self.fires_at != 1:
            return Learned((self.fires_at, *[1.0] * (self.n - 1)))
        natural = "binary" if Firing(self.mode) is Firing.CASCADE else "uniform"
        return LADDERS[self.ladder or natural](self.n)

    def _charge(self) -> Charge:
        if self.neuron == "if":
            return IF()
        kind = LIF if self.neuron == "lif" else PLIF
        return kind(self.tau, self.decay_input)


def build_spiking(ann: nn.Module, spec: SpikingSpec, example: Tensor) -> ScratchNetwork:
    """The spiking network of a float one, with its weights.

    Shapes: example [batch, channels, height, width], one step's input.
    Raises:
        UnsupportedLayerError: operators without a rule.
        SpecError: nothing to replace; no convolution to decompose.
    """
    return build_from_scratch(
        ann,
        spec.neuron_spec(),
        example=example,
        time_steps=spec.time_steps,
        tensor_train=spec.tensor_train,
        read_out_tau=spec.read_out_tau,
        learn_read_out=spec.learn_read_out,
        compiled=spec.compile,
        delayed=spec.delayed,
        coding=Coding(spec.coding),
        standardized=spec.standardize_weights,
        learns_thresholds=spec.learn_thresholds,
        norm_by_step=spec.norm_by_step,
    )


def train_from_scratch(
    network: ScratchNetwork,
    spec: SpikingSpec,
    splits: Splits,
    train: TrainSpec,
    folder: Path,
    *,
    classes: int,
    teacher: nn.Module | None = None,
) -> tuple[History, dict[str, Any]]:
    """Train in place, resumed from ``folder``; the history, and the columns that tell of it.

    ``teacher`` is asked where ``train.distillation_weight`` is above 0.

    Raises:
        CheckpointError: the folder holds another training.
        SpecError: what does not go together; the loss became NaN or infinite.
    """
    with store_peak(folder / "peak.json"):
        history = fit(
            network,
            splits,
            train,
            folder,
            classes=classes,
            teacher=teacher,
            algorithm=ALGORITHMS[spec.algorithm],
        )
    return history, {
        "algorithm": spec.algorithm,
        "epochs": len(history.rows),
        "seconds_per_epoch": statistics.median(row.seconds for row in history.rows),
        "peak_mib": stored_peak(folder / "peak.json"),
    }
