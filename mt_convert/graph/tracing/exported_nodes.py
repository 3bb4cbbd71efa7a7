"""What the nodes of an exported program stand for: their arguments, their module, a plain layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten

CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.padding: nn.Conv2d,
}
MATRICES = (aten.matmul.default, aten.mm.default, aten.bmm.default)
Path = str


def bind(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by the names of its operator's schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {item.name: item.default_value for item in schema.arguments if item.has_default_value()}
    bound.update(zip((item.name for item in schema.arguments), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def weighted_layer(target: Any, arguments: Mapping[str, Any], tensors: list[Tensor]) -> nn.Module:
    """An nn.Conv*d or nn.Linear that holds ``tensors`` (weight, and bias if there are two)."""
    weight, biased = tensors[0], len(tensors) == 2
    with torch.device("meta"):
        if target in (aten.linear.default, *MATRICES):
            module: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
        else:
            groups = arguments["groups"]
            module = CONVOLUTIONS[target](
                weight.shape[1] * groups,
                weight.shape[0],
                tuple(weight.shape[2:]),
                stride=_per_axis(arguments["stride"], weight),
                padding=_per_axis(arguments["padding"], weight),
                dilation=_per_axis(arguments["dilation"], weight),
                groups=groups,
                bias=biased,
            )
    module.weight = as_parameter(weight)
    if biased:
        module.bias = as_parameter(tensors[1])
    return module


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """The same parameter, so that what shares it goes on sharing it; a constant as a frozen one."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _per_axis(value: Any, weight: Tensor) -> Any:
    """A convolution setting for every spatial axis; ATen lets one number stand for all."""
    if isinstance(value, str):
        return value
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * (weight.dim() - 2)) if len(values) == 1 else tuple(values)


def clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Lower and upper bound of a clamp by numbers; None where a bound is a tensor."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    arguments = bind(node)
    low = arguments.get("min_val", arguments.get("min"))
    high = arguments.get("max_val", arguments.get("max"))
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return float(low), float(high)


def clamp_layer(low: float, high: float) -> nn.Module:
    """The plain layer that clamps to [low, high]."""
    if (low, high) == (0.0, float("inf")):
        return nn.ReLU()
    return nn.Hardtanh(low, high)


def module_path(node: fx.Node) -> Path:
    """Dotted name of the innermost original module that produced ``node``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def module_kind(node: fx.Node) -> str:
    """Class name of that module."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][1]) if stack else ""
