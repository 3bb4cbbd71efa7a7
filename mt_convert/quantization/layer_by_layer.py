"""Corrections that go through a network once, layer by layer, beside the float network.

Both networks run on the same images, node by node. Where a layer with quantized weights is reached,
what came in is known as it is in either network, and what should come out; the layer is corrected
before the images go on, so that each makes up for what those in front of it have left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..graph.by_values import call
from ..graph.nodes import WEIGHTED, attribute, is_constant, layer_of
from .brevitas_layers import (
    QuantAct,
    has_quantized_weight,
    is_normalized,
    quantized_weight,
    set_weight_step_,
    weight_levels,
)
from .weight_codes import CODED

BATCH = 16
SAMPLES = 2**13  # positions of an image batch that sums are taken over, evenly spread
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the step at which nothing is clipped
DAMPING = 0.01  # of the mean square of an input, added to each
TRIES = 5  # tenfold dampings, behind which all inputs count alike
BLOCK = 64  # columns that are rounded before those behind them follow
FACTORS = (0.25, 4.0)  # between these a batch norm's scale is moved


class _Batches(list[Any]):
    """A value for each batch of images."""


class LayerByLayer:
    """One walk. ``names``: the corrections, as `QuantSpec.after` has them; ``done`` the names of
    those that had something to do."""

    def __init__(self, layers: fx.GraphModule, names: Collection[str]) -> None:
        self.layers, self.names = layers, names
        self.centred = bool({"match_bn", "reestimate_bn", "correct_bias"} & set(names))
        self.done: set[str] = set()
        self.floats: dict[int, tuple[Tensor, Tensor | None]] = {}  # by the id of the weight

    @torch.no_grad()
    def run(self, images: Tensor) -> None:
        """Correct the network on these images, in place."""
        plain: dict[fx.Node, Any] = {}
        rounded: dict[fx.Node, Any] = {}
        last = _last_uses(self.layers)
        for node in self.layers.graph.nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                plain[node] = rounded[node] = _Batches(images.split(BATCH))
            elif node.op == "get_attr":
                plain[node] = rounded[node] = attribute(self.layers, str(node.target))
            elif is_constant(node):
                operator = self._operator(node, layer_of(self.layers, node))
                plain[node] = rounded[node] = _each(operator, node, plain)
            else:
                self._step(node, plain, rounded)
            for used in last.get(node, ()):
                plain.pop(used), rounded.pop(used)

    def _step(self, node: fx.Node, plain: dict[fx.Node, Any], rounded: dict[fx.Node, Any]) -> None:
        """Compute one node in both networks; correct its layer in between."""
        layer = layer_of(self.layers, node)
        if isinstance(layer, WEIGHTED) and has_quantized_weight(layer):
            (source,) = node.all_input_nodes
            first = id(layer.weight) not in self.floats
            if first:
                self.floats[id(layer.weight)] = _copies(layer)
            floats = self.floats[id(layer.weight)]
            plain[node] = _Batches(_with_floats(layer, *floats, x) for x in plain[source])
            if first:
                self._correct_(layer, floats[0], rounded[source])
            rounded[node] = _Batches(call(layer, (x,), {}) for x in rounded[source])
            if first and "correct_bias" in self.names and layer.bias is not None:
                moved = _means(plain[node], layer) - _means(rounded[node], layer)
                layer.bias += moved
                rounded[node] = _Batches(x + _along(moved, x, layer) for x in rounded[node])
                self.done.add("correct_bias")
            return
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            (source,) = node.all_input_nodes
            plain[node] = _Batches(call(layer, (x,), {}) for x in plain[source])
            if "match_bn" in self.names and plain[source] is not rounded[source]:
                match_(layer, torch.cat(plain[source]), torch.cat(rounded[source]))
                self.done.add("match_bn")
            rounded[node] = _Batches(call(layer, (x,), {}) for x in rounded[source])
            return
        function = layer.function if isinstance(layer, QuantAct) else self._operator(node, layer)
        plain[node] = _each(function, node, plain)
        rounded[node] = _each(self._operator(node, layer), node, rounded)

    def _operator(self, node: fx.Node, layer: nn.Module | None) -> Any:
        """What computes a node of any other kind."""
        if layer is not None:
            return layer
        if node.op == "call_function":
            return node.target
        return lambda value, *args, **kwargs: getattr(value, str(node.target))(*args, **kwargs)

    def _correct_(self, layer: nn.Module, weight: Tensor, inputs: list[Tensor]) -> None:
        """The weights of one layer and their steps, once."""
        wanted = {"output_steps", "gptq"} & set(self.names)
        if not wanted or isinstance(layer, CODED) or is_normalized(layer):
            return
        moments = input_moments(layer, inputs, self.centred)
        if moments is None:
            return
        rows = weight.reshape(moments.shape[0], -1, moments.shape[1])
        own = damped(moments)
        levels = weight_levels(layer)
        step = quantized_weight(layer)[1].reshape(rows.shape[0], -1, 1)
        steps = step.unsqueeze(0)
        if "output_steps" in wanted and layer.learned_step and layer.weight_scale_kind == "learned":
            widest = (rows.abs().amax(2, keepdim=True) / levels[1]).clamp(min=1e-12)
            steps = torch.stack([step, *(widest * fraction for fraction in FRACTIONS)])
            self.done.add("output_steps")
        tried, step = best_rows(rows, steps, levels, own, "gptq" in wanted)
        if len(steps) > 1:
            set_weight_step_(layer, step.reshape(-1))
        if "gptq" in wanted:
            if not layer.learned_step:
                tried = _with_largest(tried, rows, step, levels[1])
            layer.get_parameter("weight").copy_(tried.reshape(weight.shape))
            self.done.add("gptq")


def input_moments(layer: nn.Module, inputs: Sequence[Tensor], centred: bool) -> Tensor | None:
    """Second moments of what a layer's weights are multiplied with, about the mean if ``centred``;
    None for layers of other kinds than convolutions in one and two dimensions and linear ones.

    Shapes: [groups, K, K] for weights [out, K].

    Example:
        >>> input_moments(nn.Linear(2, 1), [torch.tensor([[1.0, 2.0], [3.0, 2.0]])], centred=True)
        tensor([[[1., 0.],
                 [0., 0.]]])
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        return None
    squares = sums = torch.zeros((), dtype=torch.float64, device=inputs[0].device)
    count = 0
    for batch in inputs:
        x = columns(layer, batch)
        x = x[:, :, :: max(1, x.shape[2] // SAMPLES)]
        squares, sums, count = squares + x @ x.mT, sums + x.sum(2), count + x.shape[2]
    moments, mean = squares / count, sums / count
    if centred:
        moments = moments - mean.unsqueeze(2) * mean.unsqueeze(1)
    return moments.float()


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output of a layer is a weighted sum of.

    Shapes: [groups, K, positions] for weights [out, K].

    Example:
        >>> columns(nn.Conv2d(4, 2, 3, padding=1, groups=2), torch.zeros(1, 4, 5, 5)).shape
        torch.Size([2, 18, 25])
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).t().unsqueeze(0)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    sizes: list[Any] = [layer.kernel_size, layer.dilation, layer.stride]
    if isinstance(layer, nn.Conv1d):
        x, sizes = x.unsqueeze(2), [(1, *size) for size in sizes]
    if tuple(sizes[0]) == (1, 1):
        spread = x[:, :, :: sizes[2][0], :: sizes[2][1]].flatten(2)
    else:
        spread = F.unfold(x, sizes[0], sizes[1], 0, sizes[2])
    grouped = spread.reshape(len(x), layer.groups, -1, spread.shape[2])
    return grouped.permute(1, 2, 0, 3).flatten(2)


def damped(moments: Tensor) -> Tensor:
    """Moments that can be inverted: a share of their mean more on the diagonal, and where that is
    not enough (an input that hardly changes), ten times as much, and so on.

    Example:
        >>> damped(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
        tensor([[[1.0100, 1.0000],
                 [1.0000, 1.0100]]])
    """
    size = moments.diagonal(dim1=1, dim2=2).clamp(min=0).mean(1)
    size = torch.where(size > 0, size, 1.0).reshape(-1, 1, 1)
    one = torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device)
    share = torch.full_like(size, DAMPING)
    for _ in range(TRIES):
        made = moments + share * size * one
        failed = torch.linalg.cholesky_ex(made.double()).info != 0
        if not bool(failed.any()):
            return made
        share = torch.where(failed.reshape(-1, 1, 1), share * 10, share)
    return torch.where(failed.reshape(-1, 1, 1), size * one, made)


def best_rows(
    rows: Tensor, steps: Tensor, levels: tuple[int, int], own: Tensor, compensating: bool
) -> tuple[Tensor, Tensor]:
    """Each row of weights on the levels of the step, out of those given, whose output has the least
    squared error; and that step.

    Shapes: rows [groups, R, K]; steps [candidates, groups, R, 1]; own [groups, K, K].
    """
    count, groups, many, _ = steps.shape
    every = rows.repeat(1, count, 1)
    step = steps.transpose(0, 1).reshape(groups, count * many, 1)
    rounded = (
        round_in_turn(every, step, levels, own)
        if compensating
        else torch.round(every / step).clamp_(*levels) * step
    )
    wrong = every - rounded
    errors = ((wrong @ own) * wrong).sum(2).reshape(groups, count, many)
    place = errors.argmin(1, keepdim=True).unsqueeze(3)
    best = rounded.reshape(groups, count, many, -1)
    best = best.gather(1, place.expand(-1, -1, -1, rows.shape[2])).squeeze(1)
    return best, step.reshape(groups, count, many, 1).gather(1, place).squeeze(1)


def round_in_turn(rows: Tensor, step: Tensor, levels: tuple[int, int], own: Tensor) -> Tensor:
    """Round column by column; columns behind make up for the error on inputs of these moments.

    Source:
        GPTQ (ICLR 2023), algorithm 1.
    Shapes: rows [groups, R, K]; step [groups, R, 1]; own [groups, K, K].

    Example:
        >>> alike = torch.ones(1, 2, 2) + 0.01 * torch.eye(2)
        >>> round_in_turn(torch.full((1, 1, 2), 0.4), torch.ones(1, 1, 1), (-7, 7), alike)
        tensor([[[0., 1.]]])
    """
    left, rounded = rows.transpose(1, 2).contiguous(), rows.new_empty(rows.mT.shape)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(own.double()))
    upper = torch.linalg.cholesky(inverse, upper=True).to(rows.dtype)
    step = step.reshape(len(rows), 1, -1)
    for start in range(0, rows.shape[2], BLOCK):
        end = min(start + BLOCK, rows.shape[2])
        errors = []
        for k in range(start, end):
            now = left[:, k : k + 1]
            rounded[:, k : k + 1] = torch.round(now / step).clamp_(*levels) * step
            error = (now - rounded[:, k : k + 1]) / upper[:, k, k].reshape(-1, 1, 1)
            left[:, k + 1 : end] -= upper[:, k, k + 1 : end].unsqueeze(2) * error
            errors.append(error)
        left[:, end:] -= upper[:, start:end, end:].mT @ torch.cat(errors, 1)
    return rounded.mT.contiguous()


def match_(norm: _BatchNorm, plain: Tensor, rounded: Tensor) -> None:
    """Move a batch norm's statistics so that what it gives for ``rounded`` is, channel by channel,
    nearest to what it gave for ``plain``; for equal inputs they stay as they are.

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0)
        >>> match_(norm, torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]]))
        >>> float(norm.running_mean), float(norm.running_var)
        (0.0, 4.0)
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    axes = [axis for axis in range(plain.dim()) if axis != 1]
    plain_mean, mean = plain.mean(axes), rounded.mean(axes)
    varies = rounded.var(axes, correction=0)
    shape = [1, -1, *[1] * (plain.dim() - 2)]
    together = ((plain - plain_mean.reshape(shape)) * rounded).mean(axes)
    factor = torch.where(varies > 0, varies / together, 1.0)  # of the standard deviation
    factor = torch.where(torch.isfinite(factor) & (factor > 0), factor, 1.0).clamp(*FACTORS)
    moved = (norm.running_var + norm.eps) * factor.square() - norm.eps
    norm.running_mean.copy_(mean - (plain_mean - norm.running_mean) * factor)
    norm.running_var.copy_(moved.clamp(min=0))


def _with_largest(rounded: Tensor, rows: Tensor, step: Tensor, top: int) -> Tensor:
    """The same, each row's largest weight on its end: steps that follow it stay as they are."""
    place = rows.abs().argmax(2, keepdim=True)
    return rounded.scatter(2, place, rows.gather(2, place).sign() * top * step)


def _copies(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias as they are."""
    bias = layer.bias
    copied = bias.detach().clone() if isinstance(bias, Tensor) else None
    return layer.get_parameter("weight").detach().clone(), copied


def _with_floats(layer: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """What a quantized layer would give with float weights, and this bias."""
    kinds: tuple[Any, ...] = type(layer).__mro__
    kind = next(kind for kind in kinds if kind.__module__.startswith("torch.nn."))
    own = {"weight": weight} | ({} if bias is None else {"bias": bias})
    held = {name: layer.get_parameter(name).data for name in own}
    try:
        for name, value in own.items():
            layer.get_parameter(name).data = value
        output: Tensor = kind.forward(layer, x)
    finally:
        for name, value in held.items():
            layer.get_parameter(name).data = value
    return output


def _axis(layer: nn.Module) -> int:
    """Where the channels of a layer's output lie."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _means(batches: Sequence[Tensor], layer: nn.Module) -> Tensor:
    """The mean of each output channel."""
    together = torch.cat([x.movedim(_axis(layer), 0).flatten(1) for x in batches], 1)
    return together.mean(1)


def _along(channel: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Numbers of channels, in a shape that can be added to an output."""
    shape = [1] * x.dim()
    shape[_axis(layer)] = -1
    return channel.reshape(shape)


def _each(operator: Any, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """An operator on each batch; once where all that it reads is the same for every batch."""

    def run(place: int) -> Any:
        def of_batch(source: fx.Node) -> Any:
            return values[source][place] if _is_list(values[source]) else values[source]

        args, kwargs = (fx.node.map_arg(item, of_batch) for item in (node.args, node.kwargs))
        return call(operator, args, kwargs)

    lists = [values[source] for source in node.all_input_nodes if _is_list(values[source])]
    return _Batches(run(place) for place in range(len(lists[0]))) if lists else run(0)


def _is_list(value: Any) -> bool:
    """Whether a value is there once for each batch; an operator may give a list of its own."""
    return isinstance(value, _Batches)


def _last_uses(layers: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Which values are needed no more behind a node."""
    last: dict[fx.Node, fx.Node] = {}
    for node in layers.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        uses.setdefault(node, []).append(source)
    return uses
