"""Quantized and spiking networks in files: safetensors beside JSON, never pickle."""

from __future__ import annotations

from .network import load, load_quantized, save

__all__ = ["load", "load_quantized", "save"]
