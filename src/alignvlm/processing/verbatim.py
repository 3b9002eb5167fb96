"""Text of a user that spells the tokenizer's own marks (``<|im_end|>``, the image's placeholder)
stays text: it neither ends a turn nor asks for an image.

:func:`wrapped` goes into a chat template; what comes out goes through :func:`hidden`, in which no
mark of the user's can be found; :func:`tokenized` spells those with ordinary tokens. (transformers
5.24 has ``sanitize_control_tokens``; the oldest supported version has not.)
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

BEGIN, END, HIDDEN = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters of Unicode, which no text has."""
_OURS = str.maketrans("", "", BEGIN + END + HIDDEN)


def _marks(tokenizer: Any) -> re.Pattern[str]:
    """The tokenizer's special tokens; a mark of one letter could not be told from text."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def wrapped(messages: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Messages for the chat template; where a text spells a mark, also over several parts, its
    beginning and end are noted in it."""
    marks, result = _marks(tokenizer), []
    for message in messages:
        parts = [
            {**part, "text": part["text"].translate(_OURS)} if part["type"] == "text" else part
            for part in message["content"]
        ]
        if marks.search("".join(part.get("text", "") for part in parts)):
            parts = [
                {**part, "text": BEGIN + part["text"] + END} if part["type"] == "text" else part
                for part in parts
            ]
        result.append({**message, "content": parts})
    return result


def hidden(text: str, tokenizer: Any) -> str:
    """A chat as the template wrote it, the user's marks broken up."""
    if BEGIN not in text:
        return text
    marks = _marks(tokenizer)

    def broken(found: re.Match[str]) -> str:
        return marks.sub(lambda mark: mark[0][0] + HIDDEN + mark[0][1:], found[1])

    text = text.replace(END + BEGIN, "")
    return re.sub(f"{BEGIN}(.*?){END}", broken, text, flags=re.DOTALL)


def tokenized(tokenizer: Any, texts: list[str], **keys: Any) -> dict[str, Tensor]:
    """Texts of :func:`hidden` as ``input_ids`` and ``attention_mask``, padded on the left."""
    if not any(HIDDEN in text for text in texts):
        return tokenizer(texts, padding=True, return_tensors="pt", **keys)
    shown = [text.replace(HIDDEN, "") for text in texts]
    batch = tokenizer(shown, return_offsets_mapping=True, **keys)
    rows = []
    for text, plain, ids, places in zip(
        texts, shown, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        ends = accumulate(map(len, text.split(HIDDEN)[:-1]))
        rows.append(_spelled(tokenizer, plain, ids, places, {end - 1 for end in ends}))
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    fill = tokenizer.pad_token_id or 0
    return {
        "input_ids": torch.tensor([[fill] * n + row for n, row in zip(pads, rows)]),
        "attention_mask": torch.tensor([[0] * n + [1] * len(row) for n, row in zip(pads, rows)]),
    }


def _spelled(
    tokenizer: Any, text: str, ids: list[int], places: list[tuple[int, int]], starts: set[int]
) -> list[int]:
    """Ids with those of marks that begin at ``starts`` spelled out."""
    row: list[int] = []
    for token, (start, end) in zip(ids, places, strict=True):
        if token in tokenizer.added_tokens_decoder and not starts.isdisjoint(range(start, end)):
            row += tokenizer.encode(
                text[start:end], add_special_tokens=False, split_special_tokens=True
            )
        else:
            row.append(token)
    return row
