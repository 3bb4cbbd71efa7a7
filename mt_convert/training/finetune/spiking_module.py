"""A converted network as a module of torch, for a training loop of one's own."""

from __future__ import annotations

from torch import Tensor, nn

from ...graph.float32 import in_float32
from ...neurons.surrogate import Surrogate
from ...spiking.model import SpikingModel, spiking_network
from .learner import TrainableSpikingModel
from .neuron import TrainableParts


class SpikingModule(nn.Module):
    """A copy of a converted network that torch can differentiate: ``module(images)`` are the logits
    behind each step, bit for bit those of `simulate` until an optimizer moves the weights.

    ``learns``, ``surrogate`` and ``detach_reset`` are those of `FinetuneSpec`; `snapshot` gives the
    network as it is now, to simulate, save and convert to integers.

    Shapes: images [batch, channels, height, width]; logits [T, batch, classes].
    Raises:
        SpecError: no converted network; one whose layers wait for their whole window; no steps.

    Example:
        >>> import torch
        >>> from ...quantization.quantize import quantize
        >>> from ...spiking.convert import convert
        >>> from ...spiking.simulate import simulate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> images, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
        >>> snn = convert(quantize(net, 4, calibration=images), ladder=3, signed=True)
        >>> module = SpikingModule(snn, time_steps=2)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> logits = module(images)
        >>> nn.functional.cross_entropy(logits.mean(0), labels).backward()
        >>> optimizer.step()
        >>> run = simulate(module.snapshot(), images, time_steps=2)
        >>> torch.equal(run.logits, module(images)), torch.equal(run.logits, logits)
        (True, False)
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
        self.learner = TrainableSpikingModel(
            spiking_network(snn, "SpikingModule"),
            time_steps,
            learns=learns,
            surrogate=surrogate,
            detach_reset=detach_reset,
        )

    @property
    def time_steps(self) -> int:
        """How many steps it runs."""
        return self.learner.time_steps

    @in_float32()
    def forward(self, images: Tensor) -> Tensor:
        logits, _ = self.learner(images, range(self.time_steps))
        assert isinstance(logits, Tensor)
        return logits

    def snapshot(self) -> SpikingModel:
        """The network as it is now; later steps of an optimizer do not reach it."""
        return self.learner.snapshot()
