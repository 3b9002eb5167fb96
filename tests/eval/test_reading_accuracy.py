"""Token-reading accuracy on models rigged to be right or wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from alignvlm.connectors import AlignConnector
from alignvlm.data import encode
from alignvlm.data.records import make_record
from alignvlm.data.sources import RenderSource, Subset
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.documents.words import Word
from alignvlm.errors import ConfigError
from alignvlm.eval.reading_accuracy import reading_accuracy, size_names, text_heights
from alignvlm.ops import VocabMixture

SPEC = RenderSpec(layout="text", width=112, height=56, font_px=(14, 14), margin=2)


@pytest.fixture
def source() -> RenderSource:
    return RenderSource(SPEC, 4)


class Rigged:
    """P_vocab of a page is read from a list: ``say(targets)`` gives each cell's certain token."""

    def __init__(self, model: Any, processor: Any, source: Any, say: Any) -> None:
        self.pages = []
        for index in range(len(source)):
            batch = encode.encode_images(source[index], processor)
            truth = encode.page_vocab_targets(
                source[index], batch["image_grids"], model.config, processor.tokenizer
            )
            self.pages.append(say(truth.flatten()))
        self.model, self.now = model, iter(self.pages)

    def __enter__(self) -> None:
        align = self.model.model.connector
        self.saved = align.top_tokens, align.mixture

        def top_tokens(features: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            ids = next(self.now)
            assert len(ids) == features.shape[0]
            return torch.ones(len(ids), 1), ids[:, None]

        def mixture(hidden: torch.Tensor, table: Any, targets: torch.Tensor) -> VocabMixture:
            return VocabMixture(None, torch.full(targets.shape, 2.5), torch.zeros(targets.shape))

        align.top_tokens, align.mixture = top_tokens, mixture

    def __exit__(self, *error: Any) -> None:
        align = self.model.model.connector
        align.top_tokens, align.mixture = self.saved


@pytest.fixture
def model(make_model):
    return make_model("align")


@pytest.fixture
def processor(model, make_processor):
    return make_processor(model.config, max_tiles=8)


def test_a_model_that_is_right_everywhere(model, processor, source):
    with Rigged(model, processor, source, lambda truth: truth):
        result = reading_accuracy(model, processor, source, 4)
    assert (result.text, result.blank, result.loss) == (1.0, 1.0, 2.5)
    assert result.text_cells > 10 and result.blank_cells > 10
    assert "accuracy 1.000" in str(result)


def test_a_model_that_is_wrong_everywhere(model, processor, source):
    with Rigged(model, processor, source, lambda truth: truth + 1):
        result = reading_accuracy(model, processor, source, 4)
    assert (result.text, result.blank) == (0.0, 0.0)


def test_a_model_that_only_says_blank(model, processor, source):
    blank = model.config.blank_token_id
    with Rigged(model, processor, source, lambda truth: torch.full_like(truth, blank)):
        result = reading_accuracy(model, processor, source, 4)
    assert (result.text, result.blank) == (0.0, 1.0)


def test_half_right(model, processor, source):
    def say(truth: torch.Tensor) -> torch.Tensor:
        said = truth.clone()
        text = (truth != model.config.blank_token_id).nonzero()[:, 0]
        said[text[::2]] += 1
        return said

    with Rigged(model, processor, source, say):
        result = reading_accuracy(model, processor, source, 4)
    assert 0.35 < result.text <= 0.5
    assert result.blank == 1.0


@torch.no_grad()
def test_rigged_weights_read_one_token(make_model, make_processor, source):
    """Through the real connector: γ and β that make P_vocab certain of one token."""
    model = make_model("align")
    processor = make_processor(model.config, max_tiles=8)
    align = model.model.connector
    assert isinstance(align, AlignConnector)
    blank = model.config.blank_token_id
    align.outer_norm_weight.zero_()
    align.outer_norm_bias.zero_()
    align.outer_norm_bias[blank] = 50
    result = reading_accuracy(model, processor, source, 2)
    assert (result.text, result.blank) == (0.0, 1.0)
    assert result.loss == pytest.approx(50, abs=1e-3)
    align.outer_norm_bias.zero_()
    uniform = reading_accuracy(model, processor, source, 2)
    assert uniform.loss == pytest.approx(math.log(model.config.connector_vocab_size), abs=1e-4)


@torch.no_grad()
def test_what_a_pruned_vocabulary_lacks_counts_as_wrong(make_model, make_processor, source):
    model = make_model("align")
    processor = make_processor(model.config, max_tiles=8)
    blank = model.config.blank_token_id
    model.model.connector.prune(torch.tensor([blank, blank + 1]))
    result = reading_accuracy(model, processor, source, 2)
    full = reading_accuracy(make_model("align"), processor, source, 2)
    assert result.text_cells == full.text_cells
    assert result.text < 1.0


def test_training_mode_is_put_back(model, processor, source):
    model.train()
    reading_accuracy(model, processor, source, 1)
    assert model.training
    model.eval()


def test_only_the_asked_pages_are_read(model, processor, source):
    one, two = (reading_accuracy(model, processor, source, n) for n in (1, 2))
    first = reading_accuracy(model, processor, Subset(source, [0]), 9)
    assert first == one
    assert two.text_cells > one.text_cells


def test_what_cannot_be_read_is_refused(make_model, make_processor, source, images):
    model = make_model("mlp")
    with pytest.raises(ConfigError, match="needs the 'align' connector"):
        reading_accuracy(model, make_processor(model.config), source, 1)
    model = make_model("align")
    plain = [make_record("r", images[:1], [("?", "!")], source="t")]
    with pytest.raises(ConfigError, match="no page of the source has words"):
        reading_accuracy(model, make_processor(model.config), plain, 1)  # type: ignore[arg-type]


def test_cells_are_counted_page_by_page_and_by_height(model, processor, source):
    with Rigged(model, processor, source, lambda truth: truth):
        result = reading_accuracy(model, processor, source, 4)
    assert len(result.pages) == 4
    assert len({page.document for page in result.pages}) == 4
    assert sum(page.text[1] for page in result.pages) == result.text_cells
    assert sum(page.blank[1] for page in result.pages) == result.blank_cells
    sizes = result.by_size()
    assert sum(cells for _, cells in sizes.values()) == result.text_cells
    assert all(right == cells for right, cells in sizes.values())


def test_sizes_are_those_the_model_sees(model, processor):
    """Pages of 14 px and 28 px text; a page four times as large is fitted to the same tiles."""

    def sizes(px: int, factor: int = 1) -> set[str]:
        spec = RenderSpec(
            layout="text", width=112 * factor, height=56 * factor, font_px=(px, px),
            margin=2 * factor, fonts=("DejaVuSans",),
        )  # fmt: skip
        source = RenderSource(spec, 2)
        with Rigged(model, processor, source, lambda truth: truth):
            return set(reading_accuracy(model, processor, source, 2).by_size())

    assert sizes(14) == {"16-20"}  # ascent and descent of DejaVu are 1.16 em
    assert sizes(18) == {"20-24"}
    assert sizes(56, factor=4) == {"16-20"}


def test_only_the_wrong_size_is_wrong(model, processor):
    pages = [RenderSource(SPEC.model_copy(update={"font_px": (px, px)}), 1)[0] for px in (14, 20)]
    blank = model.config.blank_token_id
    says = iter([lambda t: t, lambda t: torch.full_like(t, blank)])
    with Rigged(model, processor, pages, lambda truth: next(says)(truth)):
        result = reading_accuracy(model, processor, pages, 2)
    shares = {name: right / cells for name, (right, cells) in result.by_size().items()}
    assert sorted(shares.values()) == [0.0, 1.0]
    assert result.pages[0].text[0] > 0 and result.pages[1].text[0] == 0


def test_pages_of_one_document_belong_together(model, processor, source):
    records = [source[i].model_copy(update={"id": f"a.pdf#{i + 1}"}) for i in range(2)]
    with Rigged(model, processor, records, lambda truth: truth):
        result = reading_accuracy(model, processor, records, 2)
    assert {page.document for page in result.pages} == {"a.pdf"}


def test_a_thumbnail_has_no_size(make_model, make_processor, source):
    model = make_model("align")
    processor = make_processor(model.config, max_tiles=8, thumbnail=True)
    result = reading_accuracy(model, processor, source, 2)
    assert sum(cells for _, cells in result.by_size().values()) == result.text_cells
    assert "<8" not in result.by_size()


def test_a_line_is_as_tall_as_its_tallest_word():
    words = [
        Word("on", (0, 4, 20, 10), 0, (0, 10)),
        Word("Of", (30, 0, 50, 10), 0, (30, 40)),
        Word("x", (0, 20, 10, 24), 1, (0,)),
    ]
    heights = text_heights(words, (3, 10), (20.0, 20.0), 2.0)
    assert heights[0, :8].tolist() == [20.0] * 8
    assert heights[2].tolist() == [8.0, 8.0, 8.0, 8.0] + [0.0] * 6  # two more: shifted tokens
    assert heights[1].tolist() == [0.0] * 10
    assert size_names()[0] == "<8" and size_names()[-1] == ">=32"
    assert len(size_names()) == 8
