"""The folder of `spikingjelly`: the network as a module of theirs, to be watched and trained there.

network.json, network.safetensors    the nodes, as in the tables, but neurons with the written
                                     float32 formula and the places where levels change along it
spiking_network.py                   builds both as a module; it needs SpikingJelly, and not us

A formula counts in levels, so every layer has the same thresholds: level k is reached at the least
float32 number that rounds to k. Those of a function are its own. A layer of 2^K - 1 equal levels is
their FewSpikeNode of K spikes, where no sum lies exactly half-way to an odd level: that node would
round it up. Weights are whole numbers times a power of two, which changes no result and gives
gradients the size that they have in levels.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError, Fault
from ...integer_engine.program import Fire
from ...integer_engine.terms import FLOAT32_WHOLE
from ...integer_engine.threshold_tables import ThresholdTable
from ...neurons.totals import position
from ..forms.float32_sums import FORMULAS, furthest, split_unit, sum_fits
from ..forms.nodes import IntegerForm, Node, emitted_levels, formula_arrays, narrow_program
from ..forms.threshold_sums import MOST_PROVED, other_levels
from ..table_folder import Tables, read_tables, write_nodes
from ..verdict import run_foreign

MODULE = "spiking_network.py"
OWN = Tables("mt_convert spikingjelly", 1)
_WIDE = "sums beyond 2^24, which float32 does not hold: use fewer bits"


def spikingjelly_refused(form: IntegerForm) -> list[Fault]:
    """What float32 would round."""
    faults = []
    for node in form.nodes:
        if node.op in ("conv", "linear"):
            wide = furthest(form, node) >= FLOAT32_WHOLE and split_unit(form, node) is None
        else:
            wide = node.op not in ("encode", *FORMULAS) and not sum_fits(form, node)
        if wide:
            faults.append(Fault(node.name, node.op, _WIDE))
    return faults


def write_spikingjelly(form: IntegerForm, folder: Path) -> None:
    """Write everything but the verdict."""
    shifts = _shifts(form)
    nodes = [_written(form, node, shifts) for node in form.nodes]
    write_nodes(replace(form, nodes=tuple(nodes)), folder, OWN)
    shutil.copyfile(Path(__file__).with_name(MODULE), folder / MODULE)


def _shifts(form: IntegerForm) -> dict[int, int]:
    """By value, how far a weighted layer's weights are moved down: those that one formula reads."""
    readers: dict[int, list[Node]] = {}
    for node in form.nodes:
        for index in node.inputs:
            readers.setdefault(index, []).append(node)
    shifts = {}
    for node in form.nodes:
        after = readers.get(node.out, [])
        if node.op in ("conv", "linear") and len(after) == 1 and after[0].op in FORMULAS:
            item = form.sources[after[0].out]
            term = item.input.terms[after[0].inputs.index(node.out)]
            middle = float(term.multiplier.abs().median())
            if middle > 0:
                shifts[node.out] = max(-60, min(60, -round(math.log2(middle))))
    return shifts


def _written(form: IntegerForm, node: Node, shifts: Mapping[int, int]) -> Node:
    """A node as this folder has it."""
    if node.op in ("conv", "linear"):
        settings = {**node.settings, "shift": shifts.get(node.out, 0)}
        if furthest(form, node) >= FLOAT32_WHOLE:
            settings["unit"] = split_unit(form, node)
        return replace(node, settings=settings)
    if node.op not in FORMULAS:
        return node
    item = form.sources[node.out]
    arrays = formula_arrays(item.input)
    for place, index in enumerate(node.inputs):
        arrays[f"multiplier_{place}"] = arrays[f"multiplier_{place}"] * 2.0 ** shifts.get(index, 0)
    if node.op == "read_out":
        return replace(node, arrays=arrays)
    if item.offset is not None:
        arrays["offset"] = item.offset.detach().float()
    thresholds, weights, first = _steps(item, len(form.values[node.out].shape))
    settings = {"few_spikes": _few_spikes(form, node, item)}
    arrays |= {"thresholds": thresholds, "weights": weights, "first": first}
    return replace(node, settings=settings, arrays=arrays)


def _steps(item: Fire, axes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the level changes along the formula, by how much, and the level before.

    Shapes: thresholds float32 and weights int32 [n, ...], first int32 [...], over one image.
    """
    if item.table is not None:
        table = item.table
        shape = [1] * axes
        shape[table.axis] = len(table.start)
        rows = len(table.start) > 1
        wide = [one.T.reshape(-1, *shape) if rows else one[0] for one in (table.thresholds,)]
        weights = table.weights.int()
        weights = weights.T.reshape(-1, *shape) if rows else weights[0]
        first = table.start.int().reshape(shape) if rows else table.start[0].int()
        return wide[0].contiguous(), weights.contiguous(), first
    steps, levels = emitted_levels(item)
    weights = levels.diff().int()
    return position(steps[1:].float())[weights > 0], weights[weights > 0], levels[0].int()


def _few_spikes(form: IntegerForm, node: Node, item: Fire) -> int:
    """Of how many spikes a FewSpikeNode is that is equal to these neurons; 0 where none is."""
    if item.table is not None:
        return 0
    _, levels = emitted_levels(item)
    count = len(levels)
    if count & (count - 1) or not torch.equal(levels, torch.arange(count)):
        return 0
    return 0 if _meets_a_tie(form, node, item) else count.bit_length() - 1


def _meets_a_tie(form: IntegerForm, node: Node, item: Fire) -> bool:
    """Whether the formula lies exactly half-way below an odd level for any sum that can come."""
    table = ThresholdTable(item, narrow_program(form.program, item, form.values, node.inputs))
    values = [form.values[index] for index in node.inputs]
    others = [value for index, value in enumerate(values) if index != table.free]
    grid = other_levels([(value.low, value.high) for value in others])
    if grid is None:
        return True
    count = int(table.places.max()) + 1
    step = max(1, MOST_PROVED // (len(grid) * (table.high - table.low)))
    half_way = torch.arange(table.low, table.high) + 0.5
    for start in range(0, count, step):
        chosen = torch.arange(start, min(count, start + step))
        index = chosen.repeat_interleave(len(grid))[:, None]
        rows = torch.cat([index, grid.repeat(len(chosen), 1)], 1)
        thresholds, falling = table.thresholds(rows)
        before = thresholds - torch.where(falling, -1, 1)[:, None]
        if bool((table.sums(rows, before) == half_way).any()):
            return True
    return False


class SpikingJellyNetwork:
    """The folder as a module, whole and node by node.

    Raises:
        CheckpointError: it is missing, damaged, of another kind, or stops.
    """

    def __init__(self, folder: Path, form: IntegerForm) -> None:
        from . import spiking_network

        self.folder, self.form = folder, form
        self._guard = partial(run_foreign, folder)
        network, arrays = read_tables(folder, OWN)
        self.shifts = {node["out"]: node.get("shift", 0) for node in network["nodes"]}
        lacking = {node.out for node in form.nodes} - self.shifts.keys()
        if lacking:
            raise CheckpointError(f"{folder} lacks value {min(lacking)}: write it again")
        self.module = self._guard(lambda: spiking_network.build(network, arrays).eval())
        self.version = f"spikingjelly {version('spikingjelly')}"

    @torch.no_grad()
    def run(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Levels of all neurons, as their modules give them, and the logits."""
        from spikingjelly.activation_based import functional

        values: dict[int, np.ndarray] = {}

        def keep(out: int) -> Any:
            return lambda module, inputs, output: values.update({out: output.numpy()})

        hooks = [
            self.module.get_submodule(f"value_{node.out}.neuron").register_forward_hook(
                keep(node.out)
            )
            for node in self.form.nodes
            if node.op == "fire"
        ]
        try:
            logits = self._guard(lambda: self.module(torch.from_numpy(images).float()))
        finally:
            for hook in hooks:
                hook.remove()
        functional.reset_net(self.module)
        return values | {self.form.nodes[-1].out: logits.numpy()}

    @torch.no_grad()
    def run_node(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        """One module, its numbers as whole ones."""
        given = [
            torch.from_numpy(one).float() * 2.0 ** -self.shifts.get(index, 0)
            for index, one in zip(node.inputs, inputs, strict=True)
        ]
        module = self.module.get_submodule(f"value_{node.out}")
        made = self._guard(lambda: module(*given)) * 2.0 ** self.shifts[node.out]
        result: np.ndarray = made.numpy()
        return result
