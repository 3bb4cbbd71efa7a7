"""Is a traced graph the network that it came from? What tracing would lose is refused by name.

An exported graph is a function of the image alone. A network that draws random numbers, or goes on
in each call from what the last one left behind, is none; export makes constants of both. So the
exported program is searched for draws and writes, and the network itself, a copy of it, is called
three times on two batches of fresh images and compared with itself and with its graph.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, UnsupportedLayerError, many
from .exported_nodes import bind, module_path

FROM_CALL_TO_CALL = 1e-4  # of the largest output; gradients choose other kernels
FROM_NETWORK_TO_GRAPH = 1e-3  # products of attention are taken apart, and deep networks amplify
_DEPTH = 3  # of lists, mappings and plain objects that a module's attributes hold
_STATE = (
    "keep it out of forward: pass it as an input and return it, or hold it constant while you "
    "convert"
)


def draws_and_writes(exported: torch.export.ExportedProgram) -> list[Fault]:
    """Every random draw of an exported program, and every buffer that it writes."""
    hint = "give it training=self.training, or take it out before you convert"
    faults = [
        Fault(module_path(node) or node.name, str(node.target), f"draws random numbers: {hint}")
        for node in exported.graph.nodes
        if node.op == "call_function" and _is_random(node)
    ]
    signature = exported.graph_signature
    names = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
    faults += [Fault(name, "is written in forward", _STATE) for name in names]
    return faults


def _is_random(node: fx.Node) -> bool:
    """Whether an operator draws in eval form too."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = bind(node)
    if any(arguments.get(name) == 0 for name in ("p", "dropout_p", "dropout")):
        return False
    return all(arguments.get(name) is not False for name in ("train", "training"))


@torch.no_grad()
def check_agreement(model: nn.Module, graph_module: fx.GraphModule, example: Tensor) -> None:
    """Compare a network with its graph on fresh images, in eval form; ``model`` is untouched.

    Raises:
        UnsupportedLayerError: the network gives other numbers for the same images in another call,
            it writes to its own tensors or attributes, or the graph gives other numbers.
    """
    network = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (2, *example.shape[1:])
    first, second = (
        torch.randn(shape, generator=generator).to(example.device, example.dtype) for _ in range(2)
    )
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        outputs = [network(first.clone())]
        before = _state(network)
        outputs.append(network(second.clone()))
        faults = _writes(model, network, before)
        with torch.enable_grad():
            outputs.append(network(first.clone()).detach())
        if not _close(outputs[2], outputs[0], FROM_CALL_TO_CALL) and not faults:
            what = "the same images give other numbers in another call, with gradients"
            hint = "random draws, clocks, counters and grad modes have no place in forward"
            faults.append(Fault(type(model).__name__, what, hint))
        refuse(model, faults)
    for images, expected in ((first, outputs[0]), (second, outputs[1])):
        if not _close(graph_module(images), expected, FROM_NETWORK_TO_GRAPH):
            what = "the traced graph gives other numbers than the network"
            hint = "something in forward is lost by torch.export: write it with torch operators"
            refuse(model, [Fault(type(model).__name__, what, hint)])


def refuse(model: nn.Module, faults: list[Fault]) -> None:
    """One error with all faults, if there are any: what else a network depends on."""
    if faults:
        raise UnsupportedLayerError(
            f"{type(model).__name__} is not a function of its images alone: "
            f"{many(faults, 'fault', 'faults')}",
            faults,
        )


def _close(first: Any, second: Any, share: float) -> bool:
    """Whether two outputs differ by no more than a share of the largest number."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return True  # several outputs are refused elsewhere
    if first.shape != second.shape:
        return False
    largest = float(second.nan_to_num(0, 0, 0).abs().max()) if second.numel() else 0.0
    return torch.allclose(first, second, rtol=0, atol=share * largest, equal_nan=True)


# ------------------------------------------------------------------------------------------ state


def _state(network: nn.Module) -> dict[str, Any]:
    """Buffers and plain attributes of all modules, as they are now."""
    return {name: _freeze(value, _DEPTH) for name, value in _attributes(network)}


def _attributes(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that a forward pass could leave a value in, parameters apart."""
    for path, module in network.named_modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            if not name.startswith("_") and name != "training":
                yield f"{path}.{name}".lstrip("."), value


def _freeze(value: Any, depth: int) -> Any:
    """A value that later writes to the original do not reach, comparable by `_equal`."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module) or value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Generator):
        return value.get_state()
    if depth and isinstance(value, dict):
        return {key: _freeze(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, deque)):
        return [_freeze(item, depth - 1) for item in value]
    if depth and type(value).__module__ not in ("builtins", "torch") and hasattr(value, "__dict__"):
        return _freeze(vars(value), depth - 1) if not callable(value) else None
    return None


def _equal(first: Any, second: Any) -> bool:
    """Whether two frozen values are the same."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return same and bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return False
    return bool(first is second or first == second)


def _writes(model: nn.Module, network: nn.Module, before: dict[str, Any]) -> list[Fault]:
    """What differs behind later calls from behind the first, and weights from those of the model.

    What only the first call writes is a cache, unless it is a stored tensor.
    """
    after = _state(network)
    names = [name for name in after if name in before and not _equal(before[name], after[name])]
    names += [name for name in after if name not in before]
    now = network.state_dict()
    names += [
        name
        for name, tensor in model.state_dict().items()
        if name not in names and name in now and not _equal(tensor.detach(), now[name].detach())
    ]
    return [Fault(name, "is written in forward", _STATE) for name in names]
