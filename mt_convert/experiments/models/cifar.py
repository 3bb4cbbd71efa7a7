"""The CIFAR networks of the field, added to timm's registry under plain names.

Importing this module registers the networks of `catalogue.CIFAR_MODELS`, so that
``timm.create_model("resnet20_cifar")`` works as for any other name. The parameter names of the
ResNets are those of the published weights (github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .names import CIFAR_MODELS

_CIFAR = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": None,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1",
    "classifier": "linear",
}
default_cfgs = generate_default_cfgs(  # the name under which timm's registry looks for them
    {f"{name}.untrained": _CIFAR for name in CIFAR_MODELS}
    | {
        "digits_cnn.untrained": _CIFAR
        | {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "first_conv": "stem.0"},
        "digits_vit.untrained": _CIFAR
        | {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "fixed_input_size": True}
        | {"first_conv": "patch_embed.proj", "classifier": "head"},
        "resnet18_cifar.untrained": _CIFAR | {"classifier": "fc"},
        "vgg16_cifar.untrained": _CIFAR | {"first_conv": "features.0"},
        "vgg7_cifar.untrained": _CIFAR | {"first_conv": "features.0"},
    }
)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, drawn as in He et al. 2015."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


class OptionABlock(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads channels with zeros.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, images: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(images)))
        out = self.drop_path(self.bn2(self.conv2(out)))
        if self.stride > 1:
            images = images[:, :, :: self.stride, :: self.stride]
        if self.padding:
            images = F.pad(images, (0, 0, 0, 0, self.padding, self.padding))
        return self.act2(out + images)


class CifarResNet(nn.Module):
    """ResNet of 3 groups of 16, 32 and 64 channels; ``6 * blocks + 2`` weighted layers."""

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.drop_rate = num_classes, 64, drop_rate
        self.conv1 = _conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        rates = torch.linspace(0, drop_path_rate, 3 * blocks).split(blocks)
        self.layer1 = _group(16, 16, 1, rates[0].tolist())
        self.layer2 = _group(16, 32, 2, rates[1].tolist())
        self.layer3 = _group(32, 64, 2, rates[2].tolist())
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, images: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.dropout(self.global_pool(out).flatten(1), self.drop_rate, self.training)
        return self.linear(out)


def _group(inputs: int, outputs: int, stride: int, drop_paths: list[float]) -> nn.Sequential:
    """Blocks of one width; the first one changes width and resolution."""
    first = OptionABlock(inputs, outputs, stride, drop_paths[0])
    return nn.Sequential(first, *(OptionABlock(outputs, outputs, 1, p) for p in drop_paths[1:]))


_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG7 = {"plan": ((16, 2), (32, 2), (64, 2)), "stem_stride": 2}


class CifarVGG(nn.Module):
    """Groups of 3x3 convolutions with batch norm, a max-pool behind each, one linear layer.

    ``plan`` holds channels and convolutions of each group, VGG-16's by default;
    ``stem_stride`` is the stride of the first convolution. Without ``norm`` convolutions have a
    bias instead; ``average`` pools by the mean.

    Shapes: images ``[batch, in_chans, H, W]`` with H and W of at least 2 to the number of groups.
    Source: Simonyan and Zisserman 2015, configuration D, with one linear layer in place of three.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        plan: Sequence[tuple[int, int]] = _VGG16,
        stem_stride: int = 1,
        norm: bool = True,
        average: bool = False,
    ) -> None:
        super().__init__()
        width = plan[-1][0]
        self.num_classes, self.num_features, self.drop_rate = num_classes, width, drop_rate
        layers: list[nn.Module] = []
        width, stride = in_chans, stem_stride
        for outputs, repeats in plan:
            for _ in range(repeats):
                conv = _conv3x3(width, outputs, stride)
                if not norm:
                    conv.bias = nn.Parameter(torch.zeros(outputs))
                layers += [conv, *([nn.BatchNorm2d(outputs)] * norm), nn.ReLU()]
                width, stride = outputs, 1
            layers.append(nn.AvgPool2d(2) if average else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out = self.global_pool(self.features(images)).flatten(1)
        return self.linear(F.dropout(out, self.drop_rate, self.training))


class DigitsCNN(nn.Module):
    """Four convolutions, one residual add and one max-pool, for 8x8 images of one channel."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.drop_rate = num_classes, 64, drop_rate
        self.stem = nn.Sequential(_conv3x3(in_chans, 32), nn.BatchNorm2d(32), nn.ReLU())
        self.block = OptionABlock(32, 32, 1, drop_path=0.0)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(_conv3x3(32, 64), nn.BatchNorm2d(64), nn.ReLU())
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out = self.head(self.pool(self.block(self.stem(images))))
        out = self.global_pool(out).flatten(1)
        return self.linear(F.dropout(out, self.drop_rate, self.training))


def _imagenet_resnet18_for_cifar(**kwargs: Any) -> ResNet:
    """timm's ResNet-18 with a 3x3 stem of stride 1 and no max-pool."""
    model = ResNet(BasicBlock, [2, 2, 2, 2], **kwargs)
    model.conv1 = _conv3x3(kwargs.get("in_chans", 3), 64)
    model.maxpool = nn.Identity()
    return model


def _vit_for_digits(**kwargs: Any) -> VisionTransformer:
    """timm's vision transformer with 3 blocks of 48 channels and positions as loud as patches."""
    size = {"patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    usual = {"in_chans": 1, "weight_init": "jax", "class_token": False, "global_pool": "avg"}
    model = VisionTransformer(**{**usual, **size, **kwargs})
    if model.pos_embed is not None:  # with timm's 0.02 a thousand images do not teach positions
        nn.init.normal_(model.pos_embed, std=0.5)
    return model


# timm calls every entry with keyword arguments of its own choice (cache_dir, pretrained_cfg ...),
# which is why these functions, and no others here, pass **kwargs on.


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 of He et al. 2016 for 32x32 images."""
    return build_model_with_cfg(CifarResNet, "resnet20_cifar", pretrained, blocks=3, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 of He et al. 2016 for 32x32 images."""
    return build_model_with_cfg(CifarResNet, "resnet32_cifar", pretrained, blocks=5, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 of He et al. 2016 for 32x32 images."""
    return build_model_with_cfg(CifarResNet, "resnet44_cifar", pretrained, blocks=7, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 of He et al. 2016 for 32x32 images."""
    return build_model_with_cfg(CifarResNet, "resnet56_cifar", pretrained, blocks=9, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for 32x32 images."""
    return build_model_with_cfg(
        _imagenet_resnet18_for_cifar, "resnet18_cifar", pretrained, **kwargs
    )


@register_model
def vgg16_cifar(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """VGG-16 with batch norm for 32x32 images."""
    return build_model_with_cfg(CifarVGG, "vgg16_cifar", pretrained, **kwargs)


@register_model
def vgg7_cifar(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """A VGG of 6 narrow convolutions, the first of stride 2, and one linear layer."""
    return build_model_with_cfg(CifarVGG, "vgg7_cifar", pretrained, **_VGG7, **kwargs)


@register_model
def digits_cnn(pretrained: bool = False, **kwargs: Any) -> DigitsCNN:
    """A small network for the handwritten digits of scikit-learn."""
    return build_model_with_cfg(DigitsCNN, "digits_cnn", pretrained, **kwargs)


@register_model
def digits_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A small vision transformer for the handwritten digits of scikit-learn: 16 patches of 2x2."""
    return build_model_with_cfg(_vit_for_digits, "digits_vit", pretrained, **kwargs)
