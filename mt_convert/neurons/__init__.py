"""Multi-threshold neurons: ladders, one step, a layer, totals over steps."""
