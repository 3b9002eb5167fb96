"""docs/lenses.md from what is stored; the same results give the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..connectors.report import table

ROWS = 20
"""Visual tokens that are shown."""
SHOWN = ("smol", "mlp-fitted")
"""Models whose visual tokens are shown word by word."""
HEAD = """# Which words visual tokens stand for

<!-- Written by `python -m studies.lenses report` from benchmarks/results/lenses -->

P_vocab says of each visual token which words it stands for. Others look into models without one
through lenses; here both are asked the same question, on pages whose text is known: **is the token
that stands there among the one or five nearest words?** Case and the space before a word do not
count, and cells over which no token starts are left out.

- *P_vocab*: its most probable tokens; ALIGN alone has it.
- *Embedding lens*: the rows of the language model's table nearest to the connector's output, by
  cosine.
- *Logit lens*: the language model's head on the hidden state at the visual token, behind a layer.
- *Contextual lens*, LatentLens' comparison: the text tokens of other pages whose hidden states
  behind the same layer are nearest, each token counted once.

The layer of a lens is the best of every third one on half of the pages; all shares are of the other
half. Intervals are 95 % bootstrap intervals over pages. *Moved*: the share that the same
nearest words get when each row is given to another visual token, which is what guessing frequent
tokens earns. *Next*: the nearest word is the token after this one, which a language model is
trained to say.

    python -m studies.lenses smol --receipts SROIE --count 24 --text 2500
    python -m studies.lenses train align-fitted mlp-fitted --size 1024
    python -m studies.lenses study --count 192 --outputs
    python -m studies.lenses report

"""
NAMES = {
    "smol": "`smol` on crops of SROIE's validation receipts. Its P_vocab is what its reader read, "
    "in closed form, so the first row is reading accuracy; the lenses say what of it the language "
    "model still shows.",
    "align-fitted": "ALIGN of the connector study, in closed form from the truth of its training "
    "pages, before the untouched language model.",
    "mlp-fitted": "An MLP regressed to the text embeddings of the same truth, before the untouched "
    "language model. It has no P_vocab.",
}


def write(results: Path, page: Path) -> Path:
    """Write the page; models without stored results are left out."""
    stored = [json.loads(file.read_text("utf-8")) for file in sorted(results.glob("*.json"))]
    stored.sort(key=lambda own: [*NAMES, own["model"]].index(own["model"]))
    parts = [HEAD, *map(section, stored)]
    parts += [shown(own) for own in stored if own["model"] in SHOWN]
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def section(own: dict[str, Any]) -> str:
    """One model: its table, and shares by layer."""
    lenses = own["lenses"]
    head = ("", "layer", "top 1", "top 5", "less than the first row", "moved, top 1", "next")
    body = [
        [
            name, str(lens["layer"]) if "by layer" in lens else "–",
            _text(lens["top 1"]), _text(lens["top 5"]), _text(lens.get("less than the first")),
            f"{lens['chance']['top 1']:.3f}", f"{lens['next']['share']:.3f}",
        ]
        for name, lens in lenses.items()
    ]  # fmt: skip
    text = ""
    if "text" in own:
        text = f" The contextual lens has {own['text']:,} text tokens of training receipts."
    text = (
        f"## {own['model']}\n\n{NAMES.get(own['model'], own['model'])}\n\n"
        f"{own['visual tokens']:,} visual tokens over text, {own['pages']} {own['data']}.{text}\n\n"
        f"{table(head, body)}"
    )
    layers = {name: lens["by layer"] for name, lens in lenses.items() if "by layer" in lens}
    if not layers:
        return text
    numbers = next(iter(layers.values()))
    by_layer = [[name, *(f"{share:.2f}" for share in v.values())] for name, v in layers.items()]
    return f"{text}\nTop 1 by layer:\n\n{table(('', *numbers), by_layer)}"


def _text(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    low, high = estimate["interval"]
    return f"{estimate['share']:.3f} [{low:.3f}, {high:.3f}]"


def shown(own: dict[str, Any]) -> str:
    """Visual tokens of a page with their three nearest words."""
    names = list(own["lenses"])
    body = [
        [_code(row["truth"]), *(" ".join(map(_code, row[name])) for name in names)]
        for row in own["examples"][:ROWS]
    ]
    return (
        f"## {own['model']}, {len(body)} visual tokens in reading order\n\n"
        f"Of the page with the most tokens; three nearest words a lens.\n\n"
        f"{table(('there', *names), body)}"
    )


def _code(text: str) -> str:
    return "`" + text.replace("\n", "⏎").replace("|", "¦").replace("`", "'").replace(" ", "␣") + "`"
