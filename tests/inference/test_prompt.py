"""Prompts: what the processor makes of a chat, pages encoded once, the context, unread pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignvlm.inference.answerers import ModelAnswerer, Query
from alignvlm.inference.ask import ask
from alignvlm.inference.generate import generate
from alignvlm.inference.prompt import (
    ContextError,
    build_prompts,
    chat,
    context_length,
    encode_pages,
    together,
)

QUESTIONS = ("Who signed?", "What is the total of all the items?", "When?")


@pytest.fixture
def model(make_model):
    return make_model("align")


@pytest.fixture(params=[False, True], ids=["plain", "thumbnail"])
def processor(make_processor, model, request):
    return make_processor(model.config, thumbnail=request.param)


@pytest.fixture
def chats(images):
    """Two pages, none, and one."""
    return [
        chat(question, pages)
        for question, pages in zip(QUESTIONS, (images[:2], [], images[2:]), strict=True)
    ]


def refuse(*args: Any, **keys: Any) -> Any:
    raise AssertionError("done again")


def test_ids_are_those_of_the_processor(model, processor, chats):
    prompt = build_prompts(model, processor, chats)
    wanted = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )  # fmt: skip
    assert torch.equal(prompt.inputs["input_ids"], wanted["input_ids"])
    assert torch.equal(prompt.inputs["attention_mask"], wanted["attention_mask"])
    with torch.no_grad():
        embeds = model.compact_prompt(**wanted)["inputs_embeds"]
    assert torch.equal(prompt.inputs["inputs_embeds"], embeds)
    assert prompt.lengths == wanted["attention_mask"].sum(-1).tolist()
    assert prompt.visual_tokens == prompt.kept_visual_tokens
    assert prompt.visual_tokens[1] == 0 < prompt.visual_tokens[2]


@pytest.mark.parametrize("dropping", [False, True])
def test_encoded_pages_are_neither_cut_nor_encoded_again(
    model, processor, chats, images, dropping, monkeypatch
):
    if dropping:
        model.config.blank_threshold = 1e-9
    whole = encode_pages(model, processor, images)
    apart = together([encode_pages(model, processor, [image]) for image in images])
    fresh = build_prompts(model, processor, chats)
    assert (fresh.kept_visual_tokens != fresh.visual_tokens) == dropping
    monkeypatch.setattr(model.model, "encode", refuse)
    monkeypatch.setattr(processor.image_processor, "_preprocess", refuse)
    for encoded in (whole, apart):
        again = build_prompts(model, processor, chats, encoded=encoded)
        assert again.lengths == fresh.lengths
        assert again.kept_visual_tokens == fresh.kept_visual_tokens
        torch.testing.assert_close(again.inputs, fresh.inputs, atol=1e-5, rtol=1e-5)


def test_a_placeholder_in_a_question_is_text(model, processor, images):
    asked = build_prompts(model, processor, [chat(f"{processor.image_token}?", images[:1])])
    usual = build_prompts(model, processor, [chat("?", images[:1])])
    assert asked.visual_tokens == usual.visual_tokens
    assert asked.lengths[0] > usual.lengths[0]


def test_an_answers_room_and_prompts_without_any(model, processor, chats, monkeypatch):
    prompt = build_prompts(model, processor, chats)
    longest = max(prompt.lengths)
    assert [a + b for a, b in zip(prompt.lengths, prompt.room)] == [context_length(model)] * 3
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", longest + 4)
    assert min(build_prompts(model, processor, chats, max_new_tokens=[4] * 3).room) == 4
    monkeypatch.setattr(model.model, "encode", refuse)  # known before: no page is encoded
    row = prompt.lengths.index(longest)
    with pytest.raises(ContextError, match=f"^{row}: the prompt has {longest} tokens") as caught:
        build_prompts(model, processor, chats, max_new_tokens=[5] * 3, names="012")
    assert (caught.value.tokens, caught.value.limit) == (longest, longest + 4)


def test_log_probabilities_of_a_batch_are_those_of_the_forward_pass(model, processor, chats):
    limits = [4, 6, 5]
    prompt = build_prompts(model, processor, chats)
    said = generate(model, processor.tokenizer, prompt, limits)
    for row, answer in enumerate(said):
        alone = build_prompts(model, processor, [chats[row]]).inputs
        table, total = model.get_input_embeddings().weight.detach(), 0.0
        embeds = alone.get("inputs_embeds", table[alone["input_ids"]])
        with torch.no_grad():
            for _ in range(answer.new_tokens):  # without a cache, without generate
                log_p = model(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)
                total += log_p.max().item()
                embeds = torch.cat([embeds, table[log_p.argmax()][None, None]], dim=1)
        assert answer.new_tokens <= limits[row]
        assert answer.log_probability == pytest.approx(total / answer.new_tokens, abs=1e-4)


def test_where_nothing_was_read_the_answer_is_empty(model, processor, images, monkeypatch):
    """Row by row; a page that was read beside a blank one is enough."""
    encode = model.model.encode

    def reading(pixels: Any, grids: Any) -> Any:
        """An encoder that read something on pages that are taller than wide."""
        pages = [
            ["row"] if tall and not small else []
            for rows, cols, thumbnail in grids.tolist()
            for tall, small in [(rows > cols, False), *([(False, True)] * thumbnail)]
        ]
        return encode(pixels, grids)._replace(pages=pages)

    wide, tall, _ = images
    sets = ([wide], [tall], [wide, tall], [], [wide, wide])
    queries = [Query(str(i), pages, "Who signed?", 6) for i, pages in enumerate(sets)]
    answerer = ModelAnswerer(model, processor)
    before = answerer.answer(queries)
    assert all(reply.text for reply in before)
    monkeypatch.setattr(model.model, "encode", reading)
    after = answerer.answer(queries)
    assert [reply.text for reply in after[1:4]] == [reply.text for reply in before[1:4]]
    for row in (0, 4):
        assert (after[row].text, after[row].new_tokens) == ("", 0)
        assert after[row].visual_tokens == before[row].visual_tokens
    monkeypatch.setattr(model, "generate", refuse)  # the language model does not run
    assert answerer.answer(queries[:1]) == after[:1]
    said = ask(model, processor, [wide], "Who signed?")
    assert (said.text, said.prompt_tokens, said.new_tokens) == ("", 0, 0)


def test_pages_of_many_cells_raise_no_warning(model, processor, chats, caplog):
    processor.tokenizer.model_max_length = 8
    build_prompts(model, processor, chats)
    assert "longer than" not in caplog.text


def test_a_prompt_needs_no_blank_tokens_of_its_pages(model, processor, images):
    """Pages without features and blank tokens give the same prompt, in any reading of them."""
    asked = [chat("Who?", images[:2]), chat("When?", images[2:])]
    plain = build_prompts(model, processor, asked, encoded=encode_pages(model, processor, images))
    whole = encode_pages(model, processor, images)
    assert torch.equal(
        build_prompts(model, processor, asked, encoded=whole.lean()).inputs["inputs_embeds"],
        plain.inputs["inputs_embeds"],
    )
    model.config.blank_threshold = 0.5
    blank = [torch.arange(len(tokens))[:, None] % 3 > 0 for tokens in whole.tokens]
    whole = whole._replace(blank=blank)
    apart = [whole.image(number)._replace(pages=None) for number in range(3)]
    if whole.image_grids[:, 2].any():  # a page alone has no thumbnail
        apart = [whole]
    lean = together([one.lean() for one in apart])
    assert sum(map(len, lean.tokens)) < sum(map(len, whole.tokens)) / 2
    assert lean.lengths == whole.lengths
    made = [build_prompts(model, processor, asked, encoded=one) for one in (whole, lean)]
    assert torch.equal(made[0].inputs["inputs_embeds"], made[1].inputs["inputs_embeds"])
    assert torch.equal(made[0].inputs["input_ids"], made[1].inputs["input_ids"])
    assert made[1].kept_visual_tokens < made[1].visual_tokens
