"""Data: records, sources, rendering, grounding."""
