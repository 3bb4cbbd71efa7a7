"""Model, optimizer and averaged weights as named tensors and plain numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError


def pack(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that changes while training: tensors ``<module>.<name>``, and numbers."""
    tensors, numbers = flatten_optimizer(optimizer)
    packed = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    for part, module in modules.items():
        packed |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    return packed, numbers


def unpack(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: dict[str, Any],
) -> None:
    """Put back what `pack` took out.

    Raises:
        CheckpointError: it was taken from another network.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("optimizer", *modules)}
    try:
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        for part, module in modules.items():
            module.load_state_dict(parts[part])
        restore_optimizer(optimizer, parts["optimizer"], numbers)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint is of another network: {error}. Choose another folder or delete this"
        ) from error


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none sharing memory with another, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return result


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors ``<parameter>.<name>`` and plain numbers."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                numbers.setdefault(str(parameter), {})[name] = value
    groups = [
        {name: value for name, value in group.items() if isinstance(value, (bool, int, float))}
        for group in state["param_groups"]
    ]
    return tensors, {"state": numbers, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put back what `flatten_optimizer` took out."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, entry = name.split(".", 1)
        state.setdefault(int(parameter), {})[entry] = tensor
    for parameter, entries in numbers["state"].items():
        state.setdefault(int(parameter), {}).update(entries)
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, numbers["groups"], strict=True):
        group.update(saved)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
