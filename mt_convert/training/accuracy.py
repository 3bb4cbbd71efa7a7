"""Accuracy of a classifier on one split."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from ..data import ImageSet, batches


def accuracy(
    model: nn.Module,
    dataset: ImageSet,
    batch_size: int,
    *,
    accelerator: Accelerator | None = None,
    workers: int = 0,
) -> float:
    """Share of images whose largest logit is at the label, in evaluation mode and float32.

    With an ``accelerator`` of several processes each takes its share of the batches and all
    return the accuracy of the whole.

    Units: percent, to four decimals (the metric counts in float32).
    """
    from torchmetrics.classification import MulticlassAccuracy  # takes seconds to import

    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    # not validated: the head may have more rows than the data have classes
    metric = MulticlassAccuracy(dataset.classes, average="micro", validate_args=False).to(device)
    share = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for images, labels in batches(dataset, batch_size, share=share, workers=workers):
            logits = model(images.to(device, non_blocking=True))
            metric.update(logits.argmax(1), labels.to(device, non_blocking=True))
    model.train(was_training)
    return round(100 * float(metric.compute()), 4)
