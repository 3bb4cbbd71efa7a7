"""Small networks, one for each thing that tracing and conversion must not miss.

Every network takes [batch, 2, 8, 8] (`LINE` takes [batch, 2, 8]) and returns logits. Weights come
from a seeded generator, batch norms have lived: their statistics and factors are not the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from mt_convert.quantization.activations.quant_act import QuantAct
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec

IMAGE = (2, 8, 8)
LINE = (2, 8)


def images(batch: int, shape: tuple[int, ...] = IMAGE, seed: int = 0) -> Tensor:
    """Seeded images."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with seeded weights and batch norms as training leaves them, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.4, generator=generator)  # some are negative
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return model.eval()


def conv(inputs: int, outputs: int, size: int = 3, **settings: int | bool) -> nn.Conv2d:
    """A convolution that keeps the image's size unless told otherwise."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **settings)  # type: ignore[arg-type]


class Functional(nn.Module):
    """F.relu, torch.relu, the method and an in-place call instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(2, 4), conv(4, 4), conv(4, 4), conv(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = torch.relu(self.b(x))
        x = self.c(x).relu_()
        x = self.d(x).relu()
        return self.head(x.mean((2, 3)))


class OneReLU(nn.Module):
    """One ReLU module used three times, in place: three neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(2, 4, bias=False), conv(4, 4, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc2(self.relu(self.fc1(x)))


class SharedConv(nn.Module):
    """One convolution used three times, each time with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 3)
        self.shared = conv(3, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for norm in self.norms:
            x = F.relu(norm(self.shared(x)))
        return self.head(x.mean((2, 3)))


class SharedWithoutActivation(nn.Module):
    """One convolution used three times in a row without an activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = conv(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(self.shared(self.shared(x))))
        return self.head(x.mean((2, 3)))


class SharedWeight(nn.Module):
    """One parameter used by two functional convolutions of different strides."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.4 * images(3, (2, 3, 3), seed=9))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(F.conv2d(x, self.kernel, padding=1)).mean((2, 3))
        coarse = F.relu(F.conv2d(x, self.kernel, stride=2, padding=1)).mean((2, 3))
        return self.head(fine + coarse)


class Clamps(nn.Module):
    """ReLU6, a Hardtanh with levels below 0, and clamps by function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(2, 4), conv(4, 4), conv(4, 4), conv(4, 4)
        self.act6, self.tanh = nn.ReLU6(inplace=True), nn.Hardtanh(-1, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act6(2 * self.a(x))
        x = self.tanh(self.b(x))
        x = torch.clamp(self.c(x), 0, 1)
        x = self.d(x).clamp(min=0)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """Two residual blocks, the second with an option-A shortcut: slice, then pad channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(2, 4), conv(4, 4, bias=False), conv(4, 4, bias=False)
        self.c, self.d = conv(4, 8, stride=2, bias=False), conv(8, 8, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (4, 4, 8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norms[1](self.b(F.relu(self.norms[0](self.a(x)))))
        x = F.relu(x + y)
        y = self.norms[3](self.d(F.relu(self.norms[2](self.c(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Pools(nn.Module):
    """Concatenation, max, average and adaptive pooling, dropout, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(2, 3), conv(2, 3), conv(6, 4)
        self.max, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.pool, self.flat = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.max(F.relu(self.a(x))), self.mean(F.relu(self.b(x)))], 1)
        x = self.drop(F.relu(self.c(x)))
        return self.head(self.flat(self.pool(x)))


class PreActivation(nn.Module):
    """Batch norm before the convolution, behind an addition: folding must leave it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(2, 4), conv(4, 4), conv(4, 4)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(F.relu(self.norm2(self.a(F.relu(self.norm1(x))))))
        return self.head(F.relu(self.norm3(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    """A mobile block: depthwise convolution, ReLU6, and a linear bottleneck with no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = conv(2, 6, 1, bias=False), conv(6, 6, groups=6, bias=False)
        self.project, self.expand2 = conv(6, 3, 1, bias=False), conv(3, 6, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (6, 6, 3, 6))
        self.act = nn.ReLU6()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norms[0](self.expand(x)))
        x = self.act(self.norms[1](self.depth(x)))
        x = self.norms[2](self.project(x))
        x = self.act(self.norms[3](self.expand2(x)))
        return self.head(x.mean((2, 3)))


def bn_act() -> nn.Module:
    """timm's batch norm and activation in one, with affine and without."""
    return nn.Sequential(
        conv(2, 4, bias=False),
        BatchNormAct2d(4),
        conv(4, 4, bias=False),
        BatchNormAct2d(4, apply_act=False),
        nn.ReLU(),
        conv(4, 4, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3),
    )


def kinds_of_convolution() -> nn.Module:
    """Grouped, strided, dilated, padded by name, with and without bias, kernels not square."""
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 1), padding="same", bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=(2, 1), padding=(0, 1), groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Flatten(1),
        nn.LazyLinear(3),
    )


def line() -> nn.Module:
    """Conv1d, BatchNorm1d with and without length, MaxPool1d."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(16, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "one_relu": OneReLU,
    "shared_conv": SharedConv,
    "shared_without_activation": SharedWithoutActivation,
    "shared_weight": SharedWeight,
    "clamps": Clamps,
    "residual": Residual,
    "pools": Pools,
    "pre_activation": PreActivation,
    "bottleneck": Bottleneck,
    "bn_act": bn_act,
    "kinds_of_convolution": kinds_of_convolution,
    "line": line,
}


NORMED = ("one_relu", "shared_conv", "residual", "pre_activation", "bottleneck", "bn_act", "line")
KEPT = ("shared_conv", "pre_activation", "bn_act", "line")
PAIRS = [(name, BatchNorm.FOLD) for name in NETWORKS] + [(name, BatchNorm.KEEP) for name in KEPT]


def network(name: str, seed: int = 0) -> nn.Module:
    """One of `NETWORKS`, lived in."""
    model = NETWORKS[name]()
    model.eval()(images(2, shape_of(name)))  # fills in lazy layers
    return lived_in(model, seed)


def shape_of(name: str) -> tuple[int, ...]:
    """The shape of the images that a network takes."""
    return LINE if name == "line" else IMAGE


def eighths(model: nn.Module) -> nn.Module:
    """The model with weights and biases in eighths, so that sums in floating point are exact."""
    for parameter in model.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return model


def dense() -> nn.Module:
    """Two layers of neurons, no batch norm."""
    layers = (conv(2, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    return lived_in(nn.Sequential(*layers))


@cache
def _quantized(name: str, batch_norm: BatchNorm) -> QuantizedModel:
    spec = QuantSpec(batch_norm=batch_norm)
    return quantize(network(name), spec, calibration=images(8, shape_of(name), 2))


def quantized(name: str, batch_norm: BatchNorm = BatchNorm.FOLD) -> QuantizedModel:
    """A quantized network of its own for each caller; quantized once."""
    return deepcopy(_quantized(name, batch_norm))


def levels_of(qann: QuantizedModel, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What each quantized activation of a network gives on a batch, in levels; and the logits."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in qann.layers.named_modules():
        if isinstance(layer, QuantAct) and not layer.encodes_input:

            def hook(module: QuantAct, _: object, out: Tensor, name: str = name) -> None:
                found[name] = torch.round(out / module.scale)

            hooks.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        logits = qann(batch)
    for item in hooks:
        item.remove()
    return found, logits
