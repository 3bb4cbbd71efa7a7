"""How many thresholds each layer gets under a budget, by how much the logits answer to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import Fault, SpecError
from ..neurons.ladder import Binary, Ladder, PowerOfTwo, Radix, Uniform, has_learned_gaps
from ..neurons.layer import MTNeuron
from ..spiking.interpreter import forward_with
from ..spiking.levels import levels, quantized_activation
from ..spiking.model import SpikingModel
from ..spiking.simulate import simulate
from .report import WHOLE, CalibrationRow
from .samples import Samples
from .spec import ThresholdBudget
from .text import name_of

MOST_IMAGES = 64
COUNTS = (1, 2, 3, 5, 7, 11, 15, 31, 63, 127, 255)
LOSS = "logits against the uniform choice"
_ABOVE = 3
_NEAR = (1, 2, len(COUNTS))

Choice = Mapping[str, Ladder]


@torch.no_grad()
def transform(
    step: ThresholdBudget, snn: SpikingModel, samples: Samples, keep_better: bool
) -> tuple[SpikingModel, list[CalibrationRow]]:
    """The network with a number of thresholds for each layer, and the losses of both choices.

    The uniform choice is, of the ladders that all layers can have within the budget, the best one.
    From there each layer alone gets each other length, three longer ones at most; the loss and the
    cost that this adds are noted. Then, all layers starting from the cheapest, what lowers the sum
    of losses most per cost is taken until the budget is used: once among ladders next to the
    uniform one, once up to two places away, once among all. From the best of these and the uniform
    choice, changes of one layer or of two that promise most are measured, as many as there are
    layers, and kept where the loss falls. This takes at most (lengths) + (layers) × (lengths + 1) +
    5 simulations of 64 images.

    The loss is the squared difference of the logits to the quantized network's over the square of
    these. A search sees the images to fit, the verdict the held-out ones. The cost is the mean over
    layers of the levels that one step can emit, or spikes per neuron and image over all steps.
    Ladders keep their kind; layers with learned gaps keep theirs and cost nothing.

    Each layer's row has the levels of one step in the uniform choice and in the other, the last
    row the losses of both.

    Raises:
        SpecError: a budget below the cost of the shortest ladders; layers that speak in digits.
    """
    digits = [
        Fault(name, str(neuron.spec.ladder), "layers that meet have one n: choose it by hand")
        for name, neuron in snn.neurons()
        if isinstance(neuron.spec.ladder, Radix)
    ]
    if digits:
        raise SpecError("a budget chooses thresholds layer by layer, and these are digits", digits)
    trial = _Trial.of(step, snn, samples)
    uniform, base = _uniform(trial, step)
    chosen = _best_choice(trial, uniform, base)
    before, after = (trial.loss_held_out(choice) for choice in (uniform, chosen))
    kept = len(chosen) > 0 and (after <= before or not keep_better)
    final = chosen if kept else uniform
    name, rows = name_of([step]), []
    for layer, _ in snn.neurons():
        if layer in final:
            old, new = (float(choice[layer].reach) for choice in (uniform, chosen))
            rows.append(CalibrationRow(name, layer, "levels of one step", old, new, kept))
        else:
            rows.append(CalibrationRow(name, layer, "learned gaps", 0.0, 0.0, False))
    rows.append(CalibrationRow(name, WHOLE, LOSS, before, after, kept))
    return trial.network(final), rows


@dataclass(frozen=True)
class _Measured:
    """Loss and cost of one choice on the images to fit."""

    loss: float
    cost: float


@dataclass(frozen=True)
class _Trial:
    """The network to choose for, the images and the quantized network's logits on them."""

    step: ThresholdBudget
    snn: SpikingModel
    time_steps: int
    fit: Tensor
    held_out: Tensor
    logits: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, step: ThresholdBudget, snn: SpikingModel, samples: Samples) -> _Trial:
        fit, held_out = (part[:MOST_IMAGES] for part in (samples.fit, samples.held_out))
        logits = tuple(
            forward_with(
                samples.reference, part, lambda name, layer, x: quantized_activation(layer, x)
            )
            for part in (fit, held_out)
        )
        return cls(step, snn, samples.time_steps, fit, held_out, (logits[0], logits[1]))

    def network(self, choice: Choice) -> SpikingModel:
        """The network with the chosen ladders."""
        here = dict(self.snn.neurons())
        return self.snn.with_neurons(
            {name: _with_ladder(here[name], ladder) for name, ladder in choice.items()}
        )

    def measure(self, choice: Choice) -> _Measured:
        """Loss and cost on the images to fit."""
        snn = self.network(choice)
        run = simulate(snn, self.fit, time_steps=self.time_steps)
        loss = _difference(run.logits[-1], self.logits[0])
        if self.step.levels is not None:
            return _Measured(loss, _mean_levels(choice))
        events = sum(float(count.sum()) for count in run.spike_counts.values())
        return _Measured(loss, events / (max(1, sum(run.neurons.values())) * len(self.fit)))

    def loss_held_out(self, choice: Choice) -> float:
        """Loss on held-out images."""
        run = simulate(self.network(choice), self.held_out, time_steps=self.time_steps)
        return _difference(run.logits[-1], self.logits[1])

    @property
    def budget(self) -> float:
        """The bound of the two that is set."""
        bound = self.step.spikes if self.step.levels is None else self.step.levels
        assert bound is not None
        return bound

    def lengths(self) -> dict[str, list[Ladder]]:
        """The ladders that each layer may have, shortest first."""
        return {
            name: list(_ladders(neuron))
            for name, neuron in self.snn.neurons()
            if not has_learned_gaps(neuron.spec.ladder)
        }


def _ladders(neuron: MTNeuron) -> Iterator[Ladder]:
    """Ladders of the neuron's kind that emit at most as many levels in a step as there are."""
    kind, most = type(neuron.spec.ladder), levels(neuron.spec)
    if kind is Uniform:
        yield from (Uniform(n) for n in sorted({*COUNTS, most}) if n <= most)
        return
    ladder_type: type[Binary] | type[PowerOfTwo] = Binary if kind is Binary else PowerOfTwo
    for n in range(1, 17):
        if ladder_type(n).reach <= most:
            yield ladder_type(n)


def _with_ladder(neuron: MTNeuron, ladder: Ladder) -> MTNeuron:
    """The same layer with another ladder."""
    return neuron.with_(spec=replace(neuron.spec, ladder=ladder))


def _mean_levels(choice: Choice) -> float:
    """The levels that one step can emit, on average over layers."""
    return sum(ladder.reach for ladder in choice.values()) / max(1, len(choice))


def _difference(logits: Tensor, expected: Tensor) -> float:
    """Squared difference, as a share of the square of the expected logits."""
    return float((logits - expected).square().sum() / expected.square().sum().clamp(min=1e-30))


def _uniform(trial: _Trial, step: ThresholdBudget) -> tuple[Choice, _Measured]:
    """The longest ladder for all layers within the budget, and what it gives."""
    lengths = trial.lengths()
    best: tuple[Choice, _Measured] | None = None
    least = float("inf")
    for place in range(max((len(ladders) for ladders in lengths.values()), default=1)):
        choice = {name: item[min(place, len(item) - 1)] for name, item in lengths.items()}
        if step.levels is not None and _mean_levels(choice) > step.levels:
            least = min(least, _mean_levels(choice))
            break  # longer ladders cost more: no need to run them
        measured = trial.measure(choice)
        least = min(least, measured.cost)
        if measured.cost <= trial.budget and (best is None or measured.loss <= best[1].loss):
            best = choice, measured
    if best is None:
        what = "spikes" if step.levels is None else "levels"
        hint = f"the cheapest choice needs {least:.3g}: allow that much"
        raise SpecError(
            "ThresholdBudget: the budget is too small", [Fault(what, f"{trial.budget}", hint)]
        )
    return best


def _best_choice(trial: _Trial, uniform: Choice, base: _Measured) -> Choice:
    """The best choice found on the images to fit; the uniform one where none is better."""
    table = _table(trial, uniform, base)
    best, measured = uniform, base
    tried: list[Choice] = [uniform]
    near_by = (_greedy(_nearby(table, uniform, near), base, trial.budget) for near in _NEAR)
    for choice in near_by:
        best, measured = _better(trial, choice, best, measured, tried)
    for _ in table:
        moves = [{**best, **move} for move in _moves(table, best, measured, trial.budget)]
        for choice in [item for item in moves if item not in tried][:1]:
            best, measured = _better(trial, choice, best, measured, tried)
    return best


def _better(
    trial: _Trial, choice: Choice, best: Choice, lowest: _Measured, tried: list[Choice]
) -> tuple[Choice, _Measured]:
    """The better of two choices within the budget; a choice is measured once."""
    if choice in tried:
        return best, lowest
    tried.append(choice)
    measured = trial.measure(choice)
    if measured.cost <= trial.budget and measured.loss < lowest.loss:
        return choice, measured
    return best, lowest


def _moves(table: _Table, choice: Choice, now: _Measured, budget: float) -> list[Choice]:
    """Changes of one layer or of two that promise a lower loss within the budget, best first."""
    single = []
    for name, row in table.items():
        here = row[choice[name]]
        for ladder, measured in row.items():
            if ladder != choice[name]:
                single.append(
                    (measured.loss - here.loss, measured.cost - here.cost, {name: ladder})
                )
    pairs = [
        (one[0] + other[0], one[1] + other[1], {**one[2], **other[2]})
        for one in single
        for other in single
        if next(iter(one[2])) < next(iter(other[2]))
    ]
    fitting = [item for item in single + pairs if item[0] < 0 and now.cost + item[1] <= budget]
    return [move for _, _, move in sorted(fitting, key=lambda item: item[:2])]


_Table = dict[str, dict[Ladder, _Measured]]


def _table(trial: _Trial, uniform: Choice, base: _Measured) -> _Table:
    """Loss and cost of the network when one layer alone gets another ladder, shortest first."""
    table: _Table = {}
    for name, ladders in trial.lengths().items():
        place = ladders.index(uniform[name])
        table[name] = {
            ladder: base if ladder == uniform[name] else trial.measure({**uniform, name: ladder})
            for ladder in ladders[: place + 1 + _ABOVE]
        }
    return table


def _nearby(table: _Table, uniform: Choice, near: int) -> _Table:
    """The part of the table within so many places of the uniform choice."""
    part: _Table = {}
    for name, row in table.items():
        ladders = list(row)
        place = ladders.index(uniform[name])
        part[name] = {item: row[item] for item in ladders[max(0, place - near) : place + near + 1]}
    return part


def _greedy(table: _Table, base: _Measured, budget: float) -> Choice:
    """From the cheapest ladders on, what lowers the loss most per cost while the budget lasts; what
    single layers add to the loss and to the cost is taken to add up."""
    choice = {name: min(row, key=lambda ladder: row[ladder].cost) for name, row in table.items()}
    cost = base.cost + sum(table[name][choice[name]].cost - base.cost for name in choice)
    while True:
        best, most = None, 0.0
        for name, row in table.items():
            here = row[choice[name]]
            for ladder, measured in row.items():
                gain, more = here.loss - measured.loss, measured.cost - here.cost
                if gain > 0 and cost + more <= budget and gain / max(more, 1e-12) > most:
                    best, most = (name, ladder, more), gain / max(more, 1e-12)
        if best is None:
            return choice
        choice[best[0]] = best[1]
        cost += best[2]
