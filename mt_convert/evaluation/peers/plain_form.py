"""`plain`: a network in the form that other converters expect.

Converters built on torch.fx know layers (`nn.ReLU`, `nn.Conv2d`, pools), Python's
arithmetic and a few functions of torch. They do not know activations called as functions, `F.pad`
or ATen operators, all of which are a matter of form: the function of the network stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Fault, UnsupportedLayerError
from ...graph.nodes import fold_batch_norm_, unused_name
from ...graph.tracing.trace import trace

aten = torch.ops.aten

Build = Callable[[fx.GraphModule, fx.Node], fx.Node | None]  # None: not in this form


def plain(ann: nn.Module, example: Tensor) -> fx.GraphModule:
    """The same network with every activation an `nn.ReLU` or `nn.Hardtanh` of its own, pools and
    zeros around images as layers, sums as Python's, batch norms folded, and shortcuts that take
    every k-th pixel and pad channels with zeros as 1x1 convolutions of stride k whose weights are 0
    and 1.

    Shapes:
        example: [batch, channels, height, width].

    Returns:
        A graph module in eval mode that shares nothing with ``ann``; its logits on ``example`` are
        those of ``ann`` up to rounding (batch norms are multiplied into weights).

    Raises:
        UnsupportedLayerError: `torch.export` cannot follow the model, or operators have no such
            form; all of them are listed.

    Example:
        >>> ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        >>> [type(layer).__name__ for layer in plain(ann, torch.zeros(1, 1, 4, 4)).children()]
        ['Conv2d', 'ReLU']
    """
    network = trace(ann, example)
    fold_batch_norm_(network)
    faults = []
    for node in reversed(list(network.graph.nodes)):  # a pad before the slices that feed it
        if node.op != "call_function":
            continue
        if not node.users:
            network.graph.erase_node(node)
            continue
        new = FORMS[node.target](network, node) if node.target in FORMS else None
        if new is None and node.target is not aten.sym_size.int:  # whose users are listed
            faults.append(Fault(node.name, str(node.target), "no layer or function of torch.fx"))
        if new is None:
            continue
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)
    if faults:
        count = f"{len(faults)} operators" if len(faults) > 1 else "1 operator"
        raise UnsupportedLayerError(f"{count} without a plain form", reversed(faults))
    network.graph.lint()
    network.recompile()
    _check_same(ann, network, example)
    return network


@torch.no_grad()
def _check_same(ann: nn.Module, network: nn.Module, example: Tensor) -> None:
    """The two networks agree on the example; anything else is a bug of ours."""
    modes = [(module, module.training) for module in ann.modules()]
    try:
        expected = ann.eval()(example)
    finally:
        for module, training in modes:
            module.training = training
    error = (network(example) - expected).abs().max()
    assert error <= 1e-4 * expected.abs().max().clamp(min=1), f"plain form is off by {error}"


def _function(target: Callable[..., Any]) -> Build:
    """The same arguments to another function; keyword arguments have no such form."""

    def build(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        if node.kwargs:
            return None
        with network.graph.inserting_before(node):
            return network.graph.call_function(target, node.args)

    return build


def _layer(make: Callable[..., nn.Module]) -> Build:
    """The first argument to a new layer made from all others."""

    def build(network: fx.GraphModule, node: fx.Node) -> fx.Node:
        source, *settings = node.args
        return _call(network, node, make(*settings, **node.kwargs), source)

    return build


def _call(network: fx.GraphModule, node: fx.Node, layer: nn.Module, source: Any) -> fx.Node:
    """A call of a new layer where ``node`` stands, named as it."""
    name = unused_name(network, node.name)
    network.add_submodule(name, layer.eval())
    with network.graph.inserting_before(node):
        return network.graph.call_module(name, (source,))


def _avg_pool(kernel: Any, stride: Any = (), *settings: Any) -> nn.Module:
    """ATen writes a stride as long as the kernel as an empty list."""
    return nn.AvgPool2d(tuple(kernel), tuple(stride) or None, *settings)


def _max_pool(
    kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> nn.Module:
    """The same."""
    return nn.MaxPool2d(kernel, stride or None, padding, dilation, ceil_mode=ceil_mode)


def _flatten(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """A reshape to [batch, features]."""
    source: Any = node.args[0]
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if len(after) != 2 or before[0] != after[0]:
        return None
    with network.graph.inserting_before(node):
        return network.graph.call_function(torch.flatten, (source, 1))


def _shortcut(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Zeros around the channels of every k-th pixel (He et al. 2016, option A) as a convolution."""
    source: Any = node.args[0]
    pads: Any = node.args[1]
    if len(node.args) > 2 or node.kwargs or [*pads[:4], *pads[6:]] != [0, 0, 0, 0] or min(pads) < 0:
        return None
    strides = {2: 1, 3: 1}
    while source.target is aten.slice.Tensor:
        value, axis, start, end, *step = (*source.args, 1) if len(source.args) < 5 else source.args
        whole = start == 0 and end >= value.meta["val"].shape[axis]
        if axis not in strides or not whole:
            return None
        strides[axis] *= step[0]
        source = value
    channels, (front, back) = source.meta["val"].shape[1], pads[4:6]
    conv = nn.Conv2d(channels, front + channels + back, 1, (strides[2], strides[3]), bias=False)
    places = torch.arange(channels)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[places + front, places] = 1
    weight = next(network.parameters(), None)
    return _call(network, node, conv if weight is None else conv.to(weight), source)


def _pad(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """A shortcut, or zeros around an image, more of them on one side where TensorFlow has them."""
    if (made := _shortcut(network, node)) is not None:
        return made
    source: Any = node.args[0]
    pads: Any = node.args[1]
    settings = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
    if node.target is aten.constant_pad_nd.default:
        settings = {"value": (*node.args[2:], 0)[0]}
    zeros = settings.get("mode", "constant") == "constant" and not settings.get("value")
    around = len(pads) == 4 and source.meta["val"].dim() == 4
    return _call(network, node, nn.ZeroPad2d(tuple(pads)), source) if zeros and around else None


FORMS: dict[Any, Build] = {
    aten.add.Tensor: _function(operator.add),
    aten.sub.Tensor: _function(operator.sub),
    aten.mul.Tensor: _function(operator.mul),
    aten.cat.default: _function(torch.cat),
    aten.mean.dim: _function(torch.mean),
    aten.adaptive_avg_pool2d.default: _layer(nn.AdaptiveAvgPool2d),
    aten.avg_pool2d.default: _layer(_avg_pool),
    aten.max_pool2d.default: _layer(_max_pool),
    aten.view.default: _flatten,
    aten.reshape.default: _flatten,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
