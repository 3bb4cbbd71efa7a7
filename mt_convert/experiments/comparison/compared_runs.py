"""What runs that are compared stored: a row for each network, its points in pictures. No torch."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...report.html.pareto import KINDS, Point, frontier
from ...report.intervals import wilson
from ...report.records import csv_text
from ...report.row_groups import bits_of, networks_of, working_point
from ...report.rows import Row
from ...system.storage import json_text, read_json, reading
from ..show import stored_rows

SCHEMA = "mt_convert.comparison/1"


@dataclass(frozen=True)
class Compared:
    """A network of a run at the point that stands for it.

    Units: accuracies in percent of ``images``, ``low`` and ``high`` the ends of the spiking one's
        95 % interval; energies in nanojoules per image, None where none was counted: the spiking
        network run as ``energy_way`` says, at ``prices``; ``unbeaten``: whether none of the runs on
        the same images is both as cheap (``energy``), or as fast (``steps``), and more accurate.
    """

    name: str
    folder: str
    model: str
    dataset: str
    images: int
    bits: str
    seed: int | None
    ann_accuracy: float | None
    control_accuracy: float | None
    qann_accuracy: float | None
    snn_accuracy: float
    low: float
    high: float
    n: int
    T: int
    method: str
    exact: bool
    settling_T: int | None
    spikes_per_neuron: float
    energy_way: str | None = None
    prices: str | None = None
    spiking_nj: float | None = None
    quantized_nj: float | None = None
    float_nj: float | None = None
    unbeaten_in_energy: bool | None = None
    unbeaten_in_steps: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times the quantized network's energy the spiking one takes."""
        if self.spiking_nj is None or not self.quantized_nj:
            return None
        return self.spiking_nj / self.quantized_nj

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class ComparedNetwork:
    """The rows of one network, what its energy was counted to be, and what became of it."""

    rows: Sequence[Row]
    account: Mapping[str, Any] | None
    setting: Mapping[str, Any] | None
    row: Compared

    @property
    def images(self) -> tuple[str, int]:
        """What its accuracy is of."""
        return self.row.dataset, self.row.images


@dataclass(frozen=True)
class Comparison:
    """Networks side by side, each with its points in both pictures."""

    networks: tuple[ComparedNetwork, ...]
    command: str
    out: Path

    @property
    def rows(self) -> list[Compared]:
        """A line for each network."""
        return [item.row for item in self.networks]

    def plain(self, form: str) -> str:
        """The lines as ``json`` or ``csv``."""
        if form == "csv":
            return csv_text(Compared, self.rows)
        return json_text({"schema": SCHEMA, "runs": [row.to_json() for row in self.rows]})


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where that is another's too.

    Example:
        >>> short_names([Path("runs/a"), Path("b/c"), Path("d/c")])
        ['a', 'b/c', 'd/c']
    """
    names = [Path(os.path.abspath(item)).name for item in folders]
    count = Counter(names)
    return [
        name if count[name] == 1 else str(item) for name, item in zip(names, folders, strict=True)
    ]


def networks_in(folder: Path, name: str) -> list[ComparedNetwork]:
    """The networks whose rows a folder holds; energy is the converted one's."""
    path = folder / "inspect" / "inspection.json"
    with reading(path):
        stored = read_json(path) if path.is_file() else {}
        account, setting = stored.get("account"), stored.get("setting")
        if account is not None:
            _energies(account)
    networks: list[ComparedNetwork] = []
    groups = networks_of(stored_rows(folder))
    for words, rows in groups.items():
        alone = rows[0].algorithm == "none" or rows[0].qann_accuracy is None  # from scratch
        mine = account is not None and not networks and alone
        more = _energies(account) if mine and account is not None else {}
        label = f"{name}: {words.replace(chr(10), ', ')}" if len(groups) > 1 else name
        row = _row(label, folder, rows, more)
        networks.append(ComparedNetwork(rows, account if mine else None, setting, row))
    return networks


def _row(name: str, folder: Path, rows: Sequence[Row], energies: Mapping[str, Any]) -> Compared:
    """The line of one network."""
    best = working_point(rows)
    low, high = wilson(best.snn_accuracy / 100, best.images)
    return Compared(
        name=name,
        folder=str(folder),
        model=best.model,
        dataset=best.dataset,
        images=best.images,
        bits=bits_of(best),
        seed=best.seed,
        ann_accuracy=best.ann_accuracy,
        control_accuracy=best.control_accuracy,
        qann_accuracy=best.qann_accuracy,
        snn_accuracy=best.snn_accuracy,
        low=100 * low,
        high=100 * high,
        n=best.n,
        T=best.T,
        method=best.method,
        exact=best.exact_share == 1,
        settling_T=best.settling_T,
        spikes_per_neuron=best.spikes_per_neuron,
        **energies,
    )


def _energies(account: Mapping[str, Any]) -> dict[str, Any]:
    """What the account of a run says of its networks: quantized, spiking, float; of one from
    scratch there is no quantized one."""
    beside, spiking, *_ = account["networks"]
    scratch = (account.get("reference") or {}).get("bits") is not None
    ann = beside if scratch else account["networks"][-1]
    return {
        "energy_way": str(account["way"]),
        "prices": str(account["price"]["name"]),
        "spiking_nj": spiking["total"] / 1000,
        "quantized_nj": None if scratch else beside["total"] / 1000,
        "float_nj": ann["total"] / 1000,
    }


def mark_unbeaten(networks: Sequence[ComparedNetwork]) -> list[ComparedNetwork]:
    """The same, with whether another beats them."""
    marked = []
    for item in networks:
        alike = [other for other in networks if other.images == item.images]
        place = alike.index(item)
        in_steps = any(point.run == place for point in frontier(step_points(alike)))
        in_energy = None
        if item.row.spiking_nj is not None:
            spiking = [point for point in energy_points(alike) if point.kind == "spiking"]
            in_energy = any(point.run == place for point in frontier(spiking))
        row = dataclasses.replace(
            item.row, unbeaten_in_energy=in_energy, unbeaten_in_steps=in_steps
        )
        marked.append(dataclasses.replace(item, row=row))
    return marked


def step_points(networks: Sequence[ComparedNetwork]) -> list[Point]:
    """The best accuracy of each network after each number of steps, over all its thresholds."""
    points = []
    for place, item in enumerate(networks):
        for T in sorted({row.T for row in item.rows}):
            best = max(
                (row for row in item.rows if row.T == T),
                key=lambda row: (row.exact_share == 1, row.snn_accuracy, -row.n),
            )
            words = f"{item.row.name}, n = {best.n}, T = {T}"
            stands = item.row.T == T
            points.append(Point(T, best.snn_accuracy, place, "spiking", words, stands, "steps"))
    return points


def energy_points(networks: Sequence[ComparedNetwork]) -> list[Point]:
    """Float, control, quantized and spiking networks; of these each way whose accuracy is known."""
    points = []
    for place, item in enumerate(networks):
        row, account = item.row, item.account
        if account is None or row.spiking_nj is None or not row.float_nj:
            continue
        for kind, cost, value in (
            ("float", row.float_nj, row.ann_accuracy),
            ("control", row.float_nj, row.control_accuracy),
            ("quantized", row.quantized_nj, row.qann_accuracy),
        ):
            if value is not None and cost:
                points.append(Point(cost, value, place, kind, f"{row.name}, {KINDS[kind]}"))
        words = f"{row.name}, {row.energy_way}"
        points.append(Point(row.spiking_nj, row.snn_accuracy, place, "spiking", words, True))
        for way, costs in account.get("over_time", {}).items():
            n = account.get("thresholds", {}).get(way)
            for cost in costs:
                value = _accuracy(item, n, cost["T"])
                if f"n = {n}, T = {cost['T']}" == row.energy_way or value is None:
                    continue
                words = f"{row.name}, n = {n}, T = {cost['T']}"
                cost_nj = cost["total"] / 1000
                points.append(Point(cost_nj, value, place, "spiking", words, line=way))
    return points


def _accuracy(item: ComparedNetwork, n: int | None, T: int) -> float | None:
    """The accuracy of a network in the setting that was looked into; None where it is not known."""
    setting = item.setting or {}
    alike = [
        row.snn_accuracy
        for row in item.rows
        if (row.n, row.T, row.calibration) == (n, T, "none")
        and row.method == setting.get("method")
        and row.mode == setting.get("mode")
        and row.signed == setting.get("signed")
        and row.presentation == setting.get("presentation")
    ]
    return alike[0] if alike else None
