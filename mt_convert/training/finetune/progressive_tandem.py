"""Progressive tandem learning: one layer after the other begins to spike, those behind adapt.

In stage k the first k + 1 layers of neurons spike and stand still, weights and thresholds; those
behind are analog and learn through them (`algorithms.Tandem`), until validation accuracy stands
still for ``spec.patience`` epochs; the best weights are restored and the next layer follows. In the
last stage all layers spike, and what reads them out learns alone at a tenth of the rate.

The threshold of a layer is set as its turn comes: its range is the 99.9th percentile of what the
layers in front give it, and counts are passed on times their step, so that values stay in place.

Source: Wu et al., TPAMI 2021 (arXiv 2007.01204), whose frozen batch norms kept moving; here they
are folded.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...data import Splits, images
from ...errors import Fault, SpecError
from ...graph.nodes import WEIGHTED, layer_nodes
from ...spiking.levels import fixed_thresholds, levels
from ...spiking.model import SpikingModel
from ..accuracy import accuracy
from ..gradients import Tandem
from ..loop import fit
from ..spec import EpochRow, History, TrainSpec
from .finetune import Finetuned
from .learner import TrainableSpikingModel
from .neuron import TrainableParts

PERCENTILE = 99.9


def tandem(
    snn: SpikingModel,
    splits: Splits,
    spec: TrainSpec,
    folder: str | Path,
    *,
    classes: int,
    time_steps: int,
    teacher: nn.Module | None = None,
) -> Finetuned:
    """Train a converted network layer by layer; ``snn`` is untouched.

    ``spec.epochs`` bounds each stage and ``spec.patience`` ends it. Stages are resumed as `fit`
    resumes, in ``folder``/stage_0 and so on. The history has the epochs of all stages. Where the
    converted network was better on the validation images, it is given back as it was.

    Raises:
        SpecError: no patience; learned gaps, whose thresholds are no percentile; no validation
            images.
        CheckpointError: the folder holds another run.
    """
    _check(snn, spec)
    learner = TrainableSpikingModel(snn, time_steps, learns=TrainableParts(thresholds=False))
    names = [name for name, _ in snn.neurons()]
    shown = images(splits.calibration, min(512, len(splits.calibration)))
    start = accuracy(learner, splits.validation, spec.batch_size)
    rows: list[EpochRow] = []
    history = History((), 0)
    for stage in range(len(names) + 1):
        last = stage == len(names)
        if not last:
            learner.analog = frozenset(names[stage:])
            set_range_(learner, names[stage], shown)
            learner.analog = frozenset(names[stage + 1 :])
        freeze_(learner, names[: stage + 1])
        history = fit(
            learner,
            splits,
            replace(spec, lr=spec.lr / 10) if last else spec,
            Path(folder) / f"stage_{stage}",
            classes=classes,
            teacher=teacher,
            algorithm=Tandem(),
            keep_start=True,
        )
        rows += [replace(row, epoch=len(rows) + k) for k, row in enumerate(history.rows, 1)]
    assert history.best_accuracy is not None
    if history.best_accuracy < start:
        return Finetuned(copy.deepcopy(snn), History(tuple(rows), 0, start))
    kept = len(rows) - len(history.rows) + history.best_epoch if history.best_epoch else len(rows)
    return Finetuned(learner.snapshot(), History(tuple(rows), kept, start))


@torch.no_grad()
def set_range_(learner: TrainableSpikingModel, name: str, shown: Tensor) -> None:
    """The threshold of a layer from what the layers in front of it give on these images.

    Shapes: shown [images, channels, height, width].
    """
    reading = learner.reading(shown, name).flatten()
    few = reading[:: max(1, reading.numel() // 2**23)]  # torch.quantile takes up to 16 million
    top = float(torch.quantile(few, PERCENTILE / 100))
    layer = learner.learner(name)
    if top > 0:
        layer.start.copy_(reading.new_tensor(top / levels(layer.spec)))


def freeze_(learner: TrainableSpikingModel, names: list[str]) -> None:
    """Let learn what stands behind the last of these layers of neurons, and nothing else."""
    waiting, behind = set(names), set()
    for node in learner.snn.layers.graph.nodes:
        if not waiting and node.op == "call_module":
            behind.add(str(node.target))
        waiting.discard(str(node.target))
    for node, layer in layer_nodes(learner.snn.layers, WEIGHTED):
        grid = learner.grids[str(node.target)]
        learns = str(node.target) in behind
        layer.requires_grad_(learns)
        layer.get_parameter("weight").requires_grad_(learns and not grid.fixed)


def _check(snn: SpikingModel, spec: TrainSpec) -> None:
    """What can be said before anything is started."""
    if spec.patience is None:
        hint = "set it to some epochs (the original has 6)"
        fault = Fault("patience", "None", hint)
        raise SpecError("the next layer spikes when accuracy stands still", [fault])
    fixed = [(name, why) for name, neuron in snn.neurons() if (why := fixed_thresholds(neuron))]
    if fixed:
        hint = "quantize with equal spacing, and functions='analog'"
        fault = Fault(*fixed[0], hint)
        raise SpecError("tandem learning sets thresholds by a percentile", [fault])
