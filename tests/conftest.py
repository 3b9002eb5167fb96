"""A tiny model, made here: no test needs a network or pretrained weights."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is; processes that tests start inherit it

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.command import Result, Run
from tests.figures import figures, pytest_terminal_summary  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from alignvlm import AlignVLMConfig, AlignVLMForConditionalGeneration, AlignVLMProcessor
from alignvlm.cli import app as cli
from alignvlm.processing.processor import reserved_image_token, space_token_id

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"]
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the total amount on this invoice? The total is $1,234.50.",
    "user asks: who signed the letter? assistant says: Maria Lopez signed it.",
    "Name of the company, date of the report, and the number of pages.",
    "A table with rows and columns; a chart, a form, a receipt and a map.",
]
CONNECTOR_KEYS: dict[str, dict[str, Any]] = {
    "align": {"gamma": 4.0},
    "mlp": {},
    "perceiver": {"num_latents": 3, "depth": 1, "num_heads": 2, "head_dim": 8},
    "ovis": {"visual_vocab_size": 50},
    "h_reducer": {"kernel": 2},
    "c_abstractor": {"out_rows": 1, "out_cols": 2, "hidden_size": 16, "depth": 1},
}

# a tiny model is slower on more threads, and on a busy machine ten times slower
torch.set_num_threads(1)


def start_anew() -> None:
    """What a test or a shared fixture computes does not depend on what ran before it."""
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)
    # training and benchmarks set it: sums on more threads round differently
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any) -> None:
    """A shared fixture is made before ``_seed`` of the first test that asks for it, whichever."""
    if fixturedef.scope != "function":
        start_anew()


@pytest.fixture(autouse=True)
def _seed() -> None:
    start_anew()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test starts in its own empty folder: a relative name never meets a file beside the clone.

    Otherwise a file that happens to be called "a" or "smollm2" would turn a refusal into a success.
    """
    monkeypatch.chdir(tmp_path)


def build_tokenizer(special_tokens: list[str] = SPECIAL_TOKENS, **names: str) -> Any:
    """Byte-level BPE of about 400 tokens, digits one by one; ``names``: eos_token and so on."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    names = names or {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)


def tiny_vision_config(**over: Any) -> SiglipVisionConfig:
    keys: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return SiglipVisionConfig(**{**keys, **over})


def tiny_text_config(tokenizer: Any, **over: Any) -> LlamaConfig:
    keys: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaConfig(**{**keys, **over})


@torch.no_grad()
def shake(model: torch.nn.Module, size: float = 0.1) -> torch.nn.Module:
    """Move all weights away from their initial values, so that logits and images differ."""
    for parameter in model.parameters():
        parameter.add_(size * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """``make_tokenizer(special_tokens, **names)``."""
    return build_tokenizer


@pytest.fixture(scope="session")
def make_config(tokenizer: Any) -> Callable[..., AlignVLMConfig]:
    """``make_config("align", text={...}, vision={...}, connector_keys={...}, **config_keys)``.

    ``text`` and ``vision`` are keys that differ from the tiny configs, or whole configs.
    """

    def make(
        connector: str = "align",
        text: Any = None,
        vision: Any = None,
        connector_keys: dict[str, Any] | None = None,
        **over: Any,
    ) -> AlignVLMConfig:
        if text is None or isinstance(text, dict):
            text = tiny_text_config(tokenizer, **(text or {}))
        if vision is None or isinstance(vision, dict):
            vision = tiny_vision_config(**(vision or {}))
        if connector == "perceiver":
            over.setdefault("token_order", "tile")
        keys: dict[str, Any] = {
            "image_token_id": tokenizer.convert_tokens_to_ids(reserved_image_token(tokenizer)),
            "blank_token_id": space_token_id(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        chosen = {"type": connector, **CONNECTOR_KEYS[connector], **(connector_keys or {})}
        return AlignVLMConfig(vision, text, chosen, **{**keys, **over})

    return make


@pytest.fixture(scope="session")
def make_model(
    make_config: Callable[..., AlignVLMConfig],
) -> Callable[..., AlignVLMForConditionalGeneration]:
    """``make_model("align", **keys of make_config)`` or ``make_model(config=...)``; eval mode."""

    def make(
        connector: str = "align",
        *,
        config: AlignVLMConfig | None = None,
        seed: int = 0,
        **over: Any,
    ) -> AlignVLMForConditionalGeneration:
        torch.manual_seed(seed)
        model = AlignVLMForConditionalGeneration(config or make_config(connector, **over))
        return shake(model).eval()  # type: ignore[return-value]

    return make


@pytest.fixture(scope="session")
def make_processor(tokenizer: Any) -> Callable[..., AlignVLMProcessor]:
    """``make_processor(config, tokenizer, max_tiles=4, ...)``: the processor of a model config."""

    def make(
        config: AlignVLMConfig, own_tokenizer: Any = None, max_tiles: int = 4, **keys: Any
    ) -> AlignVLMProcessor:
        return AlignVLMProcessor.for_config(
            config, own_tokenizer or tokenizer, max_tiles=max_tiles, **keys
        )

    return make


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """``make_image(width, height, seed)``: noise, so that every tile differs."""

    def make(width: int = 40, height: int = 24, seed: int = 0, mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture(scope="session")
def images(make_image: Callable[..., Image.Image]) -> list[Image.Image]:
    """Wide, tall and tiny: grids 1x2, 2x1 and 1x1 for tiles of 28 px."""
    return [make_image(56, 28, 1), make_image(28, 56, 2), make_image(9, 9, 3)]


@pytest.fixture(scope="session")
def tiny_model_dir(
    make_model: Callable[..., Any],
    make_processor: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A saved tiny ALIGN model with its processor."""
    folder = tmp_path_factory.mktemp("tiny-model")
    model = make_model("align")
    model.save_pretrained(folder)
    make_processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny language model with its tokenizer, as ``compose`` takes them."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    torch.manual_seed(0)
    shake(LlamaForCausalLM(tiny_text_config(tokenizer))).save_pretrained(folder)  # type: ignore
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vision_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny vision encoder."""
    folder = tmp_path_factory.mktemp("tiny-vision")
    torch.manual_seed(0)
    shake(SiglipVisionModel(tiny_vision_config())).save_pretrained(folder)  # type: ignore
    return folder


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """``command("ask", ...)``, in an empty folder and with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "cache"))

    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["alignvlm", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        level = transformers.logging.get_verbosity()
        try:
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            transformers.logging.set_verbosity(level)
            transformers.logging.enable_progress_bar()
        return Result(code, *capfd.readouterr())

    return call
