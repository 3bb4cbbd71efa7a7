"""What makes a quantized network another one than the user thinks: refused, or said."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from ..errors import Fault
from ..graph.nodes import NORMS, WEIGHTED, is_constant, layer_nodes, layer_of, node_name
from .activations.quant_act import QuantAct

aten = torch.ops.aten

ROUNDING = {
    *(aten.round.default, aten.round.decimals, aten.floor.default, aten.ceil.default),
    *(aten.trunc.default, aten.fix.default, aten.sign.default),
    *(aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_channel_affine.default),
}
_LIBRARIES = ("brevitas.", "torch.ao.quantization", "torchao.quantization")
FAR = 5.0  # times the pixel that a thousandth of all others exceeds
_PIXELS = 2**20


def not_finite(layers: fx.GraphModule) -> list[Fault]:
    """Weights, biases and statistics that hold NaN or infinity; masks may."""
    hint = "train again from the last good weights, or mend the file"
    held = {str(node.target): layer for node, layer in layer_nodes(layers, (*WEIGHTED, *NORMS))}
    tensors = {
        f"{name}.{leaf}": tensor
        for name, layer in held.items()
        for leaf, tensor in (*layer._parameters.items(), *layer._buffers.items())
        if tensor is not None
    }
    loose = {str(node.target) for node in layers.graph.nodes if node.op == "get_attr"}
    tensors |= {name: item for name, item in layers.named_parameters() if name in loose}
    return [
        Fault(name, "holds NaN or infinity", hint)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def quantizers_of(ann: nn.Module, layers: fx.GraphModule) -> Iterator[str]:
    """A warning for a float network that quantizes already, by a library or by rounding."""
    own = [
        f"{name} ({type(module).__name__})"
        for name, module in ann.named_modules()
        if name and type(module).__module__.startswith(_LIBRARIES)
    ]
    own = own or [
        f"{node_name(node)} ({str(node.target).split('.')[1]})"
        for node in layers.graph.nodes
        if node.op == "call_function" and node.target in ROUNDING and not is_constant(node)
    ]
    if own:
        yield (
            f"the network quantizes already: {', '.join(own[:4])}{' …' if len(own) > 4 else ''}; "
            "it was quantized a second time, and exact means equal to that, not to its own levels; "
            "mt.quantization.adopt(model, calibration=images) takes those over"
        )


def far_pixels(images: Tensor) -> Iterator[str]:
    """A warning for a few calibration pixels that alone set the image's step."""
    sizes = images.abs().flatten()
    largest = float(sizes.max())
    sizes = sizes[:: max(1, sizes.numel() // _PIXELS)]
    sizes = sizes[sizes > 0]
    if not sizes.numel():
        return
    common = float(sizes.kthvalue(max(1, int(0.999 * sizes.numel()))).values)
    if largest > FAR * common:
        yield (
            f"calibration images: the largest pixel is {largest:.4g}, 99.9 % of all that are not 0 "
            f"lie below {common:.4g}; it sets the image's step: remove or clamp such pixels"
        )


def quantized_read_out(layers: fx.GraphModule) -> Iterator[str]:
    """A warning for quantizers that nothing weighted follows: the logits have few values."""
    output = next(node for node in layers.graph.nodes if node.op == "output")
    stack, seen = list(output.all_input_nodes), set()
    while stack:
        node = stack.pop()
        layer = layer_of(layers, node)
        if node in seen or isinstance(layer, WEIGHTED):
            continue
        seen.add(node)
        if isinstance(layer, QuantAct):
            if not layer.encodes_input:
                yield (
                    f"the read-out is quantized to {2**layer.bits - 1} levels: {node.target} "
                    "stands behind the last layer; take it out, or give it bits under overrides"
                )
            continue
        stack.extend(node.all_input_nodes)


@torch.no_grad()
def same_class(ann: nn.Module, qann: nn.Module, images: Tensor) -> tuple[float, Tensor] | None:
    """The share of images to which both networks give the same class, and the quantized logits;
    None where there are no classes."""
    was_training = {module: module.training for module in ann.modules()}
    ann.eval()
    try:
        expected, logits = ann(images.clone()), qann(images)
    finally:
        for module, training in was_training.items():
            module.training = training
    if not isinstance(expected, Tensor) or expected.dim() < 2 or expected.shape != logits.shape:
        return None
    return float((expected.argmax(1) == logits.argmax(1)).double().mean()), logits
