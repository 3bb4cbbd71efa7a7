"""What conversion errors are, as plain rows: causes, views, bins. No torch.

Per layer a − m = (a − c) + (c − q) + (q − m): clipping, quantization and unevenness, with a the
analog activation, c the same clipped to the quantizer's range, q quantized, m what the neurons of
the converted network have emitted. Source: the decomposition of arXiv 2205.07473.
"""

from __future__ import annotations

from dataclasses import dataclass

WHOLE = "all layers"
"""Name of the row of the network: sums over all layers, in which each neuron weighs the same."""

VIEWS: dict[str, str] = {
    "forced": "each layer gets the input that the quantized network gives it, evenly over the "
    "steps: the layer's own error",
    "arrived": "each layer gets what has arrived at it in the spiking network by T; unevenness is "
    "what uneven arrival, and potential that is left, make of it",
    "propagated": "four networks on the same images, with analog, clipped, quantized activations "
    "and spikes: what has built up through the layers before",
}
CAUSES: dict[str, str] = {
    "clipping": "analog activation less the same clipped to the quantizer's range",
    "quantization": "clipped less quantized activation",
    "unevenness": "quantized activation less what the neuron has emitted by T",
    "whole": "the three together: analog activation less what the neuron has emitted by T",
}
RATE_PARTS = 10
RATE_EDGES = tuple(k / RATE_PARTS for k in range(RATE_PARTS + 1))
"""Firing rates are counted in a bin for 0, then one up to and with each later edge. Units: events
per step, of the most that the ladder can emit in one."""
RESIDUAL_PARTS, RESIDUAL_FIRST, RESIDUAL_LAST = 4, -2, 3
RESIDUAL_EDGES = tuple(
    k / RESIDUAL_PARTS
    for k in range(RESIDUAL_FIRST * RESIDUAL_PARTS, RESIDUAL_LAST * RESIDUAL_PARTS + 1)
)
"""Potentials left are counted in a bin below the first edge, one from each edge to the next, and
one from the last. Units: thresholds Δ."""


@dataclass(frozen=True)
class ErrorSize:
    """How large one error is, over all neurons of a layer and all images.

    Units: those of the activations; ``relative`` is RMS² over the mean square of the analog
        activation, None where that is 0.
    """

    mean: float
    rms: float
    maximum: float
    relative: float | None


@dataclass(frozen=True)
class ErrorRow:
    """The errors of one layer in one of `VIEWS`, by cause; ``power`` is the mean square of its
    analog activation."""

    layer: str
    view: str
    n: int
    T: int
    power: float
    clipping: ErrorSize
    quantization: ErrorSize
    unevenness: ErrorSize
    whole: ErrorSize


@dataclass(frozen=True)
class RateRow:
    """What the neurons of one layer have fired by T, over all images; ``neurons`` are one image's.

    Units: ``zero`` share of the QANN's activations that are 0, ``occasional`` of these the share
        with a spike, ``missing`` of the others the share whose emissions add up to 0 (both 0 where
        there is none); ``negative`` share of events; ``firing_rate`` events per neuron and step;
        ``rate_counts`` and ``residual_counts`` neurons times images in the bins of `RATE_EDGES` and
        `RESIDUAL_EDGES`.
    """

    layer: str
    n: int
    T: int
    neurons: int
    zero: float
    occasional: float
    missing: float
    negative: float
    firing_rate: float
    rate_counts: tuple[int, ...]
    residual_counts: tuple[int, ...]


@dataclass(frozen=True)
class LogitRow:
    """The read-out after T steps against the quantized network's, and what both predict.

    Units: ``error`` is that of the QANN's logits less the SNN's, relative to the QANN's; agreements
        are shares of images; accuracies percent. None where no ANN or no labels were given.
    """

    n: int
    T: int
    error: ErrorSize
    agreement: float
    ann_agreement: float | None = None
    snn_accuracy: float | None = None
    qann_accuracy: float | None = None
    ann_accuracy: float | None = None
