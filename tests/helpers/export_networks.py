"""Small converted networks for exporters, one for each thing that a target must not miss."""

from __future__ import annotations

from functools import cache
from typing import Any

import networks
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.neurons.ladder import Binary, PowerOfTwo, Uniform
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import QuantSpec
from mt_convert.spiking.convert import convert
from mt_convert.spiking.model import SpikingModel


class Mixed(nn.Module):
    """Rims that divide unevenly, windows that overlap, channels split and turned, a whole maximum,
    values of different steps side by side, depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = networks.conv(2, 6), networks.conv(2, 2)
        self.depthwise, self.mixed = networks.conv(8, 8, groups=8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        """All but the read-out."""
        x = torch.cat([F.relu(self.stem(x)), F.relu(self.side(x))], 1)
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        x = torch.cat(x.split([3, 5], 1)[::-1], 1)
        x = F.relu(self.depthwise(x))
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return F.relu(self.mixed(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flip(3).amax((2, 3)))


def volume() -> nn.Module:
    """Three axes of space, each with a geometry of its own."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=(1, 0, 1)),
        nn.ReLU(),
        nn.Conv3d(4, 4, (2, 3, 1), (1, 2, 1), (0, 1, 0), groups=2, bias=False),
        nn.ReLU(),
        nn.MaxPool3d(2, 1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


class Doubled(nn.Module):
    """Values that are read twice: as they are, and in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = networks.conv(2, 4), networks.conv(4, 4)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(F.relu(x + x)))
        x = F.relu(x + x.flatten(1).reshape(-1, 4, 8, 8))
        return self.head(x.flatten(1))


OWN: dict[str, Any] = {"mixed": Mixed, "volume": volume, "doubled": Doubled}
LADDERS: dict[str, dict[str, Any]] = {
    "uniform_3": {"ladder": Uniform(3), "signed": True},
    "binary_4": {"ladder": Binary(4)},
    "power_of_two_4": {"ladder": PowerOfTwo(4)},
    "every_step": {"ladder": Uniform(15), "presentation": "every_step"},
}
NAMES = (
    *("residual", "mixed", "pre_activation", "kinds_of_convolution", "line", "volume", "doubled"),
)


def shape_of(name: str) -> tuple[int, ...]:
    """The shape of the images that a network takes."""
    return (1, 3, 5, 4) if name == "volume" else networks.shape_of(name)


def some_images(name: str, count: int = 8) -> Tensor:
    """Images that the network was not calibrated on."""
    return networks.images(count, shape_of(name), seed=5)


@cache
def _own(name: str) -> QuantizedModel:
    model, batch = OWN[name](), networks.images(8, shape_of(name), 2)
    model.eval()(batch)
    return quantize(networks.lived_in(model), QuantSpec(), calibration=batch)


@cache
def converted(name: str, ladder: str | None = None) -> SpikingModel:
    """A converted network; nobody changes it."""
    qann = _own(name) if name in OWN else networks.quantized(name)
    return convert(qann, **({} if ladder is None else LADDERS[ladder]))
