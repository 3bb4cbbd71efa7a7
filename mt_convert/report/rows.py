"""Rows of results as plain numbers, with a versioned schema. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..system.plain_data import as_type

RESULTS_SCHEMA = "mt_convert.results/2"
_READABLE = (RESULTS_SCHEMA, "mt_convert.results/1")  # the first had fewer columns


@dataclass(frozen=True)
class Row:
    """One line of the table: a converted network, run in one way for T steps.

    Units: accuracies in percent of ``images`` test images, all three networks on the same ones
        (``ann_accuracy`` None where the float network is not at hand; ``control_accuracy`` of the
        float network trained on as long by the same schedule, None where none was;
        ``weight_bits`` and ``act_bits`` None where weights or activations are floats;
        ``qann_accuracy``, ``agreement`` and ``exact_share`` None for networks trained from scratch,
        which have no quantized network to compare with);
        ``agreement`` share of images where SNN and QANN predict the same class; ``exact_share``
        share of images on which every neuron's emission equals the QANN's activation;
        ``spikes_per_neuron`` events (thresholds crossed, set bits, the sizes of digits) per neuron
        and image over all T steps, ``packets_per_neuron`` the steps in which one emits anything
        (None in tables of before it was counted); ``settling_T`` the first
        step from which on every activation of every image is the QANN's, None if there is none;
        ``calibration`` what was set after conversion, for ``calibrated_T`` steps; ``algorithm`` how
        the spiking network was trained, for so many ``epochs``, the median of
        ``seconds_per_epoch``; ``peak_mib`` of memory taken beyond what was held before, on the
        accelerator where there is one; ``weights`` the code of the weights and ``spacing`` of the
        thresholds, of which a sub-bit code has a part of a bit; ``rounding`` where a value goes
        that lies half-way between two levels; ``functions`` how many of GELU and the like are
        neurons, and how many analog; ``run`` the name of the run, and ``digest`` the first
        characters of a digest of the network that the spiking one is made of.

    Example:
        >>> Row.fields()[:3]
        ['model', 'dataset', 'images']
    """

    model: str
    dataset: str
    images: int
    presentation: str
    mode: str
    signed: bool
    n: int
    T: int
    ann_accuracy: float | None
    qann_accuracy: float | None
    snn_accuracy: float
    agreement: float | None
    exact_share: float | None
    spikes_per_neuron: float
    ladder: str
    levels: int
    weight_bits: int | float | None
    whole_window: bool
    settling_T: int | None
    seed: int | None
    method: str = "mt_uniform"
    calibration: str = "none"
    calibrated_T: int | None = None
    qat_noise: str = "none"
    algorithm: str = "none"
    epochs: int | None = None
    seconds_per_epoch: float | None = None
    peak_mib: float | None = None
    weights: str = "uniform"
    spacing: str = "equal"
    rounding: str = "half_even"
    functions: str = "none"
    run: str | None = None
    digest: str | None = None
    packets_per_neuron: float | None = None
    act_bits: int | None = None
    control_accuracy: float | None = None

    @classmethod
    def fields(cls) -> list[str]:
        """Names of the columns, in order."""
        return [item.name for item in dataclasses.fields(cls)]


def results_to_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {"schema": RESULTS_SCHEMA, "rows": [dataclasses.asdict(row) for row in rows]}


def results_from_json(stored: Any) -> list[Row]:
    """The rows of a ``results.json``; columns added by later versions are passed over.

    Raises:
        CheckpointError: another schema, or a row without a column.
    """
    if not isinstance(stored, Mapping) or stored.get("schema") not in _READABLE:
        raise CheckpointError(f"not a results file: its schema must be {RESULTS_SCHEMA}")
    try:
        return [as_type(Row, _columns(row)) for row in stored["rows"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"a row of the results lacks {error}: make the file again") from error


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a stored row; those that came later have a value that says so."""
    late = {
        item.name for item in dataclasses.fields(Row) if item.default is not dataclasses.MISSING
    }
    columns = {name: row[name] for name in Row.fields() if name in row or name not in late}
    if columns["ladder"] == "poweroftwo":  # what rows of networks trained from scratch once wrote
        columns["ladder"] = "power_of_two"
    return columns
