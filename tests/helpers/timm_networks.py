"""Networks of timm's own layers and builders: small ones, and some of its architectures whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vgg import VGG
from torch import nn

WHOLE = ("resnet18", "vgg11_bn", "mobilenetv2_100", "densenet121", "regnetx_002")
TIMM: dict[str, Callable[[], nn.Module]] = {
    "small_resnet": lambda: ResNet(
        BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=10
    ),
    "small_vgg": lambda: VGG(
        [8, "M", 16, "M", 16, "M"], num_classes=10, mlp_ratio=1 / 64, norm_layer=nn.BatchNorm2d
    ),
    "small_densenet": lambda: DenseNet(growth_rate=8, block_config=(2, 2), num_classes=10),
    **{
        name: partial(timm.create_model, name, num_classes=10)
        for name in ("test_efficientnet", "test_byobnet", *WHOLE)
    },
}


def timm_names() -> list[Any]:
    """All names: the small ones for `make test`, the whole ones for `make test-long`, with those
    that are of a kind which the families of the coverage try already."""
    later = (*WHOLE, "test_efficientnet", "small_resnet")
    return [
        pytest.param(name, marks=pytest.mark.long if name in later else pytest.mark.slow)
        for name in TIMM
    ]
