"""What torch keeps for ever of every graph that is traced or copied, and nobody reads again.

torch.fx keeps the source text of each graph module that was ever compiled, for tracebacks, fake
tensors the shapes of each operator that was ever exported, and symbolic sizes all that was asked of
them, in cycles through C++. Together 0.2 MiB per conversion; behind these 1 KiB is left.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module as fx_graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv


@contextmanager
def forget_leftovers() -> Iterator[None]:
    """What is kept of graphs made inside is dropped behind it; also a decorator.

    Example:
        >>> from torch import fx, nn
        >>> before = len(sources())
        >>> with forget_leftovers():
        ...     graph = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
        >>> len(sources()) == before
        True
    """
    before = set(sources())
    try:
        yield
    finally:
        for key in [key for key in sources() if key not in before]:
            sources().pop(key, None)
            linecache.cache.pop(key, None)
        FakeTensorMode.cache_clear()
        for method in vars(ShapeEnv).values():  # what they have answered holds all symbolic sizes
            getattr(method, "cache_clear", int)()


def forget_shapes(graph_module: fx.GraphModule) -> None:
    """Drop what an export remembers of the operators it has seen with symbolic sizes: a cycle
    through C++ that Python never collects."""
    for node in graph_module.graph.nodes:
        env = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        for name in ("fake_tensor_cache", "tracked_fakes"):
            if held := getattr(env, name, None):
                held.clear()


def sources() -> dict[str, Any]:
    """The source texts that torch.fx holds; empty where a version of torch has none."""
    held: dict[str, Any] = getattr(getattr(fx_graph_module, "_loader", None), "eval_cache", {})
    return held
