"""Ending the model's work in the middle, when nobody waits for it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import AlignVLMError


class Stopped(AlignVLMError):
    """The work was ended before it was done, because its caller said so."""


@contextmanager
def stoppable(model: Any, stop: Callable[[], bool]) -> Iterator[None]:
    """Within, reading ends after the batch of lines, and encoding, prefill and generation before
    the layer at which ``stop`` says so.

    Raises:
        Stopped: it said so.
    """

    own = threading.get_ident()

    def check(*_: Any) -> None:
        if threading.get_ident() == own and stop():  # another thread's work is its own
            raise Stopped("ended before it was done")

    vision = getattr(getattr(model, "model", None), "vision_model", None)
    shown = getattr(vision, "progress", None)

    def progress(done: int, lines: int) -> None:
        check()
        if shown is not None:
            shown(done, lines)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                stack.callback(module.register_forward_pre_hook(check).remove)
        if vision is not None and hasattr(vision, "progress"):
            vision.progress = progress
            stack.callback(setattr, vision, "progress", shown)
        yield
