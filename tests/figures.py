"""What tests measure, shown at the end of a run: pytest hides what a test that passes prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FIGURE = "figure"


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``figures("50 clients at once: 63 s")``: one line for the end of the run, failed or not."""

    def add(line: str) -> None:
        request.node.user_properties.append((FIGURE, line))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The lines, in the order in which their tests ran; processes of pytest-xdist pass them on."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    calls.sort(key=lambda report: report.start)
    lines = [line for report in calls for name, line in report.user_properties if name == FIGURE]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
