"""Layer after layer, weights and initial potentials trained on what really arrives there.

The running rule of a neuron is differentiable but for its rounding: with a straight-through
gradient there, the total after T steps answers to the step whose input decided it. What neurons
emit stays the exact rule's.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..graph.nodes import WEIGHTED, is_constant, layer_nodes, layer_of, source_of
from ..spiking.levels import fixed_thresholds, window_spec, worth
from ..spiking.model import SpikingModel
from ..spiking.weight_grid import OnGrid
from .layer_results import Passed, report_rows
from .lockstep import Lockstep, Values, run, soft_step, with_offset
from .report import CalibrationRow
from .samples import Samples
from .spec import LayerWise, Loss
from .text import name_of

PATIENCE = 5
OFFSET_RATE = 100.0
MOST_OFFSET_RATE = 0.1
MOST = 0.5
_SEED = 0


def transform(
    step: LayerWise, snn: SpikingModel, samples: Samples, keep_better: bool
) -> tuple[SpikingModel, list[CalibrationRow]]:
    """The network with trained weights and offsets, and each layer's loss before and after.

    For each layer of neurons in order: the weights and biases of the weighted layers whose outputs
    it is the first to read, and its offset, are trained until what it has emitted after T steps is
    the quantized network's activation; its input is what the layers before, already trained,
    really emit in each step. Batch norms between stay. Quantized weights (those with a
    ``weight_scale``) are rounded in every pass to the grid they had, within the largest level they
    had, and the gradient passes straight through; float weights move freely. Weights of levels −1
    to 1 (binary, ternary, from a codebook), and those of a layer that the network calls more than
    once, stay.

    Loss: mean square difference over the mean square of the target; or KL divergence of softmaxes
    over all neurons of an image. Adam; the offset, counted in thresholds, moves at 100 times the
    rate, 0.1 at most, and within ±½. The epoch with the lowest held-out loss is kept, with
    ``keep_better`` the start being one of them; 5 epochs without gain end a layer. The last row
    compares the means over layers of the whole network; if that rose, nothing is kept.

    Source: dual-phase optimisation (arXiv 2205.07473), phase II, its layer-wise calibration; there
    the gradient of a spike is that of ½ tanh(2.5x) + ½.
    """
    at_start = _pass(snn, step, samples, lambda layer: layer.start())
    candidate = snn.with_neurons({})
    passed = _pass(candidate, step, samples, lambda layer: _train_(layer, step, keep_better))
    rows = report_rows(name_of([step]), at_start, passed, keep_better)
    return (candidate if rows[-1].kept else snn.with_neurons({})), rows


def _pass(
    snn: SpikingModel,
    step: LayerWise,
    samples: Samples,
    calibrate_: Callable[[_Layer], tuple[float, float]],
) -> list[Passed]:
    """Go through the layers in order; ``calibrate_`` may change each in place and tells its loss
    before and after."""
    fit, held_out = samples.fit.split(step.batch_size), samples.held_out.split(step.batch_size)
    front = Lockstep(snn, samples.reference, [*fit, *held_out], samples.time_steps)
    calls = Counter(str(node.target) for node, _ in layer_nodes(snn.layers, WEIGHTED))
    free = {name for name, count in calls.items() if count == 1}
    passed = []
    for node in front.nodes:
        targets = [front.target(node, k) for k in range(len(front.batches))]
        if fixed_thresholds(front.neuron(node)):
            passed.append(Passed(str(node.target)))
        else:
            layer = _Layer(front, node, targets, len(fit), step.loss, free)
            before, after = calibrate_(layer)
            passed.append(Passed(str(node.target), str(step.loss), before, after, layer.changed))
        front.pass_on(node, targets)
        free -= {str(item.target) for item in front.between[node]}
    return passed


class _Layer:
    """One layer of neurons and what feeds it, with values of its own to train.

    ``free``: names of the weighted layers that may be trained with it.
    """

    def __init__(
        self,
        front: Lockstep,
        node: fx.Node,
        targets: Sequence[Tensor],
        fit: int,
        loss: Loss,
        free: set[str],
    ) -> None:
        self.front, self.node, self.targets, self.loss = front, node, targets, loss
        self.fit, self.held_out = range(fit), range(fit, len(targets))
        self.neuron, self.layers = front.neuron(node), front.snn.layers
        self.changed = False
        self.weights = {
            item: _Weights(layer)
            for item in front.between[node]
            if isinstance(layer := layer_of(self.layers, item), WEIGHTED)
            and str(item.target) in free
            and not is_constant(item)
        }
        self._trained, self._others = self._parts()
        readers = [*self._trained, node]
        read = {item for reader in readers for item in reader.all_input_nodes}
        self._read = read - set(self._trained)
        self._arrived: dict[tuple[int, int], Values] = {}
        self.offset = self._offset().requires_grad_()
        self.most = max(MOST, float(self.offset.detach().abs().max()))

    def _parts(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """What depends on the weights to train between the neurons before and here, and the rest,
        in order."""
        trained: dict[fx.Node, None] = {}
        for item in self.front.between[self.node]:
            if item in self.weights or any(source in trained for source in item.all_input_nodes):
                trained[item] = None
        rest = [item for item in self.front.between[self.node] if item not in trained]
        return list(trained), rest

    def _offset(self) -> Tensor:
        """The offset to start from, one for each channel at least."""
        like = self.targets[0]
        shared = self.front.feature_axes(self.node, like.dim(), per_neuron=False)
        shape = [1 if axis in shared else size for axis, size in enumerate(like.shape)]
        start = torch.zeros(shape[1:], dtype=like.dtype, device=like.device)
        return start if self.neuron.offset is None else start + self.neuron.offset.detach()

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained, the offset last."""
        return [value for item in self.weights.values() for value in item.parameters] + [
            self.offset
        ]

    def _values(self, k: int, moment: int) -> Values:
        """What the trained part reads of a batch behind a step; computed once."""
        if (k, moment) not in self._arrived:
            with torch.no_grad():
                values = run(self.layers, self._others, self.front.values(self.node, k, moment))
            self._arrived[k, moment] = {item: values[item] for item in self._read}
        return dict(self._arrived[k, moment])

    def emission(self, k: int) -> Tensor:
        """What the neurons have emitted after T steps on a batch, in units of the network."""
        calls = {item: weights.call() for item, weights in self.weights.items()}
        moments = self.front.moments(self.node)
        inputs: dict[int, Tensor] = {}
        for moment in sorted(set(moments)):
            values = run(self.layers, self._trained, self._values(k, moment), calls)
            inputs[moment] = values[source_of(self.node)]
        presentation = self.front.snn.presentation
        series = [inputs[moment] for moment in moments]
        total = torch.zeros_like(series[0])
        for t, drive in enumerate(self.front.in_levels(self.node, series)):
            spec = window_spec(self.neuron.spec, presentation, t)
            total = soft_step(drive + self.offset, total, spec)
        return total * worth(self.neuron, presentation, self.front.time_steps - 1)

    def loss_parts(self, k: int) -> tuple[Tensor, Tensor]:
        """The loss of a batch as a numerator and a denominator, which add over batches."""
        return _LOSSES[self.loss](self.emission(k), self.targets[k])

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on held-out images."""
        above, below = (
            torch.stack(parts) for parts in zip(*map(self.loss_parts, self.held_out), strict=True)
        )
        return float(_share(above.sum(), below.sum()))

    def start(self) -> tuple[float, float]:
        """The loss of the layer as it is, before and after nothing."""
        loss = self.held_out_loss()
        return loss, loss

    @torch.no_grad()
    def write_(self, values: Sequence[Tensor]) -> None:
        """Put values of all parameters into the network."""
        self.changed = True
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
        for weights in self.weights.values():
            weights.write_()
        new = with_offset(self.neuron, self.offset.detach().clone())
        self.layers.set_submodule(str(self.node.target), new)


class _Weights:
    """Weight and bias of a weighted layer, to be trained in its place."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.grid = layer, OnGrid(copy.deepcopy(layer).requires_grad_())

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the two that are trained."""
        held = dict(self.grid.layer.named_parameters())
        return [held[name] for name in held if name != "weight" or not self.grid.fixed]

    def call(self) -> Callable[[Tensor], Tensor]:
        """The layer with these values."""
        return self.grid.call()

    @torch.no_grad()
    def write_(self) -> None:
        """Put the values into the layer."""
        for name, value in self.grid.layer.named_parameters():
            self.layer.get_parameter(name).data = value.detach().clone()
        self.layer.get_parameter("weight").data = self.grid.weight().detach().clone()


def _share(above: Tensor, below: Tensor) -> Tensor:
    """One as a share of the other; as it is where the target is 0 everywhere."""
    return above / torch.where(below > 0, below, torch.ones_like(below))


def _mean_square(emitted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared differences over squares of the target."""
    return (emitted - target).square().sum(), target.square().sum()


def _divergence(emitted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence of softmaxes over each image's neurons, over the number of images."""
    log_emitted, log_target = (F.log_softmax(item.flatten(1), 1) for item in (emitted, target))
    apart = F.kl_div(log_emitted, log_target, reduction="sum", log_target=True)
    return apart, torch.tensor(float(len(target))).to(apart)


_LOSSES = {Loss.MSE: _mean_square, Loss.KL: _divergence}


def _train_(layer: _Layer, step: LayerWise, keep_better: bool) -> tuple[float, float]:
    """Train a layer and put the best values into the network; its loss before and after."""
    rate = min(step.lr * OFFSET_RATE, MOST_OFFSET_RATE)
    groups: list[dict[str, Any]] = [{"params": [layer.offset], "lr": rate}]
    if len(layer.parameters) > 1:
        groups.append({"params": layer.parameters[:-1]})
    optimizer = torch.optim.Adam(groups, lr=step.lr)
    generator = torch.Generator().manual_seed(_SEED)
    before = layer.held_out_loss()
    best, lowest, waited = None, before if keep_better else math.inf, 0
    for _ in range(step.epochs):
        for index in torch.randperm(len(layer.fit), generator=generator).tolist():
            _descend_(layer, optimizer, layer.fit[index])
        loss = layer.held_out_loss()
        waited += 1
        if loss < lowest:
            best, lowest, waited = [item.detach().clone() for item in layer.parameters], loss, 0
        if waited == PATIENCE:
            break
    if best is None:
        return before, before
    layer.write_(best)
    return before, lowest


def _descend_(layer: _Layer, optimizer: torch.optim.Optimizer, k: int) -> None:
    """One step on one batch; no gradient reaches the network's own parameters."""
    parameters = layer.parameters
    with torch.enable_grad():
        gradients = torch.autograd.grad(_share(*layer.loss_parts(k)), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    with torch.no_grad():
        layer.offset.clamp_(-layer.most, layer.most)
