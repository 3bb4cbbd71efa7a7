"""What torch keeps for ever of every graph that is traced or copied, and nobody reads again.

torch.fx keeps the source text of each graph module that was ever compiled, for tracebacks, and
fake tensors the shapes of each operator that was ever exported: 0.2 MiB per conversion.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module


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


def sources() -> dict[str, Any]:
    """The source texts that torch.fx holds; empty where a version of torch has none."""
    held: dict[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return held
