"""Run every value of every key that lists its values, and store the list with its times:

    python tests/helpers/every_value.py

Writes ``tests/every_value.md``: a line for each key, its values and the seconds of each run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1]
SOURCE = TESTS / "experiments" / "test_every_value.py"
PAGE = TESTS / "every_value.md"
TEST = "test_every_value_of_every_key_runs_or_is_refused_with_the_reason"
HEAD = """# Every value of every key

Each key of a recipe that has a list of allowed values was run with each of them, in a recipe of a
small network on made-up images, from its training to the report (`experiments/test_every_value.py`;
seconds of one thread, beside other work; stages that two runs share are there for the second).
*refused*: `mt-convert check` refuses it for recipes of this kind, with the reason.

Written by `python tests/helpers/every_value.py`.

"""


def main() -> None:
    """Run the tests, write the page if all passed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.xml"
        words = [f"{SOURCE}::{TEST}", "-q", "-m", "", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, "-m", "pytest", *words, f"--junitxml={path}"])
        if done.returncode:
            sys.exit(done.returncode)
        cases = ElementTree.parse(path).iter("testcase")
        seconds = {name_of(case.attrib["name"]): float(case.attrib["time"]) for case in cases}
    sys.path[:0] = [str(TESTS / "helpers"), str(SOURCE.parent)]
    from test_every_value import REFUSED

    PAGE.write_text(page(seconds, REFUSED))


def name_of(test: str) -> str:
    """What stands in the brackets of a test's name."""
    return test.split("[", 1)[1].removesuffix("]")


def page(seconds: Mapping[str, float], refused: Iterable[str]) -> str:
    """The page, from the seconds of each "KIND key=value"."""
    kinds: dict[str, dict[str, list[str]]] = {}
    total: dict[str, list[float]] = {}
    for name, taken in seconds.items():
        kind, override = name.split(" ", 1)
        key, value = override.split("=", 1)
        shown = "refused" if name in refused else f"{taken:.1f}"
        kinds.setdefault(kind, {}).setdefault(key, []).append(f"{value} {shown}")
        total.setdefault(kind, []).append(taken)
    lines = ["| recipe | keys | values | seconds |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {kind} | {len(keys)} | {len(total[kind])} | {sum(total[kind]):.1f} |"
        for kind, keys in kinds.items()
    ]
    for kind, keys in kinds.items():
        lines += ["", f"## {kind}", "", "| key | values, seconds |", "| --- | --- |"]
        lines += [f"| {key} | {' · '.join(values)} |" for key, values in keys.items()]
    return HEAD + "\n".join(lines).replace("_", "\\_") + "\n"


if __name__ == "__main__":
    main()
