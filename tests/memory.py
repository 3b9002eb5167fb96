"""How much memory this process holds, as Linux counts it for this process alone: what getrusage
says may be the peak of the process that started it."""

from __future__ import annotations

from pathlib import Path

KIB_IN_GIB = 2**20


def resident() -> float:
    """What is held now, GiB."""
    return _status("VmRSS")


def peak() -> float:
    """The most that was held since the process began, or since :func:`forget_peak`, GiB."""
    return _status("VmHWM")


def forget_peak() -> None:
    """What counts as the peak begins with what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / KIB_IN_GIB
