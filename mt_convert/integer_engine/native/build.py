"""The kernels as a library: built on first use, kept in a folder of the user, loaded by ctypes.

The name of a build has a digest of its source, flags and compiler, so nothing stale is ever loaded;
what else is not loaded, `library_cache` says. A compiler that hangs is stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from ...errors import Fault, SpecError
from .layout import STRUCTURES
from .library_cache import ForeignFolder, LibraryCache

COMPILE = Path(__file__).with_name("compile.py")
KERNELS = Path(__file__).with_name("kernels")
FLAGS = ("-O3", "-std=c++17", "-pthread", "-fno-fast-math", "-ffp-contract=off")
_PARTS = ("f", "bw", "vl", "dq", "vnni")
_AVX512 = tuple(f"-mavx512{part}" for part in _PARTS), tuple(f"avx512_{part}" for part in _PARTS)
INSTRUCTION_SETS = {  # best first: flags, and what the CPU must have
    "amx": ((*_AVX512[0], "-mamx-tile", "-mamx-int8"), (*_AVX512[1], "amx_tile", "amx_int8")),
    "avx512_vnni": _AVX512,
    "avx2": (("-mavx2",), ("avx2",)),
    "portable": ((), ()),
}
EMULATED = {  # for tests: what each stands for, and flags that spell its instructions out
    "emulated_amx": ("amx", ("-DMT_EMULATE_VNNI", "-DMT_EMULATE_AMX")),
    "emulated_vnni": ("avx512_vnni", ("-DMT_EMULATE_VNNI",)),
}
ASKING_S, BUILDING_S = 20.0, 300.0  # how long a compiler may say its version, and build
_SAID, _TOO_MUCH = 1 << 16, 1 << 26  # of what a compiler prints: looked at; never ends
_ASK_FOR_TILES = 158, 0x1023, 18  # Linux on x86-64: arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA


class NativeUnavailable(SpecError):
    """The native backend cannot be built on this machine."""


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this CPU has, best first.

    AMX is among them where the system lets this process use it, and the compiler knows it.

    Example:
        >>> instruction_sets()[-1]
        'portable'
    """
    asked: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return tuple(
        name
        for name, (_, needs) in INSTRUCTION_SETS.items()
        if all(asked.get(part, False) for part in needs) and (name != "amx" or _may_use_tiles())
    )


@functools.cache
def _may_use_tiles() -> bool:
    """Whether this process may use the tiles of AMX: Linux wants to be asked, and an old compiler
    may not know them.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).syscall(*_ASK_FOR_TILES) != 0:
        return False
    try:
        flags = INSTRUCTION_SETS["amx"][0]
        return _run([*_compiler(), *flags, "-E", "-xc++", os.devnull], ASKING_S)[0] == 0
    except NativeUnavailable:
        return False


@functools.cache
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
    if instruction_set not in (*allowed, *EMULATED):
        hint = f"this CPU has {', '.join(allowed)}"
        fault = Fault("instruction_set", repr(instruction_set), hint)
        raise SpecError("these instructions cannot run here", [fault])
    return instruction_set


def real_set(instruction_set: str) -> str:
    """The instruction set whose instructions are used, or spelled out.

    Example:
        >>> real_set("emulated_amx"), real_set("avx2")
        ('amx', 'avx2')
    """
    return EMULATED[instruction_set][0] if instruction_set in EMULATED else instruction_set


@functools.cache
def library(instruction_set: str) -> ctypes.CDLL:
    """The kernels for an instruction set, built if they are not there yet.

    Raises: NativeUnavailable: no compiler, or a build that failed.
    """
    path = _library_path(choose_instruction_set(instruction_set))
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as fact:
        raise _unavailable(f"the built library could not be loaded: {fact}") from fact
    sizes = (c_int64 * len(STRUCTURES))()
    loaded.mt_sizes(sizes)
    assert list(sizes) == _sizes()
    loaded.mt_run.argtypes, loaded.mt_run.restype = [c_void_p], None
    loaded.mt_parts.argtypes, loaded.mt_parts.restype = [c_void_p, c_void_p, c_int32], c_int32
    loaded.mt_prepare.argtypes, loaded.mt_prepare.restype = [c_void_p, c_int32, c_void_p], None
    return loaded


def _sizes() -> list[int]:
    return [ctypes.sizeof(kind) for kind in STRUCTURES]


def _library_path(instruction_set: str) -> Path:
    """The library file in the cache."""
    emulated = instruction_set in EMULATED
    own = EMULATED[instruction_set][1] if emulated else INSTRUCTION_SETS[instruction_set][0]
    flags = (*FLAGS, *own)
    surroundings = [os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS", "LDFLAGS")]
    sources = (path.read_text() for path in sorted(KERNELS.iterdir()))
    parts = [*sources, *flags, _compiler_version(), *surroundings]
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]
    name, where = f"kernels-{instruction_set}-{digest}", _cache()
    hint = "set MT_CONVERT_CACHE to a folder of your own that can be written"
    try:
        cache = LibraryCache(where)
        return cache.find(name) or _build(cache, name, flags)
    except ForeignFolder as fact:
        raise _unavailable(f"{fact}, whose libraries are not run; {hint}") from fact
    except (OSError, RuntimeError, ValueError) as fact:  # no home; a name with a null
        raise _unavailable(f"{where}: {fact}; {hint}") from fact


def _cache() -> Path:
    """The folder of the user for builds."""
    if named := os.environ.get("MT_CONVERT_CACHE"):
        return Path(named)
    known = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(known) / "mt_convert"


def _compiler() -> list[str]:
    """The command of the C++ compiler."""
    named = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    try:
        command = shlex.split(named)
    except ValueError as fact:
        raise _unavailable(f"CXX is {named!r}, which is no command: {fact}") from fact
    if not command or shutil.which(command[0]) is None:
        raise _unavailable(f"there is no C++ compiler {(command or [named])[0]!r}")
    return command


def _compiler_version() -> str:
    """What the C++ compiler says it is."""
    code, said = _run([*_compiler(), "--version"], ASKING_S)
    if code != 0:
        raise _unavailable(f"the C++ compiler does not run: {_last_line(said, code)}")
    return said


def _build(cache: LibraryCache, name: str, flags: tuple[str, ...]) -> Path:
    """Compile beside the target, then move: several processes may do so at once."""
    with cache.building() as folder:
        source = str(Path(shutil.copytree(KERNELS, folder / KERNELS.name), "kernels.cpp"))
        sizes = ",".join(map(str, _sizes()))
        command = [sys.executable, "-P", str(COMPILE), source, str(folder), sizes, *flags]
        code, said = _run(command, BUILDING_S)
        built = Path(said.splitlines()[-1]) if code == 0 and said.strip() else None
        if built is None or not built.is_file():
            raise _unavailable(f"the build failed: {_last_line(said, code)}")
        return cache.keep(built, name)


def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """The exit code of a program and the end of what it printed; None if it was stopped.

    It is stopped with all it started when its time is over, or when it prints without end.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as fact:
        return -1, str(fact)
    assert process.stdout is not None
    late = threading.Event()
    clock = threading.Timer(seconds, _stop, [process.pid, late])
    clock.start()
    said, total = b"", 0
    try:
        while part := os.read(process.stdout.fileno(), _SAID):
            said, total = (said + part)[-_SAID:], total + len(part)
            if total > _TOO_MUCH:
                _stop(process.pid, late)
        code = process.wait()
    finally:
        clock.cancel()
        _stop(process.pid)  # also what it left running
        process.stdout.close()
        process.wait()
    return None if late.is_set() else code, said.decode("utf-8", "replace")


def _stop(group: int, late: threading.Event | None = None) -> None:
    """End a program and all it started."""
    if late is not None:
        late.set()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _last_line(said: str, code: int | None) -> str:
    """Why a program ended as it did, in a line."""
    if code is None:
        return "it did not end, and was stopped"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"exit code {code}"


def _unavailable(what: str) -> NativeUnavailable:
    hint = 'backend="torch" gives the same numbers; or install g++ 9 or newer'
    return NativeUnavailable("the native backend cannot run here", [Fault("native", what, hint)])
