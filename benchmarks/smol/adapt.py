"""The language model learns to answer from ideal readings: LoRA, about 16 s a step on one core.

A page becomes the tokens that P_vocab should say, some of them spoilt, and a newline a row. All
questions about a page share its tokens: each sees the page and itself, at the positions it would
have alone.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignvlm.data.benchmark_fields import SROIESource
from alignvlm.data.benchmarks import TabFactSource, WTQSource
from alignvlm.data.ground import as_words, token_starts
from alignvlm.data.render import RenderSpec, render_page
from alignvlm.hub import resolve
from alignvlm.processor import chat_template_for, reserved_image_token

from .common import CELL_HEIGHT, OUT, TEXT, arguments, kept_tokens, load, load_tokenizer, save

RATE, PAGES_A_STEP, RANK, ALPHA = 6e-4, 4, 16, 32
LONGEST_PAGE, QUESTIONS = 560, 6
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Turns = list[tuple[str, str]]


class Sample(NamedTuple):
    ids: Tensor
    positions: Tensor
    seen: Tensor
    labels: Tensor


class Pages:
    """Draws pages of token ids with questions."""

    def __init__(self, data: Any, tokenizer: Any, kept: Tensor) -> None:
        self.tokenizer, self.kept = tokenizer, set(kept.tolist())
        self.replacements = sorted(self.kept)
        self.newline = tokenizer.convert_tokens_to_ids("Ċ")
        self.image = reserved_image_token(tokenizer)
        self.template = chat_template_for(tokenizer, self.image)
        self.receipts = SROIESource(data / "sroie", "train")
        self.tables = WTQSource(data / "wtq", "train")
        self.statements = TabFactSource(data / "tabfact", "train")

    def read(self, words: Any) -> list[int]:
        rows: dict[int, list[tuple[float, int]]] = {}
        for token, x, y in token_starts(words, self.tokenizer):
            if token in self.kept:
                rows.setdefault(int(y // CELL_HEIGHT), []).append((x, token))
        return [
            token
            for row in sorted(rows)
            for token in [*(t for _, t in sorted(rows[row], key=lambda e: e[0])), self.newline]
        ]

    def draw(self, rng: random.Random) -> tuple[list[int], Turns]:
        kind = rng.random()
        for layout, until in (("form", 0.38), ("receipt", 0.5), ("table", 0.6), ("text", 0.63)):
            if kind < until:
                return self.rendered(rng, layout)
        for _ in range(50):
            if kind < 0.82:
                page, turns = self.neighbours(self.receipts, rng, 3)
            elif kind < 0.95:
                page, turns = self.neighbours(self.tables, rng, 0)
            else:
                page, turns = self.neighbours(self.statements, rng, 5)
            if 10 < len(page) < LONGEST_PAGE:
                return page, turns
        return self.rendered(rng, "form")

    def rendered(self, rng: random.Random, layout: Any) -> tuple[list[int], Turns]:
        size = rng.randint(18, 32)
        spec = RenderSpec(
            layout=layout, width=rng.choice((400, 500, 600, 700)),
            height=rng.choice((200, 300, 400)), font_px=(size, size),
            margin=rng.randint(4, 20), random_text=0 if layout == "form" else 0.1,
        )  # fmt: skip
        facts: list[Any] = []
        while not facts:
            page = render_page(spec, rng.randrange(1 << 31))
            facts = list(page.facts)
        rng.shuffle(facts)
        return self.read(page.words), [(f.question, f.answer) for f in facts[:QUESTIONS]]

    def neighbours(self, source: Any, rng: random.Random, reach: int) -> tuple[list[int], Turns]:
        """A record, and those about the same page that stand near it."""
        index = rng.randrange(len(source))
        record = source[index]
        assert record.words is not None
        turns = [(record.question, record.answer)]
        document = record.id.split("/")[0]
        for other in range(max(0, index - reach), min(len(source), index + reach + 1)):
            near = source[other]
            if other != index and near.id.split("/")[0] == document:
                turns.append((near.question, near.answer))
        return self.read(as_words(record.words[0])), turns[:QUESTIONS]

    def turn(self, question: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        """Ids before the page, ids after it, and which of those are the answer's."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        done = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content},
             {"role": "assistant", "content": [{"type": "text", "text": answer}]}],
            chat_template=self.template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        ids = done["input_ids"]
        place = ids.index(self.tokenizer.convert_tokens_to_ids(self.image))
        return ids[:place], ids[place + 1 :], done["assistant_masks"][place + 1 :]

    def spoil(self, page: list[int], rng: random.Random) -> list[int]:
        share = rng.random() ** 2 * 0.05 if rng.random() < 0.7 else 0.0
        result = []
        for token in page:
            if token != self.newline and rng.random() < share / 2:
                continue
            wrong = rng.choice(page if rng.random() < 0.5 else self.replacements)
            result.append(wrong if rng.random() < share else token)
        return result

    def sample(self, rng: random.Random) -> Sample:
        page, turns = self.draw(rng)
        prefix = self.turn(*turns[0])[0] + self.spoil(page, rng)
        ids, positions = list(prefix), list(range(len(prefix)))
        owner, labels = [0] * len(prefix), [-100] * len(prefix)
        for number, (question, answer) in enumerate(turns, start=1):
            _, rest, answers = self.turn(question, answer)
            ids += rest
            positions += range(len(prefix), len(prefix) + len(rest))
            owner += [number] * len(rest)
            labels += [t if own else -100 for t, own in zip(rest, answers, strict=True)]
        who = torch.tensor(owner)
        seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        seen &= (who[None] == who[:, None]) | (who[None] == 0)
        return Sample(torch.tensor(ids), torch.tensor(positions), seen, torch.tensor(labels))


def loss_of(model: Any, sample: Sample) -> Tensor:
    language_model = model.base_model.model
    mask = torch.zeros(sample.seen.shape).masked_fill(~sample.seen, torch.finfo(torch.float32).min)
    hidden = language_model.model(
        input_ids=sample.ids[None], position_ids=sample.positions[None],
        attention_mask=mask[None, None],
    ).last_hidden_state[0]  # fmt: skip
    at = (sample.labels >= 0).nonzero()[:, 0]
    logits = language_model.lm_head(hidden[at - 1])
    return torch.nn.functional.cross_entropy(logits, sample.labels[at])


def main() -> None:
    asked = arguments(__doc__, steps=170, threads=1)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    lines = (OUT / "lines.txt").read_text("utf-8").split("\n")
    pages = Pages(asked.data, tokenizer, kept_tokens(lines, tokenizer))
    model = AutoModelForCausalLM.from_pretrained(resolve(TEXT), dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR, lora_dropout=0.0)
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 30) * max(0.05, 1 - s / asked.steps)
    )
    stored, start = load("lora.pt"), 0
    if stored is not None:
        start = stored["step"]
        set_peft_model_state_dict(model, stored["lora"])
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
    losses = []
    for step in range(start, asked.steps):
        for number in range(PAGES_A_STEP):
            loss = loss_of(model, pages.sample(random.Random(step * PAGES_A_STEP + number)))
            (loss / PAGES_A_STEP).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"{step + 1}: loss {sum(losses) / len(losses):.3f}", flush=True)
            losses = []
        if (step + 1) % 25 == 0 or step + 1 == asked.steps:
            save({"lora": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(),
                  "schedule": schedule.state_dict(), "step": step + 1}, "lora.pt")  # fmt: skip


if __name__ == "__main__":
    main()
