"""Linear operators with all weights 1: how many events enter each entry of what they give.

Nothing merges: an entry of a sum holds the events of all that it sums, and where windows
overlap an event is in each of them. Interpolation has no row here: its events cannot be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


def in_all(events: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    """Events that enter a sum or a mean over some axes, or over all.

    Example:
        >>> in_all(torch.ones(2, 3), [1]).tolist()
        [3.0, 3.0]
    """
    return events.sum(tuple(dim) if dim else tuple(range(events.dim())), keepdim)


def in_windows(
    events: Tensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    *_: Any,
) -> Tensor:
    """Events in each window of an average pool over one, two or three axes.

    Example:
        >>> in_windows(torch.ones(1, 1, 5), [3], [1], [1]).tolist()
        [[[2.0, 3.0, 3.0, 3.0, 2.0]]]
    """
    axes = len(kernel_size)
    size, step, pad = (_each(item, axes) for item in (kernel_size, stride or kernel_size, padding))
    if axes == 3:
        return F.avg_pool3d(events, size, step, pad, ceil_mode, True, divisor_override=1)
    if axes == 2:
        return F.avg_pool2d(events, size, step, pad, ceil_mode, True, divisor_override=1)
    plane = aten.avg_pool2d.default(
        events.unsqueeze(-2), [1, *size], [1, *step], [0, *pad], ceil_mode, True, 1
    )
    return plane.squeeze(-2)


def in_bins(events: Tensor, output_size: Any) -> Tensor:
    """Events in each bin of an adaptive average pool; bins may overlap.

    Example:
        >>> in_bins(torch.tensor([[[1.0, 2.0, 4.0]]]), [2]).tolist()
        [[[3.0, 6.0]]]
    """
    for axis, bins in enumerate(output_size, start=-len(output_size)):
        size = events.shape[axis]
        places = torch.arange(size, device=events.device)
        index = torch.arange(bins, device=events.device)[:, None]
        inside = (places >= index * size // bins) & (places < -(-(index + 1) * size // bins))
        events = (events.movedim(axis, -1) @ inside.to(events.dtype).T).movedim(-1, axis)
    return events


def connections(layer: Any, events: Tensor, *, zero_weights: bool = True) -> Tensor:
    """Additions that events cause in a linear layer or a convolution, all together: each, times the
    outputs that its entry is connected to, by a weight of 0 too or not.

    Shapes: events [batch, ...] as the layer's input, float64; returns a scalar.

    Example:
        >>> connections(nn.Conv1d(1, 5, 3, padding=1), torch.tensor([[[1.0, 0, 0]]])).item()
        10.0
    """
    if not zero_weights:
        return _by_weights(layer, events)
    if isinstance(layer, nn.Linear):
        return layer.out_features * events.sum()
    shape = (layer.groups, *layer.weight.shape[1:])  # one output channel of a group stands for all
    ones = torch.ones(shape, dtype=events.dtype, device=events.device)
    convolve: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[ones.dim()]
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return (layer.out_channels // layer.groups) * convolve(events, ones, None, *geometry).sum()


def _by_weights(layer: Any, events: Tensor) -> Tensor:
    """The same over weights that are not 0."""
    present = (layer.weight != 0).to(events.dtype)
    if isinstance(layer, nn.Linear):
        return F.linear(events, present).sum()
    convolve: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[present.dim()]
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return convolve(events, present, None, *geometry).sum()


def _each(item: Any, axes: int) -> list[int]:
    """One number per axis."""
    numbers = list(item) if isinstance(item, (list, tuple)) else [item]
    return numbers * axes if len(numbers) == 1 else numbers


def _in_both(first: Tensor, second: Tensor, alpha: Any = 1) -> Tensor:
    """Events that enter a sum or a difference."""
    return first + second


def _same(events: Tensor) -> Tensor:
    """The events themselves."""
    return events


SCALINGS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
"""By constants: an event stays one, and none is left where the constant is 0."""

_ROWS: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    (_in_both, (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)),
    (_same, (aten.neg.default, aten.detach.default)),
    (in_all, (aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList)),
    (in_windows, (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)),
    (in_bins, (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)),
    (in_bins, (aten.adaptive_avg_pool3d.default,)),
    (aten.cumsum.default, (aten.cumsum.default,)),
    (aten.col2im.default, (aten.col2im.default,)),
)
PASSING_ON: Mapping[Any, Callable[..., Any]] = {
    target: function for function, targets in _ROWS for target in targets
}
"""From an operator to what it does with the numbers of events of its inputs."""
