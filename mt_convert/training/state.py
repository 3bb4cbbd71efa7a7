"""Model, optimizer and averaged weights as named tensors and plain numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, Fault, SpecError

_NUMBER = (bool, int, float, str)


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
        restore_optimizer(optimizer, parts["optimizer"], numbers)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint is of another network: {error}. Choose another folder or delete this"
        ) from error
    for part, module in modules.items():
        load_weights_(module, parts[part], "the checkpoint")


def load_weights_(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy named tensors into a module's own.

    ``load_state_dict`` would not do: Brevitas' learned scales answer it by making new parameters,
    and an optimizer that exists already would continue to step the old ones.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = module.state_dict()
    faults = [
        Fault(name, "missing in the file" if name in own else "not in the network", "")
        for name in sorted(own.keys() ^ tensors.keys())
    ]
    faults += [
        Fault(name, f"{list(tensors[name].shape)} in the file", f"{list(own[name].shape)} here")
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if faults:
        raise CheckpointError(
            f"{where} is of another network: choose another folder or delete this one", faults
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


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
    """An optimizer's state as tensors ``<parameter>.<name>``, ``group<i>.<name>``, and numbers.

    Raises:
        SpecError: it keeps anything else, so that it could not be resumed.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    owners = {str(parameter): entries for parameter, entries in state["state"].items()}
    owners |= {f"group{i}": _changing(group) for i, group in enumerate(state["param_groups"])}
    for owner, entries in owners.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{owner}.{name}"] = value
            elif value is None or isinstance(value, _NUMBER):
                numbers.setdefault(owner, {})[name] = value
            else:
                raise SpecError(
                    f"the optimizer {type(optimizer).__name__} keeps {name!r} as a "
                    f"{type(value).__name__}, which a checkpoint cannot hold: take another one, "
                    "such as sgd, adamw or lamb"
                )
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put back what `flatten_optimizer` took out."""
    owners: dict[str, dict[str, Any]] = {owner: dict(entries) for owner, entries in numbers.items()}
    for key, tensor in tensors.items():
        owner, name = key.split(".", 1)
        owners.setdefault(owner, {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    for i, group in enumerate(groups):
        group.update(owners.pop(f"group{i}", {}))
    state = {int(parameter): entries for parameter, entries in owners.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _changing(group: Mapping[str, Any]) -> dict[str, Any]:
    """What may change in a parameter group while training; the rest follows from the spec."""
    return {name: value for name, value in group.items() if isinstance(value, (*_NUMBER, Tensor))}
