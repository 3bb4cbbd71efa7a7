"""Spiking networks made from an architecture and trained from scratch."""
