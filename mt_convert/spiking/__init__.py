"""The converted network: made, verified, simulated, saved and loaded."""
