"""A connector between stored cells and the language model."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignvlm.connectors import AlignConnector, build_connector
from alignvlm.connectors.closed_form import BETA, inverse_covariance, key_norms
from alignvlm.connectors.configs import connector_config
from alignvlm.ops import vocab_stats

from .batches import Batch, Batcher
from .language_model import LanguageModel
from .settings import D_CELL, MOST_CELLS, Variant
from .store import Pages

POINTWISE = ("align", "mlp", "ovis")
"""Connectors that treat each cell alone: they get a batch's cells in one row, without padding."""
PROMPT = 16
"""Trained vectors before the true text, for the ceiling."""
RIDGE = 1.0
"""Of the regression from cells to keys; the cells' numbers have a variance of about 1."""


class Prompt(nn.Module):
    """The ceiling's "connector": some trained vectors; the page comes as its true text."""

    def __init__(self, table: Float[Tensor, "vocab d"]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(table.float().mean(0).repeat(PROMPT, 1))


class Reader(nn.Module):
    """Language model and connector, as one variant has them.

    Args:
        language: shared between cells where it is frozen.
    """

    def __init__(self, variant: Variant, language: LanguageModel, dense: bool) -> None:
        super().__init__()
        self.language = language
        self.kind = str(variant.connector["type"])
        table = language.table
        if self.kind == "text":
            self.connector: nn.Module = Prompt(table)
            return
        values = dict(variant.connector)
        if dense and self.kind in ("align", "ovis"):
            values["impl"] = "reference"
        config = connector_config(values)
        self.config = config
        self.connector = build_connector(
            config, D_CELL, language.width, len(table), (1, MOST_CELLS)
        )
        if isinstance(self.connector, AlignConnector) and config.init != "random":
            self.connector.init_from_lm_head(table.float().cpu())

    def tokens_of(self, cells: int) -> int:
        """Visual tokens of a page with that many cells."""
        return PROMPT if self.kind == "text" else self.config.num_tokens(1, cells)

    @property
    def layout(self) -> tuple[int, bool]:
        """Readers with the same one have the same prompts: tokens of a page, whether by cell."""
        return self.tokens_of(MOST_CELLS), self.kind in POINTWISE

    def batcher(self, pages: Pages, folder: Path) -> Batcher:
        """For this connector's number of tokens."""
        return Batcher(pages, folder, None if self.kind == "text" else self.tokens_of)

    def visual(
        self, batch: Batch, cells: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Visual tokens where the prompts have room for them, ``[v, d]``.

        Args:
            cells: ``batch.cells``, or noisy ones.
            targets: of real cells; then also their log-probability in P_vocab, ``[c]``.
        """
        table = self.language.table
        if isinstance(self.connector, AlignConnector):
            rows = cells.flatten(0, 1)[batch.kept]
            mixed = self.connector.mixture(self.connector.hidden(rows), self.float_table, targets)
            assert mixed.output is not None
            if mixed.target_logits is None:
                return mixed.output, None
            return mixed.output, mixed.target_logits - mixed.logsumexp
        if self.kind in POINTWISE:
            rows = cells.flatten(0, 1)[batch.kept]
            return self.connector(rows[None, None], table)[0], None
        tokens = self.connector(cells[:, None], table)
        return tokens.flatten(0, 1)[batch.taken], None

    @property
    def float_table(self) -> Tensor:
        """The language model's table in the connector's precision; made once."""
        table = self.language.table
        if table.dtype == torch.float32:
            return table
        if not hasattr(self.language, "_float_table"):
            self.language._float_table = table.float()  # type: ignore[assignment]
        return self.language._float_table  # type: ignore[return-value]

    def embeddings(self, batch: Batch, visual: Tensor | None) -> Float[Tensor, "b n d"]:
        """Input embeddings: text, and visual tokens in their places."""
        x = self.language.embed(batch.ids)
        if visual is None:
            return x
        flat = x.flatten(0, 1).index_copy(0, batch.visual, visual.to(x.dtype))
        return flat.view_as(x)

    def inputs(
        self, batch: Batch, cells: Tensor | None = None, targets: Tensor | None = None
    ) -> tuple[Tensor, int, Tensor | None]:
        """Embeddings of prompts, how many places stand before ``batch.ids``, and log P_vocab."""
        if isinstance(self.connector, Prompt):
            x = self.embeddings(batch, None)
            before = self.connector.vectors.to(x.dtype).expand(len(x), -1, -1)
            return torch.cat((before, x), 1), PROMPT, None
        visual, log_p = self.visual(batch, batch.cells if cells is None else cells, targets)
        return self.embeddings(batch, visual), 0, log_p

    def answer_logits(self, x: Tensor, shift: int, batch: Batch) -> Float[Tensor, "a vocab"]:
        """Logits of the answers' tokens alone."""
        return self.logits_of(self.language(x), shift, batch)

    def logits_of(self, hidden: Tensor, shift: int, batch: Batch) -> Float[Tensor, "a vocab"]:
        """The same of hidden states; places behind the batch's own are padding."""
        own = hidden[:, shift : shift + batch.ids.shape[1]]
        return self.language.logits(own.flatten(0, 1)[batch.answers])

    def cells_loss(self, batch: Batch, log_p: Tensor) -> Tensor:
        """Nats a cell of the tokens that start in them.

        Cells in which a token starts and the others are averaged apart, the latter counting a
        quarter, as the package's own loss has it.
        """
        blank = (batch.targets == self.blank).float()
        text = -(log_p * (1 - blank)).sum() / (1 - blank).sum().clamp_min(1)
        empty = -(log_p * blank).sum() / blank.sum().clamp_min(1)
        return text + 0.25 * empty

    blank: int = -1
    """The token that means "no token starts here"."""

    def generate(self, batch: Batch, most: int, stop: int, cells: Tensor | None = None) -> Tensor:
        """Greedy answers, token ids ``[b, most]``."""
        x, shift, _ = self.inputs(batch, cells)
        return self.language.generate(x, batch.lengths + shift, most, stop)


@torch.no_grad()
def fit(connector: AlignConnector, cells: Tensor, targets: Tensor) -> None:
    """ALIGN's closed-form start for an encoder that was not made for it.

    W1 = R M, gamma and beta as :meth:`AlignConnector.init_keys` sets them, where M is the ridge
    regression from cells to the centred rows of W2 that their targets ask for.

    Args:
        cells: float32 ``[n, d_vision]`` of training pages.
        targets: int64 ``[n]``, the token that starts in each.
    """
    head = connector.w2.weight
    stats = vocab_stats(head)
    inverse = inverse_covariance(stats)
    x, y = cells.double(), (head[targets] - stats.mean).double()
    gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    to_keys = torch.linalg.solve(gram, x.T @ y).T.to(inverse.dtype)
    connector.w1.weight.copy_(inverse @ to_keys)
    norms = key_norms(head, stats.mean, inverse)
    gamma = connector.config.gamma
    connector.outer_norm_bias.copy_(-BETA * gamma * norms.square() / head.shape[1] ** 0.5)


__all__ = ["AlignConnector", "Reader", "fit"]
