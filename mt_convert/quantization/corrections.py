"""What makes a quantized network better without training, as Brevitas has it (`CORRECTIONS`)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns about torch's own renamings on import
    from brevitas.graph.calibrate import bias_correction_mode
    from brevitas.graph.equalize import EqualizeGraph
    from brevitas.graph.gptq import gptq_mode

from ..errors import Fault, SpecError
from ..graph.nodes import WEIGHTED, layer_nodes
from .batch_norm import batch_norms, estimate_batch_norm_
from .brevitas_layers import has_quantized_weight, is_normalized
from .spec import EQUALIZE

BATCH = 32
GPTQ_IMAGES = 128
SAME = 1e-3
"""How far logits may move, as a share of the largest one, where a network only changed its form."""


def equalize_(layers: fx.GraphModule, images: Tensor) -> None:
    """Make the channels between two weighted layers alike in range, before they are quantized.

    A channel is divided by what the weights behind it are multiplied with, where nothing but a ReLU
    lies between, so that the float network computes what it did.

    Source:
        Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
        section 4.1.
    Raises:
        SpecError: there are no two such layers.
    """
    with torch.no_grad():
        before = layers(images)
        changed, regions = EqualizeGraph(return_regions=True).apply(copy.deepcopy(layers))
        after = changed(images)
    moved = float((after - before).abs().max()) if regions else 0.0
    if not regions or moved > SAME * float(before.abs().max()):
        hint = "a ReLU6 or another function with bounds does not let a factor through: leave it out"
        fault = Fault("after", EQUALIZE, hint)
        raise SpecError("no two weighted layers have only a ReLU between them", [fault])
    state = changed.state_dict()
    with torch.no_grad():
        for name, tensor in layers.state_dict().items():
            tensor.copy_(state[name])


def round_by_gptq_(layers: fx.GraphModule, images: Tensor) -> None:
    """Round the weights of each layer one column after the other, each making up for the errors of
    those before on the inputs that the layer has; weights end on their quantizer's levels. It looks
    at `GPTQ_IMAGES` images at most, once for each layer.

    Source:
        GPTQ (ICLR 2023), algorithm 1.
    Raises:
        SpecError: no weights are quantized uniformly, or they are normalised.
    """
    weighted = [layer for _, layer in layer_nodes(layers, WEIGHTED) if has_quantized_weight(layer)]
    if not weighted or any(map(is_normalized, weighted)):
        hint = "normalised, coded and float weights have no columns of their own: leave it out"
        raise SpecError("no weights to round", [Fault("after", "gptq", hint)])
    network = _Calls(layers)
    with torch.no_grad(), _quiet(), gptq_mode(network, create_weight_orig=False) as gptq:
        for _ in range(gptq.num_layers):
            for batch in images[:GPTQ_IMAGES].split(BATCH):
                network(batch)
            gptq.update()


def estimate_again_(layers: fx.GraphModule, images: Tensor) -> None:
    """Estimate batch-norm statistics again, of the network as it now is.

    Raises:
        SpecError: there is no batch norm with statistics.
    """
    norms = batch_norms(layers)
    if not norms:
        fault = Fault("after", "reestimate_bn", "keep the batch norms, or leave it out")
        raise SpecError("there is no batch norm whose statistics could be estimated", [fault])
    estimate_batch_norm_(layers, norms, images.split(BATCH))


def correct_bias_(layers: fx.GraphModule, images: Tensor) -> None:
    """Move biases by what the rounding of the weights moved the mean of each output channel.

    Source:
        Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
        section 4.2, measured on images.
    Raises:
        SpecError: no layer with quantized weights has a bias.
    """
    weighted = [layer for _, layer in layer_nodes(layers, WEIGHTED) if has_quantized_weight(layer)]
    if all(layer.bias is None for layer in weighted):
        hint = "fold the batch norms (batch_norm: fold), or take reestimate_bn"
        raise SpecError("no layer has a bias to correct", [Fault("after", "correct_bias", hint)])
    with torch.no_grad(), _quiet(), bias_correction_mode(layers, skip_if_no_bias=True):
        for batch in images.split(BATCH):
            layers(batch)


CORRECTIONS: dict[str, Callable[[fx.GraphModule, Tensor], None]] = {
    "gptq": round_by_gptq_,
    "reestimate_bn": estimate_again_,
    "correct_bias": correct_bias_,
}
"""What `QuantSpec.after` names, but `equalize_`, which comes before the quantizers."""


def correct_(layers: fx.GraphModule, names: Sequence[str], images: Tensor) -> None:
    """Apply the corrections of these names, in this order; the network is in evaluation mode."""
    for name in names:
        if name != EQUALIZE:
            CORRECTIONS[name](layers, images)


class _Calls(nn.Module):
    """A module around a graph: what Brevitas puts in place of its ``forward`` goes with it."""

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Brevitas' warnings about hooks that are ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
