"""How well unseen pages are read: token-reading accuracy, and the loss of their answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..connectors import AlignConnector
from ..errors import ConfigError
from ..generation import AlignVLMForConditionalGeneration
from ..processor import AlignVLMProcessor
from . import chat
from .sources import Source


class ReadingAccuracy(NamedTuple):
    """Shares of cells read right, and the loss on P_vocab.

    Attributes:
        text: of cells in which a token starts. Tokens a pruned vocabulary lacks count as wrong.
        blank: of cells in which none starts.
        loss: mean negative log-likelihood of text cells, nats; tokens outside a pruned vocabulary
            are left out.
        text_cells, blank_cells: how many there were.
    """

    text: float
    blank: float
    loss: float
    text_cells: int
    blank_cells: int

    def __str__(self) -> str:
        return (
            f"token-reading accuracy {self.text:.3f} on {self.text_cells} text cells, "
            f"{self.blank:.3f} on {self.blank_cells} blank cells; loss {self.loss:.2f} nats"
        )


@torch.no_grad()
def reading_accuracy(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Source,
    pages: int,
) -> ReadingAccuracy:
    """Read the first ``pages`` records of a source that carries words.

    Raises:
        ConfigError: the connector is not ALIGN, or no page has words.
    """
    align = model.model.connector
    if not isinstance(align, AlignConnector):
        raise ConfigError("token-reading accuracy needs the 'align' connector")
    was_training = model.training
    model.eval()
    right = {"text": 0, "blank": 0}
    cells = {"text": 0, "blank": 0}
    nll: list[Tensor] = []
    for index in range(min(pages, len(source))):
        record = source[index]
        if record.words is None:
            continue
        batch = chat.encode_images(record, processor)
        targets = chat.page_vocab_targets(
            record, batch["image_grids"], model.config, processor.tokenizer
        ).flatten()
        features = model.model.encode_tiles(batch["pixel_values"].to(model.device)).flatten(0, 2)
        best = align.top_tokens(features, 1)[1][:, 0].cpu()
        blank = targets == model.config.blank_token_id
        for kind, mask in (("text", (targets >= 0) & ~blank), ("blank", blank)):
            cells[kind] += int(mask.sum())
            right[kind] += int((best[mask] == targets[mask]).sum())
        kept = (targets >= 0) & ~blank & align.keeps(targets.to(features.device)).cpu()
        chosen = targets[kept].to(features.device)
        result = align.mixture(align.hidden(features[kept]), None, chosen)
        assert result.target_logits is not None
        nll.append((result.logsumexp - result.target_logits).cpu())
    model.train(was_training)
    if not cells["text"]:
        raise ConfigError("no page of the source has words to read")
    return ReadingAccuracy(
        right["text"] / cells["text"],
        right["blank"] / max(cells["blank"], 1),
        torch.cat(nll).mean().item(),
        cells["text"],
        cells["blank"],
    )


@torch.no_grad()
def answer_loss(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Source,
    records: int,
) -> float:
    """Mean language-model loss a supervised token, nats, over the first ``records`` records.

    Raises:
        DataError: a record has no answer.
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for index in range(min(records, len(source))):
        sample = chat.encode(source[index], processor)
        # text has no batch axis yet; tiles and grids are concatenated, not stacked
        text = ("input_ids", "attention_mask", "labels")
        batch = {k: (v[None] if k in text else v).to(model.device) for k, v in sample.items()}
        supervised = int((batch["labels"][:, 1:] >= 0).sum())
        total += model(**batch, skip_logits=True).loss.item() * supervised
        tokens += supervised
    model.train(was_training)
    return total / max(tokens, 1)
