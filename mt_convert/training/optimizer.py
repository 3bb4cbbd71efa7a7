"""What a run is made of: optimizer and schedule by timm, the order of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import Draw, ImageSet
from ..data.randomness import generator
from ..errors import DataError, Fault, SpecError
from ..quantization.brevitas_layers import step_sizes
from ..system.devices import cores
from .spec import StepGroup, TrainSpec


def make_optimizer(
    model: nn.Module, spec: TrainSpec, steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """timm's optimizer (no decay for biases and norms) and its schedule per update.

    Warm-up rises linearly from the rate of one step to ``spec.lr``. Quantizers' steps are groups of
    their own, the last, by ``spec.steps``: timm would decay those of weights, which have as many
    dimensions as the weights.
    """
    optimizer = create_optimizer_v2(
        model,
        opt=spec.optimizer,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
    )
    _separate_steps_(optimizer, step_sizes(model), spec)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=spec.scheduler,
        num_epochs=spec.epochs,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=spec.lr / max(1, spec.warmup_epochs * steps),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler


def _separate_steps_(
    optimizer: torch.optim.Optimizer, sizes: Mapping[nn.Parameter, float], spec: TrainSpec
) -> None:
    """Move these parameters into groups whose rate timm's schedules multiply by ``lr_scale``."""
    learned = {step: size for step, size in sizes.items() if step.requires_grad}
    if not learned:
        if spec.steps != StepGroup():
            fault = Fault("steps", str(spec.steps), "leave steps out where nothing is quantized")
            raise SpecError("this network has no learned steps", [fault])
        return
    for group in optimizer.param_groups:
        group["params"] = [item for item in group["params"] if item not in learned]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    shares: dict[float, list[nn.Parameter]] = {}
    for step, size in learned.items():
        share = _power_of_two(size) if spec.steps.relative else 1.0
        shares.setdefault(share, []).append(step)
    for share, steps in sorted(shares.items()):
        settings = {"lr": spec.lr, "initial_lr": spec.lr, "weight_decay": spec.steps.weight_decay}
        rate = {"lr_scale": spec.steps.lr_scale * share}
        optimizer.add_param_group({"params": steps, **settings, **rate})


def _power_of_two(size: float) -> float:
    """The power of two nearest to a size, so that few groups are made; 1 for none."""
    return 2.0 ** round(math.log2(size)) if 0 < size < math.inf else 1.0


def steps_per_epoch(images: int, batch_size: int, processes: int) -> int:
    """Whole batches in an epoch; what is left over is drawn in another order the next time.

    Fewer images than one batch of all processes make one smaller batch.

    Example:
        >>> steps_per_epoch(100, 32, 1), steps_per_epoch(10, 32, 2)
        (3, 1)
    """
    if images < processes:
        hint = "run fewer processes, or raise limit"
        raise DataError("too few images", [Fault("train", f"{images} images", hint)])
    return max(1, images // (batch_size * processes))


def epoch_draws(images: int, spec: TrainSpec, epoch: int, share: tuple[int, int]) -> list[Draw]:
    """What the i-th of n processes, ``share`` = (i, n), reads in one epoch, a batch per step.

    A function of (seed, epoch) alone: the n processes together read what one process would read
    with n times the batch size.

    Example:
        >>> spec = TrainSpec(epochs=1, batch_size=2)
        >>> [len(draw.indices) for draw in epoch_draws(5, spec, 0, (0, 1))]
        [2, 2]
    """
    own, count = share
    steps = steps_per_epoch(images, spec.batch_size, count)
    batch = min(spec.batch_size, images // count)
    order = torch.randperm(images, generator=generator(spec.seed, epoch, "order"))
    order = order[: steps * count * batch].reshape(steps, count, batch)
    return [Draw(row.tolist(), (spec.seed, epoch)) for row in order[:, own]]


def reading_workers(spec: TrainSpec, dataset: ImageSet) -> int:
    """Processes that read images, see `TrainSpec`."""
    if spec.workers is not None:
        return spec.workers
    return 0 if dataset.in_memory else min(8, len(cores()))


def train_mode(network: nn.Module, *, frozen_norm: bool) -> None:
    """Training mode, with the batch norms in evaluation mode where they are frozen."""
    network.train()
    if frozen_norm:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
