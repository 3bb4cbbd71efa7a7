"""Which architectures of timm convert: the stored table's pages, or the table itself.

    python eval/coverage/regenerate.py                 # README.md, architectures.md, families.png
    python eval/coverage/regenerate.py --sweep         # first the whole registry, or what is left
    python eval/coverage/regenerate.py --again NAME ...   # these rows alone, in the stored table;
                                                          # "*" is the smallest of each family
    python eval/coverage/regenerate.py --merge            # rows that --again has finished so far
    python eval/coverage/regenerate.py --parameters    # sizes of all, for a new version of timm

What --again makes lies in runs/coverage_again, a file for each architecture: stopped, it goes on
where it was, and options of `mt-convert coverage` can follow the names. The sweep keeps its rows in
runs/coverage: first the smallest architecture of each family, then all
others by size. Its options can follow, those of `mt-convert coverage`:

    python eval/coverage/regenerate.py --sweep --workers 2 --memory 10
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import timm

from mt_convert.experiments.coverage.pages import write_pages
from mt_convert.experiments.coverage.registry import COUNTED, count_parameters, families
from mt_convert.experiments.coverage.rows import read_table
from mt_convert.system.storage import write_json

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "runs" / "coverage"
AGAIN = ROWS.with_name("coverage_again")


def main() -> None:
    """Sweep if asked to, then write the pages from the table."""
    words = sys.argv[1:]
    if words[:1] == ["--sweep"]:
        command = [sys.executable, "-m", "mt_convert.cli", "coverage", "--all"]
        subprocess.run([*command, "--out", str(ROWS), *words[1:]], check=True)
        write_json(HERE / "results.json", read_table(ROWS / "results.json").to_json())
    elif words[:1] == ["--again"] and words[1:]:
        command = [sys.executable, "-m", "mt_convert.cli", "coverage", *words[1:]]
        subprocess.run([*command, "--out", str(AGAIN)], check=True)
        merge()
    elif words == ["--merge"]:
        merge()
    elif words == ["--parameters"]:
        names = [name for group in families().values() for name in group]
        params = count_parameters(names, note=lambda counts: None)
        write_json(COUNTED, {"timm": timm.__version__, "params": params})
    elif words:
        sys.exit(__doc__)
    write_pages(read_table(HERE / "results.json"), HERE)


def merge() -> None:
    """Put the rows that were made again in the places of the stored ones."""
    rows = {row.architecture: row for row in read_table(AGAIN / "results.json").rows}
    stored = read_table(HERE / "results.json")
    missing = set(rows) - {row.architecture for row in stored.rows}
    if missing:
        sys.exit(f"not in the stored table: {', '.join(sorted(missing))}")
    kept = tuple(rows.get(row.architecture, row) for row in stored.rows)
    write_json(HERE / "results.json", replace(stored, rows=kept).to_json())


if __name__ == "__main__":
    main()
