"""A module imports only from floors below its own; a new module must be put on a floor here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mt_convert"

# A tenth orders the files into which one floor was split.
FLOORS = {
    "errors": 0,
    "ladder": 1,
    "keys": 1,
    "surrogate": 1,
    "linear_recurrence": 1,
    "tensor_train_start": 1.9,
    "tensor_train": 2,
    "results": 1,
    "storage": 1,
    "progress": 1,
    "quant_spec": 1.1,
    "catalogue": 1,  # beside
    "recipe_text": 1,  # beside
    "neurons": 2,
    "running": 2.1,
    "graph": 2,
    "exported": 2.1,
    "spelled_out": 2.1,
    "lift": 2.2,
    "trace": 2.3,
    "graph_json": 2.1,
    "networks": 2,  # beside
    "models": 2.1,  # beside
    "data": 2,  # beside
    "rules": 3,
    "carries": 3.1,
    "act_noise": 3,
    "learned_gaps": 3,
    "weight_codes": 3,
    "signed_range": 3,
    "quant_layers": 3.1,
    "quantize": 4,
    "terms": 3,
    "term_operations": 3.1,
    "shapes": 3.2,
    "spiking": 4,
    "spiking_json": 4.1,
    "macs": 4.2,
    "windows": 4.2,
    "walk": 4.3,
    "weight_grid": 4.2,
    "convert": 5.2,
    "archive": 5.3,
    "verify": 5.1,
    "simulate": 5,
    "compiled": 5.1,
    "canonical": 6.1,
    "integer": 7,
    "literal": 6.1,
    "train": 7,
    "direct": 7.1,
    "energy": 7.1,
    "peers": 7.1,
    "conversion_error": 7.1,
    "calibrate": 7.2,
    "settings": 7.3,
    "evaluate": 8,
    "peer_counter": 8.05,
    "cells": 8.1,
    "analysis": 8.2,
    "finetuning": 8.3,
    "from_scratch": 8.3,
    "pictures": 8,
    "subjects": 9.2,
    "row_kinds": 1.2,
    "peak_memory": 1,
    "processes": 1,
    "report": 8,
    "recipe_faults": 9,
    "recipe_reading": 9.05,
    "recipe": 9.1,
    "spiking_recipe": 9.15,
    "staged": 9.3,
    "spiking_run": 10,
    "pipeline": 10.2,
    "compare": 10,
    "finetune_run": 10,
    "coverage": 10,
    "benchmark": 10.1,  # its networks and its children in bounds are coverage's
    "cli": 11,
    "__init__": 12,
}
WITHOUT_TORCH = (
    "errors",
    "ladder",
    "keys",
    "results",
    "quant_spec",
    "progress",
    "catalogue",
    "recipe_text",
)
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def unit(module: Path) -> str:
    """The name under which a file stands in the table: its package's, or its own."""
    return module.parts[0] if len(module.parts) > 1 else module.stem


def imported(module: Path) -> Iterator[str]:
    """Everything a file imports, wherever in it: dotted, from the top of the package."""
    home = ("mt_convert", *module.parts[:-1])
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def test_the_package_has_modules_to_check() -> None:
    assert len(MODULES) > 15


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_stands_on_a_floor_and_imports_only_from_below(module: Path) -> None:
    own = unit(module)
    assert own in FLOORS, f"put mt_convert/{module} on a floor"
    for name in imported(module):
        head, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if head != "mt_convert" or other == own:
            continue
        assert other in FLOORS, f"{module} imports {name}, which is on no floor"
        assert FLOORS[other] < FLOORS[own], f"{module} imports {name} from its own floor or above"


def test_only_the_quantized_layers_import_brevitas() -> None:
    found = {
        unit(module)
        for module in MODULES
        if any(name.split(".")[0] == "brevitas" for name in imported(module))
    }
    assert found == {"quant_layers"}


def test_plain_modules_do_not_import_torch() -> None:
    found = {
        unit(module)
        for module in MODULES
        if any(name.split(".")[0] in ("torch", "timm", "brevitas") for name in imported(module))
    }
    assert not found & {*WITHOUT_TORCH, "cli"}


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, mt_convert.cli; sys.exit('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, check=False, capture_output=True
    )
    assert found.returncode == 0, "import mt_convert.cli takes torch with it: --help gets slow"
