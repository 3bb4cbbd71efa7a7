"""Accuracy and exactness over thresholds and time steps: many settings in one pass over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .convert import convert
from .errors import Fault, SpecError
from .ladder import Binary, Firing, Ladder, PowerOfTwo, Uniform
from .quantize import QuantizedModel
from .results import Row
from .shapes import image_axes
from .simulate import levels, simulate
from .spiking import Presentation, SpikingModel
from .verify import levels_of

LADDERS: dict[str, Callable[[int], Ladder]] = {
    "uniform": Uniform,
    "binary": Binary,
    "power_of_two": PowerOfTwo,
}


@dataclass(frozen=True)
class Setting:
    """One way to convert and run a network, and the numbers of steps to report.

    Example:
        >>> Setting(Uniform(3), (1, 2, 4)).firing
        <Firing.PARALLEL: 'parallel'>
    """

    ladder: Ladder
    time_steps: tuple[int, ...]
    firing: Firing | None = None
    signed: bool = True
    presentation: Presentation = Presentation.ONCE
    whole_window: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_steps", tuple(sorted(set(self.time_steps))))
        object.__setattr__(self, "firing", self.firing or self.ladder.natural_firing)
        if not self.time_steps or self.time_steps[0] < 1:
            hint = "allowed: whole numbers from 1"
            raise SpecError("no steps to report", [Fault("time_steps", str(self.time_steps), hint)])


def iso_level(L: int) -> list[Setting]:
    """Even input, n thresholds over T steps with n T = L: from {n=1, T=L} to {n=L, T=1}.

    Example:
        >>> [(setting.ladder.n, setting.time_steps) for setting in iso_level(15)]
        [(1, (15,)), (3, (5,)), (5, (3,)), (15, (1,))]
    """
    return [
        Setting(Uniform(n), (L // n,), signed=False, presentation=Presentation.EVERY_STEP)
        for n in range(1, L + 1)
        if L % n == 0
    ]


@dataclass
class _Tally:
    """What one setting has shown so far, summed over images; index T - 1 where per step."""

    correct: list[int]
    agreed: list[int]
    exact: list[int]
    events: list[float]
    seen: set[int] = field(default_factory=set)


def _tally(steps: int) -> _Tally:
    """Nothing seen yet."""
    return _Tally([0] * steps, [0] * steps, [0] * steps, [0.0] * steps)


@torch.no_grad()
def evaluate(
    ann: nn.Module,
    qann: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    settings: Sequence[Setting],
    describe: dict[str, Any],
) -> list[Row]:
    """A row for each setting and number of steps, all networks on the same images.

    ``describe`` gives the columns that are not measured: model, dataset, seed.

    Shapes:
        batches of images [batch, channels, height, width] and labels [batch].
    Raises:
        DataError: images of another shape or with NaN.
    """
    ann.eval()
    qann.eval()
    networks = [_converted(qann, setting) for setting in settings]
    axes = _neuron_axes(networks[0]) if networks else {}
    tallies = [_tally(setting.time_steps[-1]) for setting in settings]
    total, ann_correct, qann_correct = 0, 0, 0
    device = next(ann.parameters()).device
    for batch in batches:
        images, labels = (tensor.to(device) for tensor in batch)
        total += len(labels)
        ann_correct += int((ann(images).argmax(1) == labels).sum())
        with levels_of(qann) as expected:
            predicted = qann(images).argmax(1)
        qann_correct += int((predicted == labels).sum())
        for setting, snn, tally in zip(settings, networks, tallies, strict=True):
            for time_steps in _runs(setting):
                _count(snn, images, labels, (predicted, expected, axes), time_steps, tally)
    if total == 0:
        raise SpecError("no images to evaluate on: raise evaluate.images or data.test_images")
    accuracies = {
        "ann_accuracy": _percent(ann_correct, total),
        "qann_accuracy": _percent(qann_correct, total),
    }
    known = {
        **describe,
        **accuracies,
        "images": total,
        "levels": qann.spec.levels,
        "weight_bits": qann.spec.weight_bits,
    }
    rows: list[Row] = []
    for setting, snn, tally in zip(settings, networks, tallies, strict=True):
        rows += _rows(setting, snn, tally, known)
    return rows


def _converted(qann: QuantizedModel, setting: Setting) -> SpikingModel:
    """The network of a setting."""
    return convert(
        qann,
        ladder=setting.ladder,
        firing=setting.firing,
        signed=setting.signed,
        presentation=setting.presentation,
        whole_window=setting.whole_window,
    )


def _neuron_axes(snn: SpikingModel) -> dict[str, int]:
    """Along which axis of each layer of neurons the images of a batch lie."""
    axes = image_axes(snn.layers).items()
    return {str(node.target): axis for node, axis in axes if node.op == "call_module"}


def _runs(setting: Setting) -> tuple[int, ...]:
    """The simulations a setting needs: a longer one shows the shorter ones too, unless layers wait
    for their whole window."""
    return setting.time_steps if setting.whole_window else setting.time_steps[-1:]


def _count(
    snn: SpikingModel,
    images: Tensor,
    labels: Tensor,
    quantized: tuple[Tensor, dict[str, Tensor], dict[str, int]],
    time_steps: int,
    tally: _Tally,
) -> None:
    """Simulate one batch and add what it shows to the tally. ``quantized``: the quantized network's
    classes, levels, and along which axis of these the images lie."""
    predicted, expected, axes = quantized
    exact = torch.ones(time_steps, len(labels), dtype=torch.bool, device=images.device)
    neurons = dict(snn.neurons())
    even = snn.presentation is Presentation.EVERY_STEP

    def compare(t: int, name: str, totals: Tensor, emitted: Tensor) -> None:
        wanted, shown = expected[name], totals
        if even:  # a level is worth L / (n T) of the quantizer's
            spec = neurons[name].spec
            wanted, shown = wanted * (spec.ladder.reach * (t + 1)), totals * levels(spec)
        equal = (shown == wanted).movedim(axes[name], 0)
        exact[t] &= equal.reshape(len(labels), -1).all(1)

    run = simulate(snn, images, time_steps=time_steps, observe=compare)
    steps = [time_steps - 1] if snn.whole_window else range(time_steps)
    events = torch.stack(list(run.spike_counts.values())).sum(0).cumsum(0).tolist()
    for t in steps:
        answers = run.logits[t].argmax(1)
        tally.seen.add(t)
        tally.correct[t] += int((answers == labels).sum())
        tally.agreed[t] += int((answers == predicted).sum())
        tally.exact[t] += int(exact[t].sum())
        tally.events[t] += events[t] / sum(run.neurons.values())


def _rows(setting: Setting, snn: SpikingModel, tally: _Tally, known: dict[str, Any]) -> list[Row]:
    """The rows of one setting."""
    total = known["images"]
    inexact = [t for t in sorted(tally.seen) if tally.exact[t] < total]
    later = [t for t in sorted(tally.seen) if not inexact or t > inexact[-1]]
    once = setting.presentation is Presentation.ONCE
    name = next(name for name, kind in LADDERS.items() if isinstance(setting.ladder, kind))  # type: ignore[arg-type]
    return [
        Row(
            presentation=str(setting.presentation),
            mode=str(setting.firing),
            signed=setting.signed or all(layer.spec.signed for _, layer in snn.neurons()),
            n=setting.ladder.n,
            T=T,
            snn_accuracy=_percent(tally.correct[T - 1], total),
            agreement=tally.agreed[T - 1] / total,
            exact_share=tally.exact[T - 1] / total,
            spikes_per_neuron=tally.events[T - 1] / total,
            ladder=name,
            whole_window=setting.whole_window,
            settling_T=later[0] + 1 if later and once else None,
            **known,
        )
        for T in setting.time_steps
    ]


def _percent(part: int, whole: int) -> float:
    """A share in percent."""
    return 100 * part / whole
