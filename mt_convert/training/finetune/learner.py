"""A converted network as a module that learns: T steps with gradients, from exactly its start."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...errors import SpecError
from ...graph.nodes import WEIGHTED, layer_nodes
from ...neurons.ladder import Learned
from ...neurons.layer import MTNeuron
from ...neurons.surrogate import Rectangular, StraightThrough, Surrogate
from ...spiking.interpreter import Call, forward_with
from ...spiking.levels import analog
from ...spiking.model import SpikingModel
from ...spiking.presentation import check_time_steps
from ...spiking.shapes import neuron_shapes
from ...spiking.weight_grid import OnGrid
from ...system.keys import key
from ..algorithm import Derivative
from .neuron import State, TrainableParts, TrainedNeuron

States = Mapping[str, State]


class TrainableSpikingModel(nn.Module):
    """A converted network while it learns.

    In front of the first optimizer step its read-outs are those of `simulate`, bit for bit, for
    every T, n, mode and presentation. Batch norms that were not folded keep their statistics.
    ``surrogate=None`` takes straight-through where levels are equal, `Rectangular` for learned
    gaps. ``detach_reset`` False lets gradients through resets too. `snapshot` gives the network
    back. Layers named in ``analog`` compute the function that was quantized instead of spiking.

    Shapes: images [batch, channels, height, width]; a read-out [batch, classes].
    Raises:
        SpecError: a network whose layers wait for their whole window, or fewer than one step.

    Example:
        >>> from ...spiking.convert import convert
        >>> from ...spiking.simulate import simulate
        >>> from ...quantization.quantize import QuantSpec, quantize
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images = torch.randn(8, 1, 4, 4)
        >>> snn = convert(quantize(net, QuantSpec(), calibration=images))
        >>> learner = TrainableSpikingModel(snn, 2)
        >>> torch.equal(learner(images), simulate(snn, images, time_steps=2).logits[-1])
        True
    """

    def __init__(
        self,
        snn: SpikingModel,
        time_steps: int,
        *,
        learns: TrainableParts | None = None,
        surrogate: Surrogate | None = None,
        detach_reset: bool = True,
    ) -> None:
        super().__init__()
        check_time_steps(time_steps)
        if snn.whole_window:
            raise SpecError(
                "layers of this network wait for their whole window, which has no steps to learn "
                "through: convert it with whole_window=False"
            )
        learns = TrainableParts() if learns is None else learns
        self.settings = {
            "learns": key("trainable_parts/1", learns),
            "surrogate": key("surrogate/1", surrogate),
            "T": time_steps,
        }
        self.settings |= {} if detach_reset else {"detach_reset": False}
        self.snn, self.time_steps = copy.deepcopy(snn), time_steps
        self.neurons = nn.ModuleDict()
        shapes = neuron_shapes(snn.layers, batch=2)
        for name, neuron in self.snn.neurons():
            kind = surrogate or _natural(neuron)
            shape = tuple(shapes[name][1:])
            self.neurons[_key(name)] = TrainedNeuron(neuron, kind, learns, shape, detach_reset)
        self.analog: frozenset[str] = frozenset()
        self.snn.requires_grad_(False)
        self.grids: dict[str, OnGrid] = {}
        for node, layer in layer_nodes(self.snn.layers, WEIGHTED) if learns.weights else ():
            grid = OnGrid(layer)
            layer.requires_grad_(True)
            layer.get_parameter("weight").requires_grad_(not grid.fixed)
            self.grids[str(node.target)] = grid

    def forward(
        self,
        images: Tensor,
        steps: Sequence[int] | None = None,
        states: States | None = None,
        derivative: Derivative = Derivative.SPIKES,
    ) -> Tensor | tuple[Tensor, States]:
        """The read-out after all T steps; or those of some steps, going on from ``states``.

        ``derivative`` is what layers pass back.

        Returns: logits [batch, classes]; with ``steps``, [len(steps), batch, classes] and states.
        """
        read_outs = []
        calls = {name: grid.call() for name, grid in self.grids.items()}
        for t in range(self.time_steps) if steps is None else steps:
            read_out, states = self._step(images, t, states or {}, (calls, derivative))
            read_outs.append(read_out)
        assert states is not None
        return read_outs[-1] if steps is None else (torch.stack(read_outs), states)

    @torch.no_grad()
    def reading(self, images: Tensor, name: str) -> Tensor:
        """What a layer of neurons has read by the end of T steps."""
        states: States = {}
        seen: dict[str, Tensor] = {}
        calls = {item: grid.call() for item, grid in self.grids.items()}
        for t in range(self.time_steps):
            _, states = self._step(images, t, states, (calls, Derivative.SPIKES), seen)
        return seen[name]

    def snapshot(self) -> SpikingModel:
        """The network as it is now, for `simulate`, `save` and everything else."""
        neurons = {name: self.learner(name).snapshot() for name, _ in self.snn.neurons()}
        network = self.snn.with_neurons(neurons).requires_grad_(False)
        with torch.no_grad():
            for name, grid in self.grids.items():
                network.layers.get_submodule(name).get_parameter("weight").copy_(grid.weight())
        return network

    def no_weight_decay(self) -> set[str]:
        """What the optimizer does not pull towards 0: all that neurons learn (timm asks)."""
        return {f"neurons.{name}" for name, _ in self.neurons.named_parameters()}

    def train(self, mode: bool = True) -> TrainableSpikingModel:
        """Training mode for what learns; the layers of a converted network stay as in use."""
        super().train(mode)
        self.snn.eval()
        return self

    def _step(
        self,
        images: Tensor,
        t: int,
        before: States,
        how: tuple[Mapping[str, Call], Derivative],
        seen: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, States]:
        """One step through all layers; ``seen`` gets what each layer of neurons reads."""
        calls, derivative = how
        after: dict[str, State] = {}

        def neuron(name: str, layer: MTNeuron, x: Tensor) -> Tensor:
            if seen is not None:
                seen[name] = x
            if name in self.analog:
                return analog(layer, x)
            learner = self.learner(name)
            value, after[name] = learner(x, self.snn.presentation, t, before.get(name), derivative)
            return value

        return forward_with(self.snn, images, neuron, calls), after

    def learner(self, name: str) -> TrainedNeuron:
        """What learns of the layer of neurons of this name."""
        neuron = self.neurons[_key(name)]
        assert isinstance(neuron, TrainedNeuron)
        return neuron


def _natural(neuron: MTNeuron) -> Surrogate:
    """What passes the gradient of a quantizer: the identity where equal levels change."""
    return Rectangular() if isinstance(neuron.spec.ladder, Learned) else StraightThrough()


def _key(name: str) -> str:
    """A name that a ModuleDict takes."""
    return name.replace(".", "/")
