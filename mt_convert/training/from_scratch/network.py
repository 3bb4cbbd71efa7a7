"""Spiking networks trained from scratch: an architecture with neurons where its activations stood.

A step's spikes go through all layers in that step; the read-out of T steps is the mean of what the
last layer gives in each, or a leaky mean. Operators that are not linear (a maximum) look at one
step alone, and batch norm normalises over images and steps together where several steps run at
once: one set of statistics for all of them, which folds into one convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from ...errors import DataError, Fault, SpecError, UnsupportedLayerError, many
from ...graph.float32 import in_float32
from ...graph.nodes import (
    fold_batch_norm_,
    image_shape_of,
    layer_nodes,
    node_name,
    set_image_shape,
)
from ...graph.operations import operations, reaching_output, unknown_operators
from ...graph.rules import DEFAULT_RULES, OperatorKind, Rule
from ...graph.tracing.trace import trace
from ...neurons.dynamics import NeuronState
from ...neurons.layer import MTNeuron
from ...neurons.spec import IF, LIF, NeuronSpec, Reset
from ...neurons.surrogate import SpikeTime
from ...spiking.model import SPIKING_RULES
from ...spiking.presentation import check_time_steps
from ...spiking.shapes import images_not_first
from ...system.keys import key
from ..algorithm import Derivative
from .neuron_steps import step_through, step_through_compiled
from .norm_by_step import NormByStep, norm_by_step_, refuse_to_fold, with_shared_norms
from .poisson import Coding, poisson, poisson_of_each
from .read_out import ReadOut
from .representation import by_representation
from .standardized import is_standardized, learn_thresholds_, standardize_, with_plain_weights
from .steps import States, Steps
from .tensor_trains.tensor_train import TensorTrain, TTConv2d, decompose, merge
from .tensor_trains.tensor_train_layers import BY_STEP, fold_by_step_, put_trains_, without_steps

_RULES = {
    **SPIKING_RULES,
    **dict.fromkeys(BY_STEP, Rule(OperatorKind.WEIGHTED)),
    NormByStep: DEFAULT_RULES[nn.BatchNorm2d],
}


@in_float32()
def build_from_scratch(
    model: nn.Module,
    neuron: NeuronSpec,
    *,
    example: Tensor,
    time_steps: int,
    delayed: bool = False,
    rules: Mapping[Any, Rule] = DEFAULT_RULES,
    read_out_tau: float | None = None,
    tensor_train: TensorTrain | None = None,
    learn_read_out: bool = False,
    compiled: bool = False,
    coding: Coding = Coding.DIRECT,
    standardized: bool = False,
    learns_thresholds: bool = False,
    norm_by_step: bool = False,
) -> ScratchNetwork:
    """A spiking network with the layers of ``model`` and ``neuron`` for each of its activations.

    ``delayed``: a layer answers to a step's input in the next step, as in STDB's code, so that T
    has to exceed the depth. The largest emission of a step is 1, as that of a single threshold: n
    thresholds part it in n. ``read_out_tau``: the read-out is a leaky mean of the steps, the last
    ones weigh most; None weighs all alike. With ``learn_read_out`` its leak learns, from there on,
    as that of a PLIF neuron that never resets. ``tensor_train`` decomposes 3x3 convolutions, as
    `decompose` does; a model that it has decomposed already is taken as it is. ``compiled`` makes
    one kernel of the steps of a layer of neurons, by torch.compile: the same spikes, gradients up
    to rounding, after some seconds in the first batch. ``coding`` POISSON shows images as `poisson`
    draws them. ``standardized``: convolutions and linear layers, the read-out apart, learn as
    `standardize_` has it; ``learns_thresholds``: so does the step of each layer;
    ``norm_by_step``: batch norms are `NormByStep`. The network is in
    the mode, training or evaluation, that ``model`` is in.

    Shapes: example [batch, channels, height, width], one step's input.
    Raises:
        UnsupportedLayerError: operators without a rule, or a model that cannot be traced.
        SpecError: no activation to replace; a neuron without surrogate, which cannot learn, or with
            `SpikeTime`, which only converted networks keep the times for; as `decompose`.

    Example:
        >>> import torch
        >>> from ...neurons.ladder import Uniform
        >>> from ...neurons.spec import PLIF
        >>> from ...neurons.surrogate import ATan
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> spec = NeuronSpec(Uniform(4), charge=PLIF(), initial=0.0, surrogate=ATan())
        >>> network = build_from_scratch(net, spec, example=torch.zeros(2, 1, 4, 4), time_steps=3)
        >>> network(torch.randn(5, 1, 4, 4)).shape
        torch.Size([5, 2])
    """
    if neuron.surrogate is None:
        hint = "give it a surrogate, such as ATan()"
        raise SpecError("neurons without a gradient cannot learn", [Fault("neuron", "", hint)])
    if isinstance(neuron.surrogate, SpikeTime):
        hint = "take Linear(), or another surrogate of the potential"
        fault = Fault("surrogate", "SpikeTime", hint)
        raise SpecError("networks from scratch keep no spike times", [fault])
    training = model.training
    if tensor_train is not None:
        model = decompose(model, tensor_train).model
    layers = trace(without_steps(model), example)
    rows = operations(layers, rules)
    faults = unknown_operators(rows)
    if faults:
        raise UnsupportedLayerError(
            f"{many(faults, 'operator', 'operators')} of {type(model).__name__} without a rule",
            faults,
        )
    names = [
        row.name
        for row in rows.values()
        if isinstance(row.layer, (nn.ReLU, nn.Hardtanh)) and not row.constant
    ]
    if not names:
        hint = "a ReLU, ReLU6 or Hardtanh, as module or function"
        raise SpecError("nothing becomes a layer of neurons", [Fault("model", "no ReLU", hint)])
    for name in dict.fromkeys(names):
        layers.set_submodule(name, MTNeuron(neuron, 1 / neuron.ladder.reach))
    put_trains_(layers, model)
    if norm_by_step:
        norm_by_step_(layers, time_steps)
    network = ScratchNetwork(
        layers, time_steps, delayed, read_out_tau, learn_read_out, compiled, coding
    )
    if standardized:
        standardize_(network.layers, network.reads_out)
    if learns_thresholds:
        learn_thresholds_(network.layers)
    return network.train(training)


class ScratchNetwork(nn.Module):
    """Layers and neurons that run T steps on single spikes, with gradients.

    Shapes: images [batch, channels, height, width], the same in every step; or frames
        [batch, T, channels, height, width], one for each. Logits [batch, classes].
    """

    def __init__(
        self,
        layers: fx.GraphModule,
        time_steps: int,
        delayed: bool = False,
        read_out_tau: float | None = None,
        learn_read_out: bool = False,
        compiled: bool = False,
        coding: Coding = Coding.DIRECT,
    ) -> None:
        super().__init__()
        check_time_steps(time_steps)
        self.coding = coding
        self.layers, self.time_steps, self.delayed = layers, time_steps, delayed
        self.read_out, self.compiled = ReadOut(read_out_tau, learn_read_out), compiled
        self.image_shape: tuple[int, ...] = image_shape_of(layers)
        rows = operations(layers, _RULES)
        self.reads_out: Collection[str] = {node.name for node in reaching_output(rows)}
        faults = _beside_images(layers, self.image_shape)
        if faults:
            raise UnsupportedLayerError(
                "images are not alone on the first axis, where steps lie beside them", faults[:5]
            )
        self.train(layers.training)

    def forward(
        self,
        images: Tensor,
        steps: Sequence[int] | None = None,
        states: States | None = None,
        derivative: Derivative = Derivative.SPIKES,
    ) -> Any:
        """The read-out of all T steps; with ``steps``, those so far behind each of them; with
        ``states`` of the steps before too, each step's own, its gradient by traces (OTTT).

        ``derivative`` CLIP is that of representations (DSR): all T steps, in one call.

        Returns: logits [batch, classes]; with ``steps``, [len(steps), batch, classes] and states.
        """
        if derivative is not Derivative.SPIKES:
            _check_whole(derivative, steps is None and states is None)
            return by_representation(self, images)
        shown = range(self.time_steps) if steps is None else steps
        walk = Steps(self, shown, states)
        each = walk.run(self.frames(images, shown)).unflatten(0, (len(shown), -1))
        if states is not None:
            return each, walk.after
        so_far, _ = self.read_out(each)
        return so_far[-1] if steps is None else (so_far, walk.after)

    @property
    def read_out_tau(self) -> float | None:
        """The time constant of the read-out, as it is now; None for the mean over the steps."""
        return self.read_out.tau

    def neurons(self) -> list[tuple[str, MTNeuron]]:
        """Name and layer of all its neurons, in order of execution."""
        return [(str(node.target), layer) for node, layer in layer_nodes(self.layers, MTNeuron)]

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed training must share with the one that began."""
        trains = sorted(
            {layer.form for layer in self.layers.modules() if isinstance(layer, TTConv2d)}
        )
        specs = dict.fromkeys(layer.spec for _, layer in self.neurons())
        return {
            "neurons": key("neurons/1", list(specs)),
            "time_steps": self.time_steps,
            "delayed": self.delayed,
            "read_out_tau": "learned" if self.read_out.learns else self.read_out_tau,
            "trains": [str(form) for form in trains],
            "compiled": self.compiled,
            "coding": str(self.coding),
            "norm_by_step": any(isinstance(layer, NormByStep) for layer in self.layers.modules()),
            "standardized": is_standardized(self.layers),
            "learns_thresholds": any(layer.delta.requires_grad for _, layer in self.neurons()),
        }

    @property
    def in_steps(self) -> Callable[..., tuple[Tensor, NeuronState]]:
        """What runs the steps of a layer of neurons."""
        return step_through_compiled if self.compiled else step_through

    def kept_share(self) -> float:
        """The share of a potential that is left after a step, the same in all layers.

        Raises:
            SpecError: traces need one fixed leak, soft reset, and layers that answer at once.
        """
        specs = [layer.spec for _, layer in self.neurons()]
        charge = specs[0].charge
        for spec in specs:
            if spec.reset is not Reset.SOFT or not isinstance(spec.charge, (IF, LIF)):
                raise SpecError(
                    f"OTTT: {spec.charge}, {spec.reset} reset; its traces need soft reset and a "
                    "fixed leak, IF or LIF: train by BPTT otherwise"
                )
            if spec.charge != charge:
                raise SpecError(
                    f"layers leak differently, {charge} and {spec.charge}; traces and "
                    "representations need one leak in all layers: train by BPTT otherwise"
                )
        if self.read_out.learns:
            raise SpecError(
                "neither traces nor representations pass anything to the leak of a read-out: build "
                "the network with learn_read_out=False, or train by BPTT"
            )
        if self.delayed:
            raise SpecError(
                "OTTT: in a delayed network no gradient of a step reaches the layers that caused "
                "it: build it with delayed=False, or train by BPTT"
            )
        return 1 - 1 / charge.tau if isinstance(charge, LIF) else 1.0

    def merge_tensor_trains(self) -> ScratchNetwork:
        """A copy with one convolution for each train of tensors, two for form HTT, and the weights
        themselves where they learned standardised."""
        return self._with(with_plain_weights(merge(self.layers))).train(self.training)

    def fold(self) -> ScratchNetwork:
        """A copy with each batch norm in the convolution or linear layer in front of it, in eval
        mode, trains of tensors merged; its statistics are shared by all steps, so one layer does
        for all of them."""
        refuse_to_fold(self.layers)
        layers = with_plain_weights(merge(self.layers)).eval()
        assert isinstance(layers, fx.GraphModule)
        fold_by_step_(layers)
        fold_batch_norm_(layers)
        return self._with(layers).eval()

    def _with(self, layers: nn.Module) -> ScratchNetwork:
        """The same network of other layers."""
        assert isinstance(layers, fx.GraphModule)
        set_image_shape(layers, self.image_shape)
        network = ScratchNetwork(
            layers, self.time_steps, self.delayed, compiled=self.compiled, coding=self.coding
        )
        network.read_out = copy.deepcopy(self.read_out)
        return network

    def no_weight_decay(self) -> set[str]:
        """Leaks and thresholds (timm asks)."""
        return {"read_out.w"} | {
            f"layers.{target}.{name}"
            for target, layer in self.neurons()
            for name, _ in layer.named_parameters()
        }

    def frames(self, images: Tensor, steps: Sequence[int]) -> Tensor:
        """What is shown in these steps: [steps * batch, ...].

        Poisson spikes are drawn afresh in training; in evaluation an image has its own, the same in
        every batch and on every machine."""
        if self.coding is Coding.POISSON and images.shape[1:] == self.image_shape:
            draw = poisson if self.training else poisson_of_each
            images = draw(images, self.time_steps)
        if images.shape[1:] == self.image_shape:
            return images.repeat(len(steps), *[1] * (images.dim() - 1))
        shape = ", ".join(map(str, self.image_shape))
        if images.shape[2:] != self.image_shape or images.shape[1] != self.time_steps:
            raise DataError(
                f"images of shape {tuple(images.shape)} do not fit: this network takes [batch, "
                f"{shape}], the same in every step, or frames [batch, {self.time_steps}, {shape}]"
            )
        return images[:, list(steps)].transpose(0, 1).flatten(0, 1)


def _beside_images(layers: fx.GraphModule, image_shape: tuple[int, ...]) -> list[Fault]:
    """Where something else lies on the first axis than images."""
    plain = copy.deepcopy(with_shared_norms(without_steps(layers)))
    plain = plain.float()  # shapes are those of any other kind
    assert isinstance(plain, fx.GraphModule)
    set_image_shape(plain, image_shape)
    return [Fault(node_name(node), str(node.target), "") for node in images_not_first(plain)]


def _check_whole(derivative: Derivative, whole: bool) -> None:
    """Raise unless it is the derivative of representations, of all steps at once."""
    if derivative is not Derivative.CLIP:
        raise SpecError(
            "tandem learning goes back through the function that was quantized, which a network "
            "from scratch has none of: train this one by BPTT, OTTT or DSR"
        )
    if not whole:
        raise SpecError(
            "the derivative of representations is that of all T steps at once: leave out steps "
            "and states, and hand DSR the network as a module rather than a function of it"
        )
