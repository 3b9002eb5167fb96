"""The connector study: the same data, steps and seeds for every connector (docs/adr/0008-*.md)."""
