"""The language model all cells start from: small, trained here on the text of the same pages."""

from __future__ import annotations

import json
import shutil
import string
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignvlm.data.records import transcript
from alignvlm.data.sources import draw
from alignvlm.data.synthetic.corpus import builtin_passages

from . import data
from .settings import STARTING_POINT_TEST, Settings

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>")
RATE, WARMUP = 3e-3, 50
COPYING = 0.25
"""Share of the steps, the first ones, that only copy random tokens; then the page is given as
text and cell by cell in turn."""
READING = 0.1
"""Weight of the loss on all tokens beside the loss on answers."""


def prepare(folder: Path, settings: Settings, report: Any = print) -> Path:
    """Train the tokenizer and the language model, unless ``folder`` has them."""
    if settings.is_there(folder, "language"):
        return folder
    torch.manual_seed(0)
    start = time.process_time()
    tokenizer = build_tokenizer(settings.tokens)
    model = LlamaForCausalLM(text_config(tokenizer, settings))
    losses = _train(model, tokenizer, settings, report)
    accuracy = text_accuracy(model, tokenizer, STARTING_POINT_TEST)
    from_cells = text_accuracy(model, tokenizer, STARTING_POINT_TEST, cells=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    facts = {
        "made_with": settings.made_with("language"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": losses,
        "exact_from_text": accuracy,
        "exact_from_cells": from_cells,
        "cpu_s": round(time.process_time() - start, 1),
    }
    (partial / "study.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    partial.rename(folder)
    report(
        f"language model: {accuracy:.3f} of answers from text, {from_cells:.3f} from cells, "
        f"{facts['cpu_s']} CPU s"
    )
    return folder


def build_tokenizer(size: int) -> Any:
    """Byte-level BPE over the pages' own text, digits one by one.

    Bytes that never occur are left out: a connector finds tokens that the language model has not
    learnt, disturbs least with them, and says nothing else.
    """
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=list(string.printable[:94]),  # and what the pages have
        show_progress=False,
    )
    backend.train_from_iterator(_texts(800 if size > 200 else 50), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", bos_token=SPECIAL[1], eos_token=SPECIAL[2],
        pad_token=SPECIAL[0], unk_token=SPECIAL[0],
    )  # fmt: skip


def _texts(pages: int):
    yield "user\n"
    for i in range(pages):
        page, turns = data.dialogue(draw(7, i))
        yield page
        for question, answer in turns:
            yield f"user\n{question}"
            yield f"assistant\n{answer}"
    yield from builtin_passages()[: pages // 2]


def text_config(tokenizer: Any, settings: Settings) -> LlamaConfig:
    """Llama's architecture, tied embeddings, as the 1B and 3B models of the paper."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=max(2, settings.width // 32),
        num_key_value_heads=max(2, settings.width // 32),
        max_position_embeddings=1024,
        # transformers' 0.02 suits wide models; here attention would be uniform for long
        initializer_range=settings.width**-0.5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(
    tokenizer: Any, page: str, turns: list[tuple[str, str]], *, cells: bool = False
) -> tuple[list[int], list[bool]]:
    """A page's text and its questions as one conversation; which tokens are answers.

    Args:
        cells: one token a character of ``page``, as visual tokens will come.
    """
    ids: list[int] = []
    answers: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            ids += tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
            parts = list(page) if cells else [page]
            for own in tokenizer(parts, add_special_tokens=False)["input_ids"]:
                ids += own
            answers += [False] * len(ids)
        start = "\n" if number == 0 else "<|im_start|>user\n"
        spoken = (
            (f"{start}{question}<|im_end|>\n<|im_start|>assistant\n", False),
            (f"{answer}<|im_end|>", True),
            ("\n", False),
        )
        for text, said in spoken:
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += own
            answers += [said] * len(own)
    return ids, answers


def _batch(
    tokenizer: Any, dialogues: list[tuple[str, list[tuple[str, str]]]], *, cells: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    rows = [encode(tokenizer, *dialogue, cells=cells) for dialogue in dialogues]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    spoken = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (own, answers) in enumerate(rows):  # padded on the right: positions start at 0
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
        spoken[row, : len(own)] = torch.tensor(answers)
    return ids, mask, spoken


def _train(model: Any, tokenizer: Any, settings: Settings, report: Any) -> list[list[float]]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    steps, size = settings.language_steps, settings.language_batch
    losses: list[list[float]] = []
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP, 1.1 - step / steps)
        seeds = [draw(11, step * size + i) for i in range(size)]
        copying = step < COPYING * steps
        cells = not copying and step % 2 == 0
        if copying:
            dialogues = [data.random_reading(seed, tokenizer) for seed in seeds]
        else:
            dialogues = [data.dialogue(seed, cells=cells) for seed in seeds]
        ids, mask, spoken = _batch(tokenizer, dialogues, cells=cells)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nll, real, said = nll.view_as(ids[:, 1:]), mask[:, 1:].bool(), spoken[:, 1:]
        answer = nll[said].mean()
        loss = answer + READING * nll[real].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(answer.item())
        if len(recent) == 100 or step == steps - 1:
            losses.append([step + 1, round(sum(recent) / len(recent), 4)])
            report(f"language model: step {step + 1}, answers {losses[-1][1]:.3f} nats a token")
            recent.clear()
    return losses


@torch.no_grad()
def text_accuracy(model: Any, tokenizer: Any, count: int, *, cells: bool = False) -> float:
    """The ceiling of every cell: share of held-out forms' answers that a greedy reply gets right
    when the page is given as text, or spelled cell by cell."""
    model.eval()
    source = data.held_out_source(count)
    right = 0
    for i in range(count):
        record, page = source[i], source.page(i)
        text = data.spelled(page) if cells else transcript(page.words)
        turn = [(record.question, record.answer or "")]
        ids, mask, spoken = _batch(tokenizer, [(text, turn)], cells=cells)
        best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)[:, :-1]
        said = spoken[:, 1:]
        right += bool((best[said] == ids[:, 1:][said]).all())
    return right / count
