"""Images as spikes: Poisson coding."""

from __future__ import annotations

import torch
from torch import Tensor


def poisson(images: Tensor, time_steps: int, generator: torch.Generator | None = None) -> Tensor:
    """sign(x) in each step with probability |x|, at most 1: signed spikes whose mean is x.

    Shapes: images [batch, ...]; frames [batch, T, ...], as `SpikingNetwork` takes them.
    Source: the generator of hybrid conversion with STDB (arXiv 2005.01807).

    Example:
        >>> poisson(torch.tensor([[1.0, 0.0, -2.0]]), 2).tolist()
        [[[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]]]
    """
    shown = images[:, None].expand(-1, time_steps, *images.shape[1:])
    drawn = torch.rand(shown.shape, generator=generator, dtype=images.dtype, device=images.device)
    return shown.sign() * (drawn < shown.abs()).to(images.dtype)
