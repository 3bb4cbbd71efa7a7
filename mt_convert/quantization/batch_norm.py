"""Batch-norm statistics estimated from given images, in place of the running averages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that keep statistics.

    Example:
        >>> [norm.num_features for norm in batch_norms(nn.Sequential(nn.BatchNorm1d(3)))]
        [3]
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def estimate_batch_norm_(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Set the statistics of ``norms`` to the averages over batches, each counting the same.

    All else is in evaluation mode; modes, momenta and counters are as they were afterwards.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> estimate_batch_norm_(norm, [norm], [torch.tensor([[1.0], [3.0]])])
        >>> float(norm.running_mean), float(norm.running_var)
        (2.0, 2.0)
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=_device(norm))
        norm.momentum = None  # of all batches alike
        norm.train()
    for images in batches:
        model(images)
    for norm, (momentum, seen) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, seen
    for module, training in was_training.items():
        module.training = training


def _device(norm: _BatchNorm) -> torch.device:
    """Where a batch norm's statistics are."""
    assert norm.running_mean is not None
    return norm.running_mean.device
