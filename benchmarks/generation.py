"""Greedy generation on a CPU: transformers' layers beside the faster step, in alternating rounds.

    python -m benchmarks.generation [--model smol] [--prompt 300] [--new 24] [--rounds 5]

A round makes one answer with each way, after a prompt of random embeddings. Medians are
shown, and, as the machine may be shared, the CPU time and the ratio of each round.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median
from typing import Any

import torch

from alignvlm.compose.assemble import load_pretrained
from alignvlm.weights.resolve import resolve

from .measure import cores, hardware

Row = dict[str, float]


def timed(model: Any, prompt: int, new: int) -> tuple[Row, list[int]]:
    """Seconds of an answer and of a later token, CPU seconds of one; and the tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (1, prompt), generator=generator)
    embeds = model.get_input_embeddings()(ids).detach()
    given = {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": torch.ones_like(ids)}
    keys = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    marks = [(time.perf_counter(), time.process_time())]

    class Clock:
        def put(self, _: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        def end(self) -> None:
            """Nothing is kept back."""

    with torch.inference_mode():
        said = model.generate(**given, **keys, max_new_tokens=new, streamer=Clock())
    (start, _), (last, cpu) = marks[0], marks[-1]
    first, cpu_first = marks[-new]  # a streamer is told the prompt as well
    row = {"answer": last - start, "token": (last - first) / (new - 1)}
    return row | {"token_cpu": (cpu - cpu_first) / (new - 1)}, said[0, prompt:].tolist()


def main() -> None:
    """Print one line a way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smol")
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--new", type=int, default=24, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    plain = load_pretrained(resolve(asked.model), torch.float32)[0].eval()
    hastened = copy.deepcopy(plain)
    start = time.perf_counter()
    hastened.hasten()
    made = time.perf_counter() - start
    ways = {"transformers": plain, "step": hastened}
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    said = {}
    for number in range(asked.rounds + 1):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            row, said[name] = timed(ways[name], asked.prompt, asked.new)
            if number:  # the first round warms up
                rows[name].append(row)
    print(f"{hardware('cpu')}, {cores()} cores, {torch.get_num_threads()} threads")
    for name, own in rows.items():
        token, cpu, answer = (median(r[k] for r in own) for k in ("token", "token_cpu", "answer"))
        print(f"{name:13} {1 / token:5.1f} tokens/s, {cpu * 1e3:5.1f} ms CPU a token, "
              f"{answer:5.2f} s an answer")  # fmt: skip
    for key in ("token", "token_cpu", "answer"):
        ratios = [a[key] / b[key] for a, b in zip(*rows.values(), strict=True)]
        print(
            f"{key}: transformers / step {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        )
    print(f"laid out in {made:.1f} s; same tokens: {len({tuple(v) for v in said.values()}) == 1}")


if __name__ == "__main__":
    main()
