"""Prompt embeddings: the bare language model answers from them as the whole model does."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.blanks import between_marks
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from alignvlm.errors import ConfigError, DataError
from alignvlm.inference.ask import ask, load_model
from alignvlm.inference.embed import (
    bare_language_model,
    embed_pages,
    embed_prompt,
    to_base64,
    to_bytes,
    write_embeds,
)


def bare(model: Any) -> LlamaForCausalLM:
    """The language model alone: no encoder, no connector, other code."""
    alone = LlamaForCausalLM(model.config.text_config)
    weights = {f"model.{k}": v for k, v in model.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = model.lm_head.weight
    alone.load_state_dict(weights)
    return alone.eval()  # type: ignore[return-value]


def continued(alone: Any, embeds: torch.Tensor, tokenizer: Any, count: int) -> str:
    """What a language model that is given embeddings and nothing else writes, greedily."""
    new = alone.generate(
        inputs_embeds=embeds[None].to(alone.dtype),
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    return tokenizer.decode(new[0], skip_special_tokens=True).strip()


def median_blank(model: Any, processor: Any, pages: list[Any]) -> float:
    """A threshold that drops about half of the visual tokens."""
    batch = processor.image_processor(pages, return_tensors="pt")
    with torch.no_grad():
        features = model.model.encode_tiles(batch["pixel_values"])
        probabilities, ids = model.model.connector.top_tokens(features, 10_000)
    return between_marks(probabilities[ids == model.config.blank_token_id])


@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("connector", ["align", "mlp"])
def test_the_bare_language_model_gives_the_same_answer(
    make_model, make_processor, images, connector, dropping
):
    if connector == "mlp" and dropping:
        pytest.skip("blank dropping needs align")
    model = make_model(connector)
    processor = make_processor(model.config)
    if dropping:
        model.config.blank_threshold = median_blank(model, processor, images)
    answers = set()
    for seed, question in enumerate(["Who signed?", "What is the total?", "When?"]):
        pages = images[seed:]
        made = embed_prompt(model, processor, pages, question)
        assert made.embeds.dtype == torch.float32
        assert made.embeds.shape[1] == model.config.text_config.hidden_size
        said = ask(model, processor, pages, question, max_new_tokens=12)
        assert len(made.embeds) == said.prompt_tokens
        assert made.kept_visual_tokens == said.kept_visual_tokens
        if seed == 0:
            assert (made.kept_visual_tokens < made.visual_tokens) is dropping
        assert said.text
        assert continued(bare(model), made.embeds, processor.tokenizer, 12) == said.text
        answers.add(said.text)
    assert len(answers) > 1, "an answer that never changes would prove nothing"


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_can_be_saved_and_served(
    make_model, make_processor, tmp_path, images, tied
):
    model = make_model("align", text={"tie_word_embeddings": tied})
    processor = make_processor(model.config)
    made = embed_prompt(model, processor, images, "Who?")
    said = ask(model, processor, images, "Who?", max_new_tokens=8).text
    assert said
    bare_language_model(model).save_pretrained(tmp_path / "lm")
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert type(served) is LlamaForCausalLM
    assert continued(served, made.embeds, processor.tokenizer, 8) == said


def test_pages_alone_are_a_part_of_the_prompt(make_model, make_processor, images):
    model = make_model("align")
    processor = make_processor(model.config)
    alone = embed_pages(model, processor, images)
    prompt = embed_prompt(model, processor, images, "Who?")
    assert alone.visual_tokens == alone.kept_visual_tokens == prompt.visual_tokens
    windows = prompt.embeds.unfold(0, len(alone.embeds), 1).transpose(1, 2)
    assert any(torch.allclose(window, alone.embeds, atol=1e-6) for window in windows)
    assert len(alone.embeds) < len(prompt.embeds)


def test_the_beginning_of_text_is_not_in_pages_alone(make_model, make_processor, images):
    """They go into the middle of a prompt."""
    model = make_model("align")
    processor = make_processor(model.config)
    (image,) = images[2:]
    alone = embed_pages(model, processor, [image])
    newlines = 2  # one ends each row
    assert len(alone.embeds) == alone.visual_tokens + newlines


def test_files(tmp_path: Path):
    embeds = torch.randn(5, 8)
    write_embeds(embeds, tmp_path / "deep" / "a.safetensors", metadata={"page": "1"})
    with safe_open(tmp_path / "deep" / "a.safetensors", "pt") as file:
        assert file.metadata() == {"page": "1"}
        assert torch.equal(file.get_tensor("prompt_embeds"), embeds)
    write_embeds(embeds, tmp_path / "a.pt", "pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), embeds)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "deep"]
    with pytest.raises(ConfigError, match="safetensors, pt"):
        to_bytes(embeds, "npy")


def test_base64_is_what_vllm_decodes():
    """As its server does: strict base64, a weights-only load, a dense 2-D float tensor."""
    whole = torch.randn(100, 8)
    text = to_base64(whole[:3])
    tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.layout == torch.strided
    assert torch.equal(tensor, whole[:3])
    assert len(text) < len(to_base64(whole)) / 2, "a view must not take its base along"


def test_pages_that_do_not_fit_the_context_are_refused(make_model, make_processor, make_image):
    for threshold in (None, 0.9999):
        model = make_model("align", blank_threshold=threshold)
        model.config.text_config.max_position_embeddings = 40
        processor = make_processor(model.config)
        pages = [make_image(112, 112, i) for i in range(4)]
        for make in (
            lambda m, p, pages: embed_pages(m, p, pages),
            lambda m, p, pages: embed_prompt(m, p, pages, "Who?"),
            lambda m, p, pages: ask(m, p, pages, "Who?"),
        ):
            with pytest.raises(DataError, match=r"the language model reads 40: .*--each"):
                make(model, processor, pages)


@pytest.mark.slow
def test_stock_smollm2_answers_from_a_composed_models_embeddings(tmp_path: Path, make_image):
    """Real weights, loaded by transformers alone from the files they come in."""
    from alignvlm.compose.assemble import compose
    from alignvlm.weights.resolve import resolve

    vision = {
        "model_type": "convnext", "image_size": [28, 56], "patch_size": 7, "num_stages": 2,
        "hidden_sizes": [16, 32], "depths": [1, 1],
    }  # fmt: skip
    folder = resolve("smollm2")
    model, processor = compose(vision, "smollm2", {"type": "align"})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded, processor = load_model(tmp_path / "model", dtype=torch.float32)
    question = "Name three colours."
    made = embed_prompt(loaded, processor, [make_image(56, 56)], question)
    said = ask(loaded, processor, [make_image(56, 56)], question, max_new_tokens=16)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert said.text
    assert continued(stock, made.embeds.to(stock.device), processor.tokenizer, 16) == said.text
