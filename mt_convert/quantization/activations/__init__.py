"""Quantized activations: what is in front of one, its levels, its range, its noise."""
