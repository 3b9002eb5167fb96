"""Measurements of speed and memory; docs/performance.md says how to run and read them."""
