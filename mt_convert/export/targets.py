"""Targets: write a network for one, run it there, keep it if it is exact."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, Fault, OutputError, SpecError, UnsupportedLayerError
from ..spiking.model import SpikingModel
from ..spiking.presentation import is_step_count
from ..system.storage import read_json, write_json
from . import c_program, c_source, table_folder
from .forms.integer_form import integer_form
from .forms.nodes import IntegerForm
from .onnx_formats import onnx_graph, onnx_integers, onnx_runtimes, qonnx_thresholds
from .programs import torch_program
from .spiking_graphs import nir_graph, nir_runtime, spikingjelly_folder
from .verdict import Runtime, Verdict, images_at_once, images_to_compare, verify

VERDICT = "verdict.json"


@dataclass(frozen=True)
class Target:
    """How to write a network and how to run what was written.

    ``file``: its name in a folder; None: the folder itself. ``missing``: what this machine lacks.
    ``refused``: what of a network it has no exact form for. ``unrolls``: it has a form for neurons
    that fire in several steps.
    """

    name: str
    write: Callable[[IntegerForm, Path], None]
    open: Callable[[Path, IntegerForm], Runtime]
    sizes: Callable[[Path], dict[str, int]]
    file: str | None
    missing: Callable[[], str | None] = lambda: None
    refused: Callable[[IntegerForm], list[Fault]] = lambda form: []
    unrolls: bool = False
    real: bool = False
    approximates: bool = False


TARGETS = {
    "tables": Target(
        "tables",
        table_folder.write_tables,
        lambda path, form: table_folder.TableReader(path),
        lambda path: {"bytes": table_folder.bytes_of(path)},
        None,
    ),
    "c": Target(
        "c",
        c_source.write_c,
        c_program.CProgram,
        c_program.sizes,
        "network.c",
        missing=c_program.missing,
        refused=c_source.refused,
    ),
    "onnx": Target(
        "onnx",
        onnx_integers.write_onnx,
        onnx_runtimes.open_onnx,
        onnx_runtimes.sizes,
        "network.onnx",
        missing=lambda: onnx_graph.missing("onnx", "onnxruntime"),
        refused=onnx_integers.onnx_refused,
        unrolls=True,
        approximates=True,
    ),
    "qonnx": Target(
        "qonnx",
        qonnx_thresholds.write_qonnx,
        onnx_runtimes.open_qonnx,
        onnx_runtimes.sizes,
        "network.qonnx.onnx",
        missing=lambda: onnx_graph.missing("onnx", "onnxruntime", "qonnx"),
        refused=qonnx_thresholds.qonnx_refused,
    ),
    "torch": Target(
        "torch",
        torch_program.write_torch,
        torch_program.TorchProgram,
        onnx_runtimes.sizes,
        "network.pt2",
        refused=torch_program.torch_refused,
        unrolls=True,
        real=True,
    ),
    "nir": Target(
        "nir",
        nir_graph.write_nir,
        nir_runtime.NirGraph,
        onnx_runtimes.sizes,
        "network.nir",
        missing=lambda: onnx_graph.missing("nir"),
        refused=nir_graph.nir_refused,
    ),
    "spikingjelly": Target(
        "spikingjelly",
        spikingjelly_folder.write_spikingjelly,
        spikingjelly_folder.SpikingJellyNetwork,
        lambda path: {"bytes": table_folder.bytes_of(path)},
        None,
        missing=lambda: onnx_graph.missing("spikingjelly", extra="peers"),
        refused=spikingjelly_folder.spikingjelly_refused,
    ),
}


def export(
    snn: SpikingModel,
    target: str,
    path: str | Path,
    *,
    images: Any = None,
    time_steps: int | None = None,
    approximate: bool = False,
    again: bool = False,
) -> Verdict:
    """Write a network for a target and check it; ``again``: check what was written before, of as
    many steps as its verdict says unless they are given. ``approximate`` takes operators on real
    numbers too where the target's own have other last bits, and measures what that loses."""
    check_target(target)
    info, path = TARGETS[target], Path(path)
    if (lacking := info.missing()) is not None:
        raise SpecError(f"{target} cannot be written here: {lacking}")
    if again and time_steps is None:
        time_steps = steps_written(target, path)
    form = form_for(snn, target, time_steps, approximate=approximate)
    shown = images_to_compare(form.image_shape, images)
    if again:
        return _check_again(info, form, path, shown, approximate)
    with _in_place(info, path) as temporary:
        info.write(form, temporary)
        headline = f"what was written as {target} is not the network: nothing was kept"
        try:
            verdict = _verdict(info, form, temporary, shown, approximate)
        except CheckpointError as error:
            raise UnsupportedLayerError(headline, [Fault(target, "stops", str(error))]) from error
        if verdict.faults():
            raise UnsupportedLayerError(headline, verdict.faults())
        write_json(_verdict_file(info, temporary), verdict.json())
    return verdict


def check_target(target: str) -> None:
    """Raise `SpecError` unless there is such a target."""
    if target not in TARGETS:
        hint = f"allowed are {', '.join(TARGETS)}, hub, and qdq, which is not exact"
        raise SpecError("unknown target", [Fault("target", str(target), hint)])


def form_for(
    snn: SpikingModel,
    target: str,
    time_steps: int | None = None,
    *,
    approximate: bool = False,
) -> IntegerForm:
    """What would be written for a target.

    Raises:
        UnsupportedLayerError: what of the network has no exact form there, all of it.
    """
    info = TARGETS[target]
    real = info.real or (approximate and info.approximates)
    form = integer_form(snn, time_steps, real=real)
    faults = _step_faults(info, form) or info.refused(form)
    if faults:
        raise UnsupportedLayerError(f"this network does not leave exactly as {target}", faults)
    return form


def _step_faults(info: Target, form: IntegerForm) -> list[Fault]:
    """Layers that fire in several steps, where a target has no form for that."""
    moving = {node.out for node in form.nodes if node.op == "emit" and not info.unrolls}
    able = " or ".join(name for name, one in TARGETS.items() if one.unrolls)
    hint = f"needs what it emitted before: write {able}, or convert with thresholds for all levels"
    layers = [name for out, name in form.levels.items() if out in moving]
    return [Fault(name, "fires in several steps", hint) for name in layers]


def steps_written(target: str, path: Path) -> int | None:
    """The time steps of what stands there, as its verdict says; None where that says nothing."""
    try:
        verdict = read_json(_verdict_file(TARGETS[target], path))
    except CheckpointError:
        return None
    steps = verdict.get("time_steps") if isinstance(verdict, dict) else None
    return steps if is_step_count(steps) else None


def _verdict(
    info: Target, form: IntegerForm, path: Path, images: Tensor, approximate: bool
) -> Verdict:
    """The check, and how long the images took."""
    runtime, measured = info.open(path, form), approximate and info.approximates
    verdict = verify(info.name, form, runtime, images, info.sizes(path), approximate=measured)
    some = images[: images_at_once(form)].numpy()
    start = time.perf_counter()
    runtime.run(some)
    spent = (time.perf_counter() - start) / len(some) * 1e6
    return replace(verdict, us_per_image=round(spent, 1))


def _check_again(
    info: Target, form: IntegerForm, path: Path, images: Tensor, approximate: bool
) -> Verdict:
    """The verdict on what stands there; written beside it, red or not."""
    if not path.exists():
        raise CheckpointError(f"nothing at {path} to check: export it first, without --check")
    verdict = _verdict(info, form, path, images, approximate)
    write_json(_verdict_file(info, path), verdict.json())
    if verdict.faults():
        headline = f"{path} does not answer as the network: export it again"
        raise CheckpointError(headline, verdict.faults())
    return verdict


def _verdict_file(info: Target, path: Path) -> Path:
    return path / VERDICT if info.file is None else path.with_name(f"{path.name}.{VERDICT}")


def _is_other(path: Path) -> bool:
    """Whether a path is there, holds something, and is no export."""
    if not path.is_dir():
        return path.exists()
    ours = all((path / name).is_file() for name in ("network.json", VERDICT))
    return not ours and any(path.iterdir())


class _in_place:
    """A place beside ``path`` to write to; moved there if all went well, removed if not."""

    def __init__(self, info: Target, path: Path) -> None:
        self.info, self.path = info, path

    def __enter__(self) -> Path:
        path = self.path
        if self.info.file is None and _is_other(path):
            raise OutputError(f"{path} is there and no export: name another folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return self.folder / path.name

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._move()
        except OSError as fact:
            raise OutputError(f"cannot write {self.path}: {fact.strerror or fact}") from fact
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _move(self) -> None:
        here, there = self.folder / self.path.name, self.path
        if self.info.file is None:
            if there.exists():
                os.replace(there, self.folder / "before")
            os.replace(here, there)
            return
        os.replace(here, there)
        os.replace(_verdict_file(self.info, here), _verdict_file(self.info, there))
