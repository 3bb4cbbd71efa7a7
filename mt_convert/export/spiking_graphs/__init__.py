"""Graphs and modules that other simulators of spiking networks read."""
