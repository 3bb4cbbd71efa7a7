"""Everything in this folder, by one command:

    mt-convert run digits --out runs/digits
    mt-convert run cifar10_resnet20_w4a4 --out runs/cifar10_resnet20_w4a4
    python eval/export/regenerate.py runs/digits runs/cifar10_resnet20_w4a4 --small

RUN is the folder of a finished run or of a stored network. --small adds two networks with weights
from a seed: silu_cnn (SiLU behind convolutions) and vit_small (attention, softmax, layer norm).
Each network leaves to every target, or to those of --to; what is refused is a row too. All other
rows stay as they are, and each is stored as soon as it is made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mt_convert as mt
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


def silu_cnn() -> nn.Module:
    """Convolutions with SiLU between them."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )


def vit_small() -> nn.Module:
    """Two blocks of attention on patches of 2x2."""
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2
    )


SMALL: dict[str, Callable[[], nn.Module]] = {"silu_cnn": silu_cnn, "vit_small": vit_small}


def store_small(name: str, folder: Path) -> str:
    """A network of `SMALL`, W4A4, converted and stored; returns its folder."""
    torch.manual_seed(0)
    qann = mt.quantize(SMALL[name]().eval(), 4, calibration=torch.randn(64, 1, 8, 8))
    mt.save(mt.convert(qann), folder / name)
    return str(folder / name)


def store(stored: list[Row], made: Row) -> None:
    """One row in place of its earlier one, and the page."""
    others = [item for item in stored if (item.network, item.target) != (made.network, made.target)]
    order = [*TARGETS]
    rows = sorted([*others, made], key=lambda item: (item.network, order.index(item.target)))
    write_json(HERE / "results.json", {"schema": SCHEMA, "rows": [asdict(one) for one in rows]})
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page(rows))


def main() -> None:
    """Rows of the named runs, and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="folders of finished runs, or of stored networks")
    parser.add_argument("--small", action="store_true", help="two networks from a seed, too")
    parser.add_argument("--to", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    given = parser.parse_args()
    path = HERE / "results.json"
    with tempfile.TemporaryDirectory() as folder:
        small = [store_small(name, Path(folder)) for name in SMALL] if given.small else []
        for name in (*given.runs, *small):
            for target in given.to:
                stored = read_json(path)["rows"] if path.is_file() else []
                store([Row(**item) for item in stored], row(name, target))


if __name__ == "__main__":
    main()
