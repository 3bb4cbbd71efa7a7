"""How a converted network learns, in the names that recipes write."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import Fault, SpecError
from ...evaluation.settings import Setting
from ...training.finetune.finetune import FinetuneSpec
from ...training.finetune.neuron import TrainableParts
from ...training.gradients import ALGORITHMS, SURROGATES
from ...training.spec import TrainSpec

PARTS = ("weights", "thresholds", "potentials", "leaks")


TEACHERS = ("ann", "qann")


@dataclass(frozen=True)
class FinetuneJob:
    """How a network is converted, and how it then learns; names as recipes write them.

    ``setting`` has one number of steps, for which it learns. ``teacher`` is asked where
    ``train.distillation_weight`` is above 0.

    Raises:
        SpecError: names that are not known, or do not go together; more than one number of steps.

    Example:
        >>> from ...neurons.ladder import Uniform
        >>> FinetuneJob(Setting(Uniform(1), (2,)), "dsr", TrainSpec(epochs=1)).how().time_steps
        2
    """

    setting: Setting
    algorithm: str
    train: TrainSpec
    surrogate: str | None = None
    learns: tuple[str, ...] = ("weights", "thresholds")
    teacher: str = "qann"
    detach_reset: bool = True

    def __post_init__(self) -> None:
        allowed = {
            "algorithm": (self.algorithm, tuple(ALGORITHMS)),
            "surrogate": (self.surrogate, (None, *SURROGATES)),
            "teacher": (self.teacher, TEACHERS),
            **{f"learns.{k}": (name, PARTS) for k, name in enumerate(self.learns)},
        }
        faults = [
            Fault(where, repr(value), f"allowed: {', '.join(map(str, choices))}")
            for where, (value, choices) in allowed.items()
            if value not in choices
        ]
        if len(self.setting.time_steps) != 1:
            steps = ", ".join(map(str, self.setting.time_steps))
            faults.append(Fault("time_steps", steps, "allowed: one number of steps to learn for"))
        if faults:
            raise SpecError(f"{len(faults)} values of the fine-tuning are not allowed", faults)
        self.how()

    def how(self) -> FinetuneSpec:
        """The values behind the names."""
        return FinetuneSpec(
            self.setting.time_steps[0],
            ALGORITHMS[self.algorithm],
            TrainableParts(**{name: name in self.learns for name in PARTS}),
            None if self.surrogate is None else SURROGATES[self.surrogate],
            self.detach_reset,
        )
