"""Who answers: the protocol, the model, and its language model without the page.

The OCR rival is in :mod:`alignvlm.eval.ocr`, the floors are in :mod:`alignvlm.eval.baselines`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from ..compose.assemble import load_pretrained, load_tokenizer
from ..errors import ConfigError
from ..files import file_sha256
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.chat_templates import apply_template, chat_template_for
from ..processing.processor import AlignVLMProcessor, reserved_image_token
from ..processing.verbatim import hidden, tokenized, wrapped
from ..weights.folder import loaded
from ..weights.resolve import resolve
from .generate import Generated, generate, generation_settings
from .loading import default_device, default_dtype
from .noise import Noise, sample_seed
from .prompt import Prompt, build_prompts, chat


@dataclass(frozen=True)
class Query:
    """One question to an answerer.

    Attributes:
        id: the sample's; noise and chance are seeded by it.
        pages: empty for answerers that do not look at them.
        prompt: the whole text of the user's turn beside the pages.
        max_new_tokens: limit of the answer.
    """

    id: str
    pages: list[Image.Image]
    prompt: str
    max_new_tokens: int


@dataclass(frozen=True)
class Reply:
    """What was answered.

    Attributes:
        text: the answer.
        visual_tokens: cells of the pages.
        kept_visual_tokens: those that reached the language model after blank dropping.
        new_tokens: tokens generated, the end token included.
        details: what else the result file should say about this sample.
    """

    text: str
    visual_tokens: int = 0
    kept_visual_tokens: int = 0
    new_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Answerer(Protocol):
    """Turns a batch of queries into replies, deterministically.

    Attributes:
        name: what a table calls it.
        needs_pages: whether pages must be loaded for it.
    """

    name: str
    needs_pages: bool

    def settings(self) -> dict[str, Any]:
        """Everything that decides its replies, as plain data for JSON."""
        ...

    def answer(self, queries: list[Query]) -> list[Reply]:
        """One reply a query."""
        ...


@dataclass(frozen=True)
class Weights:
    """Which weights: the reference they were asked for by, and the sha256 of each file."""

    reference: str
    sha256: dict[str, str]

    @classmethod
    def of(cls, reference: str | os.PathLike[str]) -> Weights:
        """Read all safetensors files of a reference.

        Raises:
            WeightsError: no such weights.
        """
        files = sorted(resolve(reference).glob("*.safetensors"))
        return cls(os.fspath(reference), {file.name: file_sha256(file) for file in files})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"reference": self.reference, "sha256": self.sha256}


class ModelAnswerer:
    """The model itself.

    Args:
        model, processor: as :func:`alignvlm.inference.ask.load_model` returns them.
        weights: recorded in the settings.
        noise: σ of Gaussian noise on the encoder's features.
        seed: of the noise, together with each sample's id.
        repetition_guard: end an answer that goes round in circles.
        pruned: what is recorded about a vocabulary that was pruned before.
        check_context: refuse what the language model has no positions for, rather than let it
            answer badly.
    """

    name = "model"
    needs_pages = True

    def __init__(
        self,
        model: AlignVLMForConditionalGeneration,
        processor: AlignVLMProcessor,
        *,
        weights: Weights | None = None,
        noise: float = 0.0,
        seed: int = 0,
        repetition_guard: bool = False,
        pruned: dict[str, Any] | None = None,
        check_context: bool = False,
    ) -> None:
        if not 0 <= noise < float("inf"):
            raise ConfigError(f"noise must be 0 or a positive number, not {noise}")
        self.model, self.processor, self.weights = model.eval(), processor, weights
        self.noise, self.seed = float(noise), seed
        self.repetition_guard, self.pruned = repetition_guard, pruned
        self.check_context = check_context

    def settings(self) -> dict[str, Any]:
        """See :class:`Answerer`."""
        images = self.processor.image_processor
        return {
            "model": None if self.weights is None else self.weights.to_dict(),
            "connector": self.model.config.connector.type,
            "blank_threshold": self.model.config.blank_threshold,
            "chat_template": self.processor.chat_template,
            "tiling": {
                "height": images.size["height"],
                "width": images.size["width"],
                "max_tiles": images.max_tiles,
                "min_tiles": images.min_tiles,
                "thumbnail": images.thumbnail,
                "token_order": self.processor.token_order,
            },
            "generation": generation_settings(self.model, self.repetition_guard),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "noise": self.noise,
            "noise_seed": self.seed if self.noise else None,
            "prune": self.pruned,
        }

    def answer(self, queries: list[Query]) -> list[Reply]:
        """See :class:`Answerer`.

        Raises:
            DataError: with ``check_context``, prompt and answer are too long; names the query.
        """
        limits = [query.max_new_tokens for query in queries]
        noise = Noise(self.noise, [sample_seed(self.seed, query.id) for query in queries])
        prompt = build_prompts(
            self.model,
            self.processor,
            [chat(query.prompt, query.pages) for query in queries],
            max_new_tokens=limits if self.check_context else None,
            names=[query.id for query in queries],
            noise=noise if self.noise else None,
        )
        tokenizer = self.processor.tokenizer
        said = generate(self.model, tokenizer, prompt, limits, guard=self.repetition_guard)
        counts = zip(said, prompt.visual_tokens, prompt.kept_visual_tokens, strict=True)
        return [Reply(one.text, seen, kept, one.new_tokens) for one, seen, kept in counts]


@dataclass(frozen=True)
class LanguageModel:
    """A language model that is asked in text only.

    Attributes:
        model: anything with ``generate`` and ``generation_config``.
        tokenizer: padding on the left.
        chat_template: the one the vision-language model uses, so that prompts agree.
        weights: recorded in the settings.
    """

    model: Any
    tokenizer: Any
    chat_template: str
    weights: Weights | None = None

    @classmethod
    def of(
        cls,
        model: AlignVLMForConditionalGeneration,
        processor: AlignVLMProcessor,
        weights: Weights | None = None,
    ) -> LanguageModel:
        """The language model inside a vision-language model."""
        return cls(model.eval(), processor.tokenizer, processor.chat_template, weights)

    @classmethod
    def load(
        cls, reference: str | os.PathLike[str], *, dtype: torch.dtype | None = None
    ) -> LanguageModel:
        """From an alignvlm model, or from a plain language model (``smollm2``, a folder, a hub id).

        Raises:
            WeightsError: no such model, or files that cannot be read.
        """
        folder = resolve(reference)
        device = default_device()
        dtype = dtype or default_dtype(device)
        config = loaded(AutoConfig, folder)
        weights = Weights.of(reference)
        if isinstance(config, AlignVLMConfig):
            model, processor = load_pretrained(folder, dtype)
            return cls.of(model.to(device), processor, weights)  # type: ignore[arg-type]
        tokenizer = load_tokenizer(folder)
        model = loaded(AutoModelForCausalLM, folder, dtype=dtype)
        template = chat_template_for(tokenizer, reserved_image_token(tokenizer))
        return cls(model.eval().to(device), tokenizer, template, weights)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together that it was made for."""
        config = getattr(self.model.config, "text_config", None) or self.model.config
        return int(getattr(config, "max_position_embeddings", None) or 2048)

    def settings(self, guard: bool) -> dict[str, Any]:
        """See :class:`Answerer`."""
        return {
            "model": None if self.weights is None else self.weights.to_dict(),
            "chat_template": self.chat_template,
            "generation": generation_settings(self.model, guard),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def answer(
        self, texts: Sequence[str], max_new_tokens: Sequence[int], *, guard: bool
    ) -> list[Generated]:
        """The answers to a batch of user turns."""
        written = apply_template(
            self.tokenizer.apply_chat_template,
            [wrapped(chat(text, []), self.tokenizer) for text in texts],
            self.chat_template,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        written = [hidden(text, self.tokenizer) for text in written]
        # the template writes what a text begins with
        batch = tokenized(self.tokenizer, written, add_special_tokens=False, verbose=False)
        ids, mask = (batch[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        prompt = Prompt.of_text(ids, mask)
        return generate(self.model, self.tokenizer, prompt, max_new_tokens, guard=guard)


class TextOnlyAnswerer:
    """The floor of a model that reads nothing: the same prompt without its pages."""

    name = "text-only"
    needs_pages = False

    def __init__(self, language: LanguageModel, *, repetition_guard: bool = False) -> None:
        self.language, self.repetition_guard = language, repetition_guard

    def settings(self) -> dict[str, Any]:
        """See :class:`Answerer`."""
        return self.language.settings(self.repetition_guard)

    def answer(self, queries: list[Query]) -> list[Reply]:
        """See :class:`Answerer`."""
        said = self.language.answer(
            [query.prompt for query in queries],
            [query.max_new_tokens for query in queries],
            guard=self.repetition_guard,
        )
        return [Reply(one.text, new_tokens=one.new_tokens) for one in said]
