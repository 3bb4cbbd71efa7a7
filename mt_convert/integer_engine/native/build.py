"""The kernels as a library: built on first use, kept in a folder of the user, loaded by ctypes.

The name of a build has a digest of its source, flags and compiler, so nothing stale is ever loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from ...errors import Fault, SpecError
from .layout import STRUCTURES

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-fast-math", "-ffp-contract=off")
_AVX512 = ("f", "bw", "vl", "dq", "vnni")
INSTRUCTION_SETS = {  # best first: flags, and what the CPU must have
    "avx512_vnni": (
        tuple(f"-mavx512{part}" for part in _AVX512),
        tuple(f"avx512_{part}" for part in _AVX512),
    ),
    "avx2": (("-mavx2",), ("avx2",)),
    "portable": ((), ()),
}
EMULATED_VNNI = "emulated_vnni"  # for tests: avx512_vnni spelled out, for any machine


class NativeUnavailable(SpecError):
    """The native backend cannot be built on this machine."""


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this CPU has, best first.

    Example:
        >>> instruction_sets()[-1]
        'portable'
    """
    asked: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return tuple(
        name
        for name, (_, needs) in INSTRUCTION_SETS.items()
        if all(asked.get(part, False) for part in needs)
    )


def missing() -> str | None:
    """Why the native backend cannot run here; None if it can."""
    try:
        library(instruction_sets()[0])
    except NativeUnavailable as fact:
        return str(fact)
    return None


def choose_instruction_set(instruction_set: str | None) -> str:
    """The instruction set to use: the best, or the one asked for.

    Raises: SpecError: the CPU does not have it.
    """
    allowed = instruction_sets()
    if instruction_set is None:
        return allowed[0]
    if instruction_set not in (*allowed, EMULATED_VNNI):
        hint = f"this CPU has {', '.join(allowed)}"
        fault = Fault("instruction_set", repr(instruction_set), hint)
        raise SpecError("these instructions cannot run here", [fault])
    return instruction_set


@functools.cache
def library(instruction_set: str) -> ctypes.CDLL:
    """The kernels for an instruction set, built if they are not there yet.

    Raises: NativeUnavailable: no compiler, or a build that failed.
    """
    try:
        loaded = ctypes.CDLL(str(_library_path(choose_instruction_set(instruction_set))))
    except OSError as fact:
        raise _unavailable(f"the built library could not be loaded: {fact}") from fact
    sizes = (c_int64 * len(STRUCTURES))()
    loaded.mt_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in STRUCTURES]
    loaded.mt_run.argtypes, loaded.mt_run.restype = [c_void_p], None
    loaded.mt_prepare.argtypes, loaded.mt_prepare.restype = [c_void_p, c_int32, c_void_p], None
    return loaded


def _library_path(instruction_set: str) -> Path:
    """The library file in the cache."""
    emulated = instruction_set == EMULATED_VNNI
    flags = ("-DMT_EMULATE_VNNI",) if emulated else INSTRUCTION_SETS[instruction_set][0]
    flags = (*FLAGS, *flags)
    surroundings = [os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS", "LDFLAGS")]
    parts = [SOURCE.read_text(), *flags, _compiler_version(), *surroundings]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = _cache() / f"kernels-{instruction_set}-{digest}.so"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _build(target, flags)
        except OSError as fact:
            hint = "set MT_CONVERT_CACHE to a folder that can be written"
            raise _unavailable(f"{target.parent}: {fact}; {hint}") from fact
    return target


def _cache() -> Path:
    """The folder of the user for builds."""
    if named := os.environ.get("MT_CONVERT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mt_convert"


def _compiler_version() -> str:
    """What the C++ compiler says it is."""
    command = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()
    if shutil.which(command[0]) is None:
        raise _unavailable(f"there is no C++ compiler {command[0]!r}")
    try:
        asked = [*command, "--version"]
        process = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as fact:
        raise _unavailable(f"the C++ compiler does not run: {fact}") from fact
    return process.stdout


def _build(target: Path, flags: tuple[str, ...]) -> None:
    """Compile beside the target, then move: several processes may do so at once."""
    try:
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
    except ImportError as fact:
        raise _unavailable(f"the build needs setuptools: {fact}") from fact
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = shutil.copy(SOURCE, folder)
        extension = Extension(
            "kernels",
            [source],
            language="c++",
            extra_compile_args=list(flags),
            extra_link_args=["-fopenmp"],
        )
        command = build_ext(Distribution({"name": "kernels", "ext_modules": [extension]}))
        command.build_lib = command.build_temp = folder
        try:
            command.ensure_finalized()
            command.run()
        except Exception as fact:  # compilers fail in many ways
            raise _unavailable(f"the build failed: {fact}") from fact
        os.replace(command.get_ext_fullpath("kernels"), target)


def _unavailable(what: str) -> NativeUnavailable:
    hint = 'backend="torch" gives the same numbers; or install g++ 9 or newer with OpenMP'
    return NativeUnavailable("the native backend cannot run here", [Fault("native", what, hint)])
