"""Trains of tensors in networks from scratch: layers whose weights may depend on the time step.

`trace` cannot follow what depends on the step, so that a convolution of the same shape stands for
each train while the network is traced, and the train takes its place in the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ....errors import Fault, SpecError, many
from ....graph.nodes import NORMS, layer_nodes, layer_of, source_of, unused_name
from .tensor_train import ConvByStep, TTConv2d, merge

BY_STEP = (TTConv2d, ConvByStep)


def in_steps(
    layer: TTConv2d | ConvByStep, x: Tensor, steps: Sequence[int], time_steps: int
) -> Tensor:
    """The layer in these of T steps; neighbours with the same weights are computed together.

    Shapes: x [steps * batch, ...].

    Example:
        >>> from .tensor_train import Form
        >>> train = TTConv2d(nn.Conv2d(2, 2, 3, padding=1), Form.HTT, 1)
        >>> x = torch.randn(8, 2, 4, 4)
        >>> y = in_steps(train, x, range(4), 4)
        >>> torch.equal(y, torch.cat([train.early(x[:4]), train.late(x[4:])]))
        True
    """
    if not layer.by_step:
        return layer.early(x)
    same = groupby(steps, lambda t: layer.in_step(t, time_steps))
    calls = [(call, len(list(these))) for call, these in same]
    batch = len(x) // len(steps)
    parts = x.split([batch * count for _, count in calls])
    return torch.cat([call(part) for (call, _), part in zip(calls, parts, strict=True)])


def same_in_all_steps(name: str, layer: nn.Module) -> None:
    """Refuse what has no trace over the steps.

    Raises:
        SpecError: a layer with other weights in late steps.
    """
    if isinstance(layer, BY_STEP) and layer.by_step:
        hint = "decompose with form stt or ptt, or train by BPTT"
        fault = Fault(name, type(layer).__name__, hint)
        raise SpecError("OTTT: form htt has other weights in late steps, and one trace", [fault])


def without_steps(model: nn.Module) -> nn.Module:
    """A copy with one convolution for each train, of HTT that of the early steps; the model itself
    where it has none."""
    if not any(isinstance(layer, BY_STEP) for layer in model.modules()):
        return model
    merged = merge(model)
    for parent in list(merged.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, ConvByStep):
                setattr(parent, name, child.early)
    return merged


def put_trains_(layers: fx.GraphModule, model: nn.Module) -> None:
    """Put copies of a model's trains in the place of what stood for them in its graph.

    Raises:
        SpecError: a train that the graph does not call by one of its names.
    """
    held = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, BY_STEP)
    }
    called = {str(node.target) for node, _ in layer_nodes(layers, nn.Conv2d)} & held.keys()
    called_ids = {id(held[name]) for name in called}
    faults = [
        Fault(name, type(layer).__name__, "rename the layer, or remove it where nothing calls it")
        for name, layer in held.items()
        if id(layer) not in called_ids
    ]
    if faults:
        raise SpecError(
            f"{many(faults, 'train is', 'trains are')} not in the traced network", faults
        )
    copies = copy.deepcopy(held)  # all at once: one that has two names stays one
    for name in called:
        layers.set_submodule(name, copies[name].eval())


def fold_by_step_(layers: fx.GraphModule) -> None:
    """Fold each batch norm behind a merged HTT into its convolutions, in place; `fold_batch_norm_`
    does it for all others."""
    for node, norm in list(layer_nodes(layers, NORMS)):
        producer = source_of(node)
        layer = layer_of(layers, producer)
        if not isinstance(layer, ConvByStep) or len(producer.users) != 1:
            continue
        uses = [item for item, _ in layer_nodes(layers, ConvByStep)]
        if sum(item.target == producer.target for item in uses) > 1:
            producer.target = unused_name(layers, str(producer.target))
        halves: Any = (layer.early, layer.late)
        folded = ConvByStep(*(fuse_conv_bn_eval(conv, norm) for conv in halves))
        layers.add_submodule(str(producer.target), folded.eval())
        node.replace_all_uses_with(producer)
        layers.graph.erase_node(node)
    layers.recompile()
