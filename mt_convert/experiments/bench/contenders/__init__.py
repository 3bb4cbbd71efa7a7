"""Who takes part in a benchmark: ours, and what else runs the same network."""
