"""Batch-norm statistics estimated again, on training images as training shows them."""

from __future__ import annotations

import torch
from torch import nn

from ..data import Draw, ImageSet, loader
from ..data.loading import unwrap_batch
from ..errors import DataError, Fault, SpecError
from ..quantization.batch_norm import batch_norms, estimate_batch_norm_


def check_reestimation(model: nn.Module, dataset: ImageSet, count: int) -> None:
    """Refuse to estimate what is not there, or from images that are not there.

    Raises:
        SpecError: no batch norm keeps statistics.
        DataError: fewer training images.
    """
    if not batch_norms(model):
        hint = "leave reestimate_bn out; or keep the batch norms: quantize.batch_norm: keep"
        fault = Fault("reestimate_bn", str(count), hint)
        raise SpecError(
            "this network has no batch norm whose statistics could be estimated", [fault]
        )
    if count > len(dataset):
        fault = Fault("reestimate_bn", str(count), f"there are {len(dataset)}: lower it")
        raise DataError("too few training images", [fault])


def reestimate_batch_norm_(
    model: nn.Module,
    dataset: ImageSet,
    count: int,
    batch_size: int,
    key: tuple[int, int] | None = None,
    workers: int = 0,
) -> None:
    """Replace running means and variances by the averages over the first ``count`` images.

    All else is in evaluation mode, and each whole batch counts the same (what is left over does
    not). ``key`` is that of the augmentation, None for none. Training passes its own: padded crops
    change means and variances, and the weights have learned with those. Weights that oscillate
    between two levels of their quantizer spoil the running averages of training; these are of the
    weights as they now are.

    Source:
        Overcoming Oscillations in Quantization-Aware Training (ICML 2022), section 3.2.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    size = min(batch_size, count)
    starts = range(0, count - size + 1, size)
    draws = [Draw(range(start, start + size), key) for start in starts]
    batches = (unwrap_batch(item)[0] for item in loader(dataset, draws, workers))
    shown = (images.to(device, non_blocking=True) for images in batches)
    estimate_batch_norm_(model, batch_norms(model), shown)
