"""Whole experiments from recipes: runs, tables, benchmarks, coverage. No face."""
