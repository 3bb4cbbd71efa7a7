"""The numbers of a benchmark, with a versioned schema: rows, what is missing, and the machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...errors import CheckpointError
from ...system.plain_data import as_type

SCHEMA = "mt_convert.benchmark/1"
TRAINING_SCHEMA, LAYERS_SCHEMA = "mt_convert.training_speed/1", "mt_convert.layer_times/1"
THREADS_SCHEMA = "mt_convert.thread_times/1"


class ContenderKind(StrEnum):
    """What a contender computes, and so what its logits are compared with."""

    INTEGER = "ours, spiking"
    FLOAT = "float network"
    QUANTIZED = "quantized network"
    PEER = "other packages, spiking"


_NAMES = {
    ContenderKind.INTEGER: (
        *("integer_native", "integer_native_binary", "integer_native_radix", "integer_compile"),
        *("integer_torch", "simulate", "simulate_compile"),
    ),
    ContenderKind.FLOAT: (
        *("fp32_eager", "fp32_channels_last", "fp32_compile", "bf16_autocast", "bf16_eager"),
        *("bf16_compile", "fp16_eager", "fp16_compile", "onnxruntime_fp32"),
    ),
    ContenderKind.QUANTIZED: (
        *("onnxruntime_int8", "onnxruntime_int8_sums", "brevitas_eager", "brevitas_inference"),
    ),
    ContenderKind.PEER: ("spikingjelly_rate", "sinabs"),
}
KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
"""What each contender of `registry` computes, for pages that do not wait for torch."""
BINARY = ("integer_native_binary",)
"""Those whose thresholds are the bits of a level."""


@dataclass(frozen=True)
class BenchRow:
    """One contender on one network with so many images at once.

    Units: ``us_per_image`` microseconds, the median of ``rounds`` rounds; times the batch it is the
        latency. ``us_low`` and ``us_high``, the fastest and the slowest round.
        ``ratio_to_best_float`` how many times as fast as the fastest float network of the same
        network and batch, the median of the ratios within rounds; None where none was timed.
        ``peak_mib`` memory in a process of its own, see `memory`; None where not measured.
        ``bit_equal`` whether ours gives the bits of the reference backend; None for others.
        ``agreement`` share of checked images with the class of the network that it stands for;
        ``difference`` from its logits, root mean square, in standard deviations of what the logits
        of one class differ by from image to image: 0 the same, 1 nothing in common.
        ``share_of_limit`` of the time taken: what the multiply-adds of one step take at best, by
        the fastest int8 product, which had its turn as well; None where none could be timed.
        T and n are None where the network does not spike; n is 0 where neurons may emit any number
        of spikes in a step.
    """

    network: str
    batch: int
    T: int | None
    n: int | None
    contender: str
    us_per_image: float
    ratio_to_best_float: float | None
    peak_mib: float | None
    bit_equal: bool | None
    us_low: float
    us_high: float
    rounds: int
    agreement: float | None = None
    difference: float | None = None
    share_of_limit: float | None = None

    def __post_init__(self) -> None:
        positive = (self.batch, self.us_per_image, self.us_low, self.us_high, self.rounds)
        if not all(value > 0 for value in positive) or (self.T is not None and self.T < 1):
            raise CheckpointError(f"a row of the benchmark holds impossible numbers: {self}")

    @property
    def setting(self) -> tuple[str, int, int | None, int | None, str]:
        """What no two rows share."""
        return self.network, self.batch, self.T, self.n, self.contender


@dataclass(frozen=True)
class Absent:
    """A contender that was not timed, and the reason in a line."""

    network: str
    contender: str
    case: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """All that one benchmark measured; ``machine`` as `measure_machine` gives it, ``networks`` as
    `Network.size`.

    Example:
        >>> benchmark_from_json(Benchmark((), (), {}, {}).to_json())
        Benchmark(rows=(), absent=(), machine={}, networks={})
    """

    rows: tuple[BenchRow, ...]
    absent: tuple[Absent, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "networks": {name: dict(size) for name, size in self.networks.items()},
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "absent": [dataclasses.asdict(item) for item in self.absent],
        }


def benchmark_from_json(stored: Any) -> Benchmark:
    """What a ``results.json`` holds.

    Raises:
        CheckpointError: another schema; rows that lack a column, hold impossible numbers or stand
            there twice.
    """
    if not isinstance(stored, Mapping) or stored.get("schema") != SCHEMA:
        raise CheckpointError(f"not the results of a benchmark: their schema must be {SCHEMA}")
    try:
        rows = tuple(_row_from(BenchRow, row) for row in stored["rows"])
        absent = tuple(_row_from(Absent, item) for item in stored.get("absent", ()))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"a row of the benchmark is not whole: {error}") from error
    if len({row.setting for row in rows}) < len(rows):
        raise CheckpointError("rows of the benchmark stand there twice: measure them again")
    networks = as_type(dict[str, dict[str, Any]], stored.get("networks", {}))
    return Benchmark(rows, absent, as_type(dict[str, Any], stored.get("machine", {})), networks)


def merge(parts: Iterable[Benchmark]) -> Benchmark:
    """Several benchmarks of one machine as one; the machine is the first one's."""
    parts = list(parts)
    networks = {name: size for part in parts for name, size in part.networks.items()}
    rows = tuple(row for part in parts for row in part.rows)
    absent = tuple(dict.fromkeys(item for part in parts for item in part.absent))
    return Benchmark(rows, absent, parts[0].machine if parts else {}, networks)


def _row_from(kind: Any, stored: Mapping[str, Any]) -> Any:
    """A row from its columns; those of later versions are passed over."""
    names = [item.name for item in dataclasses.fields(kind)]
    columns = {name: stored[name] for name in names if name in stored}
    try:
        return as_type(kind, columns)
    except CheckpointError as error:
        if "impossible" in error.headline:
            raise
        raise CheckpointError(f"a row of the benchmark is not whole: {error}") from error


def moving_us(machine: Mapping[str, Any], size: Mapping[str, Any], batch: int) -> float:
    """Microseconds per image to move its numbers once: each weight is a byte for the whole batch,
    each number of the image four.

    Example:
        >>> size = {"weights": 100, "image": [3, 10, 10]}
        >>> moving_us({"bytes_per_s": 1e9}, size, batch=1)
        1.3
    """
    numbers = math.prod(size["image"])
    return 1e6 * (size["weights"] / batch + 4 * numbers) / float(machine["bytes_per_s"])
