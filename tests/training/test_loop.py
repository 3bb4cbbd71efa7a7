"""The training loop: it learns, repeats itself, stops early, keeps the best, averages, distils."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from paths import HELPERS, ROOT
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mt_convert.data import DataSpec, Splits, batches, derive, open_data, tensor_set
from mt_convert.errors import CheckpointError, MTConvertError, SpecError
from mt_convert.training.accuracy import accuracy
from mt_convert.training.loop import fit
from mt_convert.training.loss import TrainLoss, distillation_loss
from mt_convert.training.optimizer import epoch_draws, make_optimizer, steps_per_epoch
from mt_convert.training.spec import TrainSpec

SPEC = TrainSpec(epochs=2, batch_size=32, lr=0.1, save_every=7)


@pytest.fixture(scope="module")
def digits() -> Splits:
    spec = DataSpec("digits", image_size=8, channels=1, classes=10, augmentation="crop_flip")
    return open_data(replace(spec, augmentation="none", limit=600, test_images=200))


def network(seed: int = 0) -> nn.Sequential:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=random)
            elif parameter.shape == (10,):
                parameter.zero_()
        model[0].bias.zero_()
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def scores(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Scripted(nn.Module):
    """Right on the share of images that its script names for the epoch; counts its own epochs."""

    def __init__(self, script: list[float], steps: int) -> None:
        super().__init__()
        self.script, self.steps = script, steps
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        assert isinstance(self.count, Tensor)
        if self.training:
            self.count += 1
            return self.weight * torch.ones(len(images), 2)
        right = round(self.script[int(self.count) // self.steps - 1] * len(images))
        answers = (torch.arange(len(images)) >= right).long()
        return nn.functional.one_hot(answers, 2).float()


def scripted_splits() -> Splits:
    spec = DataSpec("mine", image_size=1, channels=1, classes=2)
    part = tensor_set(torch.zeros(20, 1, 1, 1), torch.zeros(20, dtype=torch.int64), spec)
    return Splits(part, part, part, part)


def test_it_learns_the_digits(digits: Splits, tmp_path: Path) -> None:
    model = network()
    history = fit(model, digits, replace(SPEC, epochs=4), tmp_path, classes=10)
    assert accuracy(model, digits.test, 64) > 85
    assert history.best_accuracy == accuracy(model, digits.validation, 60)
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    assert not model.training
    stored = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "checkpoint").exists()
    assert scores(tmp_path) == [vars(row) for row in history.rows]


@pytest.mark.slow
def test_two_runs_are_equal_and_another_seed_is_not(digits: Splits, tmp_path: Path) -> None:
    models = [network(), network(), network()]
    histories = []
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.rand(i)  # the global generator must not matter
        spec = replace(SPEC, seed=seed, mixup=0.2, ema_decay=0.9, clip_grad=1.0)
        histories.append(fit(model, digits, spec, tmp_path / str(i), classes=10))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])
    assert [r.train_loss for r in histories[0].rows] == [r.train_loss for r in histories[1].rows]


def test_a_step_is_the_plain_loop_of_torch(digits: Splits, tmp_path: Path) -> None:
    spec = replace(SPEC, epochs=1, scheduler="constant")
    model, plain = network(), network()
    plain[4].p = model[4].p = 0.0
    fit(model, digits, spec, tmp_path, classes=10)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decayed}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    plain.train()
    for draw in epoch_draws(len(digits.train), spec, 0, (0, 1)):
        images, labels = digits.train[draw]
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for value, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_the_global_generators_are_given_back(digits: Splits, tmp_path: Path) -> None:
    model, before = network(), torch.get_rng_state()
    fit(model, digits, replace(SPEC, epochs=1), tmp_path, classes=10)
    assert torch.equal(before, torch.get_rng_state())


def test_early_stopping_waits_its_patience_and_the_best_weights_come_back(tmp_path: Path) -> None:
    model = Scripted([0.5, 0.8, 0.7, 0.8, 0.6, 1.0], steps=1)
    spec = TrainSpec(epochs=6, batch_size=20, patience=3)
    history = fit(model, scripted_splits(), spec, tmp_path, classes=2)
    assert [row.validation_accuracy for row in history.rows] == [50, 80, 70, 80, 60]
    assert history.best_epoch == 2
    assert int(model.count) == 2  # the weights after epoch 2
    assert int(load_file(tmp_path / "best.safetensors")["count"]) == 2


def test_without_patience_every_epoch_runs(tmp_path: Path) -> None:
    model = Scripted([0.5, 0.8, 0.7, 0.75, 0.6, 1.0], steps=1)
    spec = TrainSpec(epochs=6, batch_size=20)
    history = fit(model, scripted_splits(), spec, tmp_path, classes=2)
    assert (len(history.rows), history.best_epoch) == (6, 6)


def test_a_finished_folder_is_not_trained_again(digits: Splits, tmp_path: Path) -> None:
    model, again = network(), network()
    history = fit(model, digits, SPEC, tmp_path, classes=10)
    written = (tmp_path / "best.safetensors").stat().st_mtime_ns
    assert fit(again, digits, SPEC, tmp_path, classes=10) == history
    assert same(model, again)
    assert (tmp_path / "best.safetensors").stat().st_mtime_ns == written


def test_the_distillation_loss_is_the_formula_written_out() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    temperature, weight = 3.0, 0.25
    total = 0.0
    for row, taught in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in taught]
        q = [math.exp(value / temperature) for value in row]
        total += sum(
            a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)
        )
    wanted = total / 5 * temperature**2
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(wanted, 1e-5)

    class Taught(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return teacher

    spec = TrainSpec(
        epochs=1, distillation_weight=weight, distillation_temperature=3.0, label_smoothing=0.1
    )
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = TrainLoss(spec, 4, Taught())(student, labels, torch.zeros(5, 1))
    hard = nn.functional.cross_entropy(student, labels, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(0.75 * hard) + 0.25 * wanted, 1e-5)


def test_distillation_follows_the_teacher_and_leaves_it_alone(
    digits: Splits, tmp_path: Path
) -> None:
    teacher = network(1)
    fit(teacher, digits, SPEC, tmp_path / "teacher", classes=10)
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = network()
    spec = replace(SPEC, distillation_weight=1.0, distillation_temperature=2.0)
    fit(model, digits, spec, tmp_path / "student", classes=10, teacher=teacher)
    assert teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert accuracy(model, digits.test, 64) > 70  # labels have no weight: learnt from the teacher


def test_the_average_kept_is_that_of_timm_step_by_step(digits: Splits, tmp_path: Path) -> None:
    spec = replace(SPEC, epochs=1, ema_decay=0.8, scheduler="constant")
    model, plain = network(), network()
    plain[4].p = model[4].p = 0.0
    fit(model, digits, spec, tmp_path, classes=10)
    average = ModelEmaV3(plain, decay=0.8)
    optimizer, _ = make_optimizer(plain, spec, steps_per_epoch(len(digits.train), 32, 1))
    plain.train()
    for step, draw in enumerate(epoch_draws(len(digits.train), spec, 0, (0, 1)), 1):
        images, labels = digits.train[draw]
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(plain, step=step)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert not torch.allclose(plain[6].weight, model[6].weight)


@pytest.mark.slow
def test_batch_norm_statistics_stand_still_once_frozen(digits: Splits, tmp_path: Path) -> None:
    one, frozen, free = network(), network(), network()
    spec = replace(SPEC, scheduler="constant", epochs=1)
    no_validation = Splits(
        digits.train,
        tensor_set(torch.zeros(0, 1, 8, 8), torch.zeros(0), DIGIT),
        *([digits.test] * 2),
    )
    fit(one, no_validation, spec, tmp_path / "1", classes=10)
    two = replace(spec, epochs=2)
    fit(frozen, no_validation, replace(two, freeze_bn_after=1), tmp_path / "2", classes=10)
    fit(free, no_validation, two, tmp_path / "3", classes=10)
    assert torch.equal(one[1].running_mean, frozen[1].running_mean)
    assert not torch.equal(one[1].running_mean, free[1].running_mean)
    assert not torch.equal(one[1].weight, frozen[1].weight)


DIGIT = DataSpec("mine", image_size=8, channels=1, classes=10)


def test_without_validation_images_the_last_epoch_is_kept(digits: Splits, tmp_path: Path) -> None:
    empty = tensor_set(torch.zeros(0, 1, 8, 8), torch.zeros(0), DIGIT)
    splits = Splits(digits.train, empty, digits.calibration, digits.test)
    history = fit(network(), splits, SPEC, tmp_path, classes=10)
    assert history.best_epoch == 2
    assert history.best_accuracy is None
    with pytest.raises(SpecError, match="needs validation images"):
        fit(network(), splits, replace(SPEC, patience=1), tmp_path / "p", classes=10)


def test_warm_up_rises_and_the_cosine_falls() -> None:
    spec = TrainSpec(epochs=4, lr=0.1, warmup_epochs=1)
    optimizer, scheduler = make_optimizer(network(), spec, steps=10)
    rates = []
    for step in range(1, 41):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    assert 0 < rates[0] < rates[5] < rates[9] < 0.1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_bfloat16_trains_after_a_run_in_float32(digits: Splits, tmp_path: Path) -> None:
    outside = Accelerator()
    fit(network(), digits, replace(SPEC, epochs=1), tmp_path / "32", classes=10)
    model = network()
    spec = replace(SPEC, mixed_precision="bf16")
    fit(model, digits, spec, tmp_path / "16", classes=10)
    assert accuracy(model, digits.test, 64) > 70
    assert model[6].weight.dtype == torch.float32
    assert "forward" not in vars(model)
    assert outside.mixed_precision == "no"
    assert outside.is_main_process


def test_processes_together_read_what_one_would_with_a_larger_batch() -> None:
    small, large = TrainSpec(epochs=1, batch_size=4), TrainSpec(epochs=1, batch_size=8)
    pair = [epoch_draws(50, small, 3, (i, 2)) for i in range(2)]
    whole = epoch_draws(50, large, 3, (0, 1))
    assert [list(a.indices) + list(b.indices) for a, b in zip(*pair, strict=True)] == [
        list(draw.indices) for draw in whole
    ]
    assert derive(0, 3, "order") != derive(0, 2, "order")


# Messages


def test_values_outside_are_listed_all_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        TrainSpec(epochs=0, lr=-1, optimizer="sdg", scheduler="cos", mixup=0.1, batch_size=3)
    text = str(caught.value)
    assert "5 values" in text
    for name in ("epochs", "lr", "optimizer", "scheduler", "batch_size"):
        assert name in text


def test_a_loss_that_is_not_finite_stops_with_advice(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(MTConvertError, match=r"(?s)NaN or infinite.*epoch 1.*lower lr"):
        fit(network(), digits, replace(SPEC, lr=1e30), tmp_path, classes=10)
    assert not (tmp_path / "best.safetensors").exists()


def test_distillation_without_a_teacher_is_refused(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no teacher was given"):
        fit(network(), digits, replace(SPEC, distillation_weight=0.5), tmp_path, classes=10)


def test_a_folder_of_another_run_is_refused(digits: Splits, tmp_path: Path) -> None:
    fit(network(), digits, replace(SPEC, epochs=1), tmp_path, classes=10)
    with pytest.raises(CheckpointError, match=r"(?s)other settings.*lr  0\.1 there  0\.2 now"):
        fit(network(), digits, replace(SPEC, epochs=1, lr=0.2), tmp_path, classes=10)
    with pytest.raises(CheckpointError, match="is of another network"):
        fit(nn.Linear(1, 1), digits, replace(SPEC, epochs=1), tmp_path, classes=10)
    fit(network(), digits, replace(SPEC, epochs=1, save_every=3), tmp_path, classes=10)


LAUNCHED = """
import sys, torch
sys.path[:0] = {tests!r}
from test_loop import SPEC, network
from dataclasses import replace
from mt_convert.data import DataSpec, open_data
from mt_convert.training.loop import fit
spec = DataSpec("digits", image_size=8, channels=1, classes=10, limit=600)
model = network()
model[1] = torch.nn.Identity()
model[4].p = 0.0
fit(model, open_data(spec), replace(SPEC, epochs=1, batch_size=16), {folder!r}, classes=10)
"""


@pytest.mark.long
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        LAUNCHED.format(
            tests=[str(HELPERS), str(Path(__file__).parent)], folder=str(tmp_path / "two")
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    spec = DataSpec("digits", image_size=8, channels=1, classes=10, limit=600)
    model = network()
    model[1] = nn.Identity()
    model[4].p = 0.0
    one = tmp_path / "one"
    history = fit(model, open_data(spec), replace(SPEC, epochs=1), one, classes=10)
    pair = load_file(tmp_path / "two" / "best.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(pair[name], value, rtol=1e-4, atol=1e-5)
    row = scores(tmp_path / "two")[0]
    assert row["train_loss"] == pytest.approx(history.rows[0].train_loss, 1e-4)
    assert row["validation_accuracy"] == history.rows[0].validation_accuracy


def test_accuracy_counts_right_answers(digits: Splits) -> None:
    model = network()
    right = sum(
        int((model.eval()(images).argmax(1) == labels).sum())
        for images, labels in batches(digits.test, 33)
    )
    model.train()
    assert accuracy(model, digits.test, 50) == pytest.approx(100 * right / 200, abs=1e-4)
    assert model.training


def test_a_share_of_the_loss_is_the_squared_distance_to_the_label() -> None:
    logits, labels = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    loss = TrainLoss(TrainSpec(epochs=1, mse_weight=0.25), classes=3)
    distances = [(2 - 1) ** 2, 1, 0.25, 0, 1, (0 - 1) ** 2]
    due = 0.75 * float(nn.functional.cross_entropy(logits, labels)) + 0.25 * sum(distances) / 6
    assert float(loss(logits, labels, logits)) == pytest.approx(due)
    plain = TrainLoss(TrainSpec(epochs=1), classes=3)
    assert float(plain(logits, labels, logits)) != pytest.approx(due)
