"""The networks that this package adds to timm's registry, listed without importing torch."""

from __future__ import annotations

CIFAR_MODELS: dict[str, str] = {
    "digits_cnn": "38,000 parameters, for the 8x8 handwritten digits of the demo",
    "digits_vit": "a vision transformer of 3 blocks, 59,000 parameters, for the same digits",
    "resnet20_cifar": "ResNet-20, option-A shortcuts (He et al. 2016), 0.27 million parameters",
    "resnet32_cifar": "ResNet-32, option-A shortcuts (He et al. 2016), 0.46 million parameters",
    "resnet44_cifar": "ResNet-44, option-A shortcuts (He et al. 2016), 0.66 million parameters",
    "resnet56_cifar": "ResNet-56, option-A shortcuts (He et al. 2016), 0.85 million parameters",
    "resnet18_cifar": "ResNet-18 with a 3x3 stem and no max-pool, 11.2 million parameters",
    "vgg7_cifar": "a VGG of 6 convolutions, 16 to 64 channels, stride 2 first, 73,000 parameters",
    "vgg16_cifar": "VGG-16 with batch norm and one linear layer, 14.7 million parameters",
}
