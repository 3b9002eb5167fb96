"""Any language model reads the moment it is composed with the reader: no data, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alignvlm.compose.assemble import compose
from alignvlm.inference.ask import ask, encode_pages
from alignvlm.inference.inspect import read_page

FORM = Path(__file__).parents[2] / "examples" / "pages" / "form.png"
TEXT = [
    "Registration of a company in the town of Nairobi, the total and the date of the serial number",
    "Town: Company: Serial no.: Date: TOTAL: 0 1 2 3 4 5 6 7 8 9 . - : ABCDEFGHIJKLMNOPQRSTUVWXYZ",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in TEXT * 3], trainer)
    return tokenizer


@pytest.fixture(params=[byte_level, sentence_piece], ids=["byte-level", "byte fallback"])
def language_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random language model, untied, with a tokenizer of that kind."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=request.param(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|image_pad|>",
    )
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size + 5, hidden_size=96, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    folder = tmp_path / "lm"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_frozen_model_of_any_tokenizer_reads(language_model: Path, tmp_path: Path) -> None:
    model, processor = compose("reader", language_model)
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    page = Image.open(FORM).convert("RGB")
    encoded = encode_pages(loaded, processor, [page])
    text = read_page(loaded, processor, page, encoded=encoded).text(processor.tokenizer)
    assert text.splitlines() == [
        "Registration",
        "Town: Nairobi",
        "Company: Carter Ltd",
        "Serial no.: DN94-8986",
        "Date: 08.07.08",
        "TOTAL: 3.48",
    ]
    answer = ask(loaded, processor, [page], "What?", max_new_tokens=2, encoded=encoded)
    assert answer.kept_visual_tokens == len(encoded.pages[0])


def test_a_blank_page_is_answered_by_nothing(tiny_lm_dir: Path) -> None:
    model, processor = compose("reader", tiny_lm_dir)
    blank = Image.new("RGB", (300, 200), "white")
    answer = ask(model.eval(), processor, [blank], "What is the total?")
    assert (answer.text, answer.new_tokens, answer.kept_visual_tokens) == ("", 0, 0)


def test_other_connectors_see_the_words_too(tiny_lm_dir: Path) -> None:
    """They want training, but their features say what was read."""
    model, processor = compose("reader", tiny_lm_dir, "mlp")
    page = Image.open(FORM).convert("RGB").crop((0, 45, 300, 75))
    encoded = encode_pages(model.eval(), processor, [page])
    (read,) = encoded.pages
    assert read.text == "Town: Nairobi"
    table = model.model.text_embedding()
    cell = int(read.cells[0])
    row, col = divmod(cell, int(encoded.image_grids[0, 1]) * 16)
    feature = encoded.features[(row // 8) * int(encoded.image_grids[0, 1]) + col // 16]
    with torch.no_grad():
        wanted = (table[read.ids[0].clamp_min(0)] * read.q[0][:, None]).sum(0)
    torch.testing.assert_close(feature[row % 8, col % 16], wanted)
