"""Programs that other runtimes of torch run."""
