"""From the integer engine's program of a converted network to nodes that any language has."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch

from ...errors import Fault, MTConvertError, SpecError, UnsupportedLayerError
from ...integer_engine import threshold_tables as tables
from ...integer_engine.model import integer
from ...integer_engine.program import Encode, Fire
from ...neurons.ladder import Radix
from ...spiking.levels import levels
from ...spiking.model import SpikingModel, spiking_network
from ...spiking.presentation import check_time_steps
from ...system.devices import device_of
from .nodes import IntegerForm, Node
from .unrolled import unroll
from .writer import HEADLINE, Writer

MOST_STEPS = 256


@torch.no_grad()
def integer_form(
    snn: SpikingModel, time_steps: int | None = None, *, real: bool = False
) -> IntegerForm:
    """Time steps of a converted network, one unless given, as nodes of whole numbers; where layers
    wait for their whole window, that of all levels unless given, all of it in one pass.

    ``real`` takes operators on real numbers between layers of neurons too, as they are.

    Raises:
        SpecError: fewer than one time step, or more than `MOST_STEPS`.
        UnsupportedLayerError: what has no such form, all of it.

    Example:
        >>> from torch import nn
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> snn = convert(quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4)))
        >>> [node.op for node in integer_form(snn).nodes]
        ['encode', 'conv', 'fire', 'reshape', 'linear', 'read_out']
    """
    snn = spiking_network(snn, "export")
    if device_of(snn).type != "cpu":
        snn = copy.deepcopy(snn).cpu()
    if time_steps is None:
        time_steps = window_steps(snn) if snn.whole_window else 1
    check_time_steps(time_steps)
    if time_steps > MOST_STEPS:
        raise SpecError(f"time_steps is {time_steps}: at most {MOST_STEPS} leave as one network")
    model = integer(snn, backend="torch")
    if snn.whole_window:
        programs = [model.program(time_steps - 1, time_steps)]
    else:
        programs = [model.program(t) for t in range(time_steps)]
    program = programs[0]
    apart = [item for item in program.instructions if isinstance(item, Fire) and not item.together]
    if apart:
        hint = "one pass does not say its window: use uniform, binary or radix ladders, image once"
        raise UnsupportedLayerError(
            HEADLINE, [Fault(item.name, "fires step by step", hint) for item in apart]
        )
    faults = []
    if not any(isinstance(item, Encode) for item in program.instructions):
        faults.append(Fault("the image", "is not quantized", "give QuantSpec input_bits"))
    try:
        for one in {id(one): one for one in programs}.values():
            tables.check(one, real=real)
    except MTConvertError as fact:
        hint = "real numbers leave to torch; to onnx with --approximate (approximate=True)"
        faults += [
            replace(one, hint=hint) if one.what == "no integer form" else one for one in fact.faults
        ]
        raise UnsupportedLayerError(HEADLINE, faults) from fact
    if faults:
        raise UnsupportedLayerError(HEADLINE, faults)
    several = len(programs) > 1
    programs = unroll(programs) if several else programs
    writer = Writer(programs[0], several, real)
    for step, program in enumerate(programs, start=1):
        writer.behind = f", step {step}" if step > 1 else ""
        for item in program.instructions:
            writer.write(item)
    if writer.faults:
        raise UnsupportedLayerError(HEADLINE, list(dict.fromkeys(writer.faults)))
    nodes = _drop_unneeded(writer.nodes)
    made = {0, *(node.out for node in nodes)}
    return IntegerForm(
        tuple(nodes),
        {index: value for index, value in writer.values.items() if index in made},
        tuple(program.values[0].shape),
        writer.program,
        model,
        writer.sources,
        {writer.at(index): name for name, index in writer.emitted.items()},
        time_steps,
        program.real,
    )


def _drop_unneeded(nodes: list[Node]) -> list[Node]:
    """Nodes that the last one needs: read-outs of earlier steps are left out."""
    needed = {nodes[-1].out}
    for node in reversed(nodes):
        needed |= set(node.inputs) if node.out in needed else set()
    return [node for node in nodes if node.out in needed]


def window_steps(snn: SpikingModel) -> int:
    """The steps of a whole window behind which every level can be said.

    Example:
        >>> from torch import nn
        >>> from ...neurons.ladder import Radix
        >>> from ...spiking.convert import convert
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(), calibration=torch.randn(8, 1, 4, 4))
        >>> window_steps(convert(qann, ladder=Radix(1), whole_window=True))
        4
    """
    steps = [1]
    for _, neuron in snn.neurons():
        ladder, most = neuron.spec.ladder, levels(neuron.spec)
        if isinstance(ladder, Radix):
            steps.append(ladder.steps or ladder.digits(most))
        else:
            steps.append(math.ceil(most / ladder.reach))
    return max(steps)
