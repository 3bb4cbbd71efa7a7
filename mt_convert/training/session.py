"""A training run in progress: its parts, one epoch, one step, and what a checkpoint needs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..data import Splits, derive, loader
from ..data.loading import unwrap_batch
from ..data.randomness import seed_all
from ..errors import Fault, MTConvertError
from ..quantization.activations.quant_act import take_mean_level
from ..quantization.quantize import QuantizedModel
from ..system.processes import Processes
from ..system.progress import progress
from ..system.storage import save_tensors
from .accuracy import accuracy
from .algorithm import Algorithm, Lesson
from .batch_norm import reestimate_batch_norm_
from .checkpoint import Best, Checkpoints, Saved, write_finished, write_log
from .loss import TrainLoss
from .optimizer import epoch_draws, make_optimizer, reading_workers, steps_per_epoch, train_mode
from .oscillation import Oscillation
from .spec import EpochRow, History, TrainSpec
from .state import load_weights_, pack, separate, unpack

_LOOK_AT_LOSS = 50


class _Shell(nn.Module):
    """What accelerate wraps, so that it changes nothing in the model itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


class Session:
    """One run of `fit`: state in ``self``, started at epoch 0 or restored from a checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        spec: TrainSpec,
        accelerator: Accelerator,
        lesson: tuple[int, nn.Module | None],
        algorithm: Algorithm,
        keep_start: bool = False,
    ) -> None:
        self.model, self.splits, self.spec, self.accelerator = model, splits, spec, accelerator
        self.loss, self.algorithm = TrainLoss(spec, *lesson), algorithm
        self.processes = Processes()
        self.share = (accelerator.process_index, accelerator.num_processes)
        self.steps = steps_per_epoch(len(splits.train), spec.batch_size, self.share[1])
        self.workers = reading_workers(spec, splits.train)
        freezing = spec.freeze_oscillating
        self.oscillation = None if freezing is None else Oscillation(model, freezing)
        self.ema = ModelEmaV3(model, decay=spec.ema_decay) if spec.ema_decay else None
        self.optimizer, self.scheduler = make_optimizer(model, spec, self.steps)
        self.network = accelerator.prepare_model(_Shell(model))
        self.stepper = accelerator.prepare_optimizer(self.optimizer)
        self.epoch, self.step, self.loss_sum, self.seconds = 0, 0, 0.0, 0.0
        self.last_lr = spec.lr
        self.rows: list[EpochRow] = []
        self.best, self.best_epoch = Best(), 0
        self.keep_start = keep_start
        self.start_accuracy: float | None = None
        self.reading: dict[str, Any] | None = None

    def store_in(self, folder: Path, checkpoints: Checkpoints, identity: dict[str, Any]) -> None:
        """Where checkpoints and results go."""
        self.folder, self.checkpoints, self.identity = folder, checkpoints, identity

    def run(self) -> History:
        """Train to the end and leave the model with its best weights."""
        if self.keep_start and self.start_accuracy is None:
            self.start_accuracy = self._validate(self.model)
            self.best.keep(self.model.state_dict())
        while self.epoch < self.spec.epochs and not self._out_of_patience():
            started = time.monotonic()
            self._train_epoch(started)
            self._close_epoch(started)
        history = self._history()
        assert self.best.tensors is not None
        load_weights_(self.model, self.best.tensors, "the best checkpoint")
        if self.accelerator.is_main_process:
            write_log(self.folder, history)
            save_tensors(self.folder / "best.safetensors", separate(self.best.tensors))
            write_finished(self.folder, history, self.identity)
            self.checkpoints.remove()
        self.accelerator.wait_for_everyone()
        return history

    def _train_epoch(self, started: float) -> None:
        """The steps of the epoch that are not done yet."""
        frozen_after = self.spec.freeze_bn_after
        frozen = frozen_after is not None and self.epoch >= frozen_after
        train_mode(self.network, frozen_norm=frozen)
        total = torch.tensor(self.loss_sum, dtype=torch.float64, device=self.accelerator.device)
        label = f"epoch {self.epoch + 1}/{self.spec.epochs}"
        draws = epoch_draws(len(self.splits.train), self.spec, self.epoch, self.share)
        reader = loader(self.splits.train, draws, self.workers)
        if self.reading is not None:
            reader.load_state_dict(self.reading)
        remaining = self.steps - self.step
        for item in self._with_progress(iter(reader), label, remaining):
            images, labels = unwrap_batch(item)
            total += self._update(images, labels)
            self.step += 1
            due = self.step % self.spec.save_every == 0 and self.step < self.steps
            if due or self.step % _LOOK_AT_LOSS == 0 or self.step == self.steps:
                self.loss_sum = self._finite(float(total))
            if due:
                self.reading = reader.state_dict()
                self._save(self.seconds + time.monotonic() - started)
        self.reading = None

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer; returns the loss."""
        device = self.accelerator.device
        seed_all(derive(self.spec.seed, self.epoch, self.step, self.share[0]))
        images = images.to(device, non_blocking=True)
        images, targets = self.loss.mix(images, labels.to(device, non_blocking=True))
        if self.spec.compile and isinstance(self.model, QuantizedModel):
            images = self.model.check(images)  # it does not look at them where it is compiled

        def loss_of(logits: Tensor) -> Tensor:
            with self.accelerator.autocast():
                loss = self.loss(logits, targets, images)
            if self.spec.spike_weight:
                loss = loss + self.spec.spike_weight * take_mean_level(self.model)
            return loss

        loss = self.algorithm.learn(
            Lesson(
                network=self.network,
                images=images,
                loss=loss_of,
                backward=self.accelerator.backward,
                update=self._step_optimizer,
                time_steps=getattr(self.model, "time_steps", 1),
            )
        )
        self._step_optimizer()
        done = self.epoch * self.steps + self.step + 1
        if self.oscillation is not None:
            self.oscillation.update_(done / (self.spec.epochs * self.steps))
        self.last_lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step_update(done)
        if self.ema is not None:
            self._average(self.ema, done)
        return loss

    def _step_optimizer(self) -> None:
        """One update from the gradients that are there."""
        if self.spec.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.clip_grad)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)

    def _average(self, ema: ModelEmaV3, done: int) -> None:
        """timm pairs tensors by position: refuse a model that gains or loses some on the way."""
        if ema.module.state_dict().keys() != self.model.state_dict().keys():
            raise MTConvertError(
                "the model's state_dict changed while training, so it cannot be averaged: "
                "calibrate its quantizers first, or train without ema_decay"
            )
        ema.update(self.model, step=done)

    def _close_epoch(self, started: float) -> None:
        """Validate, note the row, keep the weights if they are the best, save."""
        judged = self.model if self.ema is None else self.ema.module
        if self.spec.reestimate_bn is not None:
            count, size = self.spec.reestimate_bn, self.spec.batch_size
            key = (self.spec.seed, self.epoch)
            reestimate_batch_norm_(judged, self.splits.train, count, size, key, self.workers)
        if self.share[1] > 1:
            broadcast([buffer for buffer in judged.buffers() if buffer.numel()])
        percent = self._validate(judged)
        best = self._history().best_accuracy
        seconds = self.seconds + time.monotonic() - started
        mean = sum(self._loss_sums()) / (self.steps * self.share[1])
        counts = (None, None) if self.oscillation is None else self.oscillation.counts()
        row = EpochRow(self.epoch + 1, mean, percent, self.last_lr, round(seconds, 3), *counts)
        self.rows.append(row)
        if percent is None or best is None or percent > best:
            self.best.keep(judged.state_dict())
            self.best_epoch = self.epoch + 1
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        self._save(0.0)
        if self.accelerator.is_main_process:
            write_log(self.folder, self._history())

    def _validate(self, model: nn.Module) -> float | None:
        """Accuracy on the validation images, if there are any."""
        if not len(self.splits.validation):
            return None
        return accuracy(
            model,
            self.splits.validation,
            self.spec.batch_size,
            processes=self.processes,
            workers=self.workers,
        )

    def _history(self) -> History:
        return History(tuple(self.rows), self.best_epoch, self.start_accuracy)

    def _save(self, seconds: float) -> None:
        """Write a checkpoint of exactly this moment."""
        sums = self._loss_sums()
        if not self.accelerator.is_main_process:
            return
        tensors, optimizer = pack(self._modules(), self.optimizer)
        numbers = {
            "identity": self.identity,
            "epoch": self.epoch,
            "step": self.step,
            "loss_sums": sums,
            "seconds": seconds,
            "history": self._history().to_json(),
            "optimizer": optimizer,
            "reading": self.reading,
            "workers": self.workers,
        }
        done = self.epoch * self.steps + self.step
        self.checkpoints.save(done, tensors, numbers, self.best)

    def restore(self, saved: Saved) -> None:
        """Go back to the moment of a checkpoint."""
        numbers = saved.numbers
        unpack(self._modules(), self.optimizer, saved.tensors, numbers["optimizer"])
        history = History.from_json(numbers["history"])
        self.epoch, self.step, self.seconds = (
            numbers["epoch"],
            numbers["step"],
            numbers["seconds"],
        )
        self.loss_sum = numbers["loss_sums"][self.share[0]]
        self.rows, self.best_epoch = list(history.rows), history.best_epoch
        self.start_accuracy = history.start_accuracy
        self.best = Best(saved.best)
        self.reading, self.workers = numbers["reading"], numbers["workers"]

    def _loss_sums(self) -> list[float]:
        """The loss sum of every process."""
        own = torch.tensor([self.loss_sum], dtype=torch.float64, device=self.accelerator.device)
        sums: list[float] = self.accelerator.gather(own).tolist()
        return sums

    def _finite(self, loss_sum: float) -> float:
        """The sum, unless it is NaN or infinite."""
        if math.isfinite(loss_sum):
            return loss_sum
        where = f"epoch {self.epoch + 1}, by step {self.step}"
        hint = "lower lr, set clip_grad: 1.0, add warmup_epochs, or take mixed_precision: no"
        fault = Fault(where, f"lr {self.spec.lr}", hint)
        raise MTConvertError("the training loss became NaN or infinite", [fault])

    def _out_of_patience(self) -> bool:
        patience = self.spec.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _with_progress(self, items: Iterator[Any], label: str, total: int) -> Iterator[Any]:
        """The items, with progress where this is the process that shows it."""
        return progress(items, label, total) if self.accelerator.is_main_process else items

    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint stores the weights of."""
        others = {
            "ema": None if self.ema is None else self.ema.module,
            "oscillation": self.oscillation,
        }
        return {"model": self.model, **{name: part for name, part in others.items() if part}}
