"""Accuracy of a classifier on one split."""

from __future__ import annotations

import torch
from torch import nn

from ..data import ImageSet, batches
from ..system.devices import device_of
from ..system.processes import Processes


def accuracy(
    model: nn.Module,
    dataset: ImageSet,
    batch_size: int,
    *,
    processes: Processes | None = None,
    workers: int = 0,
) -> float:
    """Share of images whose largest logit is at the label, as `count_correct` counts them.

    Units: percent, to four decimals (of a float32).
    """
    correct = count_correct(model, dataset, batch_size, processes=processes, workers=workers)
    share = torch.tensor(correct, dtype=torch.float32) / len(dataset)
    return round(100 * float(share), 4)


@torch.no_grad()
def count_correct(
    model: nn.Module,
    dataset: ImageSet,
    batch_size: int,
    *,
    processes: Processes | None = None,
    workers: int = 0,
) -> int:
    """How many images have their largest logit at the label, in evaluation mode and float32.

    Where ``processes`` are several, each takes its share of the batches and all return the count of
    the whole.
    """
    device, was_training = device_of(model), model.training
    correct = torch.zeros((), dtype=torch.int64, device=device)
    share = (0, 1) if processes is None else processes.share
    model.eval()
    for images, labels in batches(dataset, batch_size, share=share, workers=workers):
        logits = model(images.to(device, non_blocking=True))
        correct += (logits.argmax(1) == labels.to(device, non_blocking=True)).sum()
    model.train(was_training)
    return int(correct if processes is None else processes.sum(correct))
