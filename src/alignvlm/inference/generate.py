"""From prompts to answers: greedy generation, and a guard that ends repetition loops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .prompt import Prompt

LOOP_PERIOD, LOOP_REPEATS, LOOP_TOKENS = 24, 4, 12
"""A loop: at most so many tokens a round, at least so many rounds, at least so many tokens in all.

The last keeps numbers alive: "1,000,000,000" repeats ",000" three times in 12 digit tokens.
"""


class Generated(NamedTuple):
    """One answer.

    Attributes:
        text: without special tokens.
        new_tokens: tokens the language model spent on it, the end token included.
        log_probability: mean over these tokens, nats.
        begun: when its first token was there, by ``time.perf_counter``.
    """

    text: str
    new_tokens: int
    log_probability: float = 0.0
    begun: float = 0.0


def loop_start(tokens: Sequence[int]) -> int | None:
    """Where the loop that ``tokens`` end in has gone round once; ``None`` if they end in none.

    What stands before this index is the answer without its repetitions.
    """
    size = len(tokens)
    for period in range(1, min(LOOP_PERIOD, size // LOOP_REPEATS) + 1):
        rounds = max(LOOP_REPEATS, -(-LOOP_TOKENS // period))
        if rounds * period > size:
            continue
        tail = tokens[size - rounds * period :]
        if tail[period:] == tail[:-period]:
            start = size - rounds * period
            while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
                start -= 1
            return start + period
    return None


class LoopGuard(StoppingCriteria):
    """End a sequence that repeats itself.

    It changes no token before the loop, unlike a repetition penalty or a ban on repeated n-grams,
    which also act against copying from the page and against the zeros of 2,000,000.

    Args:
        prompt_length: tokens of the prompt in ``input_ids``; loops in it do not count.
    """

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        rows = input_ids[:, self.prompt_length :].tolist()
        ended = [loop_start(row) is not None for row in rows]
        return torch.tensor(ended, device=input_ids.device)


def generation_settings(model: Any, guard: bool) -> dict[str, Any]:
    """What decides which tokens are chosen, as the result file records it."""
    own = model.generation_config.to_diff_dict()
    for name in ("transformers_version", "_from_model_config", *_SAMPLING):
        own.pop(name, None)
    rule = {"period": LOOP_PERIOD, "repeats": LOOP_REPEATS, "tokens": LOOP_TOKENS}
    return {**own, "do_sample": False, "num_beams": 1, "repetition_guard": rule if guard else None}


_SAMPLING = ("temperature", "top_p", "top_k", "do_sample", "num_beams", "max_length")


class LastScores(LogitsProcessor):
    """Keeps the scores that the next token is chosen from, before what stands behind it here."""

    last: Tensor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.last = scores
        return scores


class _Chosen(StoppingCriteria):
    """Notes when the first token comes out, and the log-probability of each; ends nothing."""

    def __init__(self, scores: LastScores) -> None:
        self.scores, self.begun = scores, 0.0
        self.log_p: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        log_p = self.scores.last.log_softmax(-1).gather(-1, input_ids[:, -1:])[:, 0]
        self.log_p.append(log_p.float().cpu())  # waits for a GPU, so that the time is right
        self.begun = self.begun or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    max_new_tokens: Sequence[int],
    *,
    guard: bool = False,
    streamer: Any = None,
    stopping: Sequence[StoppingCriteria] = (),
    processors: Sequence[LogitsProcessor] = (),
) -> list[Generated]:
    """The greedy answer to each prompt; empty where nothing was read on any of its pages.

    Args:
        model: anything with ``generate`` and ``generation_config``.
        max_new_tokens: of each prompt.
        guard: see :class:`LoopGuard`; of a loop only the first round is kept.
        streamer: given one prompt's tokens as they come, as transformers has it.
        stopping: further reasons to end.
        processors: what tokens may be chosen, such as
            :class:`alignvlm.inference.span_decoding.ExtractiveDecoding`; log-probabilities are
            those before them.
    """
    answers = [Generated("", 0, begun=time.perf_counter())] * len(prompt.unread)
    rows = [row for row, unread in enumerate(prompt.unread) if not unread]
    if not rows:
        return answers
    inputs = {key: value[rows] for key, value in prompt.inputs.items()}
    length = inputs["input_ids"].shape[1]
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    pad = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
    limits = [max_new_tokens[row] for row in rows]
    config.update(max_new_tokens=max(limits), pad_token_id=pad, max_length=None)
    # what only sampling uses is unset, or transformers warns about it
    config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None)
    chosen = _Chosen(LastScores())
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([chosen.scores, *processors]),
            stopping_criteria=StoppingCriteriaList(
                [chosen, *([LoopGuard(length)] if guard else []), *stopping]
            ),
            streamer=streamer,
        )
    ends = config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    log_p = torch.stack(chosen.log_p, dim=1)
    for row, limit, new, sure in zip(rows, limits, output[:, length:].tolist(), log_p, strict=True):
        text, count = _read(new[:limit], ends, tokenizer, guard)
        answers[row] = Generated(text, count, sure[:count].mean().item(), chosen.begun)
    return answers


def _read(tokens: list[int], ends: set[int | None], tokenizer: Any, guard: bool) -> tuple[str, int]:
    """Text and length of one row, without the padding behind its end."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    tokens = tokens if stop is None else tokens[: stop + 1]
    kept = tokens
    if guard:
        for end in range(1, len(tokens) + 1):  # padding of a finished row may follow the loop
            if (start := loop_start(tokens[:end])) is not None:
                tokens, kept = tokens[:end], tokens[:start]
                break
    return tokenizer.decode(kept, skip_special_tokens=True).strip(), len(tokens)
