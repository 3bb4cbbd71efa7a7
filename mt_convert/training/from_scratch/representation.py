"""DSR of networks from scratch: T steps forward on spikes, one pass back on representations.

A layer's representation is the leaky mean r of its spikes, λ the share of its potential that a step
leaves. It is read off the dynamics: with c the leaky mean of what the layer reads, I (IF, and LIF
without ``decay_input``) or I/τ (LIF with it), v_T what is left and W = Σ_(k<T) λ^k (IF: T)::

    r = c − (v_T − λ^T v_0)/W        so that r is clip(c, 0, reach Δ), or from −reach Δ if signed,

to within max(λ^T a, 1 − λ^T a) Δ/W where I stays the same, of an unsigned ladder of equal levels
with v_0 = aΔ, 0 ≤ a ≤ 1. For IF this vanishes with T; for LIF it tends to Δ/τ.

Values are those of the spikes, derivatives those of the clip. Layers without neurons act on
representations: for weights and averages that is exact, a maximum passes its gradient to the
largest representation. Batch norms normalise with the statistics of the spikes. Their gradient
passes through mean and variance over the images' representations, of which the variance of the
spikes is taken as a fixed multiple: what only scales or shifts their input has none, as behind any
batch norm. A dropout has one mask for all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...errors import Fault, SpecError
from ...graph.nodes import NORMS, layer_nodes
from ...neurons.layer import MTNeuron
from ...neurons.linear_recurrence import leaky_mean
from ...neurons.spec import IF, LIF, NeuronSpec, Reset
from ..surrogate_step import in_place_of
from .norm_by_step import NormByStep
from .steps import Network, Steps
from .tensor_trains.tensor_train_layers import BY_STEP


def by_representation(network: Network, images: Tensor) -> Tensor:
    """The read-out of all steps, bit for bit, with the gradient of representations.

    Shapes: images or frames, as the network takes them; logits [batch, classes].
    Raises:
        SpecError: neurons or layers that representations say nothing of.
    """
    faults = _faults(network)
    if faults:
        raise SpecError("representations do not describe this network, so DSR cannot train", faults)
    leak, steps = network.kept_share(), range(network.time_steps)
    with torch.no_grad():
        spikes = _Spikes(network, leak)
        each = spikes.run(network.frames(images, steps)).unflatten(0, (len(steps), -1))
        so_far, _ = network.read_out(each)
    still = images.shape[1:] == network.image_shape
    shown = images if still else leaky_mean(images.transpose(0, 1), leak)
    return in_place_of(_Representations(network, spikes.seen).run(shown), so_far[-1])


class _Spikes(Steps):
    """All steps at once, without a graph; ``seen`` is what the pass back needs of them.

    Of a layer of neurons its representation, of a batch norm variance and mean, of a dropout its
    mask: nothing that grows with T.
    """

    def __init__(self, network: Network, leak: float) -> None:
        super().__init__(network, range(network.time_steps))
        self.leak = leak
        self.seen: dict[str, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.node is not None
        layer, x, name, count = self.fetch_attr(target), args[0], self.node.name, len(self.steps)
        if isinstance(layer, nn.Dropout) and layer.training:
            self.seen[name] = mask = F.dropout(torch.ones_like(x[: len(x) // count]), layer.p)
            return x * mask.repeat(count, *[1] * (x.dim() - 1))
        if isinstance(layer, NORMS) and (layer.training or layer.running_mean is None):
            self.seen[name] = _statistics(x)
        value = super().call_module(target, args, kwargs)
        if isinstance(layer, MTNeuron):
            self.seen[name] = leaky_mean(value.unflatten(0, (count, -1)), self.leak)
        return value


class _Representations(fx.Interpreter):
    """One pass through all layers, of what the steps on spikes came to."""

    def __init__(self, network: Network, seen: dict[str, Any]) -> None:
        super().__init__(network.layers)
        self.extra_traceback = False
        self.seen, self.time_steps = seen, network.time_steps
        self.name = ""

    def run_node(self, node: fx.Node) -> Any:
        self.name = node.name
        return super().run_node(node)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer, x, seen = self.fetch_attr(target), args[0], self.seen.get(self.name)
        if isinstance(layer, MTNeuron):
            return in_place_of(clip_representation(layer, x, self.time_steps), self.seen[self.name])
        if seen is None:
            return layer(*args, **kwargs)
        return x * seen if isinstance(layer, nn.Dropout) else _normalise(layer, x, *seen)


def clip_representation(neuron: MTNeuron, current: Tensor, time_steps: int) -> Tensor:
    """What the representation of a layer's spikes is about, from that of its current.

    Example:
        >>> from ...neurons.ladder import Uniform
        >>> neuron = MTNeuron(NeuronSpec(Uniform(2), charge=LIF(2.0)), 1.5)
        >>> clip_representation(neuron, torch.tensor([-1.0, 4.0, 9.0]), 4).tolist()
        [0.0, 2.0, 3.0]
    """
    spec, charge = neuron.spec, neuron.spec.charge
    if isinstance(charge, LIF) and charge.decay_input:
        current = current / charge.tau
    step, (low, high) = neuron.delta.to(current.dtype), _emission_range(spec, time_steps)
    rate = torch.clamp(current, low * step, high * step)
    return rate if neuron.gain is None else rate * neuron.gain


def _emission_range(spec: NeuronSpec, time_steps: int) -> tuple[float, float]:
    """The least and the most that neurons can emit per step, in levels."""
    low, high = (bound / time_steps for bound in spec.limits)
    reach = spec.ladder.reach
    return max(low, -reach) if spec.signed else 0.0, min(high, reach)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel, over images, steps and space."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return variance, mean


def _normalise(norm: Any, x: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
    """A batch norm with these statistics, its gradient through those of x."""
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    with torch.no_grad():
        value = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ratio = ((_statistics(x)[0] + eps) / (variance + eps)).sqrt()
    scale = ratio if weight is None else weight * ratio
    smooth = torch.batch_norm(x, scale, bias, None, None, True, 0.0, eps, False)
    return in_place_of(smooth, value)


def _faults(network: Network) -> list[Fault]:
    """All that representations say nothing of, and what to take instead."""
    faults = []
    for node, layer in layer_nodes(network.layers, (MTNeuron, NormByStep, *BY_STEP)):
        name = str(node.target)
        if isinstance(layer, NormByStep):
            hint = "steps weigh alike: norm_by_step=False, or train by BPTT"
            faults.append(Fault(name, "a batch norm for each step", hint))
        elif isinstance(layer, MTNeuron):
            faults += [Fault(name, what, hint) for what, hint in _unlike(layer.spec, network)]
        elif layer.by_step:
            hint = "its weights change: decompose with form stt or ptt, or train by BPTT"
            faults.append(Fault(name, "form htt", hint))
    if network.delayed:
        hint = "what is read lags behind: delayed=False, or train by BPTT"
        faults.append(Fault("network", "delayed", hint))
    return faults


def _unlike(spec: NeuronSpec, network: Network) -> list[tuple[str, str]]:
    """What keeps one layer of neurons from having a representation, and what to do."""
    charge, differences = spec.charge, []
    if spec.reset is not Reset.SOFT:
        differences.append(("hard reset", "it throws charge away: reset soft, or train by BPTT"))
    if not isinstance(charge, IF | LIF):
        differences.append(
            (repr(charge), "its leak would get no gradient: take LIF, or train by BPTT")
        )
        return differences
    tau = charge.tau if isinstance(charge, LIF) else None
    if tau is not None and spec.bounds is not None:
        differences.append(
            (f"bounds={spec.bounds}", "of a leaky neuron: bounds=None, or train by BPTT")
        )
    if network.time_steps > 1 and tau != network.read_out_tau:
        settings = f"read_out_tau={tau}" if tau != 1 else "tau above 1 and the same read_out_tau"
        hint = f"read-out and neurons weigh steps alike: take {settings}, or train by BPTT"
        differences.append((f"read_out_tau={network.read_out_tau}", hint))
    return differences
