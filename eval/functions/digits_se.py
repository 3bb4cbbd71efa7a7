"""A small network of SiLU and squeeze-and-excite, for the handwritten digits of scikit-learn."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """An inverted residual block: wider, by pixels, squeeze-and-excite, narrow again."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, width, 1, bias=False)
        self.wide_norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.excite = nn.Conv2d(width // 4, width, 1)
        self.narrow = nn.Conv2d(width, channels, 1, bias=False)
        self.narrow_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.wide_norm(self.wide(x)))
        out = F.silu(self.depthwise_norm(self.depthwise(out)))
        gate = self.excite(F.silu(self.squeeze(out.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.narrow_norm(self.narrow(out * gate))


class DigitsSE(nn.Module):
    """A convolution, two blocks with a stride between them, a head; 8x8 images of one channel."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 24, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(24)
        self.first, self.second = Block(24, 48), Block(32, 64)
        self.down = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out = self.first(F.silu(self.stem_norm(self.stem(images))))
        out = self.second(F.silu(self.down_norm(self.down(out))))
        return self.head(F.silu(out).mean((2, 3)))
