"""Checkpoints that are whole or absent, and the record of a finished run. No pickle.

``folder/checkpoint/<step>/`` holds ``tensors.safetensors``, ``best.safetensors`` (once there is a
best) and ``numbers.json``. It is written under a temporary name and renamed, then older ones are
removed, so a process killed at any moment leaves at least the last whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, Fault, OutputError
from ..system.plain_data import as_type
from ..system.storage import (
    atomic,
    load_tensors,
    read_json,
    reading,
    save_tensors,
    write_json,
)
from .spec import History
from .state import separate

SCHEMA = "mt_convert.train/1"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: named tensors, plain numbers, and the best weights so far."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    best: dict[str, Tensor] | None


class Checkpoints:
    """The checkpoints of one run, in ``folder/checkpoint``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoint"

    def save(
        self, step: int, tensors: Mapping[str, Tensor], numbers: dict[str, Any], best: Best
    ) -> None:
        """Write the checkpoint of ``step`` and remove the ones before it.

        Raises:
            OutputError: no space or no permission; the checkpoint before stays.
        """
        target, partial = self._folder / f"{step:09d}", self._folder / _PARTIAL
        if target.exists():
            return
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_tensors(partial / "tensors.safetensors", separate(tensors))
            best.write(partial / "best.safetensors")
            write_json(partial / "numbers.json", numbers)
            os.replace(partial, target)
        except OSError as error:
            raise OutputError(
                f"cannot write the checkpoint {target}: {error}. Free some space or choose "
                "another folder; the checkpoint before it is unchanged."
            ) from error
        best.stored = target / "best.safetensors"
        for older in self._whole():
            if older != target:
                shutil.rmtree(older, ignore_errors=True)

    def latest(self) -> Saved | None:
        """The last whole checkpoint, or None.

        Raises:
            CheckpointError: it is damaged.
        """
        whole = self._whole()
        if not whole:
            return None
        best = whole[-1] / "best.safetensors"
        return Saved(
            load_tensors(whole[-1] / "tensors.safetensors"),
            read_json(whole[-1] / "numbers.json", lambda content: as_type(dict, content)),
            load_tensors(best) if best.exists() else None,
        )

    def remove(self) -> None:
        """Remove them all: the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        """Whole checkpoints, the latest last."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.name.isdigit())


class Best:
    """The best weights so far, and the file that holds them already."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = tensors
        self.stored: Path | None = None

    def keep(self, state: Mapping[str, Tensor]) -> None:
        """Take a copy of ``state`` as the new best."""
        self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self.stored = None

    def write(self, path: Path) -> None:
        """Write the weights to ``path``: a link to the file that holds them, if there is one."""
        if self.tensors is None:
            return
        if self.stored is not None and self.stored.exists():
            try:
                os.link(self.stored, path)
                return
            except OSError:
                pass  # a file system without links
        save_tensors(path, separate(self.tensors))


def check_identity(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a run that was started with other settings.

    Raises:
        CheckpointError: lists every setting that differs.
    """
    faults = [
        Fault(name, f"{before.get(name)!r} there", f"{now.get(name)!r} now")
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if faults:
        raise CheckpointError(
            f"{folder} holds a training run with other settings: give the same ones to resume it, "
            "choose another folder, or delete this one",
            faults,
        )


def write_finished(folder: Path, history: History, identity: dict[str, Any]) -> None:
    """Mark the run as finished."""
    record = {"schema": SCHEMA, "identity": identity, "history": history.to_json()}
    write_json(folder / "finished.json", record)


def read_finished(folder: Path, identity: dict[str, Any]) -> History | None:
    """The history of a run that finished in ``folder``, or None.

    Raises:
        CheckpointError: it was another run.
    """
    path = folder / "finished.json"
    if not path.exists():
        return None
    record = read_json(path)
    with reading(path):
        check_identity(as_type(dict, record["identity"]), identity, folder)
        return History.from_json(record["history"])


def write_log(folder: Path, history: History) -> None:
    """``log.jsonl``, a row per epoch; whole at any moment, and never a row twice."""
    rows = history.to_json()["rows"]
    with atomic(folder / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
