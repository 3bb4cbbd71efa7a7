"""The reader that docs/export.md prints is the one that is written, and reproduces the logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from export_networks import converted, some_images
from paths import ROOT

import mt_convert as mt

DOCUMENT = (ROOT / "docs" / "export.md").read_text()
READER, *_ = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.S | re.M)


def test_the_printed_reader_reproduces_the_logits_bit_for_bit(tmp_path: Path) -> None:
    assert len([line for line in READER.splitlines() if line.strip()]) <= 60
    snn, images = converted("residual"), some_images("residual")
    mt.export.tables(snn, tmp_path / "out", images=images)
    assert (tmp_path / "out" / "reader.py").read_text() == READER
    scope: dict[str, Any] = {}
    exec(compile(READER, "export.md", "exec"), scope)
    *_, logits = scope["run"](*scope["read"](tmp_path / "out"), images.numpy()).values()
    reference = mt.integer_engine.IntegerArithmetic(snn)
    run = mt.simulate(snn, images, time_steps=1, arithmetic=reference)
    assert torch.equal(torch.tensor(logits), run.logits[-1])


def test_every_operator_and_target_is_in_the_document() -> None:
    from mt_convert.export.table_folder import OPS
    from mt_convert.export.targets import TARGETS

    assert all(f"`{op}`" in DOCUMENT for op in OPS)
    assert all(f"| `{target}` |" in DOCUMENT for target in TARGETS)
