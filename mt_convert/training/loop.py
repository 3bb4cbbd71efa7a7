"""`fit`: the one training loop, on accelerate, resumable at any step to bit-equal weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from torch import nn

from ..data import Splits, borrow_random, own_splits
from ..errors import DataError, Fault, SpecError
from ..quantization.activations.quant_act import watching_levels
from ..system.devices import compile_options, device_of, keep_code_apart
from ..system.keys import key
from ..system.storage import load_tensors, reading
from .algorithm import Algorithm, Backpropagation
from .batch_norm import check_reestimation
from .checkpoint import SCHEMA, Checkpoints, check_identity, read_finished
from .session import Session
from .spec import History, TrainSpec
from .state import load_weights_


def fit(
    model: nn.Module,
    splits: Splits | Any,
    spec: TrainSpec,
    folder: str | Path,
    *,
    classes: int,
    teacher: nn.Module | None = None,
    algorithm: Algorithm | None = None,
    keep_start: bool = False,
) -> History:
    """Train ``model`` in place and leave it with its best weights, in evaluation mode.

    Runs where accelerate says: CPU or GPU, in float32 or bfloat16, in one process or several
    (``accelerate launch``, or ``torchrun`` with ACCELERATE_USE_CPU=true on CPUs), which share
    out each epoch's images and average their gradients. The order of the images, their
    augmentation, dropout and mixup depend on (seed, epoch, step) alone. Killed at any moment and
    called again with the same arguments it continues from ``folder/checkpoint`` and ends with the
    same weights and the same history, apart from seconds (bit for bit on a CPU with as many
    threads; on a GPU as far as its kernels are deterministic). For a finished folder it returns
    at once with the stored weights. A model in channels-last memory format trains in it.

    Leaves ``best.safetensors``, ``log.jsonl`` (a row per epoch) and ``finished.json``.

    ``splits`` are those of `open_data`, or a pair of data sets, DataLoaders, tensors with labels,
    or lists of batches, to learn from and to validate on (`data.own_splits`).

    ``algorithm`` makes the gradients of a batch, by default `Backpropagation`. With ``keep_start``
    the weights it starts with are validated too, and kept unless an epoch is better. A model's
    ``settings``, if it has any, belong to what a resumed run must share.

    Shapes: ``model(images [batch, channels, side, side])`` gives logits [batch, ``classes``].

    Raises:
        CheckpointError: the folder holds a run with other settings or of another network.
        SpecError: distillation without a teacher, patience without validation images, or a part
            of training that finds nothing in this network: no batch norms to estimate again, no
            quantized activations whose level could fall, no weights to freeze.
        MTConvertError: the loss became NaN or infinite.
    """
    folder, splits = Path(folder), own_splits(splits, classes)
    _check(splits, spec, keep_start)
    if spec.reestimate_bn is not None:
        check_reestimation(model, splits.train, spec.reestimate_bn)
    algorithm = Backpropagation() if algorithm is None else algorithm
    with _accelerator(spec) as accelerator, borrow_random(spec.seed):
        identity = _identity(splits, spec, classes, accelerator, teacher)
        identity |= (
            {} if algorithm == Backpropagation() else {"algorithm": key("algorithm/1", algorithm)}
        )
        identity |= {"keep_start": True} if keep_start else {}
        identity |= getattr(model, "settings", {})
        finished = read_finished(folder, identity)
        if finished is not None:
            path = folder / "best.safetensors"
            load_weights_(model, load_tensors(path), str(path))
            model.eval()
            return finished
        checkpoints = Checkpoints(folder)
        saved = checkpoints.latest()
        if saved is not None:
            with reading(folder / "checkpoint"):
                check_identity(saved.numbers["identity"], identity, folder)
        accelerator.wait_for_everyone()
        with _on_device(accelerator.device, model, teacher):
            session = Session(
                model, splits, spec, accelerator, (classes, teacher), algorithm, keep_start
            )
            session.store_in(folder, checkpoints, identity)
            if saved is not None:
                with reading(folder / "checkpoint"):
                    session.restore(saved)
            with watching_levels(model) if spec.spike_weight else nullcontext():
                return session.run()


def _check(splits: Splits, spec: TrainSpec, keep_start: bool) -> None:
    """What can be said before anything is started."""
    if not len(splits.train):
        fault = Fault("train", "no images", "lower validation_share or raise limit")
        raise DataError("there is nothing to train on", [fault])
    if spec.patience is not None and not len(splits.validation):
        fault = Fault(
            "patience", str(spec.patience), "set validation_share above 0, or no patience"
        )
        raise SpecError("early stopping needs validation images", [fault])
    if keep_start and not len(splits.validation):
        fault = Fault("validation", "no images", "set validation_share above 0")
        raise SpecError("whether training is better than its start is not known", [fault])


def _identity(
    splits: Splits,
    spec: TrainSpec,
    classes: int,
    accelerator: Accelerator,
    teacher: nn.Module | None,
) -> dict[str, Any]:
    """The settings that a resumed run must share with the one it continues."""
    return (
        spec.numbers()
        | {
            "schema": SCHEMA,
            "classes": classes,
            "train_images": len(splits.train),
            "validation_images": len(splits.validation),
            "processes": accelerator.num_processes,
            "teacher": teacher is not None and spec.distillation_weight > 0,
        }
        | ({} if splits.digest is None else {"files": splits.digest})
    )


@contextmanager
def _accelerator(spec: TrainSpec) -> Iterator[Accelerator]:
    """An accelerator of our own: accelerate's state is one per process, and fixes the precision."""
    others = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    try:
        yield Accelerator(mixed_precision=spec.mixed_precision, dynamo_plugin=_compiler(spec))
    finally:
        AcceleratorState._reset_state()
        AcceleratorState._shared_state.update(others)


def _compiler(spec: TrainSpec) -> TorchDynamoPlugin:
    """How the step is compiled, if it is."""
    if not spec.compile:
        return TorchDynamoPlugin("no")
    keep_code_apart()
    return TorchDynamoPlugin(**compile_options())


@contextmanager
def _on_device(device: torch.device, model: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """Model and teacher on the training device; afterwards back where they were, to evaluate."""
    modules = [module for module in (model, teacher) if module is not None]
    homes = [device_of(module) for module in modules]
    modes = [False, *(module.training for module in modules[1:])]
    try:
        for module in modules:
            module.to(device)
        if teacher is not None:
            teacher.eval()
        yield
    finally:
        for module, home, training in zip(modules, homes, modes, strict=True):
            module.to(home).train(training)
