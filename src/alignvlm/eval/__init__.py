"""Evaluation: metrics, tasks, answerers and the runner (docs/adr/0005-evaluation.md)."""
