"""What training minimises: cross-entropy, smoothed or mixed, and distillation."""

from __future__ import annotations

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SpecError
from .spec import TrainSpec


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``temperature² · KL(softmax(teacher / temperature) ‖ softmax(student / temperature))``.

    Shapes: logits [batch, classes]; the mean over the batch.
    Source: Hinton, Vinyals, Dean 2015, section 2.

    Example:
        >>> same = torch.tensor([[1.0, 2.0]])
        >>> float(distillation_loss(same, same, temperature=2.0))
        0.0
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


class TrainLoss:
    """``(1 − w) · label loss + w · distillation_loss``, w = ``spec.distillation_weight``.

    The label loss is ``(1 − c) · cross-entropy + c · mean (logits − target)²``, c =
    ``spec.mse_weight``, the target 1 for the label's class and 0 for the others (OTTT, arXiv
    2210.04195, whose c is 0.05 on CIFAR).

    Cross-entropy is against labels smoothed by ``spec.label_smoothing``, or against mixed targets
    where ``spec.mixup`` is on; the teacher then sees the mixed images too. The teacher is asked in
    evaluation mode and without gradient, and not at all where w is 0.

    Raises:
        SpecError: w is above 0 and there is no teacher.
    """

    def __init__(self, spec: TrainSpec, classes: int, teacher: nn.Module | None = None) -> None:
        if spec.distillation_weight and teacher is None:
            raise SpecError(
                f"distillation_weight is {spec.distillation_weight} and no teacher was given: "
                "pass teacher=, or set distillation_weight to 0"
            )
        self._weight = spec.distillation_weight
        self._temperature = spec.distillation_temperature
        self._teacher = teacher if spec.distillation_weight else None
        self._smoothing, self._mse = spec.label_smoothing, spec.mse_weight
        self._mixup = None
        if spec.mixup:
            self._mixup = Mixup(
                mixup_alpha=spec.mixup, label_smoothing=spec.label_smoothing, num_classes=classes
            )

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images to show to the network, and targets for `__call__`; mixup draws from NumPy."""
        if self._mixup is None:
            return images, labels
        mixed: tuple[Tensor, Tensor] = self._mixup(images, labels)
        return mixed

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The loss of one batch, a scalar."""
        if self._mixup is not None:
            hard: Tensor = SoftTargetCrossEntropy()(logits, targets)
        else:
            hard = F.cross_entropy(logits, targets, label_smoothing=self._smoothing)
        if self._mse:
            due = targets if targets.dim() > 1 else F.one_hot(targets, logits.shape[1])
            hard = (1 - self._mse) * hard + self._mse * F.mse_loss(logits, due.to(logits))
        if self._teacher is None:
            return hard
        with torch.no_grad():
            taught = self._teacher(images).float()
        soft = distillation_loss(logits, taught, self._temperature)
        return (1 - self._weight) * hard + self._weight * soft
