"""What makes a quantized network better without training: `QuantSpec.after` by name."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Brevitas warns about torch's own renamings on import
    from brevitas.graph.equalize import EqualizeGraph

from ..errors import Fault, SpecError
from ..graph.nodes import WEIGHTED, layer_nodes
from .batch_norm import batch_norms, estimate_batch_norm_
from .brevitas_layers import has_quantized_weight, is_normalized
from .layer_by_layer import LayerByLayer
from .spec import EQUALIZE, LAYER_BY_LAYER

BATCH = 32
LAYER_IMAGES = 64  # of which all values between two layers are held
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


_NOTHING = {
    "output_steps": "all follow the largest weight (5 bits and more), or are powers of two",
    "gptq": "normalised, coded and float weights have no columns of their own: leave it out",
    "match_bn": "keep the batch norms (batch_norm: keep), or take correct_bias",
    "correct_bias": "fold the batch norms (batch_norm: fold), or take match_bn or reestimate_bn",
}
_NOTHING_WORDS = {
    "output_steps": "no weight steps to choose",
    "gptq": "no weights to round",
    "match_bn": "there is no batch norm whose statistics could be matched",
    "correct_bias": "no layer has a bias to correct",
}


def correct_layers_(layers: fx.GraphModule, names: Sequence[str], images: Tensor) -> None:
    """One walk through the layers beside the float network, each corrected by all ``names``.

    ``output_steps``: the step of each output channel's weights by the squared error of its output
    (together with ``gptq`` after that rounding). ``gptq``: columns rounded one after the other,
    each making up for the error of those before it. ``match_bn``: batch norms moved so that what
    they give is nearest to what the float network's give. ``correct_bias``: biases moved by what
    the mean of each output channel was moved. `LAYER_IMAGES` images at most.

    Source:
        GPTQ (ICLR 2023), algorithm 1; Data-Free Quantization Through Weight Equalization and Bias
        Correction (ICCV 2019), section 4.2, measured on images.
    Raises:
        SpecError: one of them finds nothing to do.
    """
    weighted = [layer for _, layer in layer_nodes(layers, WEIGHTED) if has_quantized_weight(layer)]
    walk = LayerByLayer(layers, names)
    if "gptq" not in names or not any(map(is_normalized, weighted)):
        walk.run(images[:LAYER_IMAGES])
    for name in names:
        if name not in walk.done:
            raise SpecError(_NOTHING_WORDS[name], [Fault("after", name, _NOTHING[name])])


def correct_(layers: fx.GraphModule, names: Sequence[str], images: Tensor) -> None:
    """Apply the corrections of these names, in this order, those that go layer by layer in one
    walk; the network is in evaluation mode. `equalize_` has come before the quantizers."""
    for together, part in itertools.groupby(names, LAYER_BY_LAYER.__contains__):
        if together:
            correct_layers_(layers, list(part), images)
        elif "reestimate_bn" in part:
            estimate_again_(layers, images)
