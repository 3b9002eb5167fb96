"""Small tokenizers of the kinds that language models have, trained here."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Total amount of this invoice: $1,234.50, to be paid by 12 March 2019.",
    "Line by line, the lines of a bill tell what a mill or a pill costs.",
    "Größe und Länge der Straße; où est la façade? El niño come ñame.",
    "αβγ δελτα ωμεγα, 請求書 合計 金額 一二三, 合計金額 ▲ ● →",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
EXACT = [
    "smollm2", "llama3", "qwen", "roberta", "llama2", "gemma", "metaspace-first",
    "metaspace-always", "metaspace-never", "unigram",
]  # fmt: skip
"""Kinds that can spell any text."""
LOSSY = ["bert", "t5"]
"""Kinds that do not know every character."""


@cache
def tokenizer_json(kind: str) -> str:
    if kind in ("smollm2", "llama3", "qwen", "roberta"):
        return _byte_level(kind).to_str()
    if kind == "bert":
        return _word_piece().to_str()
    return _sentence_piece(kind)


def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(kind))


def _byte_level(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    level, split = pre_tokenizers.ByteLevel, pre_tokenizers.Split
    made.pre_tokenizer = {
        "smollm2": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False)]
        ),
        "llama3": lambda: pre_tokenizers.Sequence(
            [split(Regex(LLAMA3), "isolated"), level(add_prefix_space=False, use_regex=False)]
        ),
        "qwen": lambda: pre_tokenizers.Sequence(
            [split(Regex(QWEN), "isolated"), level(add_prefix_space=False, use_regex=False)]
        ),
        "roberta": lambda: level(add_prefix_space=True),
    }[kind]()
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.add_tokens(["<think>"])
    # offsets without the spaces, as RoBERTa and Llama 3 have them
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(SENTENCES[:4], trainer)
    return made


def _sentence_piece(kind: str) -> str:
    """BPE or Unigram over "▁" for a space, characters it does not know as bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False
    )
    made.train_from_iterator(SENTENCES[:4], trainer)
    scheme = {"metaspace-first": "first", "metaspace-never": "never"}.get(kind, "always")
    if kind in ("llama2", "gemma"):
        made.pre_tokenizer = None
        steps = [normalizers.Replace(" ", "▁")]
        strip = []
        if kind == "llama2":
            steps.insert(0, normalizers.Prepend("▁"))
            strip = [decoders.Strip(" ", 1, 0)]
        made.normalizer = normalizers.Sequence(steps)
        bytes_back = [decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), *bytes_back, *strip])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        after = decoders.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Sequence([decoders.ByteFallback(), after])
    if kind == "t5":
        made.decoder = decoders.Metaspace()
        squeeze = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), "▁")]
        made.normalizer = normalizers.Sequence(squeeze)
    data = json.loads(made.to_str())
    if kind in ("unigram", "t5"):
        vocab = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
        scores = [[piece, -len(vocab) / (1 + 99 * len(piece))] for piece in vocab]
        byte_fallback = kind == "unigram"
        data["model"] = {
            "type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": byte_fallback,
        }  # fmt: skip
    else:
        data["model"].update(byte_fallback=True, fuse_unk=True)
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL]
    return json.dumps(data)
