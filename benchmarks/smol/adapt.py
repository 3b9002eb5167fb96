"""The language model learns to answer from ideal readings: LoRA, about 16 s a step on one core.

A page becomes the tokens that P_vocab should say, some of them spoilt, and a newline a row. All
questions about a page share its tokens: each sees the page and itself, at the positions it would
have alone.
"""

from __future__ import annotations

import random
import time
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignvlm.data.benchmarks import (
    ANSWER_SEPARATOR,
    Benchmark,
    DeepFormSource,
    SROIESource,
    TabFactSource,
    WTQSource,
)
from alignvlm.data.ground import as_words, token_starts
from alignvlm.data.render import RenderSpec, render_page
from alignvlm.errors import DataError
from alignvlm.eval.tasks.local import LOCAL_TASKS
from alignvlm.hub import resolve
from alignvlm.processor import chat_template_for, reserved_image_token
from alignvlm.shipped import LORA

from .common import CELL_HEIGHT, TEXT, arguments, kept_tokens, load, load_tokenizer, save, shipped

RATE, PAGES_A_STEP, RANK, ALPHA = 5e-4, 4, 16, 32
LONGEST_PAGE, EXCERPT, QUESTIONS, REACH = 560, 400, 6, 5
SHARES = {
    "form": 0.15, "receipt": 0.1, "table": 0.07, "text": 0.03,
    "sroie": 0.33, "wtq": 0.18, "tabfact": 0.04, "deepform": 0.1,
}  # fmt: skip
"""Of the pages: layouts of rendered ones, benchmarks' train splits."""
SEED = 8_000_000
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
        self.sources: dict[str, Benchmark] = {
            "sroie": SROIESource(data / "sroie", "train"),
            "wtq": WTQSource(data / "wtq", "train"),
            "tabfact": TabFactSource(data / "tabfact", "train"),
            "deepform": DeepFormSource(data / "deepform", "train", max_pages=2),
        }
        self.pieces: dict[int, list[list[int]]] = {}

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

    def draw(self, kind: str, rng: random.Random) -> tuple[list[int], Turns]:
        """A page and questions about it, rendered or of a benchmark's train split."""
        if kind not in self.sources:
            return self.rendered(rng, kind)
        while True:
            try:
                page, turns = self.of_benchmark(kind, rng)
            except DataError:  # a table too wide for its page
                continue
            if turns and 10 < len(page) < LONGEST_PAGE:
                return page, turns

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

    def of_benchmark(self, name: str, rng: random.Random) -> tuple[list[int], Turns]:
        """A record and those about the same document that stand near it, in the task's words."""
        source, task = self.sources[name], LOCAL_TASKS[name]
        index = rng.randrange(len(source))
        key = source.row(index).key
        near = [index, *(i for i in range(index - REACH, index + REACH + 1) if i != index)]
        rows = [source.row(i) for i in near if 0 <= i < len(source)]
        asked = [
            (task.prompt.format(question=row.question), ANSWER_SEPARATOR.join(row.answers))
            for row in rows
            if row.key == key
        ]
        record = source[index]
        assert record.words is not None
        if name == "deepform":
            return self.excerpt(rng.choice(record.words), asked, rng)
        return self.read(as_words(record.words[0])), asked[:QUESTIONS]

    def excerpt(self, words: Any, asked: Turns, rng: random.Random) -> tuple[list[int], Turns]:
        """Rows of a page too long to read whole, and the questions that they answer."""
        page = self.read(as_words(words))
        ends = [i for i, token in enumerate(page) if token == self.newline]
        first = rng.choice([0, *(e + 1 for e in ends[:-1])])
        last = max((e for e in ends if e < first + EXCERPT), default=first)
        part = page[first : last + 1]
        text = self.tokenizer.decode(part)
        return part, [(question, answer) for question, answer in asked if answer in text]

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
        """Wrong and lost tokens, words spelled in other pieces, and lost spaces, as the encoder
        reads."""
        share = rng.random() ** 2 * 0.05 if rng.random() < 0.7 else 0.0
        split, joined = rng.random() ** 2 * 0.15, rng.random() ** 2 * 0.2
        result = []
        for token in page:
            if token == self.newline:
                result.append(token)
                continue
            if rng.random() < share / 2:
                continue
            if rng.random() < share:
                result.append(rng.choice(page if rng.random() < 0.5 else self.replacements))
            elif rng.random() < split:
                result += rng.choice(self.in_pieces(token))
            elif rng.random() < joined and result and result[-1] != self.newline:
                result += self.without_space(token)
            else:
                result.append(token)
        return result

    def in_pieces(self, token: int) -> list[list[int]]:
        """All ways to spell a token by two others."""
        if token not in self.pieces:
            text = self.tokenizer.decode([token])
            first = 2 if text.startswith(" ") else 1
            ways = [
                [part for side in (text[:cut], text[cut:])
                 for part in self.tokenizer(side, add_special_tokens=False)["input_ids"]]
                for cut in range(first, len(text))
            ]  # fmt: skip
            self.pieces[token] = [way for way in ways if len(way) == 2] or [[token]]
        return self.pieces[token]

    def without_space(self, token: int) -> list[int]:
        text = self.tokenizer.decode([token])
        return self.tokenizer(text.removeprefix(" "), add_special_tokens=False)["input_ids"]

    def sample(self, rng: random.Random) -> tuple[str, Sample]:
        """What kind of page, and the page with its questions."""
        (kind,) = rng.choices(list(SHARES), list(SHARES.values()))
        page, turns = self.draw(kind, rng)
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
        return kind, Sample(torch.tensor(ids), torch.tensor(positions), seen, torch.tensor(labels))


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


def shipped_changes() -> dict[str, Tensor]:
    """The changes that ``models/smol`` has, as peft names them."""
    state = {}
    for key, value in shipped(LORA).items():
        name, side = key.rsplit(".", 1)
        scaled = value if side == "a" else value / (ALPHA / RANK)
        state[f"base_model.model.model.{name}.lora_{side.upper()}.weight"] = scaled
    return state


def main() -> None:
    asked = arguments(__doc__, steps=400, threads=1, on=1)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    pages = Pages(asked.data, tokenizer, kept_tokens(tokenizer))
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
    if stored is None and asked.on:
        set_peft_model_state_dict(model, shipped_changes())
    elif stored is not None:
        start = stored["step"]
        set_peft_model_state_dict(model, stored["lora"])
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
    clock = time.perf_counter()
    losses: dict[str, list[float]] = {}
    for step in range(start, asked.steps):
        for number in range(PAGES_A_STEP):
            kind, sample = pages.sample(random.Random(SEED + step * PAGES_A_STEP + number))
            loss = loss_of(model, sample)
            (loss / PAGES_A_STEP).backward()
            losses.setdefault(kind, []).append(loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            means = {kind: round(sum(v) / len(v), 2) for kind, v in sorted(losses.items())}
            print(f"{step + 1}: {means}, {time.perf_counter() - clock:.0f} s", flush=True)
            losses = {}
        if (step + 1) % 25 == 0 or step + 1 == asked.steps:
            save({"lora": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(),
                  "schedule": schedule.state_dict(), "step": step + 1}, "lora.pt")  # fmt: skip


if __name__ == "__main__":
    main()
