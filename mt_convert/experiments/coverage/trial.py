"""One trial: build an architecture, quantize it, convert it, check it, count what spikes feed."""

from __future__ import annotations

import dataclasses
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...errors import MTConvertError, error_line
from ...evaluation.energy.macs import count_macs, spike_fed_share
from ...graph.signals import Signal
from ...integer_engine.tracing import trace
from ...neurons.ladder import Radix
from ...quantization.quantize import QuantizedModel, levels_of, quantize
from ...quantization.spec import ANALOG, LADDER, QuantSpec
from ...spiking.convert import convert
from ...spiking.model import SpikingModel
from ...spiking.simulate import simulate
from ...system.bounded import Note
from ..models.lived_in import TrialError, build
from .registry import Architecture
from .rows import Extent, Settings, one_line

KINDS_SHOWN = 6


def trial(architecture: Architecture, settings: Settings, *, note: Note) -> dict[str, Any]:
    """Try one architecture; ``note`` takes each stage before it starts.

    Returns:
        The columns of `CoverageRow` that a trial measures; where it fails ``error`` says in one
        line why, and the traceback is on stderr.
    """
    columns: dict[str, Any] = {}

    def tell(stage: str, **measured: Any) -> None:
        columns.update(measured)
        note({**measured, "stage": stage})

    try:
        torch.set_num_threads(1)
        for name in settings.modules:
            import_module(name)
        tell("building")
        _try(architecture, settings, tell)
    except Exception as error:  # whatever stands in the way is what the table is to say
        traceback.print_exc()
        return {**columns, "converted": False, "error": _cause(error)}
    return {**columns, "converted": True}


def _try(architecture: Architecture, settings: Settings, tell: Any) -> None:
    """The stages, each reporting what it measured."""
    built = build(architecture.name, size=settings.size, images=settings.images, seed=settings.seed)
    params = sum(parameter.numel() for parameter in built.model.parameters())
    tell("quantizing", params=params, input_size=built.images.shape[-1])
    spec = QuantSpec(weight_bits=settings.weight_bits, act_bits=settings.act_bits)
    qann = quantize(built.model, spec, calibration=built.images)
    tell("converting and verifying")
    snn = convert(qann, verify=built.images)
    verdict = snn.report.verdict
    assert verdict is not None
    if not snn.report.neurons:
        raise TrialError("nothing of it spikes: it holds no layer of neurons")
    tell(
        "counting",
        spiking_layers=len(snn.report.neurons),
        exact_t1=verdict.exact_t1,
        settling_t=verdict.settling_t,
        thresholds=verdict.thresholds,
        time_steps=verdict.time_steps,
        differs=list(verdict.differs),
    )
    tell("digits")
    digits = _try_digits(qann, built.images)
    tell("without ladders", **digits, **_count(snn), silent_layers=_silent(snn, built.images))
    extent = dataclasses.asdict(extent_of(snn))
    kept = extent  # the same network where it has no function to keep
    if any(row.taken == LADDER for row in qann.functions):
        spec = dataclasses.replace(spec, functions=ANALOG)
        analog = convert(quantize(built.model, spec, calibration=built.images))
        kept = dataclasses.asdict(extent_of(analog))
    tell("ending", extent=extent, extent_without_ladders=kept)


def _try_digits(qann: QuantizedModel, images: Tensor) -> dict[str, Any]:
    """Digits with one threshold, in windows: bit-equal to the quantized network?"""
    snn = convert(qann, ladder=Radix(1), whole_window=True)
    latency = snn.report.latency
    assert latency is not None
    assert latency.steps is not None
    with levels_of(qann) as expected, torch.no_grad():
        logits = qann(images)
    run = simulate(snn, images, time_steps=latency.steps)
    differs = [name for name in expected if not torch.equal(run.totals[name], expected[name])]
    differs += [] if torch.equal(run.logits[-1], logits) else ["logits"]
    return {
        "radix_exact": not differs,
        "radix_steps": latency.steps,
        "radix_differs": sorted(differs),
    }


def _count(snn: SpikingModel) -> dict[str, Any]:
    """What spikes feed, and what stays analog."""
    rows = count_macs(snn).values()
    total = max(1, sum(row.macs for row in rows))
    reasons = {row.name: row.reason for row in snn.report.analog}
    return {
        "macs": sum(row.macs for row in rows),
        "spike_fed_mac_share": spike_fed_share(rows),
        "not_spike_fed": [
            f"{row.name} ({_short(row.operator)}, {100 * row.macs / total:.1f} % of MACs) "
            f"{reasons.get(row.name, f'fed by {row.fed_by}')}"
            for row in rows
            if not row.spike_fed
        ],
        "analog": _kinds(row.operator for row in snn.report.analog),
    }


def extent_of(snn: SpikingModel) -> Extent:
    """How far spikes and whole numbers reach."""
    rows = count_macs(snn)
    total = max(1, sum(row.macs for row in rows.values()))
    fed_by_image = {row.name for row in snn.operations.values() if row.fed_by is Signal.IMAGE}
    operators = {row.name: row.operator for row in snn.operations.values()}
    try:
        real: Sequence[str] | None = trace(snn).real
    except MTConvertError:  # an accumulator could pass 32 bits
        real = None
    left = sum(row.macs for row in rows.values() if row.name in (real or ()))
    return Extent(
        analog=_kinds(row.operator for row in snn.report.analog),
        beside_first=_kinds(
            row.operator for row in snn.report.analog if row.name not in fed_by_image
        ),
        spike_fed_mac_share=spike_fed_share(rows.values()),
        integer_mac_share=None if real is None else 1 - left / total,
        real=_kinds(operators[name] for name in real or ()),
    )


def _kinds(operators: Iterable[str]) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    return dict(Counter(map(_short, operators)).most_common())


def _silent(snn: SpikingModel, images: Tensor) -> int:
    """How many layers of neurons emit nothing on any image: a check of the trial itself."""
    run = simulate(snn, images, time_steps=1)
    return sum(not bool(count.any()) for count in run.spike_counts.values())


def _short(operator: str) -> str:
    """``aten.softmax.int`` as people say it."""
    return operator.removeprefix("aten.").split(".")[0]


def _cause(error: Exception) -> str:
    """One line: the kind of error, its headline, and where there are faults their kinds and what to
    do."""
    if not isinstance(error, MTConvertError):
        return one_line([error_line(error)])
    kinds = Counter(fault.what for fault in error.faults)
    kind_counts = ", ".join(
        f"{what} ({count}x)" if count > 1 else what
        for what, count in kinds.most_common(KINDS_SHOWN)
    )
    more = f", and {len(kinds) - KINDS_SHOWN} more kinds" if len(kinds) > KINDS_SHOWN else ""
    hint = error.faults[0].hint if error.faults else ""
    return one_line([f"{type(error).__name__}: {error.headline}", kind_counts + more, hint])
