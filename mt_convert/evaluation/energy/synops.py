"""Events and the additions they cause, counted while a converted network runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...neurons.ladder import Uniform
from ...neurons.layer import MTNeuron
from ...neurons.totals import count_events, count_packets
from ...spiking.levels import ladder_at
from ...spiking.model import SpikingModel
from ...spiking.shapes import image_axes
from ...spiking.simulate import simulate
from .fanout import Paths, pick_maximum


@dataclass(frozen=True)
class StepCounts:
    """What happened in each step, summed over the images.

    ``events`` are thresholds crossed (set bits, the size of a digit), ``packets`` neurons that emit
    anything.

    Shapes: events[layer of neurons], packets, synops[weighted layer or product] [T], float64 whole
    numbers.
    """

    events: Mapping[fx.Node, Tensor]
    packets: Mapping[fx.Node, Tensor]
    synops: Mapping[fx.Node, Tensor]


def count_synops(
    snn: SpikingModel, paths: Paths, batches: Iterable[Tensor], time_steps: int
) -> StepCounts:
    """Simulate batches of images and count; ``paths`` are those of `fanout.event_paths`.

    Example:
        >>> from torch import nn
        >>> from ...spiking.convert import convert
        >>> from .fanout import event_paths
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> images = torch.rand(4, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(input_bits=None), calibration=images))
        >>> counts = count_synops(snn, event_paths(snn), [images], time_steps=2)
        >>> (events,), (synops,) = counts.events.values(), counts.synops.values()
        >>> torch.equal(synops, 3 * events), synops[1].item()
        (True, 0.0)
    """
    tally = EventTally(snn.layers, paths, time_steps)
    for images in batches:
        tally.begin()
        simulate(
            snn,
            images,
            time_steps=time_steps,
            observe=tally.observe,
            observe_pairs=tally.observe_pairs,
        )
    return tally.counts()


class EventTally:
    """Counts of one network, as its layers of neurons report them: by the names of their nodes
    where ``by_node``, else of their layers. Images that are spikes have one threshold.
    """

    def __init__(
        self, layers: fx.GraphModule, paths: Paths, time_steps: int, *, by_node: bool = False
    ) -> None:
        self.paths = paths
        self.axes = image_axes(layers)
        self.nodes = {node.name if by_node else str(node.target): node for node in paths.neurons}
        self.ladders = [
            layer.spec.ladder if isinstance(layer, MTNeuron) else Uniform(1)
            for layer in (paths.operations[node].layer for node in paths.neurons)
        ]
        self.shown = {node: set(shows.unique().tolist()) for node, shows in paths.shows.items()}
        self.reached: dict[fx.Node, list[tuple[fx.Node, Tensor]]] = {}
        for node, fanout in paths.fanouts.items():
            for source, additions in (fanout.additions or {}).items():
                self.reached.setdefault(source, []).append((node, additions))
        self.maxima = [node for node in paths.feeders if node not in paths.neurons]
        self.watched = {item for node in self.maxima for item in paths.feeders[node]}
        self.pairs: dict[str, Tensor] = {}
        self.pending: dict[int, dict[fx.Node, tuple[Tensor, Tensor]]] = {}
        self.events = {node: _nothing(time_steps) for node in paths.shows}
        self.packets = {node: _nothing(time_steps) for node in paths.shows}
        self.synops = {node: _nothing(time_steps) for node in paths.fanouts}

    def begin(self) -> None:
        """Other images follow."""
        self.pending.clear()

    def counts(self) -> StepCounts:
        """What was counted of layers of neurons and of what they reach."""
        neurons = {node: self.events[node] for node in self.paths.neurons}
        packets = {node: self.packets[node] for node in self.paths.neurons}
        return StepCounts(neurons, packets, self.synops)

    def observe(self, t: int, name: str, total: Tensor, emitted: Tensor) -> None:
        """One layer's totals and emission in one step, in levels; where a maximum looks at one step
        alone, the emission for both."""
        node = self.nodes[name]
        self._count(t, node, emitted, self.pairs.pop(name, None))
        if node in self.watched:
            arrived = self.pending.setdefault(t, {})
            arrived[node] = total, total - emitted
            for maximum in self.maxima:
                feeders = self.paths.feeders[maximum]
                if node in feeders and all(item in arrived for item in feeders):
                    after, before = (
                        pick_maximum(
                            self.paths.operations,
                            maximum,
                            {item: arrived[item][k] for item in feeders},
                        )
                        for k in (0, 1)
                    )
                    self._count(t, maximum, after - before)
            if len(arrived) == len(self.watched):
                del self.pending[t]

    def observe_pairs(self, t: int, name: str, pairs: Tensor) -> None:
        """Thresholds of a function that were crossed up and down: events beyond its levels."""
        self.pairs[name] = pairs

    def _count(self, t: int, source: fx.Node, emitted: Tensor, pairs: Tensor | None = None) -> None:
        """Add the events of one source, and what they cause wherever they arrive."""
        shows, axis = self.paths.shows[source], self.axes[source]
        places = torch.zeros(shows.shape, dtype=torch.float64, device=emitted.device)
        for number in self.shown[source] - {0}:
            events = count_events(emitted, ladder_at(self.ladders[number - 1], t))
            events = events if pairs is None else events + pairs
            images = events.unflatten(axis, (-1, shows.shape[axis]))
            here = images.sum(axis, dtype=torch.float64)
            places += here * (shows == number)
        self.events[source][t] += float(places.sum())
        self.packets[source][t] += float(count_packets(emitted))
        for node, additions in self.reached.get(source, ()):
            self.synops[node][t] += float((places * additions).sum())


def _nothing(time_steps: int) -> Tensor:
    """Nothing counted yet."""
    return torch.zeros(time_steps, dtype=torch.float64)
