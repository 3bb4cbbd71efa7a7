"""What the scripts under ``eval/`` share: their options, and the command that they run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def study_parser(
    description: str | None, only: str, *, weights: bool = True
) -> argparse.ArgumentParser:
    """The options of a study: ``--data``, ``--weights``, ``--runs``, ``--only``, ``--pages``.

    ``only``: the help text of that option. Without ``weights`` the data are optional as well.

    Example:
        >>> study_parser("a study", "names", weights=False).parse_args(["--only", "a"]).only
        ['a']
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=weights, help="folder of JPEG CIFAR-10")
    if weights:
        parser.add_argument("--weights", required=True, help="file of the fp32 ResNet-20")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", help=only)
    parser.add_argument("--pages", action="store_true", help="write pages from what is there")
    return parser


def run_command(*words: str) -> None:
    """``mt-convert`` with these words, on one thread, so that stored numbers can be repeated."""
    command = [sys.executable, "-m", "mt_convert.cli", *words]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


CHAIN = ("cifar10_resnet20_w4a4", "cifar10_resnet20_w3a3", "cifar10_resnet20_w2a2")
"""The recipes of a chain of widths; each starts from the run of the one before."""


def run_chain(runs: Path, last: str, *words: str) -> None:
    """Run the recipes of `CHAIN` up to ``last`` that are not finished under ``runs``."""
    start: tuple[str, ...] = ()
    for name in CHAIN[: CHAIN.index(last) + 1]:
        out = runs / name
        if not (out / "results.json").is_file():
            run_command("run", name, *words, *start, "--out", str(out), "--resume")
        start = (f"model.from_run={out}",)
