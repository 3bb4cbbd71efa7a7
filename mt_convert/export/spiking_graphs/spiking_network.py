"""Builds what `mt-convert export --to spikingjelly` wrote, as a module of SpikingJelly:

    from spiking_network import load
    net = load(folder)     # one forward pass is one image: logits = net(images)

Neurons are SpikingJelly's own FewSpikeNode where that is equal, else a MultiThresholdNode. Both
start afresh with every pass; a recording goes frame by frame: functional.multi_step_forward.
Weights and biases are parameters, every threshold has a surrogate's gradient.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F

_CONVOLUTIONS = {1: layer.Conv1d, 2: layer.Conv2d, 3: layer.Conv3d}
_POOLS = {1: layer.MaxPool1d, 2: layer.MaxPool2d, 3: layer.MaxPool3d}
_SUMS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class MultiThresholdNode(neuron.SimpleBaseNode):
    """Emits first + sum_k weight_k [v >= threshold_k], v being the input of this pass.

    thresholds and weights: [n, ...], to be broadcast over [features].
    """

    def __init__(self, thresholds, weights, first, surrogate_function):
        super().__init__(surrogate_function=surrogate_function)
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("weights", weights)
        self.register_buffer("first", first)

    def neuronal_charge(self, x):
        self.v = x

    def neuronal_fire(self):
        if self.thresholds.dim() == 1 and not torch.is_grad_enabled():  # the same, by halving
            reached = torch.cat([self.first.new_zeros(1), self.weights.cumsum(0)])
            return self.first + reached[torch.bucketize(self.v, self.thresholds, right=True)]
        level = torch.zeros_like(self.v) + self.first
        for threshold, weight in zip(self.thresholds, self.weights, strict=True):
            level = level + weight * self.surrogate_function(self.v - threshold)
        return level

    def neuronal_reset(self, spike):
        """Nothing is carried over; v stays to be read."""


class Formula(nn.Module):
    """x_0 * multiplier_0 + bias + x_1 * multiplier_1 + ..., each operator rounded by itself."""

    def __init__(self, arrays):
        super().__init__()
        for name in arrays:
            if name.startswith("multiplier_") or name == "offset":
                self.register_buffer(name, arrays[name])
        self.bias = nn.Parameter(arrays["bias"]) if "bias" in arrays else None

    def forward(self, *inputs):
        total = inputs[0] * self.multiplier_0
        total = total if self.bias is None else total + self.bias
        for index, x in enumerate(inputs[1:], start=1):
            total = total + x * self.get_buffer(f"multiplier_{index}")
        return total + self.offset if hasattr(self, "offset") else total


class Neurons(nn.Module):
    """A layer of neurons behind its formula, which counts in levels."""

    def __init__(self, node, arrays, surrogate_function):
        super().__init__()
        self.formula = Formula(arrays)
        if node["few_spikes"]:
            steps = [2.0**place for place in reversed(range(node["few_spikes"]))]
            table = neuron.FewSpikeTable([step - 0.5 for step in steps], steps, steps)
            self.neuron = neuron.FewSpikeNode(table, surrogate_function)
        else:
            numbers = (arrays[name].float() for name in ("thresholds", "weights", "first"))
            self.neuron = MultiThresholdNode(*numbers, surrogate_function)

    def forward(self, *inputs):
        return self.neuron(self.formula(*inputs))


class Encode(nn.Module):
    """Levels of the image."""

    def __init__(self, node, arrays):
        super().__init__()
        self.register_buffer("scale", arrays["scale"])
        self.low, self.high = node["low"], node["high"]

    def forward(self, x):
        return torch.round(x / self.scale).clamp(self.low, self.high)


class Window(nn.Module):
    """A convolution or a pool, with as much around its input as its last window reaches."""

    def __init__(self, node, arrays, inside, shape):
        super().__init__()
        columns = [node[name] for name in ("kernel", "stride", "padding", "dilation")]
        self.around = []
        for kernel, stride, padding, dilation, size, out in reversed(
            [*zip(*columns, inside[1:], shape[1:], strict=True)]
        ):
            reach = (kernel - 1) * dilation + (out - 1) * stride + 1
            self.around += [padding, max(0, reach - padding - size)]
        kernel, stride, _, dilation = map(tuple, columns)
        axes, self.fill = len(kernel), -math.inf if node["op"] == "max_pool" else 0.0
        if node["op"] == "conv":
            window = {"stride": stride, "dilation": dilation, "groups": node["groups"]}
            self.run = _CONVOLUTIONS[axes](inside[0], shape[0], kernel, bias=False, **window)
            self.run.weight = nn.Parameter(arrays["weight"].float() * 2.0 ** -node["shift"])
        elif node["op"] == "max_pool":
            self.run = _POOLS[axes](kernel, stride, 0, dilation)
        else:
            self.register_buffer("ones", torch.ones(inside[0], 1, *kernel))
            self.settings = {"stride": stride, "dilation": dilation, "groups": inside[0]}
            self.run = lambda x: _SUMS[axes](x, self.ones, **self.settings)

    def forward(self, x):
        return self.run(F.pad(x, self.around, value=self.fill) if any(self.around) else x)


class Gather(nn.Module):
    """The numbers of the inputs behind a zero, elsewhere."""

    def __init__(self, arrays, shape):
        super().__init__()
        self.register_buffer("index", arrays["index"].long().flatten())
        self.shape = shape

    def forward(self, *inputs):
        count = len(inputs[0])
        flat = [inputs[0].new_zeros(count, 1), *(x.reshape(count, -1) for x in inputs)]
        return torch.cat(flat, 1).index_select(1, self.index).reshape(count, *self.shape)


class InParts(nn.Module):
    """A weighted layer on x = high * unit + low: float32 holds the sums of both, and rounds theirs
    once."""

    def __init__(self, run, unit):
        super().__init__()
        self.run, self.unit = run, unit

    def forward(self, x):
        high = torch.floor(x / self.unit)
        return self.run(high) * self.unit + self.run(x - high * self.unit)


class Plain(nn.Module):
    """What has no numbers of its own, or whole factors."""

    def __init__(self, node, arrays, shape):
        super().__init__()
        self.op, self.axes, self.shape = node["op"], node.get("axes"), shape
        self.register_buffer("factor", arrays["factor"].float() if "factor" in arrays else None)

    def forward(self, x):
        if self.op == "scale":
            return x * self.factor
        if self.op in ("max", "sum"):
            x = x.amax(self.axes) if self.op == "max" else x.sum(self.axes)
        return x.reshape(len(x), *self.shape)


class Network(nn.Module):
    """Modules value_N, run in order; the last gives the logits."""

    def __init__(self, network, arrays, surrogate_function):
        super().__init__()
        self.order, shapes = [], {0: network["image_shape"]}
        for node, own in zip(network["nodes"], arrays, strict=True):
            out, inputs = node["out"], node["in"]
            shapes[out] = network["values"][str(out)]["shape"]
            inside, shape = shapes[inputs[0]], shapes[out]
            module = make(node, own, inside, shape, surrogate_function)
            self.add_module(f"value_{out}", module)
            self.order.append((out, inputs))

    def forward(self, images):
        values = {0: images}
        for out, inputs in self.order:
            module = self.get_submodule(f"value_{out}")
            values[out] = module(*(values[index] for index in inputs))
        return values[out]


def make(node, arrays, inside, shape, surrogate_function):
    """The module of a node."""
    op = node["op"]
    if node.get("unit"):
        whole = {**node, "unit": None}
        return InParts(make(whole, arrays, inside, shape, surrogate_function), node["unit"])
    if op in ("conv", "max_pool", "sum_pool"):
        return Window(node, arrays, inside, shape)
    if op == "linear":
        linear = layer.Linear(inside[-1], shape[-1], bias=False)
        linear.weight = nn.Parameter(arrays["weight"].float() * 2.0 ** -node["shift"])
        return linear
    if op == "fire":
        return Neurons(node, arrays, surrogate_function)
    if op == "encode":
        return Encode(node, arrays)
    if op == "gather":
        return Gather(arrays, shape)
    return Formula(arrays) if op == "read_out" else Plain(node, arrays, shape)


def build(network, arrays, surrogate_function=None):
    """The module of a description and the arrays of each node."""
    tensors = [{name: torch.as_tensor(one) for name, one in own.items()} for own in arrays]
    return Network(network, tensors, surrogate_function or surrogate.Sigmoid())


def load(folder, surrogate_function=None):
    """The module of a folder."""
    network = json.loads((Path(folder) / "network.json").read_text())
    tensors = load_file(Path(folder) / "network.safetensors")
    arrays = [
        {name: tensors[key] for name, key in node["arrays"].items()} for node in network["nodes"]
    ]
    return build(network, arrays, surrogate_function)
