"""A network from scratch watched step by step: what its neurons emit, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.nodes import layer_nodes
from ...neurons.layer import MTNeuron
from ...neurons.totals import count_events, count_packets
from ...spiking.simulate import Run
from .network import ScratchNetwork
from .steps import Potential, States, Steps

Observer = Callable[[int, fx.Node, Tensor, Tensor | None], None]
"""Told the step, a layer of neurons with what it emits and its potentials behind the step, in
levels; or the images, which have none."""


def counted_network(network: ScratchNetwork) -> ScratchNetwork:
    """A copy as `watch` takes it: in eval mode, trains merged, its steps one after the other."""
    counted = network.merge_tensor_trains().eval()
    counted.compiled = False
    return counted


@torch.no_grad()
def watch(network: ScratchNetwork, images: Tensor, observe: Observer) -> Tensor:
    """Run all steps of a `counted_network`, and tell what is shown and emitted in each.

    Returns: the read-out behind each step, [T, batch, classes].
    """
    each: list[Tensor] = []
    states: States = {}
    for t in range(network.time_steps):
        walk = _Watched(network, t, states, observe)
        each.append(walk.run(network.frames(images, [t])))
        states = walk.after
    read_outs: Tensor = network.read_out(torch.stack(each))[0]
    return read_outs


class _Watched(Steps):
    """One step, whose images and spikes are told."""

    def __init__(self, network: ScratchNetwork, t: int, states: States, observe: Observer) -> None:
        super().__init__(network, [t], states)
        self.t, self.observe = t, observe

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.op == "placeholder":
            self.observe(self.t, node, value, None)
        elif isinstance(held := self.after.get(node.name), Potential):
            delta = self.fetch_attr(str(node.target)).delta
            self.observe(self.t, node, (value / delta).round(), held.neuron.v / delta)
        return value


def names_of(network: ScratchNetwork) -> dict[fx.Node, str]:
    """A name for each place of a layer of neurons: that of the layer, where it stands once."""
    places = [(node, str(node.target)) for node, _ in layer_nodes(network.layers, MTNeuron)]
    targets = [target for _, target in places]
    return {node: target if targets.count(target) == 1 else node.name for node, target in places}


def record_run(network: ScratchNetwork, images: Tensor, *, record: bool = False) -> Run:
    """Run all steps; what was seen, as `simulate` gives it of a converted network.

    Shapes: images [batch, channels, height, width], or frames [batch, T, ...].
    Raises:
        DataError: images of another shape.

    Example:
        >>> from torch import nn
        >>> from ...neurons.ladder import Uniform
        >>> from ...neurons.spec import IF, NeuronSpec
        >>> from ...neurons.surrogate import ATan
        >>> from .network import build_from_scratch
        >>> spec = NeuronSpec(Uniform(1), charge=IF(), initial=0.0, surrogate=ATan())
        >>> net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
        >>> example = torch.zeros(2, 1, 2, 2)
        >>> network = build_from_scratch(net, spec, example=example, time_steps=3)
        >>> record_run(network, torch.full((1, 1, 2, 2), 0.5)).spike_counts["0"].tolist()
        [0.0, 4.0, 0.0]
    """
    counted = counted_network(network)
    T, names = counted.time_steps, names_of(counted)
    ladders = {node: layer.spec.ladder for node, layer in layer_nodes(counted.layers, MTNeuron)}
    counts = {name: torch.zeros(T, dtype=torch.float64) for name in names.values()}
    packets = {name: item.clone() for name, item in counts.items()}
    totals: dict[str, Tensor] = {}
    spikes: dict[str, list[Tensor]] = {name: [] for name in counts}
    potentials: dict[str, list[Tensor]] = {name: [] for name in counts}

    def observe(t: int, node: fx.Node, levels: Tensor, v: Tensor | None) -> None:
        if v is None:
            return
        name = names[node]
        counts[name][t] = count_events(levels, ladders[node]).sum(dtype=torch.float64)
        packets[name][t] = count_packets(levels)
        totals[name] = totals[name] + levels if name in totals else levels
        if record:
            spikes[name].append(levels)
            potentials[name].append(v)

    logits = watch(counted, images, observe)
    return Run(
        logits=logits,
        totals=totals,
        spike_counts=counts,
        neurons={name: total[0].numel() for name, total in totals.items()},
        packets=packets,
        spikes={name: torch.stack(item) for name, item in spikes.items()} if record else None,
        potentials={name: torch.stack(v) for name, v in potentials.items()} if record else None,
    )
