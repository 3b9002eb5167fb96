"""Batches computed side by side on a CPU's cores, one thread each.

The recogniser's products are too small to share: two threads on one batch gain a seventh, two
batches at once nearly half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(
    function: Callable[[T], R], arguments: Iterable[T], device: torch.device
) -> Iterator[R]:
    """Results in the order of the arguments, as many at once as torch may use threads.

    Where gradients are taken or autocast is on, both a thread's own state, and on a GPU, they are
    computed one after another.

    Args:
        function: of one argument; it must not depend on another call's.
        arguments: drawn from as results are, two ahead for each thread.
        device: where the work is done.

    Example:
        >>> with torch.inference_mode():
        ...     list(side_by_side(torch.exp, torch.zeros(3, 1), torch.device("cpu")))[0]
        tensor([1.])
    """
    threads = torch.get_num_threads()
    alone = torch.is_grad_enabled() or torch.is_autocast_enabled(device.type)
    if threads == 1 or alone or device.type != "cpu":
        yield from map(function, arguments)
        return
    work = partial(_without_gradients, function, torch.is_inference_mode_enabled())
    pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
    pending: deque[Future[R]] = deque()
    try:
        for argument in arguments:
            pending.append(pool.submit(work, argument))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a thread's own number is the default of new threads


def _without_gradients(function: Callable[[T], R], inference: bool, argument: T) -> R:
    """Gradients are off in the thread that waits; each thread has to be told."""
    with torch.inference_mode(inference), torch.no_grad():
        return function(argument)
