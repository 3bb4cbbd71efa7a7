"""What a page is made from, small and made up: every section has something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from results import ROW

from mt_convert.evaluation.energy.account import FLOAT, account
from mt_convert.evaluation.energy.report import FP32_45NM, EnergyReport, EnergyRow
from mt_convert.graph.signals import Signal
from mt_convert.report.html.page import PageContent
from mt_convert.report.html.parts import Download

VOID = {"meta", "link", "img", "br", "input", "hr"}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
DIRECT = "fed by the encoded image (direct coding), not by spikes"


def energy_rows(events: float = 40.0) -> tuple[EnergyRow, ...]:
    """A convolution that the image feeds, neurons, a linear layer that spikes feed."""
    conv = EnergyRow("conv", "Conv2d", Signal.IMAGE, 1, 0.0, 100, 0, 0, 100, (8, 8))
    neurons = EnergyRow("act", "MTNeuron", Signal.CURRENT, 1, 0, 0, 300, events, 0, (0, 0))
    linear = EnergyRow("fc", "Linear", Signal.SPIKES, 1, 9 * events, 0, 0, 0, 900, (4, 4))
    return (
        replace(conv, parameters=10),
        replace(neurons, packets=events, neurons=20, level_bits=4),
        replace(linear, parameters=90),
    )


def energy_report(events: float = 40.0) -> EnergyReport:
    """The three layers at T = 1."""
    return EnergyReport(4, FP32_45NM, energy_rows(events), (), ())


def _size(relative: float) -> dict[str, float]:
    return {"mean": 0.0, "rms": 0.1, "maximum": 0.2, "relative": relative}


def _errors() -> dict[str, Any]:
    causes = {"clipping": 0.0, "quantization": 0.01, "unevenness": 0.04, "whole": 0.05}
    row = {"layer": "act", "view": "propagated", "n": 3, "T": 2, "power": 1.0}
    return {
        "images": 4,
        "errors": [row | {cause: _size(share) for cause, share in causes.items()}],
        "logits": [{"n": 3, "T": 2}],
    }


def _node(name: str, kind: str, feeders: list[int], **more: Any) -> dict[str, Any]:
    plain = {"operator": kind, "spike_fed": False, "reason": "", "macs": 0}
    return {"name": name, "kind": kind, "feeders": feeders, **plain, **more}


INSPECTION: dict[str, Any] = {
    "images": 4,
    "backends": [
        {"name": "whole numbers", "T": 1, "images": 4, "differ": 0, "neurons": 4096},
        {"name": "another", "refused": "it leaks"},
    ],
    "setting": {
        **{"n": 3, "T": 2, "ladder": "uniform", "method": "mt_uniform", "mode": "parallel"},
        **{"signed": True, "presentation": "once"},
    },
    "nodes": [
        _node("images", "image", []),
        _node("conv", "weighted", [0], macs=100, reason=DIRECT),
        _node("act", "neurons", [1]),
        _node("fc", "weighted", [2], macs=900, spike_fed=True),
        _node("read-out", "output", [2, 3]),
    ],
    "layers": [
        {
            **{"name": "act", "ladder": "Uniform(n=3)", "thresholds": 3, "signed": True},
            **{"levels": [0, 15], "step": 0.25, "neurons": 20, "rate": 0.5},
            **{"saturated": 0.25, "channels": 8, "dead": 2},
        }
    ],
    "example": {
        **{"label": 3, "classes": [1, 3], "picture": DOT},
        "layers": [
            {
                **{"name": "act", "neurons": 20, "active": 2, "events": 4.0, "thresholds": 3},
                **{"chosen": [4, 7], "spikes": [[2.0, -1.0], [1.0, 0.0]]},
                "potentials": [[-0.5, 0.5], [0.25, 0.25]],
            }
        ],
    },
    "worst": {
        "differ": 1,
        "rows": [
            {
                **{"image": 2, "label": 5, "quantized": 5, "spiking": 1, "distance": 0.3},
                "picture": DOT,
            }
        ],
    },
    "errors": _errors(),
}


def _dear_account() -> dict[str, Any]:
    made = account({"n = 15, T = 1": (energy_report(), 1)})
    operations = {"Effective_MACs": 100.0, "Effective_ACs": 360.0, "Dense": 1000.0}
    measured = {"footprint": 120, "connection_sparsity": 0.125, "activation_sparsity": 0.75}
    made["neurobench"] = {"n = 15, T = 1": measured | {"synaptic_operations": operations}}
    return made | {"short": "no: 1.50 times the quantized network, 0.2 times fp32"}


CONTENT = PageContent(
    rows=[
        ROW,
        replace(ROW, n=1, T=2, snn_accuracy=88.4, exact_share=0.25, settling_T=None),
    ],
    name="resnet20",
    report={
        "verdict": {
            **{"exact_t1": True, "settling_t": 6, "thresholds": 4, "time_steps": 32},
            **{"images": 32, "neurons": 4096, "adversarial": 540, "differs": []},
        },
        "analog": [{"name": "conv", "operator": "Conv2d", "reason": DIRECT}],
        "warnings": ["dropout is idle"],
    },
    inspection=INSPECTION | {"account": _dear_account()},
    training={
        "quantized network": [
            {"epoch": 1, "train_loss": 0.5, "validation_accuracy": 90.0},
            {"epoch": 2, "train_loss": 0.4, "validation_accuracy": 91.0},
        ]
    },
    command="mt-convert run recipe.yaml --out runs/resnet20",
    recipe="name: resnet20\n",
    facts={"seed": "0", "packages": "torch 2.15.0"},
    downloads=[Download("results.json", "the table", 1200)],
)


def _scratch_inspection() -> dict[str, Any]:
    """What is stored of a network from scratch."""
    layer = {**INSPECTION["layers"][0], "saturated": None, "tau": 2.0, "signed": False}
    rows = [replace(row, bits=(32, 32), leaks=row.neurons) for row in energy_rows()]
    report = replace(energy_report(), rows=tuple(rows))
    reason = "fed by the image (direct coding), not by spikes"
    return {
        **{key: INSPECTION[key] for key in ("images", "nodes", "example")},
        **{"from_scratch": True, "layers": [layer]},
        "account": account({"n = 3, T = 1": (report, 1)}, None, FLOAT),
        "setting": INSPECTION["setting"] | {"signed": False},
        "analog": [{"name": "conv", "operator": "Conv2d", "reason": reason}],
    }


_BPTT = replace(ROW, qann_accuracy=None, exact_share=None, agreement=None, algorithm="bptt")
SCRATCH = PageContent(
    [_BPTT, replace(_BPTT, T=2)],
    "plif",
    inspection=_scratch_inspection(),
    sentence="There is no quantized network to equal.",
)
