"""A converted network and its report: its neurons, what feeds each layer, what stays analog."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Self

from torch import Tensor, fx

from ..errors import Fault, SpecError, many
from ..graph.copies import NotPickled
from ..graph.leftovers import forget_leftovers
from ..graph.nodes import image_shape_of, layer_nodes, set_image_shape
from ..graph.operations import Operations, operations
from ..graph.rules import DEFAULT_RULES, OperatorKind, Rule
from ..neurons.ladder import Radix
from ..neurons.layer import MTNeuron
from ..quantization.quantize import QuantizedModel
from ..report.records import html_of
from .conversion_report import _report
from .presentation import Encoder, Presentation


class SpikingModel(NotPickled):
    """A converted network. It holds no state: `simulate` runs it and owns time and potentials.

    ``layers`` is its graph, ``image_shape`` its images' (channels, height, width), ``report`` what
    was converted and how, ``presentation`` and ``whole_window`` how it is run: with
    ``whole_window`` each layer waits until the layers before it have emitted for all T steps.
    """

    def __init__(
        self,
        layers: fx.GraphModule,
        presentation: Presentation,
        whole_window: bool,
        rules: Mapping[Any, Rule] = DEFAULT_RULES,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.image_shape: tuple[int, ...] = image_shape_of(layers)
        self.presentation, self.whole_window = presentation, whole_window
        self.rules = {**rules, **_SPIKING_LAYERS}
        self._refuse_early_digits()
        self.report = _report(self.operations, whole_window)
        self.eval()

    def _refuse_early_digits(self) -> None:
        """Raise where layers of digits do not wait: a level has none before it is complete."""
        early = not self.whole_window or self.presentation is Presentation.EVERY_STEP
        hint = "use whole_window=True and presentation='once'"
        faults = [
            Fault(name, str(neuron.spec.ladder), hint)
            for name, neuron in self.neurons()
            if early and isinstance(neuron.spec.ladder, Radix)
        ]
        if faults:
            raise SpecError("digits of a level that is not complete", faults)

    def train(self, mode: bool = True) -> Self:
        """Nothing: a converted network is as it was converted; `finetune` trains a copy of it."""
        return super().train(False)

    def __repr__(self) -> str:
        ladders = dict.fromkeys(str(neuron.spec.ladder) for _, neuron in self.neurons())
        shape = "x".join(map(str, self.image_shape))
        return (
            f"SpikingModel({many(list(self.neurons()), 'layer', 'layers')} of neurons, "
            f"{', '.join(list(ladders)[:3])}{', …' * (len(ladders) > 3)}, images {shape}, "
            f"presented {self.presentation}; print(snn.layers) shows all)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: its report."""
        return html_of(self.report.records(), repr(self))

    @property
    def operations(self) -> Operations:
        """A row for each node of its graph, in order of execution, as its layers are now: they may
        be changed in place, so a reader takes the rows once and keeps them for its run."""
        return operations(self.layers, self.rules)

    def neurons(self) -> Iterator[tuple[str, MTNeuron]]:
        """Name and layer of all its neurons, in order of execution."""
        for node, layer in layer_nodes(self.layers, MTNeuron):
            yield str(node.target), layer

    @forget_leftovers()
    def with_neurons(self, neurons: Mapping[str, MTNeuron]) -> SpikingModel:
        """A copy with other neurons in the named layers; this network is unchanged.

        Raises:
            SpecError: a name that is no layer of neurons.
        """
        here = dict(self.neurons())
        faults = [
            Fault(name, "is no layer of neurons", "layers: " + ", ".join(list(here)[:12]))
            for name in neurons
            if name not in here
        ]
        if faults:
            raise SpecError(f"{many(faults, 'layer is', 'layers are')} not there", faults)
        layers = copy.deepcopy(self.layers)
        set_image_shape(layers, self.image_shape)
        for name, neuron in neurons.items():
            layers.set_submodule(name, neuron)
        snn = SpikingModel(layers, self.presentation, self.whole_window, self.rules)
        snn.report = snn.report.of_origin(self.report)
        return snn

    def forward(self, images: Tensor) -> NoReturn:
        raise TypeError("a SpikingModel has no forward: use simulate(snn, images, time_steps=T)")


_SPIKING_LAYERS: dict[Any, Rule] = {
    MTNeuron: Rule(OperatorKind.NEURON),
    Encoder: Rule(OperatorKind.MOVE, "the image, quantized"),
}
SPIKING_RULES: Mapping[Any, Rule] = {**DEFAULT_RULES, **_SPIKING_LAYERS}


def spiking_network(network: object, verb: str) -> SpikingModel:
    """The converted network that a verb takes.

    Raises:
        SpecError: anything else, with how to make one of it.

    Example:
        >>> from torch import nn
        >>> spiking_network(nn.ReLU(), "simulate")
        Traceback (most recent call last):
            ...
        mt_convert.errors.SpecError: simulate takes a converted network, not a ReLU: ...
    """
    if isinstance(network, SpikingModel):
        return network
    hint = "quantize(model, 4, calibration=images), then convert(...)"
    if isinstance(network, QuantizedModel):
        hint = "convert(qann) makes one of it"
    elif isinstance(getattr(network, "snn", None), SpikingModel):
        hint = f"pass its network, .snn of the {type(network).__name__}"
    elif type(network).__name__ == "ScratchNetwork":
        hint = "trained from scratch it is called on images; mt-convert eval counts its spikes"
    raise _another_kind(network, f"{verb} takes a converted network", hint)


def quantized_network(network: object, verb: str) -> QuantizedModel:
    """The quantized network that a verb takes.

    Raises:
        SpecError: anything else, with how to make one of it.

    Example:
        >>> from torch import nn
        >>> quantized_network(nn.ReLU(), "evaluate")
        Traceback (most recent call last):
            ...
        mt_convert.errors.SpecError: evaluate takes a quantized network, not a ReLU: ...
    """
    if isinstance(network, QuantizedModel):
        return network
    hint = "quantize(model, 4, calibration=images) makes one"
    if isinstance(network, SpikingModel):
        hint = "pass the one that this network was converted from"
    raise _another_kind(network, f"{verb} takes a quantized network", hint)


def _another_kind(network: object, wish: str, hint: str) -> SpecError:
    """The error for a network that is none of the kind that a verb takes."""
    return SpecError(f"{wish}, not a {type(network).__name__}: {hint}")
