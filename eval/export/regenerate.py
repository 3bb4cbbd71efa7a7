"""Everything in this folder, by one command:

    mt-convert run digits --out runs/digits
    mt-convert run cifar10_resnet20_w4a4 --out runs/cifar10_resnet20_w4a4
    python eval/export/regenerate.py runs/digits runs/cifar10_resnet20_w4a4 --small

RUN is the folder of a finished run or of a stored network. --small adds two networks with weights
from a seed: silu_cnn (SiLU behind convolutions) and vit_small (attention, softmax, layer norm).
--few adds each of them once more, as NAME_n3: its quantized network converted with 3 thresholds,
signed, which leaves unrolled over 4 steps to the targets that take several.
Each network leaves to every target, or to those of --to; what is refused is a row too, and so is
what other readers of NIR make of its graph (norse and snntorch, where they are installed). All
other rows stay as they are, and each is stored as soon as it is made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mt_convert as mt
from mt_convert.errors import MTConvertError
from mt_convert.experiments import export
from mt_convert.export.forms.integer_form import integer_form
from mt_convert.export.spiking_graphs.nir_runtime import NirGraph
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


def row_of(name: str, target: str) -> Row | None:
    """The row of a network and a target; None where a reader is not installed."""
    if target == export.QDQ:
        return qdq_row(name)
    return reader_row(name, target) if target.startswith(READS_NIR) else row(name, target)


def row(name: str, target: str) -> Row | None:
    """One network written for one target and run there; None of an approximation where there is
    nothing to approximate."""
    to, asked = MORE.get(target, (target, {}))
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict = export.run(name, to, Path(folder) / "out", **asked)
        except MTConvertError as error:
            return Row(Path(name).name, target, *(None,) * 8, reasons_of(error))
    if target == FLOATS and not verdict.real:
        return None
    return replace(of_verdict(Path(name).name, verdict), target=target)


def qdq_row(name: str) -> Row:
    """The approximation, and what it loses."""
    network = Path(name).name
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = export.run_qdq(name, Path(folder), approximate=True)
        except MTConvertError as error:
            return Row(network, export.QDQ, *(None,) * 8, reasons_of(error))
    runtime, version = found.runtime.split(" ", 1)
    lost = lost_by(found.other_class, found.mean, found.largest)
    sizes = (None, None, found.bytes, None)
    return Row(network, export.QDQ, False, runtime, version, found.images, *sizes, lost)


def lost_by(other_class: int | None, mean: float | None, largest: float | None) -> str:
    """What an approximation loses."""
    return (
        f"not exact: {other_class or 0:,} images get another class, logits differ by "
        f"{100 * (mean or 0):.2g} % of the largest on average, {100 * (largest or 0):.2g} % at most"
    )


def reader_row(name: str, target: str) -> Row | None:
    """What another reader of NIR makes of an exact graph; None where it is not installed."""
    network, package = Path(name).name, target.removeprefix(READS_NIR)
    if find_spec(package) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            export.run(name, "nir", Path(folder))
        except MTConvertError:
            return None  # there is no graph to read
        path = Path(name)
        form = integer_form(mt.load(path / "convert" if (path / "convert").is_dir() else path))
        ours = NirGraph(Path(folder) / str(TARGETS["nir"].file), form)
    images = torch.randn(READ, *form.image_shape, generator=torch.Generator().manual_seed(1))
    logits = torch.from_numpy(ours.run(images.numpy())[form.nodes[-1].out])
    levels = torch.from_numpy(ours.run_node(form.node("encode"), [images.numpy()])).float()
    exact, said = None, None
    try:
        with torch.no_grad():  # image by image: not all of them keep the batch apart
            answers = [READERS[package](ours.graph)(one[None]) for one in levels]
        outputs = [one[0] if isinstance(one, tuple) else one for one in answers]
        theirs = torch.cat(outputs)
        if theirs.shape != logits.shape:
            shapes = "×".join(map(str, theirs.shape[1:])), logits.shape[1]
            said = f"its answer is {shapes[0]} numbers where the network has {shapes[1]} logits"
        else:
            exact = bool((theirs == logits).all())
            apart = float((theirs - logits).abs().max() / logits.abs().max())
            said = None if exact else f"logits differ by up to {100 * apart:.3g} % of the largest"
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    seen = None if exact is None else READ
    return Row(
        network, target, exact, package, version(package), seen, None, None, None, None, said
    )


def _norse(graph: Any) -> Any:
    return import_module("norse.torch").from_nir(graph)


def _snntorch(graph: Any) -> Any:
    return import_module("snntorch.import_nir").import_from_nir(graph)


READERS: dict[str, Callable[[Any], Any]] = {"norse": _norse, "snntorch": _snntorch}
READS_NIR, READ = "nir in ", 64
STEPS, FEW = 4, 3
FLOATS = "onnx --approximate"
UNROLLED = {f"{name}, T = {STEPS}": (name, {"time_steps": STEPS}) for name in ("onnx", "torch")}
MORE: dict[str, tuple[str, dict[str, Any]]] = {**UNROLLED, FLOATS: ("onnx", {"approximate": True})}
ALSO = (export.QDQ, *(f"{READS_NIR}{package}" for package in READERS))


def reasons_of(error: MTConvertError) -> str:
    """What is refused, in one line."""
    reasons = "; ".join(f"{fault.where}: {fault.what}" for fault in error.faults)
    return reasons or error.headline


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
        None if verdict.exact else lost_by(verdict.other_class, verdict.mean, verdict.largest),
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


def store_few(name: str, folder: Path) -> str:
    """The quantized network of a run, or one of `SMALL`, with few thresholds; its folder."""
    torch.manual_seed(0)
    if name in SMALL:
        qann: Any = mt.quantize(SMALL[name]().eval(), 4, calibration=torch.randn(64, 1, 8, 8))
    else:
        qann = mt.load(Path(name) / "train")
    to = folder / f"{Path(name).name}_n{FEW}"
    mt.save(mt.convert(qann, ladder=mt.Uniform(FEW), signed=True), to)
    return str(to)


def store(stored: list[Row], made: Row) -> None:
    """One row in place of its earlier one, and the page."""
    others = [item for item in stored if (item.network, item.target) != (made.network, made.target)]
    order = [*TARGETS, *MORE, *ALSO]
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
    parser.add_argument("--few", action="store_true", help="each with 3 thresholds, too")
    names = [*TARGETS, FLOATS, *ALSO]
    parser.add_argument("--to", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    path = HERE / "results.json"
    with tempfile.TemporaryDirectory() as folder:
        small = [store_small(name, Path(folder)) for name in SMALL] if given.small else []
        asked = [(name, target) for name in (*given.runs, *small) for target in given.to]
        for name in (*given.runs, *(SMALL if given.small else ())) if given.few else ():
            few = store_few(name, Path(folder))
            asked += [(few, target) for target, (to, _) in UNROLLED.items() if to in given.to]
        for name, target in asked:
            stored = read_json(path)["rows"] if path.is_file() else []
            made = row_of(name, target)
            if made is not None:
                store([Row(**item) for item in stored], made)


if __name__ == "__main__":
    main()
