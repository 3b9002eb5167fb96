"""stub."""
from benchmarks import measure as m
PAGE = m.ROOT / "docs" / "cost.md"
FIELDS = (
    *m.ENVIRONMENT,
    *("model", "sweep", "x", "repeats", "cpu_ms", "cpu_median_ms", "wall_ms", "peak_mib"),
    "skipped",
)
def write(a, b): ...
