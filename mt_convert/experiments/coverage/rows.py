"""The table of a sweep as plain data: one row per architecture. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...system.plain_data import as_type
from ...system.storage import read_json, reading

MAXIMA = ("max_pool1d", "max_pool2d", "max_pool3d", "amax", "amin")
SCHEMA = "mt_convert.coverage/1"


@dataclass(frozen=True)
class Settings:
    """How every architecture of a sweep was tried; rows of other settings are not mixed.

    ``size`` is the side of the images, None for the smallest that runs. ``modules`` are imported
    first: they may register more architectures with timm.

    Units: bits; ``images`` the batch that is calibrated on and checked.

    Example:
        >>> Settings(size=64).images
        4
    """

    size: int | None = None
    weight_bits: int = 8
    act_bits: int = 4
    images: int = 4
    seed: int = 0
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extent:
    """How much of a converted network is spikes, and whole numbers.

    Units: ``analog`` how often each operator stays analog, ``beside_first`` without what the
        encoded image feeds; ``spike_fed_mac_share`` and ``integer_mac_share`` 0 to 1, the last None
        where an accumulator could overflow; ``real`` how often each operator runs on real numbers
        in the integer network.

    Example:
        >>> extent = Extent(analog={"Conv2d": 1, "amax": 2}, beside_first={"amax": 2})
        >>> extent.first_layer_only, extent.maxima_only, extent.all_integer
        (False, True, False)
    """

    analog: dict[str, int] = field(default_factory=dict)
    beside_first: dict[str, int] = field(default_factory=dict)
    spike_fed_mac_share: float = 0.0
    integer_mac_share: float | None = None
    real: dict[str, int] = field(default_factory=dict)

    @property
    def first_layer_only(self) -> bool:
        """Whether nothing is analog but what the encoded image feeds."""
        return not self.beside_first

    @property
    def maxima_only(self) -> bool:
        """Whether nothing else is analog but that and maxima, which pick among spikes."""
        return set(self.beside_first) <= set(MAXIMA)

    @property
    def all_integer(self) -> bool:
        """Whether nothing runs on real numbers."""
        return self.integer_mac_share is not None and not self.real


@dataclass(frozen=True)
class CoverageRow:
    """What a trial of one architecture measured.

    Units: ``input_size`` pixels a side; ``macs`` per image; ``spike_fed_mac_share`` 0 to 1;
        ``analog`` how often each operator stays analog; ``not_spike_fed`` one line for each layer
        or product that spikes do not feed; ``exact_t1``: is T = 1 bit-equal to the quantized
        network; ``settling_t``: with ``thresholds`` < L signed thresholds, the step from which on
        everything is (None: not within ``time_steps``); ``differs`` the layers that are not exact;
        ``radix_exact``: are windows of digits with one threshold, ``radix_steps`` long, bit-equal
        too, else ``radix_differs`` (None: tried before there were digits);
        ``silent_layers`` layers of neurons that emitted nothing on the
        images tried; ``extent`` how far spikes and whole numbers reach, ``extent_without_ladders``
        the same where every function is kept analog (None: tried before they were neurons);
        ``memory`` the largest seen, in MiB.

    Example:
        >>> row = CoverageRow("vgg11", "vgg", error="no time")
        >>> row.converted, CoverageRow.from_json(row.to_json()) == row
        (False, True)
    """

    architecture: str
    family: str
    params: int | None = None
    input_size: int | None = None
    converted: bool = False
    spiking_layers: int = 0
    silent_layers: int | None = None
    spike_fed_mac_share: float | None = None
    macs: int | None = None
    analog: dict[str, int] = field(default_factory=dict)
    not_spike_fed: list[str] = field(default_factory=list)
    exact_t1: bool | None = None
    settling_t: int | None = None
    thresholds: int | None = None
    time_steps: int | None = None
    differs: list[str] = field(default_factory=list)
    radix_exact: bool | None = None
    radix_steps: int | None = None
    radix_differs: list[str] = field(default_factory=list)
    extent: Extent | None = None
    extent_without_ladders: Extent | None = None
    seconds: float = 0.0
    memory: int | None = None
    error: str | None = None

    @property
    def proven(self) -> bool:
        """Converted, and equal to its quantized network at T = 1."""
        return self.converted and self.exact_t1 is True

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CoverageRow:
        """The row that `to_json` described; columns that are not known are passed over."""
        row: CoverageRow = as_type(cls, data)
        return row


@dataclass(frozen=True)
class Table:
    """The content of ``results.json``: how it was measured, of how many, and the rows.

    ``known`` counts the families and architectures of the whole registry, tried or not.
    """

    settings: dict[str, Any]
    known: dict[str, int]
    rows: tuple[CoverageRow, ...]

    @property
    def families(self) -> dict[str, list[CoverageRow]]:
        """The rows of each family, in alphabetical order."""
        rows_of: dict[str, list[CoverageRow]] = {}
        for row in sorted(self.rows, key=lambda row: (row.family, row.params or 0)):
            rows_of.setdefault(row.family, []).append(row)
        return rows_of

    def only(self, names: Iterable[str]) -> Table:
        """The rows of some architectures."""
        selected = set(names)
        rows = tuple(row for row in self.rows if row.architecture in selected)
        return dataclasses.replace(self, rows=rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the schema."""
        rows = [row.to_json() for row in self.rows]
        return {"schema": SCHEMA, "settings": self.settings, "known": self.known, "rows": rows}


def read_table(path: str | Path) -> Table:
    """The table in a ``results.json``.

    Raises:
        CheckpointError: no such file, or it holds something else.
    """
    stored = read_json(path)
    if not isinstance(stored, Mapping) or stored.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no table of a sweep: its schema must be {SCHEMA}")
    with reading(path):
        rows = tuple(map(CoverageRow.from_json, stored["rows"]))
        settings = as_type(dict[str, Any], stored["settings"])
        return Table(settings, as_type(dict[str, int], stored["known"]), rows)


def one_line(texts: Iterable[str], limit: int = 300) -> str:
    """Texts joined and cut to one line of a table.

    Example:
        >>> one_line(["no  rule", "for a\\nthing"])
        'no rule; for a thing'
    """
    line = "; ".join(" ".join(text.split()) for text in texts if text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
