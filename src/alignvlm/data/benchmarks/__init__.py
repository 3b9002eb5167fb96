"""The benchmarks of the paper as sources: SROIE, DeepForm, KLC, WTQ, TabFact, ChartQA."""
