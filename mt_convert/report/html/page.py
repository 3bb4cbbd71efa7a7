"""The page of a run, of a table or of a benchmark: what was stored, as one file for a browser.

The file needs nothing beside it: style, script and drawings are inside, and it asks no other
machine for anything. Sections for which nothing was stored are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ..columns import COLUMNS, cells, columns, legend
from ..intervals import wilson
from ..records import figures
from ..row_groups import kinds_of, working_point
from ..rows import Row
from ..tables import title
from . import charts
from .parts import Download
from .rendering import percent, render_template

SATURATED = 0.05
"""The share of activations at the ends of a quantizer above which a layer is marked."""
FAR, SMALLEST = 4, 1.01e-10
"""How far the last level lies beyond all but a thousandth of activations in a layer that is marked;
the range of a quantizer below which it cannot learn."""


@dataclass(frozen=True)
class PageContent:
    """All that a page is made from, as plain data.

    ``report`` is the conversion report, ``inspection`` what a look into the network stored,
    ``training`` the log of each stage that trained, ``facts`` what a reader needs to make it again,
    ``speed``, ``analyses`` and ``accounts`` tables of a benchmark and of ``eval --errors``.
    """

    rows: Sequence[Row]
    name: str
    heading: str = ""
    report: Mapping[str, Any] | None = None
    inspection: Mapping[str, Any] | None = None
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    command: str = ""
    recipe: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    downloads: Sequence[Download] = ()
    analyses: Sequence[Mapping[str, Any]] = ()
    accounts: Sequence[Mapping[str, Any]] = ()
    speed: Mapping[str, Any] | None = None
    sentence: str = ""


def render(content: PageContent) -> str:
    """The page.

    Raises:
        CheckpointError: a part of what it is made from is missing.

    Example:
        >>> page = render(PageContent((), "digits", command="mt-convert run digits"))
        >>> page.splitlines()[0], "mt-convert run digits" in page
        ('<!DOCTYPE html>', True)
    """
    return render_template(
        "page.html",
        content=content,
        heading=content.heading or title(content.rows),
        **_view(content),
    )


def _view(content: PageContent) -> dict[str, Any]:
    """What the template shows, section by section; None or empty where there is nothing."""
    rows, inspection = content.rows, content.inspection or {}
    example = inspection.get("example")
    traces = example["layers"] if example else ()
    return {
        "verdict": _verdict(content.report),
        "evaluated": _images_sentence(rows),
        "accuracies": _accuracies(rows),
        "panels": charts.accuracy_panels(rows) if rows else [],
        "table": _table(rows),
        "legend": legend(rows) if rows else "",
        "nodes": _nodes(inspection.get("nodes", ())),
        "lanes": charts.network_lanes(inspection["nodes"]) if inspection.get("nodes") else None,
        "spike_share": _spike_share(inspection.get("nodes", ())),
        "analog": (content.report or inspection).get("analog"),
        "scratch": bool(inspection.get("from_scratch")),
        "example": example,
        "rasters": [charts.raster(item, k) for k, item in enumerate(traces)],
        "potentials": [charts.potentials(item, k) for k, item in enumerate(traces)],
        "busiest": [charts.busiest_neuron(item) for item in traces],
        "setting": inspection.get("setting"),
        "backends": inspection.get("backends", ()),
        "looked_at": inspection.get("images"),
        "worst": inspection.get("worst"),
        "not_analysed": inspection.get("not_analysed"),
        "heats": _heats(content, inspection),
        "account": inspection.get("account"),
        "beside": _beside(inspection.get("account")),
        "not_counted": inspection.get("not_counted"),
        "account_bars": _account_bars(inspection.get("account")),
        "layers": _layers(inspection.get("layers", ())),
        "training": [
            (stage, drawn)
            for stage, log in content.training.items()
            if (drawn := charts.training_panels(log))  # of one epoch there is no curve
        ],
        "settles": _settles(rows),
        "rate": _rate(inspection.get("layers", ())),
        "warnings": (content.report or {}).get("warnings", ()),
    }


# ------------------------------------------------------------------------------------ sections


def _verdict(report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The verdict of a conversion, if it was asked for."""
    return None if report is None else report.get("verdict")


def _images_sentence(rows: Sequence[Row]) -> str | None:
    """On how many evaluated images every activation is the quantized network's."""
    converted = [row for row in rows if row.exact_share is not None and row.algorithm == "none"]
    if not converted:
        return None
    row = working_point(converted)
    if row.exact_share != 1:
        return None
    return f"On all {row.images:,} test images too: every activation, n = {row.n}, T = {row.T}."


def _accuracies(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Float, control, quantized and spiking accuracy with their 95 % intervals, as converted and as
    trained on; a spiking one after the step that stands for it, which is said."""
    if len({(row.model, row.dataset, row.ann_accuracy, row.qann_accuracy) for row in rows}) != 1:
        return []
    first = rows[0]
    values = [
        ("float", "float network (ANN)", first.ann_accuracy, ""),
        (
            "control",
            "float network trained on as long (control)",
            first.control_accuracy,
            "same schedule, no quantizers",
        ),
        ("quantized", "quantized network (QANN)", first.qann_accuracy, ""),
    ]
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        best = working_point([row for row in rows if row.algorithm == algorithm])
        where = f"n = {best.n}, T = {best.T}"
        if best.exact_share != 1:
            where += ", the best of the table"
        converted = algorithm == "none" or first.qann_accuracy is None
        key = "spiking" if converted else f"fine-tuned-{algorithm.replace('_', '-')}"
        words = "spiking network (SNN)"
        words += "" if converted else f", fine-tuned by {algorithm}"
        values.append((key, words, best.snn_accuracy, where))
    return [
        {
            "id": key,
            "words": words,
            "value": value,
            "low": 100 * wilson(value / 100, first.images)[0],
            "high": 100 * wilson(value / 100, first.images)[1],
            "where": where,
        }
        for key, words, value, where in values
        if value is not None
    ]


def _settles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each n of the first kind of rows that settles, the step from which on it equals the
    quantized network."""
    for alike in kinds_of(rows).values():
        settled = {row.n: row.settling_T for row in alike if row.settling_T is not None}
        if settled:
            return [{"n": n, "T": settled[n]} for n in sorted(settled)]
    return []


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as a table."""
    names = columns(rows)
    return {
        "heads": [COLUMNS[name] for name in names],
        "rows": [{"cells": cells(row, names), "exact": row.exact_share == 1} for row in rows],
    }


def _nodes(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The nodes of the network with what a reader is told of each."""
    whole = sum(node["macs"] for node in nodes) or 1
    most = max((node["macs"] for node in nodes), default=1) or 1
    shown = []
    for node in nodes:
        kind = charts.node_class(node)
        told = {
            "neurons": "multi-threshold neurons: they emit the spikes",
            "image": "the image, real numbers",
            "encoder": "the image quantized, once; it does not spike",
            "output": "the logits",
            "spike-fed": "fed by spikes alone: additions, no products",
        }
        reason = node["reason"] or told.get(kind, "")
        shown.append(
            {
                **node,
                "class": kind,
                "said": reason,
                "share": node["macs"] / whole,
                "bar": node["macs"] / most,
                "feeding": ", ".join(nodes[k]["name"] for k in node["feeders"]),
            }
        )
    return shown


def _spike_share(nodes: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The share of multiply-accumulates that spikes feed."""
    whole = sum(node["macs"] for node in nodes)
    fed = sum(node["macs"] for node in nodes if node["spike_fed"])
    weighted = [node for node in nodes if node["kind"] == "weighted"]
    if not whole:
        return None
    return {
        "share": fed / whole,
        "macs": whole,
        "layers": len(weighted),
        "fed": sum(node["spike_fed"] for node in weighted),
    }


def _rate(layers: Sequence[Mapping[str, Any]]) -> float | None:
    """Events per neuron and step over all layers."""
    neurons = sum(item["neurons"] for item in layers)
    return sum(item["rate"] * item["neurons"] for item in layers) / neurons if neurons else None


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The layers of neurons with what a reader should look at; of a network from scratch, which has
    no quantizer, that is channels alone."""
    shown = []
    for item in layers:
        alerts = []
        if item["saturated"] is not None and item["saturated"] > SATURATED:
            alerts.append(f"{percent(item['saturated'], 1)} of activations at the quantizer's end")
        if item["dead"]:
            alerts.append(f"{item['dead']} of {item['channels']} channels never fire")
        if item["saturated"] is None:
            shown.append({**item, "alerts": alerts})
            continue
        low, high = item["levels"]
        bits = (high - low).bit_length()
        typical = item.get("typical") or high  # not stored by earlier versions
        if item["step"] * (high - low) <= SMALLEST:
            alerts.append("its step is at the smallest that is allowed")
        elif not low and high < 2**bits - 1:
            alerts.append(f"{high} of {2**bits - 1} levels: the function it replaces ends there")
        if typical * FAR <= high:
            alerts.append(
                f"99.9 % of what fires lies at level {typical} of {high} or below: a few large "
                "values set its step"
            )
        shown.append({**item, "alerts": alerts, "bits": bits})
    return shown


def _heats(content: PageContent, inspection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Errors by cause of each layer, of the inspection and of each analysis at their last T."""
    tables = [("", inspection["errors"])] if inspection.get("errors") else []
    tables += [(item["title"], item["errors"]) for item in content.analyses]
    heats = []
    for words, table in tables:
        measured: dict[int, list[int]] = {}
        for row in table["logits"]:
            measured.setdefault(row["n"], []).append(row["T"])
        ends = [(n, T) for n, steps in measured.items() for T in sorted({steps[0], steps[-1]})]
        for n, T in ends:
            rows = charts.error_heat(table, "propagated", n, T)
            heats.append({"title": words, "n": n, "T": T, "images": table["images"], "rows": rows})
    return heats


def _beside(account: Mapping[str, Any] | None) -> str:
    """The network that stands beside the spiking one: quantized, or float where there is none."""
    reference = (account or {}).get("reference") or {"bits": None}
    return "quantized" if reference["bits"] is None else "float"


def _account_bars(account: Mapping[str, Any] | None) -> Markup | None:
    """Compute, memory and neurons of each network, as bars."""
    if account is None:
        return None
    parts = ("compute", "neurons", "memory")
    rows = [
        (item["name"], [(part, item[part] / 1000) for part in parts])
        for item in account["networks"]
    ]
    said = ", ".join(f"{name} {figures(sum(size for _, size in sizes))} nJ" for name, sizes in rows)
    return charts.bars(rows, "nJ", f"Energy per image: {said}")
