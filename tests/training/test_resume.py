"""Killed at any moment and started again: the same weights and the same history, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import HELPERS, ROOT
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch import nn

from mt_convert.data import DataSpec, Splits, open_data
from mt_convert.errors import CheckpointError, OutputError, SpecError
from mt_convert.training.checkpoint import Best, Checkpoints
from mt_convert.training.loop import fit
from mt_convert.training.session import Session
from mt_convert.training.spec import TrainSpec
from mt_convert.training.state import flatten_optimizer, restore_optimizer

DATA = DataSpec(
    "digits", image_size=8, channels=1, classes=10, limit=500, augmentation="crop_flip",
    calibration_images=16,
)  # fmt: skip
SPEC = TrainSpec(
    epochs=4, batch_size=16, lr=0.05, save_every=3, ema_decay=0.9, mixup=0.2, clip_grad=5.0,
    freeze_bn_after=3, warmup_epochs=1,
)  # fmt: skip


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def run(folder: Path) -> None:
    """What the killed process does."""
    fit(network(), open_data(DATA), SPEC, folder, classes=10)


def start(folder: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(HELPERS)!r}, {str(ROOT)!r}]\n"
    code += "from pathlib import Path; import test_resume as t\n"
    code += f"t.run(Path({str(folder)!r}))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    )


def names(folder: Path) -> list[str]:
    """The checkpoints in a folder; none while it does not exist."""
    inside = folder / "checkpoint"
    return sorted(p.name for p in inside.iterdir() if p.name.isdigit()) if inside.is_dir() else []


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another process come out bit-equal only with as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def history(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_equal_runs(first: Path, second: Path) -> None:
    a, b = load_file(first / "best.safetensors"), load_file(second / "best.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert history(first) == history(second)
    for folder in (first, second):
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["best.safetensors", "finished.json", "log.jsonl"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


@pytest.mark.long
def test_a_process_killed_twice_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder, moments = tmp_path / "killed", random.Random()
    killed_at = []
    for _ in range(2):
        before = names(folder)
        process = start(folder)
        while names(folder) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_at.append(names(folder)[-1])
    assert killed_at[0] < killed_at[1]
    assert not (folder / "finished.json").exists()
    assert start(folder).wait(timeout=100) == 0
    assert_equal_runs(undisturbed, folder)


class Killed(BaseException):
    """Stands in for SIGKILL at an exact place: nothing of ours catches it."""


def stop_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int, *, after: bool = False
) -> None:
    """Make the n-th call of a function the last thing the process does."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        result = original(*args, **kwargs)
        if calls == nth:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "nth", "after"),
    [
        ("mt_convert.training.session.Session._update", 40, False),
        ("mt_convert.training.checkpoint.save_tensors", 5, False),
        ("mt_convert.training.checkpoint.write_json", 9, False),
        ("mt_convert.training.checkpoint.os.replace", 11, False),
        ("mt_convert.training.checkpoint.os.replace", 11, True),
        ("mt_convert.training.session.write_log", 2, False),
        ("mt_convert.training.session.save_tensors", 1, True),
        ("mt_convert.training.session.write_finished", 1, True),
    ],
)
def test_a_run_stopped_at_any_place_of_a_save_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path, place: str, nth: int, after: bool
) -> None:
    parts = place.split(".")
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[".".join(parts[:3])]
        owner = getattr(module, parts[3]) if len(parts) == 5 else module
        stop_at(patch, owner, parts[-1], nth, after=after)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    left = [path for path in (tmp_path / "run").iterdir() if path.name == "checkpoint"]
    for path in left:  # stopped between the last mark and the clean-up
        assert place.endswith("write_finished")
        assert path.is_dir()
    a, b = (load_file(f / "best.safetensors") for f in (undisturbed, tmp_path / "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert history(undisturbed) == history(tmp_path / "run")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Session, "_update", 40)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_only_the_latest_checkpoint_is_kept_and_nothing_is_pickled(interrupted: Path) -> None:
    assert names(interrupted) == ["000000037"]
    files = sorted(p.name for p in (interrupted / "checkpoint" / "000000037").iterdir())
    assert files == ["best.safetensors", "numbers.json", "tensors.safetensors"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(interrupted: Path) -> None:
    victim = interrupted / "checkpoint" / "000000037" / "tensors.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors is not a whole safetensors"):
        run(interrupted)


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(interrupted: Path, digits: Splits) -> None:
    other = network()
    other[5] = nn.Linear(512, 11)
    with pytest.raises(
        CheckpointError, match=r"of another network[\s\S]*\[10, 512\] in the file  \[11, 512\] here"
    ):
        fit(other, digits, SPEC, interrupted, classes=10)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return open_data(DATA)


def test_a_folder_that_cannot_be_written_is_an_output_error(digits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        fit(network(), digits, SPEC, tmp_path / "file", classes=10)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": torch.ones(2)}, {"n": 1}, Best())

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mt_convert.training.checkpoint.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoints.save(2, {"a": torch.zeros(2)}, {"n": 2}, Best())
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.numbers == {"n": 1}
    assert saved.best is None


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "adan", "rmsprop", "nadamw"])
def test_an_optimizer_comes_back_from_tensors_and_numbers(name: str) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
        for _ in range(times):
            model(torch.ones(1, 1, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    first, second = network().eval(), network().eval()
    one = create_optimizer_v2(first, opt=name, lr=0.01, weight_decay=0.01)
    two = create_optimizer_v2(second, opt=name, lr=0.01, weight_decay=0.01)
    step(first, one, 3)
    second.load_state_dict(first.state_dict())
    tensors, numbers = flatten_optimizer(one)
    numbers = json.loads(json.dumps(numbers))
    restore_optimizer(two, {key: value.clone() for key, value in tensors.items()}, numbers)
    step(first, one, 2)
    step(second, two, 2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_that_cannot_be_stored_says_so() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[next(model.parameters())]["factors"] = [torch.ones(1)]
    with pytest.raises(SpecError, match="keeps 'factors' as a list"):
        flatten_optimizer(optimizer)


class Remade(nn.Linear):
    """Answers load_state_dict with a new parameter, as Brevitas' learned scales do."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.weight = nn.Parameter(state_dict[prefix + "weight"].clone())
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.mark.slow
def test_parameters_stay_the_ones_the_optimizer_steps(tmp_path: Path, digits: Splits) -> None:
    models = []
    for _ in range(3):
        model = network()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model[5] = Remade(512, 10)
        models.append(model)
    whole, cut, resumed = models
    spec = replace(SPEC, epochs=2, ema_decay=None)
    fit(whole, digits, spec, tmp_path / "whole", classes=10)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Session, "_update", 30)
        with pytest.raises(Killed):
            fit(cut, digits, spec, tmp_path / "cut", classes=10)
    before = list(resumed.parameters())
    fit(resumed, digits, spec, tmp_path / "cut", classes=10)
    assert all(a is b for a, b in zip(before, resumed.parameters(), strict=True))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_shared_tensors_and_several_workers_survive(tmp_path: Path, digits: Splits) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = network()
            self.again = self.first[5]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.first(images)
            return out

    spec = replace(SPEC, epochs=1, workers=2, mixup=0.0)
    whole, cut = Tied(), Tied()
    fit(whole, digits, spec, tmp_path / "whole", classes=10)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Session, "_update", 11)
        with pytest.raises(Killed):
            fit(cut, digits, spec, tmp_path / "cut", classes=10)
    fresh = Tied()
    fit(fresh, digits, replace(spec, workers=0), tmp_path / "cut", classes=10)
    for a, b in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
