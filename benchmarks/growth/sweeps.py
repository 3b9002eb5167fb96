"""What is made larger, step by step, and what is measured at each step."""

from __future__ import annotations

from typing import NamedTuple


class Sweep(NamedTuple):
    """One quantity that grows while everything else stays.

    Attributes:
        name: in the csv.
        section: of the page: ``reading``, ``answering``, ``training`` or ``op``.
        subject: what costs, as it stands behind "the time of".
        axis: what grows, in the plural.
        setting: what stays.
        values: measured.
        further: where the fit is drawn out to beyond them.
        smoke: values of a smoke run, which uses tiny inputs.
    """

    name: str
    section: str
    subject: str
    axis: str
    setting: str
    values: tuple[float, ...]
    further: float | None = None
    smoke: tuple[float, ...] = (1, 2)

    @property
    def modes(self) -> tuple[str, ...]:
        """What is measured; a further token needs no memory beyond the first one's."""
        return ("time",) if self.name.startswith("token") else ("time", "memory")


SWEEPS = (
    Sweep("reading-pixels", "reading", "reading a page", "megapixels",
          "a square page with 6 short lines", (0.5, 1.0, 2.0, 4.0), smoke=(0.01, 0.02)),
    Sweep("reading-large", "reading", "reading a page larger than the detector looks at",
          "megapixels", "the same page from 2,000 px a side on", (4.0, 16.0),
          smoke=(0.01, 0.02)),
    Sweep("reading-lines", "reading", "reading a page", "lines",
          "a page of 1,000 x 1,000 px, lines of about 60 characters", (1, 8, 16, 32)),
    Sweep("reading-pages", "reading", "reading a document", "pages",
          "pages of 400 x 300 px with 2 lines, all in one call", (1, 4, 16, 64), 200),
    Sweep("answering-pages", "answering", "the first token of an answer", "pages",
          "pages that were read before, one line each", (1, 4, 16, 64), 200),
    Sweep("answering-prompts", "answering", "the first tokens of a batch of answers", "prompts",
          "one page of a line, read before, and a question each", (1, 4, 16)),
    Sweep("token-prompts", "answering", "each further token of a batch of answers", "prompts",
          "the same prompts, 8 further tokens", (1, 4, 16)),
    Sweep("token-pages", "answering", "each further token of an answer", "pages",
          "the same pages, 8 further tokens", (1, 4, 16, 64), 200),
    Sweep("training-positions", "training", "a training step", "positions",
          "one sample, its pages read before; the whole language model trains, AdamW",
          (64, 128, 256, 512), smoke=(8, 16)),
    Sweep("training-samples", "training", "a training step", "samples",
          "samples of 64 positions", (1, 2, 4, 8)),
    Sweep("op-vocabulary", "op", "the op forward and backward", "vocabulary rows",
          "N = 256, D = 576, all weights trained", (3400, 12800, 49152, 128256), smoke=(96, 192)),
    Sweep("op-width", "op", "the op forward and backward", "columns of width",
          "N = 256, V = 16,384, all weights trained", (256, 576, 1024, 2048), smoke=(16, 32)),
    Sweep("op-rows", "op", "the op forward and backward", "visual tokens",
          "V = 16,384, D = 576, all weights trained", (128, 256, 512, 1024), smoke=(8, 16)),
)  # fmt: skip
NAMES = tuple(sweep.name for sweep in SWEEPS)


def sweep_of(name: str) -> Sweep:
    """The sweep of that name.

    Raises:
        KeyError: there is none.
    """
    return {sweep.name: sweep for sweep in SWEEPS}[name]
