"""Looking into models: visual tokens, their hidden states, and what each lens says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from alignvlm.connectors import AlignConnector
from alignvlm.inference.prompt import build_prompts, chat, encode_pages
from alignvlm.tiling import Grid, page_order

from ..connectors.batches import AFTER, BEFORE, READ, Batcher, Question
from ..connectors.drawn import Drawn
from ..connectors.language_model import LanguageModel
from .lens import BEST, Corpus, all_lenses, layers_looked_at
from .score import Found, Truth
from .trained import Model
from .truth import joined, spans, truth_of_cells, truth_of_reading


class Layers:
    """A language model of transformers whose hidden states are looked at.

    Args:
        model: with an output head (``ForCausalLM`` or this project's).
        inner: the decoder, whose ``layers`` and ``norm`` are Llama's.
    """

    def __init__(self, model: Any, inner: Any) -> None:
        self.model, self.inner = model, inner
        self.looked_at = layers_looked_at(len(inner.layers))

    def states(self, x: Tensor) -> dict[int, Tensor]:
        """Hidden states of one prompt ``[1, n, d]`` behind each layer looked at, ``[n, d]``."""
        kept: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda m, given, out: kept.append(out))
            for layer in self.inner.layers
        ]
        try:
            self.inner(inputs_embeds=x, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = [out[0] if isinstance(out, tuple) else out for out in kept]
        return {n: (x if n == 0 else outputs[n - 1])[0] for n in self.looked_at}

    def logits(self, states: Tensor, layer: int) -> Tensor:
        """The head on hidden states, the last norm before it as at the last layer."""
        return self.model.lm_head(self.inner.norm(states)).float()


class LeanLayers:
    """The same of the connector study's language model."""

    def __init__(self, language: LanguageModel) -> None:
        self.language = language
        self.looked_at = layers_looked_at(len(language.layers))

    def states(self, x: Tensor) -> dict[int, Tensor]:
        """Hidden states of one prompt ``[1, n, d]`` behind each layer looked at, ``[n, d]``."""
        x = x.to(self.language.table.dtype)
        self.language.cast_changes()
        turn = self.language.turn(torch.arange(x.shape[1], device=x.device)[None], x.dtype)
        found = {0: x[0]}
        for number, layer in enumerate(self.language.layers, 1):
            x, _ = layer(x, turn)
            if number in self.looked_at:
                found[number] = x[0]
        return found

    def logits(self, states: Tensor, layer: int) -> Tensor:
        """The head on hidden states, the last norm before it as at the last layer."""
        own = self.language
        return own.logits(F.rms_norm(states, (own.width,), own.norm, own.config["rms_norm_eps"]))


@torch.no_grad()
def corpus(layers: Any, table: Tensor, texts: Iterable[str], tokenizer: Any, most: int) -> Corpus:
    """Hidden states of text in place of a page, in the prompt that pages stand in.

    Args:
        most: text tokens; the last text is taken whole.
    """

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before, after = ids_of(BEFORE), ids_of(f"\n{READ}{AFTER}")
    ids: list[int] = []
    states: dict[int, list[Tensor]] = {n: [] for n in layers.looked_at}
    for text in texts:
        if len(ids) >= most:
            break
        own = ids_of(" " + text)
        row = torch.tensor([[*before, *own, *after]], device=table.device)
        here = slice(len(before), len(before) + len(own))
        for n, h in layers.states(F.embedding(row, table)).items():
            states[n].append(h[here])
        ids += own
    return Corpus(
        torch.tensor(ids, device=table.device), {n: torch.cat(own) for n, own in states.items()}
    )


@torch.no_grad()
def look_study(model: Model, numbers: Sequence[int], texts: Corpus | None) -> tuple[Found, Truth]:
    """Held-out pages of the connector study through one of its models.

    Args:
        texts: ``None``: only the connector's output is looked at, not hidden states.
    """
    reader, batcher = model.reader, model.batcher
    layers, tokenizer = LeanLayers(reader.language), HostTokens(batcher)
    parts, truths = [], []
    for number in numbers:
        batch = batcher.batch([Question(number, READ, "")], answers=False)
        batch = batch.to(str(reader.language.table.device))
        visual, _ = reader.visual(batch, batch.cells)
        truth, kept = truth_of_cells(batcher.pages, number, reader.blank, tokenizer)
        own = torch.from_numpy(kept)
        states: dict[int, Tensor] = {}
        if texts is not None:
            hidden = layers.states(reader.embeddings(batch, visual))
            states = {n: h[batch.visual][own] for n, h in hidden.items()}
        p_vocab = None
        if isinstance(reader.connector, AlignConnector):
            rows = batch.cells.flatten(0, 1)[batch.kept][own]
            p_vocab = reader.connector.top_tokens(rows, BEST)[1]
        table = reader.float_table
        parts.append(all_lenses(p_vocab, visual[own], states, table, layers.logits, texts))
        truths.append(truth)
    return _together(parts), joined(truths)


class HostTokens:
    """The study's tokenizer, called as transformers' are."""

    def __init__(self, batcher: Batcher) -> None:
        self.tokenizer = batcher.tokenizer

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        """Token ids and their places."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return {"input_ids": found.ids, "offset_mapping": found.offsets}

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@torch.no_grad()
def look_model(
    model: Any, processor: Any, pages: Sequence[Drawn], texts: Corpus
) -> tuple[Found, Truth]:
    """Pages through a model that reads (``smol``)."""
    layers = Layers(model, model.model.language_model)
    table = model.get_input_embeddings().weight
    parts, truths = [], []
    for number, page in enumerate(pages):
        for outputs, p_vocab, states, pieces in _read(model, processor, page, layers):
            text = spans(page.text.split("\n"), processor.tokenizer)
            truth, kept = truth_of_reading(pieces, text, number)
            own = torch.from_numpy(kept)
            states = {n: h[own] for n, h in states.items()}
            lens = all_lenses(p_vocab[own], outputs[own], states, table, layers.logits, texts)
            parts.append(lens)
            truths.append(truth)
    return _together(parts), joined(truths)


def _read(model: Any, processor: Any, page: Drawn, layers: Layers) -> Iterator[tuple]:
    """A page's visual tokens in reading order: outputs, P_vocab's best, states, texts.

    Nothing comes where nothing is read.
    """
    image = Image.fromarray(page.pixels).convert("RGB")
    encoded = encode_pages(model, processor, [image])
    if not len(encoded.pages[0]):
        return
    prompt = build_prompts(model, processor, [chat(READ, [image])], encoded=encoded)
    visual = prompt.inputs["input_ids"][0] == model.config.image_token_id
    states = {n: h[visual] for n, h in layers.states(prompt.inputs["inputs_embeds"]).items()}
    rows, cols, _ = encoded.image_grids[0].tolist()
    cells = page_order(Grid(rows, cols), *encoded.features.shape[1:3])
    index = cells[torch.cat(list(encoded.order[0]))]
    features = encoded.features.flatten(0, 2)[index]
    best = model.model.connector.top_tokens(features, BEST)[1]
    if len(best) != int(visual.sum()):
        raise ValueError(f"{page.name}: {len(best)} tokens were read, {int(visual.sum())} kept")
    pieces = [processor.tokenizer.decode([t]) for t in best[:, 0].tolist()]
    yield encoded.tokens[0][torch.cat(list(encoded.order[0]))], best, states, pieces


def _together(parts: Sequence[dict[str, dict[int, Tensor]]]) -> Found:
    return {
        name: {n: np.concatenate([part[name][n].cpu().numpy() for part in parts]) for n in layers}
        for name, layers in parts[0].items()
    }
