"""One-line faults, each against an invariant, and the tests that must find them.

``make mutants`` runs this file: every fault is put into a copy of the package, one after the
other, and its guards are run on the copy. A guard that finds nothing is no guard. Words name some
of them: ``python tests/helpers/mutants.py system/folder_lock`` runs those whose name holds one.
``tests/test_mutants.py`` holds the list to the code: old lines are there once, guards exist.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutant_table import MUTANTS, Mutant
from paths import ROOT

PROCESSES = 2
COPIED = ("mt_convert", "tests", "recipes", "pyproject.toml", "README.md")


def mutate(text: str, mutant: Mutant) -> str:
    """The text with the new line; the old one must be there exactly once."""
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == mutant.old]
    if len(places) != 1:
        raise ValueError(f"{mutant.file} has this line {len(places)} times: {mutant.old}")
    (place,) = places
    lines[place] = lines[place].replace(mutant.old, mutant.new)
    return "".join(lines)


def copy_into(folder: Path) -> Path:
    """A copy of all that the guards need."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def run_guards(folder: Path, guards: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The guards on a copy, until one fails."""
    settings = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--no-header")
    return subprocess.run(
        [sys.executable, *words, *(f"tests/{guard}" for guard in guards)],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(folder: Path, mutant: Mutant) -> str:
    """What the guards said of a mutant; the copy is as before."""
    path = folder / "mt_convert" / mutant.file
    before = path.read_text()
    path.write_text(mutate(before, mutant))
    try:
        done = run_guards(folder, mutant.guards)
    finally:
        path.write_text(before)
    if done.returncode == 1 and " failed" in done.stdout:
        return "found"
    if done.returncode == 0:
        return "SURVIVED"
    return f"NOT RUN: {(done.stdout + done.stderr).strip()[-500:]}"


def chosen(words: Sequence[str]) -> list[Mutant]:
    """Those whose name holds one of the words; all without words."""
    return [item for item in MUTANTS if not words or any(word in item.name for word in words)]


def outcomes(folders: list[Path], mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant in one of the copies, two at a time."""
    free: SimpleQueue[Path] = SimpleQueue()
    for folder in folders:
        free.put(folder)

    def attempt(mutant: Mutant) -> tuple[Mutant, str, float]:
        folder, started = free.get(), time.monotonic()
        try:
            return mutant, outcome(folder, mutant), time.monotonic() - started
        finally:
            free.put(folder)

    with ThreadPoolExecutor(len(folders)) as pool:
        yield from pool.map(attempt, mutants)


def main(words: Sequence[str]) -> int:
    """Print a line for each mutant; 1 if one was not found, or a guard fails without any."""
    mutants = chosen(words)
    if not mutants:
        print(f"no fault is called {' or '.join(words)}: names are files and new lines")
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folders = [copy_into(Path(temporary) / str(number)) for number in range(PROCESSES)]
        clean = run_guards(folders[0], tuple(dict.fromkeys(g for m in mutants for g in m.guards)))
        if clean.returncode != 0:
            print(clean.stdout, clean.stderr, "a guard fails on the code as it is", sep="\n")
            return 1
        bad = 0
        for mutant, found, seconds in outcomes(folders, mutants):
            print(f"{found:<9} {seconds:5.1f} s  {mutant.name}", flush=True)
            bad += found != "found"
    print(f"{len(mutants) - bad} of {len(mutants)} faults found")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
