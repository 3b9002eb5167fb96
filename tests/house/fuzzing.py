"""Calls with damaged input in a process of their own, which can hang, die or grow without harm.

A test names a function that prepares the calls; the process makes them one after the other and says
when one begins and how it ended. Where it says nothing for too long it is killed, and another one
goes on with the next call.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from alignvlm.errors import AlignVLMError

Call = Callable[[], object]
Prepared = Callable[[int], tuple[str, Call]]
"""Of a call's number, which is also its seed: the input's name, and what to call with it."""
SECONDS = 10.0
"""No call computes for longer."""
WALL, START = 30.0, 180.0
"""Seconds after which a call, or all that comes before the first, counts as hung; longer than they
compute, because other programs run beside."""
GIB = 4.0
"""The process with a model and all that it reads has less at any time."""
ROOT = Path(__file__).parents[2]


@dataclass
class Outcomes:
    """How calls ended.

    Attributes:
        counts: by "fine" and the names of our errors.
        faults: everything that must not happen, with the input's name and seed.
        longest: seconds, and whose they were.
        peak: GiB, the most that a process had.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest: tuple[float, str] = (0.0, "")
    peak: float = 0.0

    @property
    def refusals(self) -> int:
        """Calls that ended in an error of ours."""
        return sum(self.counts.values()) - self.counts["fine"]

    def take(self, told: dict[str, Any]) -> None:
        name = told["name"]
        self.counts[told["outcome"]] += 1
        self.peak = max(self.peak, told["peak"])
        self.longest = max(self.longest, (told["seconds"], name))
        if told["fault"]:
            self.faults.append(f"{name}: {told['fault']}")
        if told["seconds"] > SECONDS:
            self.faults.append(f"{name}: {told['seconds']:.1f} s")

    def check(self, say: Callable[[str], None], what: str, *, refusals: int, fine: int) -> None:
        """Say the figures; there were no faults, and changes that mattered, but not all fatal."""
        seconds, name = self.longest
        say(
            f"{what}: {sum(self.counts.values())} cases, {self.refusals} refusals "
            f"{dict(self.counts)}, slowest call {seconds:.1f} s ({name}), "
            f"peak memory {self.peak:.2f} GiB"
        )
        assert not self.faults, "\n".join(self.faults)
        assert self.peak < GIB
        assert self.refusals >= refusals and self.counts["fine"] >= fine, self.counts


def fuzz(prepare: Callable[..., Prepared], cases: int, *given: Any, wall: float = WALL) -> Outcomes:
    """Make the calls ``0`` to ``cases - 1``.

    Args:
        prepare: a function of a module, called in the other process with ``given``, as texts.
        wall: seconds after which a call is hung.
    """
    outcomes, number = Outcomes(), 0
    while number < cases:
        number = _some(prepare, number, cases, list(map(str, given)), wall, outcomes)
        if len(outcomes.faults) > 20:
            break
    return outcomes


def _some(
    prepare: Callable[..., Prepared],
    start: int,
    stop: int,
    given: list[str],
    wall: float,
    outcomes: Outcomes,
) -> int:
    """Calls of one process, until it is done or lost; returns the number of the next one."""
    where = f"{prepare.__module__}:{prepare.__name__}"
    command = [sys.executable, "-m", __name__, where, str(start), str(stop), *given]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    number, name, hung = start - 1, "before the first call", False
    with TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment)
        try:
            for told in _told(child, wall):
                if "outcome" in told:
                    outcomes.take(told)
                else:
                    number, name = told["number"], told["name"]
        except TimeoutError:
            hung = True
            outcomes.faults.append(f"{name}: killed after {wall:g} s")
        finally:
            child.kill()
            code = child.wait()
            assert child.stdout is not None
            child.stdout.close()
        if code and not hung:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            outcomes.faults.append(f"{name}: the process ended with {code}: {last}")
    if number < start:
        return stop  # another one would not start either
    return number + 1


def _told(child: subprocess.Popen[bytes], wall: float) -> Iterator[dict[str, Any]]:
    """What the process says, until its end.

    Raises:
        TimeoutError: nothing for too long.
    """
    assert child.stdout is not None
    pipe, rest, patience = child.stdout.fileno(), b"", max(START, wall)
    while True:
        if not select.select([pipe], [], [], patience)[0]:
            raise TimeoutError
        data = os.read(pipe, 1 << 16)
        if not data:
            child.wait(wall)
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            patience = wall
            yield json.loads(line)


def peak() -> float:
    """GiB that this process had at most. The system's own count begins with that of the process
    which started this one, so the count of the address space alone is taken where there is one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def outcome_of(call: Call) -> tuple[str, str]:
    """How a call ended, and what is wrong with that."""
    try:
        call()
    except AlignVLMError as error:
        fault = f"more than a line: {error}" if "\n" in str(error) else ""
        return type(error).__name__, fault
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"
    return "fine", ""


@contextmanager
def telling() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Says things on standard output, where nobody else can meanwhile."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    yield lambda told: (os.write(own, json.dumps(told).encode() + b"\n"), None)[1]


def main(where: str, start: str, stop: str, *given: str) -> None:
    """What the process does."""
    module, name = where.split(":")
    with telling() as tell:
        prepared: Prepared = getattr(importlib.import_module(module), name)(*given)
        for number in range(int(start), int(stop)):
            what, call = prepared(number)
            what = f"seed {number}, {what}"
            tell({"number": number, "name": what})
            began, cpu = time.monotonic(), time.process_time()
            outcome, fault = outcome_of(call)
            # of CPU: what else the machine does is not this call's
            took = min(time.process_time() - cpu, time.monotonic() - began)
            tell({"name": what, "outcome": outcome, "fault": fault, "seconds": took,
                  "peak": peak()})  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
