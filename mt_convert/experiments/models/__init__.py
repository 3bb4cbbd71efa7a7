"""Networks by name: timm's registry, and the CIFAR networks that this package adds to it."""
