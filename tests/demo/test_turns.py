"""Jobs wait in line, know their place, and can be ended while they wait or run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from alignvlm.demo.turns import Turns, Watch
from alignvlm.errors import DataError

SECONDS = 20


class Visitor(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.ended = threading.Event()
        super().__init__(self.hear)

    def hear(self, event: Any) -> None:
        if event is None:
            self.ended.set()
        else:
            self.told.append(event)


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    made.close(SECONDS)
    assert not made._thread.is_alive()


@pytest.fixture
def busy(turns: Turns) -> Iterator[threading.Event]:
    """A job runs until this is set."""
    begun, go_on = threading.Event(), threading.Event()

    def work(watch: Watch) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(SECONDS)
        return {}

    turns.join(Visitor(), work)
    assert begun.wait(SECONDS)
    yield go_on
    go_on.set()


def test_those_who_wait_know_how_many_are_before_them(turns, busy):
    visitors = [Visitor() for _ in range(3)]
    for visitor in visitors:
        turns.join(visitor, lambda watch: {"said": "it"})
    assert [v.told for v in visitors] == [[{"event": "waiting", "before": n}] for n in (1, 2, 3)]
    turns.leave(visitors[0])
    assert visitors[2].told[-1] == {"event": "waiting", "before": 2}
    busy.set()
    assert visitors[1].ended.wait(SECONDS) and visitors[2].ended.wait(SECONDS)
    assert visitors[1].told[-1] == {"event": "done", "said": "it"}
    assert not visitors[0].ended.is_set()  # it never had its turn


def test_what_runs_can_be_ended(turns):
    begun, visitor = threading.Event(), Visitor()

    def work(watch: Watch) -> dict[str, Any]:
        begun.set()
        assert watch.stop.wait(SECONDS)
        watch.check()
        return {}

    turns.join(visitor, work)
    assert begun.wait(SECONDS)
    turns.leave(visitor)
    assert visitor.ended.wait(SECONDS)
    assert visitor.told == []


def test_what_goes_wrong_is_told_and_the_next_has_its_turn(turns, capsys):
    def refuse(watch: Watch) -> dict[str, Any]:
        raise DataError("no such\npage")

    def fail(watch: Watch) -> dict[str, Any]:
        raise RuntimeError("a secret path")

    visitors = [Visitor() for _ in range(3)]
    for visitor, work in zip(visitors, (refuse, fail, lambda watch: {}), strict=True):
        turns.join(visitor, work)
        assert visitor.ended.wait(SECONDS)
    assert visitors[0].told[-1] == {"event": "error", "text": "no such page"}
    assert "secret" not in str(visitors[1].told) and "secret" in capsys.readouterr().err
    assert visitors[2].told[-1] == {"event": "done"}


def test_closing_ends_the_one_that_runs(turns):
    begun, visitor = threading.Event(), Visitor()

    def work(watch: Watch) -> dict[str, Any]:
        begun.set()
        assert watch.stop.wait(SECONDS)
        return {}

    turns.join(visitor, work)
    assert begun.wait(SECONDS)
    turns.close(SECONDS)
    assert visitor.ended.is_set()
