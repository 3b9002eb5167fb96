"""One model for all visitors: jobs wait in line, and each of them can be ended at any time."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import AlignVLMError
from ..inference.stopping import Stopped

Event = dict[str, Any]
Tell = Callable[[Event | None], None]


class Watch:
    """What a job tells its visitor, and whether they still wait for it.

    Args:
        tell: takes what happens, and at last ``None``.
    """

    def __init__(self, tell: Tell = lambda event: None) -> None:
        self.tell = tell
        self.stop = threading.Event()

    def check(self) -> None:
        """Go on, or end here.

        Raises:
            Stopped: nobody waits any more.
        """
        if self.stop.is_set():
            raise Stopped("the visitor pressed Stop, or has gone")


class Turns:
    """A line of jobs and the thread that does one after another."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Watch, Callable[[Watch], Event]]] = deque()
        self._changed = threading.Condition()
        self._running: Watch | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, watch: Watch, work: Callable[[Watch], Event]) -> None:
        """Stand in line; the visitor is told how many are before them, each time that changes."""
        with self._changed:
            self._jobs.append((watch, work))
            before = len(self._jobs) - 1 + (self._running is not None)
            if before:
                watch.tell({"event": "waiting", "before": before})
            self._changed.notify()

    def leave(self, watch: Watch) -> None:
        """End a job, whether it waits or is being done."""
        watch.stop.set()
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job[0] is not watch)
            self._tell_places()

    def close(self, seconds: float) -> None:
        """End all jobs, and wait so long for the one being done."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            if self._running is not None:
                self._running.stop.set()
            self._changed.notify()
        self._thread.join(seconds)

    def _tell_places(self) -> None:
        for place, (watch, _) in enumerate(self._jobs):
            watch.tell({"event": "waiting", "before": place + (self._running is not None)})

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                watch, work = self._jobs.popleft()
                self._running = watch
                self._tell_places()
            _do(watch, work)


def _do(watch: Watch, work: Callable[[Watch], Event]) -> None:
    """One job; whatever goes wrong is told, and the next one has its turn."""
    try:
        watch.check()
        watch.tell({"event": "done", **work(watch)})
    except Stopped:
        pass
    except AlignVLMError as error:
        watch.tell({"event": "error", "text": " ".join(str(error).split())})
    except Exception:
        traceback.print_exc(file=sys.stderr)
        watch.tell({"event": "error", "text": "that went wrong; the terminal says how"})
    finally:
        watch.tell(None)
