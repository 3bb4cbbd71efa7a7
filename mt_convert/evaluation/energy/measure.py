"""Additions, multiply-accumulates, comparisons and picojoules per image of a converted network.

Layers that spikes feed cost one addition per event and connection (`fanout`), all others
multiply-accumulates: once per image where their input is the encoded image, which is the same in
every step, and in every step where it can change. A neuron compares its potential with each of its
thresholds in every step, a signed one in both directions, and one of digits multiplies its membrane
by its base, a shift. What costs something and is in neither
column is listed, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import SpecError
from ...graph.float32 import in_float32
from ...graph.image_batches import collect
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import step_counts
from ...system.progress import progress
from ...training.from_scratch.network import ScratchNetwork
from .fanout import event_paths
from .from_scratch import scratch_energy
from .layer_rows import layer_rows, list_uncounted, total
from .report import FP32_45NM, EnergyReport, EnergyRow, EnergyTable
from .synops import StepCounts, count_synops


@in_float32()
def energy(
    snn: SpikingModel | ScratchNetwork,
    images: Any,
    *,
    time_steps: int | Sequence[int],
    table: EnergyTable = FP32_45NM,
    batch_size: int = 64,
) -> EnergyReport:
    """Count what a converted network does per image within T steps; several T in one pass.

    The numbers of a longer run show those of the shorter ones, except where layers wait for their
    whole window: then each T is run. A network trained from scratch is counted too, as
    `from_scratch` says.

    Shapes:
        images [n, channels, height, width], normalised as in training, in any form that `quantize`
        takes.
    Raises:
        SpecError: no images, or steps or a batch size below 1; more steps than a network from
            scratch was trained for.
        DataError: images of another shape, or with NaN.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.rand(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> report = energy(snn, images, time_steps=1)
        >>> [(row.name, row.macs, row.comparisons) for row in report.rows]
        [('0', 144, 0), ('1', 0, 240), ('3', 0, 0)]
        >>> report.rows[2].synops == 2 * report.rows[1].events
        True
    """
    if isinstance(snn, ScratchNetwork):
        return scratch_energy(
            snn, images, time_steps=time_steps, table=table, batch_size=batch_size
        )
    snn = spiking_network(snn, "energy")
    images = collect(images, image_shape=snn.image_shape)
    steps = _steps(time_steps, len(images), batch_size)
    paths = event_paths(snn)
    rows: list[EnergyRow] = []
    counts: StepCounts | None = None
    for T in reversed(steps):
        if counts is None or snn.whole_window:
            batches = progress(images.split(batch_size), f"energy, T = {T}")
            counts = count_synops(snn, paths, batches, T)
        rows = [*layer_rows(paths, counts, T, len(images)), *rows]
    return EnergyReport(
        images=len(images),
        prices=table,
        rows=tuple(rows),
        totals=tuple(total([row for row in rows if row.time_steps == T], T, table) for T in steps),
        not_counted=tuple(list_uncounted(paths)),
    )


def _steps(time_steps: int | Sequence[int], images: int, batch_size: int) -> list[int]:
    """The numbers of steps, ascending; raise if there is nothing to count."""
    steps = step_counts(time_steps)
    if images < 1 or batch_size < 1:
        raise SpecError(f"{images} images in batches of {batch_size}: both must be 1 or more")
    return steps
