"""Convolutions as trains of tensors: their cores, their start, and layers that share weights."""
