"""From one quantized network to the next: its weights and batch norms, without its quantizers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ..errors import CheckpointError, Fault, many
from ..graph.nodes import attribute
from .activations.quant_act import QuantAct
from .brevitas_layers import is_normalized
from .weight_norm import normalize

_PLAIN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def float_tensors(layers: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors of a quantized network that are no quantizer's, by name.

    A weight that is normalised before it is quantized is given as its quantizer sees it, which is
    what the batch norm behind it is used to.

    Example:
        >>> from .quantize import quantize
        >>> from .spec import QuantSpec
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> qann = quantize(net, QuantSpec(), calibration=torch.ones(2, 1, 4, 4))
        >>> sorted(float_tensors(qann.layers))
        ['0.bias', '0.weight', '3.bias', '3.weight']
    """
    tensors: dict[str, Tensor] = {}
    for node in layers.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(attribute(layers, target), Tensor):
            tensors[target] = attribute(layers, target).detach()
        layer = layers.get_submodule(target) if node.op == "call_module" else None
        if isinstance(layer, QuantAct) and layer.formula is not None:
            tensors |= layer.formula.tensors()
        if layer is None or isinstance(layer, QuantAct):
            continue
        own = {name: value.detach() for name, value in _direct(layer).items() if name in _PLAIN}
        if is_normalized(layer):
            own["weight"] = normalize(own["weight"])
        tensors |= {f"{target}.{name}": value for name, value in own.items()}
    return tensors


def take_(layers: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors that `float_tensors` gave into a traced network of the same architecture.

    Raises:
        CheckpointError: names or shapes differ; all of them.
    """
    own = float_tensors(layers)
    faults = [
        Fault(name, "missing there" if name in own else "only there", "take a run of this network")
        for name in sorted(own.keys() ^ tensors.keys())
    ]
    faults += [
        Fault(name, f"is {list(tensors[name].shape)} there", f"{list(own[name].shape)} here")
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if faults:
        hint = "the network to start from has another architecture, or its batch norms are folded"
        raise CheckpointError(
            f"{many(faults, 'tensor does', 'tensors do')} not fit: {hint} otherwise", faults
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _direct(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own parameters and buffers, not those of modules inside it."""
    return {
        **dict(layer.named_parameters(recurse=False)),
        **dict(layer.named_buffers(recurse=False)),
    }
