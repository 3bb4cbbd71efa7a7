"""Images as spikes: Poisson coding."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import torch
from torch import Tensor


class Coding(StrEnum):
    """How an image is shown: its numbers as a current in every step, or spikes of that rate."""

    DIRECT = "direct"
    POISSON = "poisson"


def poisson(images: Tensor, time_steps: int, generator: torch.Generator | None = None) -> Tensor:
    """sign(x) in each step with probability |x|, at most 1: signed spikes whose mean is x.

    Shapes: images [batch, ...]; frames [batch, T, ...], as `ScratchNetwork` takes them.
    Source: the generator of hybrid conversion with STDB (arXiv 2005.01807).

    Example:
        >>> poisson(torch.tensor([[1.0, 0.0, -2.0]]), 2).tolist()
        [[[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]]]
    """
    shown = images[:, None].expand(-1, time_steps, *images.shape[1:])
    drawn = torch.rand(shown.shape, generator=generator, dtype=images.dtype, device=images.device)
    return shown.sign() * (drawn < shown.abs()).to(images.dtype)


def poisson_of_each(images: Tensor, time_steps: int) -> Tensor:
    """The same, drawn for each image from its own numbers: whatever images stand beside it.

    Example:
        >>> images = torch.rand(3, 4)
        >>> torch.equal(poisson_of_each(images, 5)[1:2], poisson_of_each(images[1:2], 5))
        True
    """
    frames = []
    for image in images.detach().cpu():
        name = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
        seed = int.from_bytes(name[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        frames.append(poisson(image[None], time_steps, generator))
    return torch.cat(frames).to(images.device)
