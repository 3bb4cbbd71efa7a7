"""Nobody else's code is loaded, nothing damaged either, and no compiler can hold the caller up."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt_convert.integer_engine import backends
from mt_convert.integer_engine.native import build
from mt_convert.integer_engine.native.library_cache import ForeignFolder, LibraryCache
from mt_convert.system.progress import notice

GOOD = b"a library"
load = build.library.__wrapped__


def kept(folder: Path) -> Path:
    """A library in a cache."""
    cache = LibraryCache(folder)
    with cache.building() as building:
        (building / "built.so").write_bytes(GOOD)
        return cache.keep(building / "built.so", "kernels-x")


def cut(path: Path) -> None:
    path.write_bytes(GOOD[:3])


def empty_out(path: Path) -> None:
    path.write_bytes(b"")


def change_last_byte(path: Path) -> None:
    path.write_bytes(GOOD[:-1] + b"!")


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def open_to_the_group(path: Path) -> None:
    path.chmod(0o770)


def link_instead(path: Path) -> None:
    elsewhere = path.with_name("elsewhere.so")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, empty_out, change_last_byte, open_to_all, open_to_the_group),
        *(link_instead, folder_instead, pipe_instead, dangling),
    ],
)
def test_what_is_damaged_or_not_ours_alone_is_removed(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path = kept(tmp_path)
    assert LibraryCache(tmp_path).find("kernels-x") == path
    damage(path)
    assert LibraryCache(tmp_path).find("kernels-x") is None
    assert not path.exists()
    assert not path.is_symlink()


def test_files_and_folders_of_others_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(tmp_path)
    cache = LibraryCache(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ForeignFolder, match="belongs to user"):
        LibraryCache(tmp_path)
    assert cache.find("kernels-x") is None
    assert not path.exists()


def test_folder_and_files_are_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    path = kept(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    folder.chmod(0o777)
    LibraryCache(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_killed_builds_left_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / ".building-old", tmp_path / ".building-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "kernels.o").write_bytes(b"half")
    os.utime(old, (0, 0))
    kept(tmp_path)
    assert not old.exists()
    assert new.exists()


COMPILERS = {
    "says nothing": ("exit 0", "the build failed"),
    "says bytes": ("printf '\\377\\376'; exit 0", "the build failed"),
    "fails": ("echo no licence; exit 3", "does not run: no licence"),
    "is killed": ("kill -9 $$", "does not run"),
    "hangs": ("sleep 1000", "did not end, and was stopped"),
    "hangs behind a child": ("sleep 1000 & wait", "did not end, and was stopped"),
    "prints for ever": ("exec yes", "did not end, and was stopped"),
    "makes no library": (
        'case "$1" in --version) ;; *) for a; do [ "$o" ] && echo x > "$a"; o=; '
        '[ "$a" = -o ] && o=1; done;; esac; exit 0',
        "the build failed: OSError",
    ),
    "builds for ever": ('[ "$1" = --version ] || sleep 1000', "did not end, and was stopped"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", COMPILERS)
def test_odd_compilers_leave_one_message_and_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = COMPILERS[name]
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{text}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("MT_CONVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "ASKING_S", 0.3)
    monkeypatch.setattr(build, "BUILDING_S", 1.5 if "for ever" in name else 60.0)
    with pytest.raises(build.NativeUnavailable) as raised:
        load("portable")
    assert said in str(raised.value)
    assert 'backend="torch"' in str(raised.value)
    cache = tmp_path / "cache"
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("value", ["  ", "'g++", "/", "a\nb"])
def test_what_is_no_command_is_no_compiler(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", value)
    with pytest.raises(build.NativeUnavailable):
        load("portable")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        monkeypatch.setenv("MT_CONVERT_CACHE", str(folder))
        with pytest.raises(build.NativeUnavailable, match="MT_CONVERT_CACHE"):
            load("portable")


@pytest.mark.long
def test_a_planted_or_cut_library_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build.missing() is not None:
        pytest.skip("there is no compiler here")
    monkeypatch.setenv("MT_CONVERT_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
    path = build._library_path("portable")
    whole = path.read_bytes()
    path.write_bytes(whole[:8192])
    again = build._library_path("portable")
    assert again.read_bytes() != whole[:8192]
    load("portable")
    assert [item.name for item in tmp_path.iterdir()] == [again.name]


def test_the_fall_back_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    why = str(build._unavailable("there is no C++ compiler 'x'"))
    native = backends.BackendInfo(backends._native, ("cpu",), lambda: why)
    monkeypatch.setitem(backends.BACKENDS, "native", native)
    monkeypatch.setattr(backends, "_native_slow", lambda: False)
    for _ in range(2):
        assert backends.choose_backend("auto", torch.device("cpu")) == "torch"
    assert capsys.readouterr().err.count("no C++ compiler") == 1


def test_a_program_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    for seconds in (0.3, 3.0, 30.0):  # until the shell came so far: a busy machine is slow
        code, _ = build._run(["sh", "-c", f"sleep 1000 & echo $! > {started}; wait"], seconds)
        assert code is None
        if started.is_file() and (child := started.read_text().strip()):
            break
    found = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True)
    assert found.stdout.strip()[:1] in ("", "Z")
