"""By which step a network of signed, bounded neurons is at rest, whatever the machine.

Once everything in front of a layer rests, its neurons have a fixed aim, and the step in which that
is so takes them there by as many levels as they have thresholds. Sums in floating point decide
which way they went before, so a shorter time is seen often, and promised never.
"""

from __future__ import annotations

import math

from torch import fx

from mt_convert.neurons.layer import MTNeuron
from mt_convert.spiking.conversion_report import Verdict
from mt_convert.spiking.model import SpikingModel


def rests_by(snn: SpikingModel, reach: int) -> int:
    """The step from which on all neurons rest, with ``reach`` levels in each step at most."""
    steps: dict[fx.Node, int] = {}
    for node in snn.layers.graph.nodes:
        steps[node] = max((steps[item] for item in node.all_input_nodes), default=1)
        layer = snn.layers.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, MTNeuron):
            low, high = (int(bound) for bound in layer.spec.limits)
            first = steps[node] == 1  # its neurons start at level 0, those behind it anywhere
            steps[node] += math.ceil((max(-low, high) if first else high - low) / reach) - 1
    return steps[snn.layers.graph.output_node()]


def check_settling(verdict: Verdict, snn: SpikingModel) -> None:
    """At rest by that step; a network too deep for the steps that were tried may have moved on."""
    last = rests_by(snn, verdict.thresholds)
    if verdict.settling_t is None:
        assert last > verdict.time_steps, f"still moving, and {last} steps are enough"
    else:
        assert 1 <= verdict.settling_t <= min(last, verdict.time_steps)
