"""What recipes call gradient algorithms and surrogates."""

from __future__ import annotations

from ..neurons.surrogate import (
    ATan,
    Linear,
    Rectangular,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Surrogate,
    Triangular,
)
from ..training.gradients import BPTT, DSR, OTTT, Algorithm, Tandem

ALGORITHMS: dict[str, Algorithm] = {
    "bptt": BPTT(),
    "bptt_every_step": BPTT(every_step=1.0),
    "ottt_a": OTTT(),
    "ottt_o": OTTT(online=True),
    "dsr": DSR(),
    "tandem": Tandem(),
}
SURROGATES: dict[str, Surrogate] = {
    surrogate.kind: surrogate
    for surrogate in (
        StraightThrough(),
        Rectangular(),
        ATan(),
        Sigmoid(),
        Triangular(),
        Linear(),
        SpikeTime(),
    )
}
