"""`TrainSpec`: how a model is trained, with its parts; `History`: what came of it. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.optim import list_optimizers

from ..errors import CheckpointError, Fault, SpecError, many
from ..system.plain_data import as_type

SCHEDULES = ("cosine", "tanh", "constant")
PRECISIONS = ("no", "bf16")
_NOT_NUMERIC = ("save_every", "workers")
LATER = {"mse_weight": 0.0}  # fields that came when trainings and runs were stored already
_ALWAYS = object()

Checks = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Of each field: whether a value is allowed, and which are."""


def outside(spec: Any, checks: Checks) -> Iterator[Fault]:
    """The fields of ``spec`` that are not what ``checks`` allow."""
    for name, (holds, allowed) in checks.items():
        value = getattr(spec, name)
        if not holds(value):
            yield Fault(name, repr(value), f"allowed: {allowed}")


def refuse(spec: Any, faults: Iterable[Fault]) -> None:
    """Refuse a specification with all its faults at once, if there are any."""
    if faults := tuple(faults):
        name = type(spec).__name__
        raise SpecError(
            f"{many(faults, 'value', 'values')} of {name} outside what is allowed", faults
        )


_OF_STEPS: Checks = {
    "lr_scale": (lambda value: 0 <= value <= 1, "0 to 1"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "0 or more"),
}


@dataclass(frozen=True)
class StepGroup:
    """How the learned steps of quantizers are trained, activations' and weights'.

    Units: ``lr_scale`` times the rate of all else, at every moment of the schedule, the warm-up
        included; ``weight_decay`` as in `TrainSpec`, by default none. ``relative``: the rate is a
        share of what a step is when training begins, rounded to a power of two. What is learned is
        the range that a quantizer covers, a few tenths for weights and several units for
        activations, which Adam otherwise moves by the same amount.

    Source:
        EWGS (CVPR 2021) trains steps at a hundredth of the weights' rate and does not decay them;
        LSQ (ICLR 2020) scales their gradients instead, which cancels under Adam.

    Raises:
        SpecError: a value outside what is allowed.

    Example:
        >>> StepGroup(lr_scale=0.02).weight_decay
        0.0
    """

    lr_scale: float = 1.0
    weight_decay: float = 0.0
    relative: bool = False

    def __post_init__(self) -> None:
        refuse(self, outside(self, _OF_STEPS))


_OF_FREEZING: Checks = {
    "momentum": (lambda value: 0 < value < 1, "between 0 and 1"),
    "bound": (lambda value: 0 < value <= 1, "above 0, up to 1"),
    "final_bound": (lambda value: 0 < value <= 1, "above 0, up to 1"),
}


@dataclass(frozen=True)
class FreezeOscillating:
    """When a weight that jumps to and fro between two levels is frozen, see `Oscillation`.

    Units: ``momentum`` of the frequency, per step; ``bound`` and ``final_bound``, the frequency
        above which a weight is frozen, as a share of the steps, at the start and at the end.

    Source:
        Nagel et al., Overcoming Oscillations in Quantization-Aware Training (ICML 2022).

    Raises:
        SpecError: a value outside what is allowed.

    Example:
        >>> FreezeOscillating().final_bound
        0.01
    """

    momentum: float = 0.01
    bound: float = 0.1
    final_bound: float = 0.01

    def __post_init__(self) -> None:
        refuse(self, outside(self, _OF_FREEZING))
        if self.final_bound > self.bound:
            fault = Fault("final_bound", repr(self.final_bound), f"at most bound = {self.bound}")
            raise SpecError("the bound of frozen weights rises", [fault])


@dataclass(frozen=True)
class TrainSpec:
    """How to train, complete.

    Units: ``batch_size`` images per process and step; ``lr`` per step, not scaled by anything;
        ``warmup_epochs``, ``patience`` epochs (patience: this many without a better validation
        accuracy end the run); ``save_every`` steps between checkpoints, which are also written
        after each epoch; ``mixup`` alpha of timm's Mixup, 0 for none; ``ema_decay`` per step:
        then the averaged weights are validated and kept; ``clip_grad`` largest gradient norm;
        ``freeze_bn_after`` epochs, after which batch-norm statistics stand still;
        ``reestimate_bn`` training images, from which batch-norm statistics are estimated again,
        augmented as in that epoch, before it is validated and kept, None for the running ones;
        ``distillation_weight`` from 0 (labels alone) to 1 (teacher alone), see `TrainLoss`;
        ``mse_weight`` is the share of the squared distance to the label, 0 to 1, see `TrainLoss`;
        ``spike_weight`` times the mean level of all quantized activations is added to the loss;
        ``workers`` processes that read images, None for one per core when files are streamed and
        none when the images are in memory.

    ``optimizer`` is a name of ``timm.optim``; ``scheduler`` one of timm's, stepped per update,
    falling to 0. ``steps`` is what quantizers' steps get instead of ``lr`` and ``weight_decay``;
    ``freeze_oscillating`` what becomes of weights that jump between two levels, None for nothing.
    ``compile`` runs the training step through torch.compile.

    Raises:
        SpecError: a value outside what is allowed; all of them at once.

    Example:
        >>> TrainSpec(epochs=2, batch_size=64, lr=0.1).scheduler
        'cosine'
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scheduler: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema_decay: float | None = None
    distillation_weight: float = 0.0
    distillation_temperature: float = 1.0
    clip_grad: float | None = None
    patience: int | None = None
    mixed_precision: str = "no"
    save_every: int = 200
    seed: int = 0
    freeze_bn_after: int | None = None
    workers: int | None = None
    compile: bool = False
    reestimate_bn: int | None = None
    spike_weight: float = 0.0
    mse_weight: float = 0.0
    freeze_oscillating: FreezeOscillating | None = None
    steps: StepGroup = field(default_factory=StepGroup)

    def __post_init__(self) -> None:
        refuse(self, _faults(self))

    def numbers(self) -> dict[str, Any]:
        """The fields that the trained weights depend on; those of `LATER` only where used."""
        fields = dataclasses.asdict(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in _NOT_NUMERIC and value != LATER.get(name, _ALWAYS)
        }


def without_quantizers(spec: TrainSpec) -> TrainSpec:
    """The same schedule for a float network: what concerns quantizers is left out.

    Example:
        >>> without_quantizers(TrainSpec(epochs=2, spike_weight=0.1)) == TrainSpec(epochs=2)
        True
    """
    return dataclasses.replace(spec, steps=StepGroup(), freeze_oscillating=None, spike_weight=0.0)


_CHECKS: Checks = {
    "epochs": (lambda value: value >= 1, "1 or more"),
    "batch_size": (lambda value: value >= 1, "1 or more"),
    "lr": (lambda value: 0 < value < float("inf"), "above 0"),
    "momentum": (lambda value: 0 <= value < 1, "0 up to below 1"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "0 or more"),
    "scheduler": (lambda value: value in SCHEDULES, ", ".join(SCHEDULES)),
    "warmup_epochs": (lambda value: value >= 0, "0 or more"),
    "label_smoothing": (lambda value: 0 <= value < 1, "0 up to below 1"),
    "mixup": (lambda value: 0 <= value < float("inf"), "0 (none) or more"),
    "ema_decay": (lambda value: value is None or 0 < value < 1, "between 0 and 1, or none"),
    "distillation_weight": (lambda value: 0 <= value <= 1, "0 to 1"),
    "distillation_temperature": (lambda value: 0 < value < float("inf"), "above 0"),
    "clip_grad": (lambda value: value is None or value > 0, "above 0, or none"),
    "patience": (lambda value: value is None or value >= 1, "1 or more, or none"),
    "mixed_precision": (lambda value: value in PRECISIONS, ", ".join(PRECISIONS)),
    "save_every": (lambda value: value >= 1, "1 or more"),
    "freeze_bn_after": (lambda value: value is None or value >= 0, "0 or more, or none"),
    "mse_weight": (lambda value: 0 <= value <= 1, "0 to 1"),
    "spike_weight": (lambda value: 0 <= value < float("inf"), "0 or more"),
    "reestimate_bn": (lambda value: value is None or value >= 2, "2 or more, or none"),
    "workers": (lambda value: value is None or value >= 0, "0 or more, or none"),
}


def _faults(spec: TrainSpec) -> Iterator[Fault]:
    """Everything that is wrong with the values themselves."""
    yield from outside(spec, _CHECKS)
    if spec.optimizer not in list_optimizers():
        hint = "allowed: a name of timm.optim.list_optimizers(), such as sgd, adamw, lamb"
        yield Fault("optimizer", repr(spec.optimizer), hint)
    if spec.warmup_epochs > spec.epochs >= 1:
        hint = f"allowed: at most epochs = {spec.epochs}"
        yield Fault("warmup_epochs", str(spec.warmup_epochs), hint)
    if spec.reestimate_bn is not None and spec.freeze_bn_after is not None:
        hint = "leave one out: freeze_bn_after keeps the statistics as they are"
        yield Fault("reestimate_bn", str(spec.reestimate_bn), hint)
    if spec.mixup and spec.batch_size % 2:
        yield Fault("batch_size", str(spec.batch_size), "mixup pairs images: take an even number")


@dataclass(frozen=True)
class EpochRow:
    """One finished epoch.

    Units: ``epoch`` from 1; ``train_loss`` mean over its steps; ``validation_accuracy`` percent,
    None without validation images; ``lr`` at its last step; ``seconds`` of this process;
        of the weights, how many are ``oscillating`` and ``frozen`` at its end, where watched.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float | None
    lr: float
    seconds: float
    oscillating: int | None = None
    frozen: int | None = None


@dataclass(frozen=True)
class History:
    """All epochs of a run, and which one's weights were kept: 0 for those that it started with.

    Without validation images the last epoch is the best. ``start_accuracy`` is that of the start on
    the validation images, where it counted; percent.
    """

    rows: tuple[EpochRow, ...]
    best_epoch: int
    start_accuracy: float | None = None

    @property
    def best(self) -> EpochRow | None:
        """The row of the epoch whose weights were kept; None for those of the start."""
        return self.rows[self.best_epoch - 1] if self.best_epoch else None

    @property
    def best_accuracy(self) -> float | None:
        """That of the kept weights on the validation images, percent."""
        return self.start_accuracy if self.best is None else self.best.validation_accuracy

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> History:
        """The history that `to_json` wrote.

        Raises:
            CheckpointError: it is damaged.
        """
        history: History = as_type(History, value)
        if not 0 <= history.best_epoch <= len(history.rows):
            raise CheckpointError(f"best_epoch: {history.best_epoch} of {len(history.rows)} epochs")
        return history
