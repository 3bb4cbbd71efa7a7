"""The converted network on single spikes, which knows no running totals: the reference."""
