"""How time and memory grow with the work: what docs/cost.md shows."""
