"""Training of spiking networks through time, from exactly the network that was converted."""

from __future__ import annotations

from .algorithms import BPTT, DSR, OTTT
from .parts import Derivative, Trained
from .unrolled import Unrolled

__all__ = ["BPTT", "DSR", "OTTT", "Derivative", "Trained", "Unrolled"]
