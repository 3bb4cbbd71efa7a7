"""Networks that are equal to the last bit are traced once in a process, wherever `quantize` asks.

Tracing is two fifths of the time of tests that quantize, half of it of networks that another test
has traced. Tests of tracing call `trace` itself, which stays as it is.
"""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mt_convert.graph.tracing.trace import trace

MOST_GRAPHS, MOST_NUMBERS = 100, 200_000  # that are held, and of a network that is
PLACE = import_module("mt_convert.quantization.quantize"), "trace"

Key = tuple[bytes, tuple[type, ...], bool]


class _Content(pickle.Pickler):
    """Pickles what a network is: of a tensor its numbers and how they lie."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        values = obj.detach()
        numbers = hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).digest()
        form = str(obj.dtype), tuple(obj.shape), obj.stride(), str(obj.device), obj.requires_grad
        return tuple, ((type(obj).__name__, form, numbers),)


def key_of(model: nn.Module, example: Tensor) -> Key | None:
    """The same for networks that are equal in code, settings and every bit, and images of one
    shape; None for those that cannot be compared, or are large."""
    if sum(item.numel() for item in model.parameters()) > MOST_NUMBERS:
        return None
    content = io.BytesIO()
    given = model, tuple(example.shape[1:]), str(example.dtype), str(example.device)
    try:
        _Content(content).dump(given)
    except Exception:  # functions without a name, generators, ...: whatever pickle says
        return None
    kinds = tuple(type(module) for module in model.modules())  # held: no other gets their place
    return hashlib.sha256(content.getvalue()).digest(), kinds, torch.is_grad_enabled()


def remember(function: Callable[[nn.Module, Tensor], fx.GraphModule]) -> Any:
    """The function, which gives a copy of what it gave for an equal network."""
    graphs: OrderedDict[Key, fx.GraphModule] = OrderedDict()

    def traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
        key = key_of(model, example)
        if key is None:
            return function(model, example)
        if key in graphs:
            graphs.move_to_end(key)
            return copy.deepcopy(graphs[key])
        graph = function(model, example)
        graphs[key] = copy.deepcopy(graph)
        if len(graphs) > MOST_GRAPHS:
            graphs.popitem(last=False)
        return graph

    return traced


@contextmanager
def tracing_once() -> Iterator[None]:
    """While it lasts, `quantize` remembers graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*PLACE, remember(trace))
        yield
