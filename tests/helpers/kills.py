"""Kills and pairs of real runs: ``python tests/helpers/kills.py [TIMES]`` prints figures.

48 kills while a run is published, 9 pairs of runs in one folder, 20 kills at random moments of a
whole run that is then resumed; each compared with a run that nobody disturbed. Every run is a
process that is forked from this one, which has imported all there is and computed nothing.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from system_calls import kill_after

from mt_convert import cli
from mt_convert.experiments import run as _imported_here_once  # noqa: F401
from mt_convert.experiments.stages import StageRun

SMALL = ("evaluate.thresholds=[1,15]", "evaluate.time_steps=[1,2]", "evaluate.iso_level=false")
OTHER = (*SMALL, "quantize.act_bits=3")
NOT_COMPARED = ("log.jsonl", "versions.json", "peak.json")


def start(out: Path, words: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
    """A process that runs the recipe; what it prints goes to a file beside its folder."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        before()
        with (
            open(out.with_name(f"{out.name}.{os.getpid()}.txt"), "w") as said,
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            sys.argv = ["mt-convert", "run", "digits", "--smoke", "--resume", *words]
            sys.argv += ["--out", str(out)]
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """The exit code of a process; minus the signal that wait_for it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digests(out: Path) -> dict[str, str]:
    """All artefacts of a run: those that name times, seconds or the folder by their rows alone."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.name in NOT_COMPARED:
            continue
        timed = path.suffix in (".json", ".jsonl", ".md") and path.name != "config.json"
        content = b"" if timed and path.name != "results.json" else path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def kill_in_publication(call: int, handle: int = 2) -> Callable[[], None]:
    """Let a process end itself at a call of the system while it publishes; if it comes to its end,
    it writes how many there were."""

    def arm() -> None:
        publish = StageRun.publish

        def publish_and_die(stages: StageRun) -> None:
            made = kill_after(call)
            publish(stages)
            os.write(handle, b"%d" % made())

        StageRun.publish = publish_and_die  # type: ignore[method-assign]

    return arm


def kills_while_publishing(root: Path, times: int) -> Counter[str]:
    """An old run, whole, or the new one, whole; and the new one after the next command."""
    old, new = root / "old", root / "new"
    for out, words in ((old, SMALL), (new, OTHER)):
        assert wait_for(start(out, words)) == 0
    expected = {"old": digests(old), "new": digests(new)}
    ready = root / "ready"  # all new stages beside the old ones, so that each kill is quick
    shutil.copytree(old, ready)
    assert wait_for(start(ready, (*OTHER, "--overwrite"), kill_in_publication(0))) == -9
    reader, writer = os.pipe()
    shutil.copytree(ready, root / "counted")
    words = (*OTHER, "--overwrite")
    assert wait_for(start(root / "counted", words, kill_in_publication(10**9, writer))) == 0
    last = int(os.read(reader, 100))
    figures = Counter({"calls of the system": last})
    for number in range(times):
        out = root / f"published{number}" / "run"
        shutil.copytree(ready, out)
        call = 1 + number * last // times
        code = wait_for(start(out, (*OTHER, "--overwrite"), kill_in_publication(call)))
        figures["killed" if code == -9 else f"wait_for with {code}"] += 1
        hidden = (".new", ".partial")
        kept = {k: v for k, v in digests(out).items() if not k.split("/")[0].endswith(hidden)}
        kept.pop(".lock", None)
        which = next((name for name, whole in expected.items() if whole == kept), "MIXED")
        figures[f"then {which}"] += 1
        assert wait_for(start(out, (*OTHER, "--overwrite"))) == 0
        figures["resumed: equal" if digests(out) == expected["new"] else "resumed: OTHER"] += 1
        left = [path.name for path in out.parent.iterdir() if path.suffix != ".txt"]
        figures["nothing left over" if left == ["run"] else f"left {left}"] += 1
    return figures


def pairs_in_one_folder(root: Path, times: int) -> Counter[str]:
    """Of two runs in one folder one ends, equal to a run alone; the other is told who is there."""
    expected, figures = digests(root / "old"), Counter[str]()
    for number in range(times):
        out = root / f"pair{number}" / "run"
        out.parent.mkdir()
        children = [start(out, SMALL)]
        time.sleep(random.random() * 0.4)
        children.append(start(out, SMALL))
        codes = sorted(map(wait_for, children))
        figures[f"exit codes {codes}"] += 1
        said = "".join(path.read_text() for path in out.parent.glob("*.txt"))
        told = any(f"in use by process {child} on" in said for child in children)
        figures["told pid and host" if told else "NOT told"] += 1
        figures["equal" if digests(out) == expected else "OTHER"] += 1
    return figures


def kills_of_a_run(root: Path, times: int) -> Counter[str]:
    """Killed at a random moment and resumed, a run gives the numbers of one that nobody killed."""
    expected, figures = digests(root / "old"), Counter[str]()
    begun = time.monotonic()
    assert wait_for(start(root / "timed", SMALL)) == 0
    seconds = time.monotonic() - begun
    for number in range(times):
        out = root / f"killed{number}" / "run"
        out.parent.mkdir()
        child = start(out, SMALL)
        time.sleep(random.random() * seconds)
        os.kill(child, signal.SIGKILL)
        figures["killed" if wait_for(child) == -9 else "had wait_for"] += 1
        assert wait_for(start(out, SMALL)) == 0
        figures["equal" if digests(out) == expected else "OTHER"] += 1
        hidden = [str(path) for path in out.rglob("*") if path.name.startswith(".")]
        figures["nothing left over" if not hidden else f"left {hidden}"] += 1
    return figures


def main(share: float) -> None:
    """All three, or a share of so many."""
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for measure, times in (
            (kills_while_publishing, 48),
            (pairs_in_one_folder, 9),
            (kills_of_a_run, 20),
        ):
            print(measure.__name__.replace("_", " "))
            for what, number in measure(root, max(1, round(times * share))).items():
                print(f"  {number:>4}  {what}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
