"""Everything in this folder, by one command:

    mt-convert run digits --out runs/digits
    python eval/export/regenerate.py runs/digits

Each network leaves to every target, or to those of --to; what is refused is a row too. All other
rows stay as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from mt_convert.errors import MTConvertError
from mt_convert.experiments import export
from mt_convert.export.targets import TARGETS
from mt_convert.export.verdict import Verdict
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
SCHEMA = "mt_convert.export/1"


@dataclass(frozen=True)
class Row:
    """A network and a target: the verdict, or why it was refused."""

    network: str
    target: str
    exact: bool | None
    runtime: str | None
    version: str | None
    images: int | None
    neurons: int | None
    next_to: int | None
    bytes: int | None
    us_per_image: float | None
    refused: str | None


def row(name: str, target: str) -> Row:
    """One network written for one target and run there."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict = export.run(name, target, Path(folder) / "out")
        except MTConvertError as error:
            reasons = "; ".join(f"{fault.where}: {fault.what}" for fault in error.faults)
            nothing = (None,) * 8
            return Row(Path(name).name, target, *nothing, reasons or error.headline)
    return of_verdict(Path(name).name, verdict)


def of_verdict(network: str, verdict: Verdict) -> Row:
    """The row of a verdict."""
    sizes = verdict.sizes
    size = sizes.get("bytes", sizes.get("code_bytes", 0) + sizes.get("constant_bytes", 0))
    name, version = verdict.runtime.split(",")[0].split(" ", 1)
    return Row(
        network,
        verdict.target,
        verdict.exact,
        name,
        version,
        verdict.images,
        verdict.neurons,
        sum(item.next_to for item in verdict.by_node),
        size,
        verdict.us_per_image,
        None,
    )


def page(rows: list[Row]) -> str:
    """The page that rows make."""
    names = ("network", "target", "exact", "runtime", "images", "neurons", "next to thresholds")
    heads = (*names, "bytes", "µs per image", "refused")
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for item in rows:
        runtime = f"{item.runtime} {item.version}" if item.runtime else None
        cells = (
            *(item.network, item.target, item.exact, runtime, item.images, item.neurons),
            *(item.next_to, item.bytes, item.us_per_image, item.refused),
        )
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return (HERE / "head.md").read_text() + "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """A value as the page prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,.0f}"
    return "–" if value is None else str(value)


def main() -> None:
    """Rows of the named runs, and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs, or of stored networks")
    parser.add_argument("--to", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    given = parser.parse_args()
    path = HERE / "results.json"
    stored = [Row(**item) for item in read_json(path)["rows"]] if path.is_file() else []
    made = [row(name, target) for name in given.runs for target in given.to]
    again = {(item.network, item.target) for item in made}
    rows = sorted(
        [*(item for item in stored if (item.network, item.target) not in again), *made],
        key=lambda item: (item.network, [*TARGETS].index(item.target)),
    )
    write_json(path, {"schema": SCHEMA, "rows": [asdict(item) for item in rows]})
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page(rows))


if __name__ == "__main__":
    main()
