"""How converters of other packages are called: as their own documentation and examples do.

The packages are optional: each is imported only where it is called. `network` runs what
stands here and prints none of it; `calls` gives the source, for pages.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ...errors import Fault, SpecError

BATCH = 32
LTB_BATCHES = 390  # as many as SpikingJelly's ImageNet example: 50,000 images in batches of 128
SCALE = 10  # the largest factor that sinabs' page on weight scaling names


@dataclass(frozen=True)
class Peer:
    """One converter of another package: what converts a network, and what runs it step by step.

    ``neurons`` names the class of its spiking layers. ``delay``, where the documentation has it:
    how many steps the read-out leaves out, given enough of them.
    """

    package: str
    neurons: str
    convert: Callable[[nn.Module, Tensor], nn.Module]
    steps: Callable[[nn.Module, Tensor, int], Iterator[Tensor]]
    delay: Callable[[nn.Module, Tensor], int] | None = None

    @property
    def about(self) -> str:
        """What is called, on one line."""
        return " ".join((inspect.getdoc(self.convert) or "").split())


def spikingjelly_rate(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """Rate coding as the robust recipe of SpikingJelly's ImageNet example: thresholds per channel
    at the 99.9th percentile, potentials start at half of them; each calibration image once."""
    from spikingjelly.activation_based import ann2snn

    recipe = ann2snn.RateCodingRecipe(
        dataloader=batches(calibration),
        mode="99.9%",
        fuse_flag=True,
        channel_wise=True,
        pre_spike_maxpool=True,
        half_threshold=True,
    )
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_max(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """Rate coding as in SpikingJelly's CIFAR-10 example: one threshold per layer, the maximum;
    each calibration image once."""
    from spikingjelly.activation_based import ann2snn

    recipe = ann2snn.RateCodingRecipe(dataloader=batches(calibration), mode="Max")
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_ltb(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """Local threshold balancing as in SpikingJelly's ImageNet example. It moves thresholds a little
    with every batch, so it sees as many batches as there: the calibration images repeatedly."""
    from spikingjelly.activation_based import ann2snn

    recipe = ann2snn.LocalThresholdBalancingRecipe(
        dataloader=batches(calibration, LTB_BATCHES), fuse_flag=True
    )
    return ann2snn.Converter(recipe=recipe).convert(ann)


def spikingjelly_steps(snn: nn.Module, images: Tensor, time_steps: int) -> Iterator[Tensor]:
    """The network's output in each step."""
    from spikingjelly.activation_based import functional

    functional.reset_net(snn)
    for _ in range(time_steps):
        yield snn(images)


def spikingjelly_delay(snn: nn.Module, calibration: Tensor) -> int:
    """Steps until the first spikes have gone through all layers, as its ImageNet example has it."""
    from spikingjelly.activation_based import ann2snn

    device, many = calibration.device, 2**30
    return ann2snn.estimate_delay_start(snn, batches(calibration), device, time_steps=many)


def read_from(delay: int, time_steps: int) -> int:
    """From which step on a delayed read-out averages, as `estimate_delay_start` limits it.

    Example:
        >>> [read_from(11, T) for T in (1, 6, 14, 15, 32)]
        [0, 1, 9, 11, 11]
    """
    return delay if time_steps >= delay + 4 else max(time_steps - 5, 0)


def sinabs_unscaled(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """`from_model` as in sinabs' tutorial on converting an ANN, but the image is a constant current
    and the output is read as it is: threshold 1, several spikes a step, no calibration."""
    from sinabs.from_torch import from_model

    return from_model(ann, batch_size=1).spiking_model


def sinabs_scaled(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """`from_model` behind sinabs' page on weight scaling: first layer (here: the image) and biases
    times 10, the output divided by it. Its `normalize_weights` is not called: it is for chains of
    layers without biases and changes the function of others."""
    from sinabs.from_torch import from_model

    check_scaling(ann, calibration[:BATCH])
    return from_model(ann, batch_size=1, bias_rescaling=1 / SCALE).spiking_model


def sinabs_steps(snn: nn.Module, images: Tensor, time_steps: int) -> Iterator[Tensor]:
    """The network's output in each step."""
    import sinabs

    sinabs.reset_states(snn)
    sinabs.set_batch_size(snn, len(images))
    for _ in range(time_steps):
        yield snn(images)


def sinabs_scaled_steps(snn: nn.Module, images: Tensor, time_steps: int) -> Iterator[Tensor]:
    """The network's output in each step, in units of the unscaled network."""
    for output in sinabs_steps(snn, images * SCALE, time_steps):
        yield output / SCALE


def batches(images: Tensor, count: int | None = None) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of the images in order: all of them once, or from the start again until ``count``.

    Example:
        >>> [len(batch) for (batch,) in batches(torch.zeros(40, 1))]
        [32, 8]
    """
    length = len(images) if count is None else BATCH * count
    order = [number % len(images) for number in range(length)]
    seeds = torch.Generator()  # a loader draws from it; the caller's random state stays as it is
    return DataLoader(TensorDataset(images), batch_size=BATCH, sampler=order, generator=seeds)


@torch.no_grad()
def check_scaling(ann: nn.Module, images: Tensor) -> None:
    """Refuse a network whose output does not grow like its images and biases.

    Raises:
        ValueError: scaling them changes more than the output's scale.
    """
    scaled = copy.deepcopy(ann)
    for layer in scaled.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            layer.bias *= SCALE
    expected = ann(images)
    error = (scaled(images * SCALE) / SCALE - expected).abs().max()
    if not error <= 1e-3 * expected.abs().max():
        raise ValueError("scaling images and biases changes the network (batch norms not folded?)")


_SPIKINGJELLY = ("spikingjelly", "spikingjelly.activation_based.neuron.BaseNode")
_SINABS = ("sinabs", "sinabs.layers.StatefulLayer")

PEERS: Mapping[str, Peer] = {
    "spikingjelly_rate": Peer(
        *_SPIKINGJELLY, spikingjelly_rate, spikingjelly_steps, spikingjelly_delay
    ),
    "spikingjelly_max": Peer(*_SPIKINGJELLY, spikingjelly_max, spikingjelly_steps),
    "spikingjelly_ltb": Peer(
        *_SPIKINGJELLY, spikingjelly_ltb, spikingjelly_steps, spikingjelly_delay
    ),
    "sinabs": Peer(*_SINABS, sinabs_unscaled, sinabs_steps),
    "sinabs_scaled": Peer(*_SINABS, sinabs_scaled, sinabs_scaled_steps),
}


def peer(name: str) -> Peer:
    """The peer of this name.

    Raises:
        SpecError: there is none; all names are listed.
    """
    if name not in PEERS:
        hint = f"allowed: {', '.join(PEERS)}"
        raise SpecError("no such peer", [Fault("peer", name, hint)])
    return PEERS[name]


def calls(name: str) -> str:
    """The source of what converts a network and of what runs it.

    Example:
        >>> calls("sinabs").splitlines()[0]
        'def sinabs_unscaled(ann: nn.Module, calibration: Tensor) -> nn.Module:'
    """
    called = peer(name)
    functions = (called.convert, called.steps, called.delay)
    return "\n\n".join(inspect.getsource(function) for function in functions if function)
