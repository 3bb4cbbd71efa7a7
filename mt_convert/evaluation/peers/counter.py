"""What a network converted by another package shows, counted as `evaluate.Counter` counts ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...report.rows import Row
from ...spiking.presentation import Presentation
from ..counter import percent
from ..settings import PeerSetting
from .network import PeerNetwork


class PeerCounter:
    """One peer's network: add batches, then read the rows; two of each where it has two read-outs.

    Shapes:
        counts [2, 3, T], float64: for both read-outs and after each step, how many images were
        classified correctly and as the quantized network does; and all events.
    """

    comparable = False

    def __init__(self, network: PeerNetwork, setting: PeerSetting) -> None:
        self.network, self.setting = network, setting
        self.neuron_count = sum(network.neurons.values())
        self.counts = torch.zeros(2, 3, setting.time_steps[-1], dtype=torch.float64)

    def add(
        self, images: Tensor, labels: Tensor, predicted: Tensor, expected: dict[str, Tensor]
    ) -> None:
        """Run one batch. ``predicted`` are the quantized network's classes."""
        run = self.network.run(images, self.setting.time_steps[-1])
        events = (run.spikes_per_neuron * (self.neuron_count * len(labels))).round()
        for count, logits in zip(self.counts, (run.logits, run.delayed), strict=True):
            if logits is not None:
                answers = logits.argmax(2)
                right, alike = (answers == labels).sum(1), (answers == predicted).sum(1)
                count += torch.stack([right.double(), alike.double(), events]).cpu()

    def rows(self, columns: dict[str, Any]) -> list[Row]:
        """The rows of the peer; ``columns``: those that it does not measure."""
        names = [self.setting.method]
        if self.network.delay is not None:
            names.append(f"{self.setting.method}_delayed")
        return [
            self._row(name, T, count[:, T - 1].tolist(), columns)
            for name, count in zip(names, self.counts, strict=False)
            for T in self.setting.time_steps
        ]

    def _row(self, name: str, T: int, counted: list[float], columns: dict[str, Any]) -> Row:
        correct, agreed, events = counted
        total = columns["images"]
        return Row(
            presentation=str(Presentation.EVERY_STEP),
            mode="parallel",
            signed=False,
            n=self.setting.n,
            T=T,
            snn_accuracy=percent(correct, total),
            agreement=agreed / total,
            exact_share=0.0,
            spikes_per_neuron=events / max(1, self.neuron_count) / total,
            ladder="uniform",
            whole_window=False,
            settling_T=None,
            method=name,
            **columns,
        )
