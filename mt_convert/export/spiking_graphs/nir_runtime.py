"""A graph of NIR, literally: one step, edges that meet are summed, a neuron fires above its
threshold. Whole networks also run in SpikingJelly, where it is installed: the logits are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CheckpointError
from .. import numpy_reader
from ..forms.nodes import IntegerForm, Node
from ..verdict import run_foreign
from .nir_graph import INPUT, OUTPUT, Signal, signals_of

LARGEST_FILE = 2**31
LARGEST = 2**28  # numbers in one array
MOST_NODES = 2**17
TYPES = frozenset(
    {"NIRGraph", "Input", "Output", "Conv1d", "Conv2d", "Linear", "Affine", "Flatten", "IF"}
)


class NirGraph:
    """A file of `nir`, whole and node by node.

    Raises:
        CheckpointError: it is missing, damaged, too large, no graph of ours, or stops.
    """

    def __init__(self, path: Path, form: IntegerForm) -> None:
        self.path, self.form = path, form
        self._guard = partial(run_foreign, path)
        self.graph = read_graph(path)
        self.signals = signals_of(form)
        self.before: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for source, target in self.graph.edges:
            if source not in self.before or target not in self.before:
                raise CheckpointError(f"{path} has an edge to nowhere: write it again")
            self.before[target].append(source)
        self.version = f"nir {version('nir')}"
        self._theirs = None
        if find_spec("spikingjelly") is not None:
            self._theirs = self._guard(self._import)
            self.version = f"spikingjelly {version('spikingjelly')}, {self.version}"

    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Levels of all neurons and the logits."""
        encode, last = self.form.node("encode"), self.form.nodes[-1]
        levels = torch.from_numpy(self.run_node(encode, [images])).float()
        known = {INPUT: levels}
        values = {}
        for node in self.form.nodes:
            if node.op == "fire":
                values[node.out] = self._value(self.signals[node.out], known).numpy()
        values[last.out] = self._guard(lambda: self._compute(OUTPUT, known)).numpy()
        if self._theirs is not None:
            module = self._theirs
            with torch.no_grad():
                values[last.out] = self._guard(lambda: module(levels)[0]).numpy()
        return values

    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """The part of the graph between the inputs of a node and what it makes; levels of the image
        by the reader of the tables.
        """
        if node.op == "encode":
            arrays = {name: array.numpy() for name, array in node.arrays.items()}
            row = {"op": node.op, **node.settings}
            return numpy_reader.run_node(row, self.form.values[node.out].shape, arrays, inputs)
        known: dict[str, Tensor] = {}
        for index, numbers in zip(node.inputs, inputs, strict=True):
            known |= dict(said(self.signals[index], torch.from_numpy(numbers).float()))
        if self.signals[node.out] is self.signals[node.inputs[0]]:
            return inputs[0]  # a value once more
        return self._value(self.signals[node.out], known).numpy()

    def _value(self, signal: Signal, known: dict[str, Tensor]) -> Tensor:
        """The sum that a value is."""

        def compute() -> Tensor:
            total = torch.zeros(())
            for name in signal.plus:
                total = total + self._compute(name, known)
            for name in signal.minus:
                total = total - self._compute(name, known)
            return total

        result: Tensor = self._guard(compute)
        return result

    def _compute(self, name: str, known: dict[str, Tensor]) -> Tensor:
        """What a node gives, from what is known; in order, because graphs are deep."""
        stack = [name]
        while stack:
            here = stack[-1]
            missing = [one for one in self.before[here] if one not in known and here not in known]
            if missing:
                if len(stack) > len(self.before):
                    raise ValueError("the graph has a circle")
                stack += missing[:1]
                continue
            if here not in known:
                inputs = [known[one] for one in self.before[here]]
                if not inputs:
                    raise ValueError(f"{here} is fed by nothing")
                total = inputs[0]
                for one in inputs[1:]:
                    total = total + one
                known[here] = step(self.graph.nodes[here], total)
            stack.pop()
        return known[name]

    def _import(self) -> Any:
        from spikingjelly.activation_based.nir_exchange.from_nir import import_from_nir

        return import_from_nir(self.graph, dt=1.0).eval()


def said(signal: Signal, numbers: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the nodes of a value give where the value is known.

    Example:
        >>> signal = Signal(("up_1", "up_2"), ("down_1",), True)
        >>> for name, one in said(signal, torch.tensor([1, -1])):
        ...     print(name, one.tolist())
        up_1 [1.0, 0.0]
        up_2 [0.0, 0.0]
        down_1 [0.0, 1.0]
    """
    if signal.are_levels:
        for k, name in enumerate(signal.plus, start=1):
            yield name, (numbers >= k).float()
        for k, name in enumerate(signal.minus, start=1):
            yield name, (numbers <= -k).float()
        return
    for names, part in ((signal.plus, 1), (signal.minus, -1)):
        for place, name in enumerate(names):
            own = numbers if not signal.minus else (part * numbers).clamp(min=0)
            yield (
                name,
                own.float() if place == 0 else torch.zeros_like(numbers, dtype=torch.float32),
            )


@torch.no_grad()
def step(node: Any, x: Tensor) -> Tensor:
    """One node on the sum of what it is fed, as NIR defines it, with dt = 1 from rest."""
    kind = type(node).__name__
    if kind in ("Conv1d", "Conv2d"):
        weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        convolution: Any = F.conv1d if kind == "Conv1d" else F.conv2d
        stride, padding, dilation = (
            [int(one) for one in np.atleast_1d(getattr(node, name))]
            for name in ("stride", "padding", "dilation")
        )
        return convolution(x, weight, bias, stride, padding, dilation, int(node.groups))
    if kind == "Linear":
        return F.linear(x, torch.from_numpy(node.weight))
    if kind == "Affine":
        return F.linear(x, torch.from_numpy(node.weight), torch.from_numpy(node.bias))
    if kind == "Flatten":
        ends = [int(end) + (int(end) >= 0) for end in (node.start_dim, node.end_dim)]
        return x.flatten(*ends)
    if kind == "IF":
        v = torch.from_numpy(node.r) * x
        return (v > torch.from_numpy(node.v_threshold)).float()
    if kind == "Output":
        return x
    raise ValueError(f"{kind} has no rule here")


def read_graph(path: Path) -> Any:
    """A graph from a file, looked through before nir reads it.

    Raises:
        CheckpointError: missing, damaged, too large, with links to other places, or other nodes
            than ours.
    """
    import h5py
    import nir

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} has more than 2^31 bytes: it is no network of ours")
        with h5py.File(path, "r") as file:
            _look_through(file, "", [0])
        graph = nir.read(path)
    except CheckpointError:
        raise
    except OSError as error:
        why = error.strerror or str(error).splitlines()[0][:200]
        raise CheckpointError(f"cannot read {path}: {why}; write it again") from error
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{path} is no NIR graph of ours ({why}): write it again") from error
    if not isinstance(graph, nir.NIRGraph) or not {INPUT, OUTPUT} <= {*graph.nodes}:
        raise CheckpointError(f"{path} is no NIR graph of ours: write it again")
    return graph


def _look_through(group: Any, place: str, count: list[int]) -> None:
    """Raise ValueError for links, for arrays too large, and for other kinds of nodes."""
    import h5py

    for name in group:
        count[0] += 1
        where = f"{place}/{name}"
        if count[0] > 16 * MOST_NODES or place.count("/") > 8:
            raise ValueError("more parts than a network has")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{where[:60]} is a link")
        item = group[name]
        if isinstance(item, h5py.Group):
            _look_through(item, where, count)
            continue
        if item.size is None or item.size > LARGEST or item.external or item.is_virtual:
            raise ValueError(f"{where[:60]} is too large, or lies elsewhere")
        if name == "type" and item[()].decode() not in TYPES:
            raise ValueError(f"{where[:60]} is {item[()].decode()[:40]}")
