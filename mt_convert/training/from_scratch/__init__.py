"""Spiking networks made from an architecture and trained from scratch."""

from __future__ import annotations

from .network import ScratchNetwork, build_from_scratch

__all__ = [
    "ScratchNetwork",
    "build_from_scratch",
]
