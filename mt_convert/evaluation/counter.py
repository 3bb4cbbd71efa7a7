"""What a converted network does on images, counted batch by batch, and the rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor

from ..report.rows import Row
from ..spiking.levels import levels
from ..spiking.model import SpikingModel
from ..spiking.presentation import Presentation
from ..spiking.shapes import image_axes
from ..spiking.simulate import simulate
from .settings import Setting


class Counter:
    """One setting on one network: add batches, then read the rows.

    Shapes:
        counts [5, T], float64: after each step, over all images so far, how many were classified
        correctly, as the quantized network does, with every activation exact (0 where thresholds
        are no longer those of the quantizers, ``comparable``); all events and packets. Whole
        numbers: summed in any order, by any number of processes, they are the same.
    """

    def __init__(self, snn: SpikingModel, setting: Setting, comparable: bool = True) -> None:
        self.snn, self.setting = snn, setting
        self.neurons = dict(snn.neurons())
        self.counts = torch.zeros(5, setting.time_steps[-1], dtype=torch.float64)
        self.neuron_count = 0
        self.comparable = comparable and setting.comparable
        self.axes = {
            str(node.target): axis
            for node, axis in image_axes(snn.layers).items()
            if node.op == "call_module"
        }

    @torch.no_grad()
    def add(
        self, images: Tensor, labels: Tensor, predicted: Tensor, expected: dict[str, Tensor]
    ) -> None:
        """Simulate one batch. ``predicted`` are the quantized network's classes, ``expected`` its
        levels, which are compared only where thresholds are still those of its quantizers."""
        for time_steps in self.setting.runs:
            self._count(images, labels, predicted, expected, time_steps)

    def _count(
        self,
        images: Tensor,
        labels: Tensor,
        predicted: Tensor,
        expected: dict[str, Tensor],
        time_steps: int,
    ) -> None:
        exact = torch.full((time_steps, len(labels)), self.comparable, device=images.device)
        even = self.snn.presentation is Presentation.EVERY_STEP

        def compare(t: int, name: str, totals: Tensor, emitted: Tensor) -> None:
            if not bool(exact[t].any()):  # layers before have told all images apart
                return
            due, shown = expected[name], totals
            if even:  # a level is worth L / (n T) of the quantizer's
                spec = self.neurons[name].spec
                due, shown = due * (spec.ladder.reach * (t + 1)), totals * levels(spec)
            equal = (shown == due).movedim(self.axes[name], 0)
            exact[t] &= equal.reshape(len(labels), -1).all(1)

        observe = compare if self.comparable else None
        with catch_warnings():  # rows say what was calibrated for how many steps
            filterwarnings("ignore", "this network was calibrated for T")
            run = simulate(self.snn, images, time_steps=time_steps, observe=observe)
        self.neuron_count = sum(run.neurons.values())
        answers = run.logits.argmax(2)
        sums = (
            (answers == labels).sum(1),
            (answers == predicted).sum(1),
            exact.sum(1),
            over_layers(run.spike_counts, time_steps).cumsum(0),
            over_layers(run.packets, time_steps).cumsum(0),
        )
        shown = slice(time_steps - 1 if self.setting.whole_window else 0, time_steps)
        self.counts[:, shown] += torch.stack([item.double().cpu() for item in sums])[:, shown]

    def rows(self, columns: dict[str, Any]) -> list[Row]:
        """The rows of the setting; ``columns``: those that it does not measure."""
        setting, total = self.setting, columns["images"]
        correct, agreed, exact, events, packets = self.counts.tolist()
        neurons = max(1, self.neuron_count)
        seen = setting.time_steps if setting.whole_window else range(1, setting.time_steps[-1] + 1)
        inexact = [T for T in seen if exact[T - 1] < total]
        later = [T for T in seen if not inexact or inexact[-1] < T]
        once = setting.presentation is Presentation.ONCE
        signed = setting.signed or all(neuron.spec.signed for neuron in self.neurons.values())
        return [
            Row(
                presentation=str(setting.presentation),
                mode=str(setting.firing),
                signed=signed,
                n=setting.ladder.n,
                T=T,
                snn_accuracy=percent(correct[T - 1], total),
                agreement=agreed[T - 1] / total,
                exact_share=exact[T - 1] / total,
                spikes_per_neuron=events[T - 1] / neurons / total,
                packets_per_neuron=packets[T - 1] / neurons / total,
                ladder=setting.ladder_name,
                whole_window=setting.whole_window,
                settling_T=later[0] if later and once else None,
                method=setting.method,
                calibration=setting.calibration_name,
                calibrated_T=setting.calibrated_T,
                **columns,
            )
            for T in setting.time_steps
        ]


def over_layers(counts: Mapping[str, Tensor], time_steps: int) -> Tensor:
    """The sum over all layers in each step, float64 on the CPU; 0 of a network without neurons.

    Example:
        >>> over_layers({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, 1.0])}, 2).tolist()
        [1.0, 3.0]
    """
    none = torch.zeros(time_steps, dtype=torch.float64)
    return torch.stack([none, *(item.double().cpu() for item in counts.values())]).sum(0)


def percent(part: float, whole: int) -> float:
    """A share in percent."""
    return 100 * part / whole
