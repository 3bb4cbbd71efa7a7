"""How a converted network learns, in the names that recipes write: the ``finetune`` block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, model_validator

from ...calibration.text import name_of, parse
from ...errors import Fault, SpecError, many
from ...evaluation.settings import OwnThresholds, Setting
from ...neurons.ladder import Firing, Uniform
from ...quantization.spec import Spacing
from ...spiking.presentation import Presentation
from ...training.finetune.finetune import FinetuneSpec
from ...training.finetune.neuron import TrainableParts
from ...training.gradients import ALGORITHMS, SURROGATES
from ...training.spec import TrainSpec
from .validation import STRICT, Count

CalibrationText = Annotated[str, AfterValidator(lambda text: name_of(parse(text)))]
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
    progressive: bool = False

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
        if self.progressive and self.algorithm != "tandem":
            hint = "layer by layer is for algorithm tandem"
            faults.append(Fault("progressive", "true", hint))
        if self.progressive and self.train.patience is None:
            hint = "set train.patience to some epochs (the original has 6), which end a stage"
            faults.append(Fault("progressive", "true", hint))
        if self.progressive and self.learns != ("weights",):
            hint = "write learns: [weights]: thresholds are set as a layer's turn comes"
            faults.append(Fault("progressive", "true", hint))
        if len(self.setting.time_steps) != 1:
            steps = ", ".join(map(str, self.setting.time_steps))
            faults.append(Fault("time_steps", steps, "allowed: one number of steps to learn for"))
        if faults:
            raise SpecError(
                f"{many(faults, 'value', 'values')} of the fine-tuning not allowed",
                faults,
            )
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


CONVERSION_KEYS = ("thresholds", "time_steps", "presentation", "firing", "signed")
"""What says how a network is converted, in the blocks that calibrate and fine-tune it."""


class CalibrateBlock(BaseModel):
    """Calibration of the converted network for T ``time_steps``, stored, evaluated beside the
    conversion, and what ``finetune`` starts from.

    ``calibration`` such as "mse+membrane_mean"; with ``keep_better`` a calibration keeps only what
    lowers its loss on images held out, without it does what its source says. ``thresholds`` null
    means L.
    """

    model_config = STRICT
    calibration: CalibrationText
    keep_better: bool = True
    thresholds: Count | None = 1
    time_steps: Count = 2
    presentation: Presentation = Presentation.ONCE
    firing: Firing | None = None
    signed: bool = True

    @model_validator(mode="after")
    def _names_something(self) -> CalibrateBlock:
        if self.calibration == "none":
            hint = "leave the block out, or name calibrations: mse+membrane_mean"
            raise SpecError("nothing is calibrated", [Fault("calibration", "none", hint)])
        return self

    def setting(self, levels: int, spacing: Spacing = Spacing.EQUAL) -> Setting:
        """The calibrated network of so many levels."""
        return replace(
            conversion_setting(self, levels, spacing),
            calibration=parse(self.calibration),
            calibrated_T=self.time_steps,
            keep_better=self.keep_better,
        )


def conversion_setting(block: Any, levels: int, spacing: Spacing) -> Setting:
    """How a block with `CONVERSION_KEYS` converts."""
    equal = Uniform(levels if block.thresholds is None else block.thresholds)
    return Setting(
        equal if spacing is Spacing.EQUAL else OwnThresholds(levels),
        (block.time_steps,),
        firing=block.firing,
        signed=block.signed,
        presentation=block.presentation,
    )


FINETUNE_TRAIN: dict[str, Any] = {"epochs": 2, "lr": 0.005, "weight_decay": 0.0}
"""A converted network is near its end: a tenth of the usual rate."""


class FinetuneBlock(BaseModel):
    """Fine-tuning of the converted network for T ``time_steps``, evaluated beside the conversion.

    ``thresholds`` null means L. ``algorithm`` makes gradients, through ``surrogate`` (null:
    straight-through, or rectangular for learned gaps), and through resets too unless they are
    detached; ``learns`` says which parts; ``teacher`` is asked where ``train.distillation_weight``
    is above 0. ``progressive``, for tandem, lets one layer after the other spike, for up to
    ``train.epochs`` each (`progressive_tandem`). What ``train`` does not name is
    that of `FINETUNE_TRAIN` first.
    """

    model_config = STRICT
    thresholds: Count | None = 1
    time_steps: Count = 2
    presentation: Presentation = Presentation.ONCE
    firing: Firing | None = None
    signed: bool = True
    algorithm: Literal[tuple(ALGORITHMS)] = "bptt"  # type: ignore[valid-type]
    surrogate: Literal[tuple(SURROGATES)] | None = None  # type: ignore[valid-type]
    learns: tuple[Literal[PARTS], ...] = ("weights", "thresholds")  # type: ignore[valid-type]
    teacher: Literal[TEACHERS] = "qann"  # type: ignore[valid-type]
    detach_reset: bool = True
    progressive: bool = False
    train: TrainSpec = TrainSpec(**FINETUNE_TRAIN)

    @model_validator(mode="after")
    def _goes_together(self) -> FinetuneBlock:
        self.job(1)
        return self

    def job(self, levels: int, spacing: Spacing = Spacing.EQUAL) -> FinetuneJob:
        """The job of a network with so many levels."""
        setting = conversion_setting(self, levels, spacing)
        names = (self.surrogate, self.learns, self.teacher, self.detach_reset, self.progressive)
        return FinetuneJob(setting, self.algorithm, self.train, *names)


def fill_training(block: Any, seed: int) -> Any:
    """The block as it is written, with the training's own values and seed where it names none."""
    train = block.get("train", {}) if isinstance(block, dict) else None
    if not isinstance(train, dict):
        return block
    return {**block, "train": {"seed": seed, **FINETUNE_TRAIN, **train}}
