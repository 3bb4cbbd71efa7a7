"""The card of a network: a head in YAML that the Hub reads, and what is known of it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..spiking.conversion_report import ConversionReport

TAGS = ("spiking-neural-network", "multi-threshold", "ann-to-snn", "quantization")
_KINDS = {
    "snn": "converted spiking network",
    "qann": "quantized network",
    "spiking": "spiking network trained from scratch",
}
_USE = """```python
import mt_convert as mt

network = mt.export.from_pretrained("{name}")
run = mt.simulate(network, images, time_steps=1)   # run.logits[-1]
```"""
_USE_OTHER = """```python
import mt_convert as mt

network = mt.export.from_pretrained("{name}")
logits = network(images)
```"""
_MOST = 200  # rows of a table


def card_text(
    content: Mapping[str, Any],
    report: ConversionReport | None,
    rows: Sequence[Mapping[str, Any]],
    head: Mapping[str, Any],
    notes: str,
) -> str:
    """The card as text."""
    rows = _distinct([row for row in rows if row.get("snn_accuracy") is not None])
    name = str(head.get("model_name", "network"))
    parts = [
        f"---\n{yaml.safe_dump(_head(rows, head, name), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"A {_KINDS.get(str(content.get('kind')), 'network')} of multi-threshold neurons, written "
        f"by mt_convert. Images: {'x'.join(map(str, content['image_shape']))}.",
        (_USE if report is not None else _USE_OTHER).format(name=name),
    ]
    if report is not None:
        parts += ["## Is it the quantized network?", _verdict(report)]
        parts += ["## What is not driven by spikes", _analog(report)]
        if report.warnings:
            parts += ["## Warnings", "\n".join(f"- {text}" for text in report.warnings)]
    if rows:
        parts += ["## Results", _table(rows)]
    parts += ["## Limits", _limits(content)]
    parts += [notes.strip()] if notes.strip() else []
    return "\n\n".join(parts) + "\n"


def _head(rows: Sequence[Mapping[str, Any]], head: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the Hub reads: one result for each data set, n and T."""
    own: dict[str, Any] = {"library_name": "mt_convert", "tags": list(TAGS)}
    own["pipeline_tag"] = "image-classification"
    if rows:
        own["datasets"] = sorted({str(row["dataset"]) for row in rows})
        own["metrics"] = ["accuracy"]
        results = [
            {
                "task": {"type": "image-classification"},
                "dataset": {"type": str(row["dataset"]), "name": str(row["dataset"])},
                "metrics": [
                    {
                        "type": "accuracy",
                        "value": round(float(row["snn_accuracy"]), 4),
                        "name": _network_name(row),
                        "args": {key: row[key] for key in ("n", "T") if row.get(key) is not None},
                    }
                ],
            }
            for row in rows
        ]
        own["model-index"] = [{"name": name, "results": results}]
    given = {key: value for key, value in head.items() if key != "model_name"}
    tags = [*own["tags"], *(tag for tag in given.pop("tags", []) if tag not in own["tags"])]
    return own | given | {"tags": tags}


def _network_name(row: Mapping[str, Any]) -> str:
    method = str(row.get("method") or "mt")
    calibration = row.get("calibration")
    more = "" if calibration in (None, "none") else f", {calibration}"
    return f"{method}{more}, n = {row.get('n')}, T = {row.get('T')}"


def _distinct(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of each data set, way, n and T."""
    keys = ("dataset", "method", "calibration", "presentation", "n", "T")
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(row.get(key) for key in keys), row)
    return list(first.values())[:_MOST]


def _verdict(report: ConversionReport) -> str:
    if report.verdict is None:
        return "Not verified when it was converted: `convert(qann, verify=images)` does it."
    text = str(report.verdict)
    if report.float_agreement is not None:
        text += (
            ". The quantized network gave the float network's class to "
            f"{100 * report.float_agreement:.1f} % of {report.float_images} calibration images "
            "before any training"
        )
    return text[:1].upper() + text[1:] + "."


def _analog(report: ConversionReport) -> str:
    lines = [f"- `{row.name}` ({row.operator}): {row.reason}" for row in report.analog[:_MOST]]
    return "\n".join(lines) or "Nothing: every layer is fed by spikes."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("data", "way", "accuracy %", "quantized %", "images")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        quantized = row.get("qann_accuracy")
        cells = (
            str(row["dataset"]),
            _network_name(row),
            f"{float(row['snn_accuracy']):.2f}",
            "–" if quantized is None else f"{float(quantized):.2f}",
            str(row.get("images", "–")),
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _limits(content: Mapping[str, Any]) -> str:
    lines = ["Exact means equal to the quantized network, not to the float network it came from."]
    if content.get("kind") == "snn":
        lines.append("With fewer thresholds or another T than stated it is an approximation.")
    lines.append("Energy is not stated here: `mt.energy(network, images)` counts it.")
    return " ".join(lines)
