"""Shares of visual tokens whose nearest words say what is there, with intervals over pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignvlm.eval.intervals import Paired, bootstrap_interval

Found = dict[str, dict[int, NDArray[np.int64]]]
"""Nearest token ids ``[n, best]`` by lens and layer."""


@dataclass(frozen=True)
class Truth:
    """What stands under some visual tokens.

    Attributes:
        token: int64 ``[n]``, the token there, and ``after`` the next one on the page (-1: none).
        word: the word that it is part of, for people.
        page: int64 ``[n]``.
    """

    token: NDArray[np.int64]
    after: NDArray[np.int64]
    word: list[str]
    page: NDArray[np.int64]

    def take(self, kept: NDArray[np.bool_]) -> Truth:
        """Some of them."""
        words = [word for word, keep in zip(self.word, kept, strict=True) if keep]
        return Truth(self.token[kept], self.after[kept], words, self.page[kept])


class Judge:
    """Says which nearest tokens name the truth.

    Case and the space before a word do not count: "Total" names " TOTAL".

    Args:
        texts: of all token ids.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = [text.strip().lower() for text in texts]

    def tokens(self, said: NDArray, wanted: NDArray) -> NDArray[np.bool_]:
        """``[n, best]``: whether it is the wanted token; nothing but space names nothing."""
        return np.array(
            [
                [bool(own := self.texts[i]) and t >= 0 and own == self.texts[t] for i in row]
                for row, t in zip(said.tolist(), wanted.tolist(), strict=True)
            ],
            bool,
        ).reshape(said.shape)

    def measures(self, said: NDArray, truth: Truth) -> dict[str, NDArray[np.bool_]]:
        """Each visual token's verdicts by name of the measure."""
        named = self.tokens(said, truth.token)
        return {
            "top 1": named[:, 0],
            "top 5": named.any(1),
            "next": self.tokens(said[:, :1], truth.after)[:, 0],
        }


def scored(found: Found, truth: Truth, judge: Judge) -> dict[str, Any]:
    """Each lens at the layer that is best on the even pages, scored on the odd ones.

    Returns:
        By lens ``layer``, each measure's ``share`` and ``interval``, the share by chance, and the
        difference from the first lens with its interval.
    """
    pages = {page: i for i, page in enumerate(dict.fromkeys(truth.page.tolist()))}
    odd = np.array([pages[page] % 2 == 1 for page in truth.page.tolist()])
    choosing, tested = truth.take(~odd), truth.take(odd)
    result: dict[str, Any] = {"visual tokens": len(tested.token), "pages": len(pages) // 2}
    lenses: dict[str, Any] = {}
    first: NDArray | None = None
    for name, layers in found.items():
        layer = best_layer({n: ids[~odd] for n, ids in layers.items()}, choosing, judge)
        said = layers[layer][odd]
        verdicts = judge.measures(said, tested)
        own = {measure: estimate(tested.page, v) for measure, v in verdicts.items()}
        lenses[name] = {"layer": layer, **own, "chance": chance(said, tested, judge)}
        if first is None:
            first = verdicts["top 1"]
        else:
            lenses[name]["less than the first"] = difference(tested.page, verdicts["top 1"], first)
        if len(layers) > 1:
            lenses[name]["by layer"] = {
                str(n): round(float(judge.tokens(ids[odd][:, :1], tested.token).mean()), 4)
                for n, ids in layers.items()
            }
    return {**result, "lenses": lenses}


def best_layer(layers: dict[int, NDArray], truth: Truth, judge: Judge) -> int:
    """The layer whose nearest token is right most often; of equal ones the first."""
    shares = {n: judge.tokens(ids[:, :1], truth.token).mean() for n, ids in layers.items()}
    return max(shares, key=lambda n: shares[n])


def _mean(verdicts: Sequence[dict[str, float]]) -> float:
    return sum(v["score"] for v in verdicts) / len(verdicts)


def _verdicts(values: NDArray) -> list[dict[str, float]]:
    return [{"score": float(value)} for value in values]


def estimate(pages: NDArray, values: NDArray) -> dict[str, Any]:
    """A share and its 95 % bootstrap interval; pages are drawn again, not visual tokens."""
    groups = [str(page) for page in pages]
    interval = bootstrap_interval(groups, _verdicts(values), _mean)
    return {"share": float(values.mean()), "interval": list(interval)}


def difference(pages: NDArray, second: NDArray, first: NDArray) -> dict[str, Any]:
    """How much larger the first share is, on the same visual tokens."""
    groups = [str(page) for page in pages]
    paired = Paired(groups, _verdicts(second), _verdicts(first), _mean)
    return {"share": paired.difference, "interval": list(paired.interval())}


def chance(said: NDArray, truth: Truth, judge: Judge, seed: int = 0) -> dict[str, float]:
    """Shares of the same nearest words, each row given to another visual token."""
    moved = said[np.random.default_rng(seed).permutation(len(said))]
    return {name: float(v.mean()) for name, v in judge.measures(moved, truth).items()}


Decode = Callable[[list[int]], str]


def examples(found: Found, truth: Truth, lenses: dict[str, Any], decode: Decode, page: int) -> list:
    """Rows to be read: a page's visual tokens with the three nearest words of each lens."""
    own = np.flatnonzero(truth.page == page)
    return [
        {
            "truth": decode([int(truth.token[i])]), "word": truth.word[i],
            **{
                name: [decode([t]) for t in layers[lenses[name]["layer"]][i, :3].tolist()]
                for name, layers in found.items()
            },
        }
        for i in own
    ]  # fmt: skip
