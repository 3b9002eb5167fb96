"""Placeholders, batches and chat templates: text and images leave as what the model expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jinja2 import Environment
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from alignvlm import CONNECTORS, AlignVLMImageProcessor, AlignVLMProcessor
from alignvlm.errors import ConfigError, DataError
from alignvlm.model.outputs import group_images
from alignvlm.processing.chat_templates import CHATML, LLAMA3, chat_template_for, is_ours
from alignvlm.processing.limited_fork import in_limited_fork
from alignvlm.processing.processor import reserved_image_token, space_token_id

IMG = "<empty_output>"


@pytest.fixture
def processor(make_config, make_processor):
    return make_processor(make_config())


def count(batch, processor) -> list[int]:
    return [int(np.sum(np.asarray(i) == processor.image_token_id)) for i in batch["input_ids"]]


def turn(role, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": role, "content": content}


@pytest.mark.parametrize("order", ["page", "tile"])
@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("name", CONNECTORS)
def test_placeholders_equal_the_visual_tokens(
    make_config, make_model, make_processor, images, name, thumbnail, order
):
    if name == "perceiver" and order == "page":
        pytest.skip("latents have no place on the page")
    config = make_config(name, token_order=order, tile_width=42)
    processor = make_processor(config, thumbnail=thumbnail)
    texts = [IMG + "a" + IMG, IMG]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    model = make_model(config=config)
    with torch.no_grad():
        visual = model.get_image_features(batch["pixel_values"], batch["image_grids"])
    lengths = [len(tokens) for tokens in visual.pooler_output]
    assert count(batch, processor) == [sum(lengths[:2]), lengths[2]]
    sizes = [(image.height, image.width) for image in images]
    told = processor._get_num_multimodal_tokens(image_sizes=sizes)
    own = [processor(images=[i], text=[IMG], return_mm_token_type_ids=True) for i in images]
    assert told["num_image_tokens"] == [sum(one["mm_token_type_ids"][0]) for one in own]
    assert told["num_image_tokens"] == lengths
    assert told["num_image_patches"] == [
        len(processor(images=[i], text=[IMG])["pixel_values"]) for i in images
    ]
    with torch.no_grad():
        model(**processor(images=images, text=[IMG * 3], return_tensors="pt"))


def test_page_rows_end_in_newlines(make_config, make_processor, make_image, tokenizer):
    wide = make_image(56, 28)
    newline = tokenizer.encode("\n")[0]
    config = make_config()
    ids = make_processor(config)(images=[wide], text=[IMG])["input_ids"][0]
    image = config.image_token_id
    assert ids == ([image] * 4 + [newline]) * 2
    ids = make_processor(config, thumbnail=True)(images=[wide], text=[IMG])["input_ids"][0]
    assert ids == ([image] * 4 + [newline]) * 2 + ([image] * 2 + [newline]) * 2
    flat = make_processor(make_config(row_end=False))(images=[wide], text=[IMG])["input_ids"][0]
    assert flat == [image] * 8
    flat = make_processor(make_config(token_order="tile"))(images=[wide], text=[IMG])
    assert flat["input_ids"][0] == [image] * 8


def test_images_and_text_interleave(processor, images, tokenizer):
    batch = processor(images=images, text=[f"one {IMG} two {IMG}{IMG} three"])
    text = tokenizer.decode(batch["input_ids"][0])
    row = {n: (IMG * n + "\n") for n in (2, 4)}
    assert text == f"one {row[4] * 2} two {row[2] * 4}{row[2] * 2} three"
    assert batch["image_grids"].tolist() == [[1, 2, 0], [2, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("nested", [True, False])
def test_a_batch_of_different_prompts_pads_on_the_left(processor, images, nested):
    texts = ["no image", f"{IMG} one", f"{IMG}{IMG} two"]
    given = [[], [images[0]], images[1:]] if nested else images
    batch = processor(images=given, text=texts, padding=True, return_tensors="pt")
    assert count(batch, processor) == [0, 8, 12]
    mask = batch["attention_mask"]
    assert (mask[:, -1] == 1).all()
    assert (mask.diff(dim=1) >= 0).all()
    for row, text in enumerate(texts):
        own = [[], [images[0]], images[1:]][row] or None
        alone = processor(images=own, text=[text])["input_ids"][0]
        assert batch["input_ids"][row][mask[row].bool()].tolist() == alone


def test_text_alone(processor):
    batch = processor(text=["hello", "world and more"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert set(processor(text="hello")) == {"input_ids", "attention_mask"}


def test_images_alone(processor, images):
    assert set(processor(images=images)) == {"pixel_values", "image_grids"}


def test_mismatches_name_the_sample(processor, images):
    a, b, c = images
    cases = [
        ([[a], [b]], ["", IMG], "sample 0: its text has 0 .* and 1 images"),
        ([[a], [b, c]], [IMG, IMG], "sample 1: its text has 1 .* and 2 images"),
        ([[a]], [IMG, IMG], "1 lists of images for 2 texts"),
        ([a], [IMG, "x", IMG], "sample 2: its text has 1 .* but 0 images are left"),
        (None, ["x", IMG], "sample 1: its text has 1 .* but 0 images are left"),
        ([a, b], [IMG, "x"], "1 images have no placeholder"),
        (a, "no placeholder", "1 images have no placeholder"),
        (None, None, "at least one input"),
    ]
    for given, texts, message in cases:
        with pytest.raises(DataError, match=message) as error:
            processor(images=given, text=texts)
        assert "\n" not in str(error.value)


def test_truncation_never_cuts_an_image(processor, images):
    text = ["short", f"{IMG} and some words after the image"]
    full = len(processor(images=[images[0]], text=text)["input_ids"][1])
    cut = processor(images=[images[0]], text=text, truncation=True, max_length=full - 3)
    assert len(cut["input_ids"][1]) == full - 3
    with pytest.raises(DataError, match="sample 1: truncation cut its images, 4 of 8"):
        processor(images=[images[0]], text=text, truncation=True, max_length=5)


def test_group_images_names_the_sample():
    assert group_images([0, 8, 6], [8, 4, 2]) == [range(0), range(1), range(1, 3)]
    with pytest.raises(ValueError, match=r"sample 1: its prompt has 7 .* give 8"):
        group_images([0, 7], [8])
    with pytest.raises(ValueError, match=r"sample 0: its prompt has 9 .* give 8"):
        group_images([9], [8])
    with pytest.raises(ValueError, match="1 images have no placeholders"):
        group_images([8], [8, 8])


def test_assistant_mask_covers_exactly_the_answers(processor, images, tokenizer):
    first = [
        {"role": "system", "content": "Be brief."},
        turn("user", {"type": "image", "image": images[0]}, "Who?"),
        {"role": "assistant", "content": "Maria Lopez."},
        turn("user", {"type": "image", "image": images[1]}, "And the total?"),
        turn("assistant", "It is $1,234."),
    ]
    second = [turn("user", "Hello"), {"role": "assistant", "content": "Hi."}]
    batch = processor.apply_chat_template(
        [first, second],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    expected = ["Maria Lopez.<|im_end|>It is $1,234.<|im_end|>", "Hi.<|im_end|>"]
    for row, text in enumerate(expected):
        mask = torch.as_tensor(batch["assistant_masks"][row]).bool()
        assert tokenizer.decode(batch["input_ids"][row][mask]) == text
    assert count(batch, processor) == [16, 0]


def test_chat_template_text(processor):
    messages = [turn("user", {"type": "image"}, "Who?"), turn("assistant", "Me.")]
    assert processor.apply_chat_template(messages) == (
        f"<|im_start|>user\n{IMG}\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    )
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == (
        f"<|im_start|>user\n{IMG}\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_apply_chat_template_equals_text_then_call(processor, images, tmp_path):
    images[0].save(tmp_path / "page.png")
    messages = [turn("user", {"type": "image", "image": images[0]}, "Who?")]
    at_once = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    two_steps = processor(images=[images[0]], text=text, return_tensors="pt")
    path = [turn("user", {"type": "image", "path": str(tmp_path / "page.png")}, "Who?")]
    from_path = processor.apply_chat_template(
        path, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    for key in at_once:
        assert torch.equal(at_once[key], two_steps[key]), key
        assert torch.equal(at_once[key], from_path[key]), key


@pytest.fixture
def llama_tokenizer(make_tokenizer):
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    special += ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"]
    tokenizer = make_tokenizer(
        special, bos_token=special[0], eos_token=special[1], pad_token=special[5]
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], tokenizer.bos_token_id)]
    )
    return tokenizer


def test_llama_3_chat(make_config, llama_tokenizer, make_processor, images):
    image_token = reserved_image_token(llama_tokenizer)
    assert image_token == "<|reserved_special_token_0|>"
    config = make_config(image_token_id=llama_tokenizer.convert_tokens_to_ids(image_token))
    processor = make_processor(config, llama_tokenizer)
    messages = [
        turn("user", {"type": "image", "image": images[0]}, "Who?"),
        turn("assistant", "Me."),
    ]
    text = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{image_token}\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # one begin-of-text, however the prompt is made
    bos = llama_tokenizer.bos_token_id
    assert llama_tokenizer.encode("x")[0] == bos
    two_steps = processor(images=[images[0]], text=text)["input_ids"][0]
    at_once = processor.apply_chat_template(
        messages[:1], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"][0]
    assert two_steps == at_once
    assert two_steps.count(bos) == 1
    assert processor(text="no template")["input_ids"][0].count(bos) == 1
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = np.asarray(batch["assistant_masks"][0], bool)
    answer = np.asarray(batch["input_ids"][0])[mask]
    assert llama_tokenizer.decode(answer) == "Me.<|eot_id|>"


@pytest.mark.parametrize("batched", [False, True])
def test_a_strangers_template_gives_the_same_in_a_copy(processor, images, batched, monkeypatch):
    """Rendered under limits, and repeated here with its marks; our own need no copy."""
    asked = turn("user", {"type": "image", "image": images[0]}, "Who <b>{{ 1 }}</b>?")
    chat = [asked, turn("assistant", "Me."), turn("user", "And?"), turn("assistant", "You.")]
    chats = (
        [chat, [turn("user", {"type": "image", "image": images[1]}, "Ä?"), chat[1]]]
        if batched
        else chat
    )
    ways = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    ways["processor_kwargs"] = {"padding": True}
    copies = []
    monkeypatch.setattr(
        "alignvlm.processing.chat_templates.in_limited_fork",
        lambda call: copies.append(1) or in_limited_fork(call),
    )
    text, batch = (processor.apply_chat_template(chats, **keys) for keys in ({}, ways))
    assert not copies
    processor.chat_template = "{{ more }}" + processor.chat_template
    said, taken = (processor.apply_chat_template(chats, **keys, more="") for keys in ({}, ways))
    assert len(copies) == 2
    assert said == text
    assert set(taken) == set(batch)
    for key in taken:
        assert np.array_equal(np.asarray(taken[key]), np.asarray(batch[key])), key
    assert any(np.asarray(taken["assistant_masks"][0]))


def test_a_token_cannot_make_a_strangers_template_ours():
    for token in ("<image>", "[unused0]", "%}{% for i in range(9) %}"):
        assert is_ours(CHATML.replace("IMAGE_TOKEN", token))
    for token in ("' * 9 -%}", "\\"):
        assert not is_ours(LLAMA3.replace("IMAGE_TOKEN", token))
    text = "{%- set x = '%}{% for i in [1, 2] %}' -%}{{ x }}"  # marks in a string are text
    assert Environment().from_string(text).render() == "%}{% for i in [1, 2] %}"


def test_what_a_tokenizer_must_have(make_tokenizer, tokenizer):
    bare = make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>")
    with pytest.raises(ConfigError, match="reserves no token"):
        reserved_image_token(bare)
    with pytest.raises(ConfigError, match="neither ChatML nor Llama 3"):
        chat_template_for(bare, "<|endoftext|>")
    assert tokenizer.decode([space_token_id(tokenizer)]) == " "
    assert len(tokenizer.encode("2024")) == 4


def test_an_unknown_image_token_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="'<picture>' is not in the tokenizer's vocabulary"):
        AlignVLMProcessor(AlignVLMImageProcessor(), tokenizer, image_token="<picture>")


def test_save_and_load(make_config, make_processor, images, tmp_path):
    config = make_config("h_reducer", tile_width=42, row_end=False)
    saved = make_processor(config, thumbnail=True, max_tiles=3)
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AlignVLMProcessor
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.chat_template == saved.chat_template
    keys = ("image_token", "image_token_id", "token_rows", "token_cols", "token_order", "row_end")
    assert [getattr(loaded, key) for key in keys] == [getattr(saved, key) for key in keys]
    texts = [IMG, f"{IMG}{IMG} and text"]
    before, after = (
        p(images=images, text=texts, padding=True, return_tensors="pt") for p in (saved, loaded)
    )
    for key in before:
        assert torch.equal(before[key], after[key]), key


def test_tiling_settings_of_a_call(processor, make_image):
    page = make_image(56, 56)
    batch = processor(images=[page], text=[IMG], max_tiles=1)
    assert count(batch, processor) == [4]
    batch = processor(images=[page], text=[IMG], images_kwargs={"thumbnail": True})
    assert count(batch, processor) == [20]
    told = processor._get_num_multimodal_tokens(image_sizes=[(56, 56)], max_tiles=1)
    assert told["num_image_tokens"] == [4]


def test_pages_of_many_cells_raise_no_warning(make_config, make_processor, make_tokenizer, caplog):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    processor = make_processor(make_config(), tokenizer)
    page = Image.new("RGB", (56, 56), "white")
    batch = processor(images=[page], text=[IMG + " what is it?"], padding=True)
    assert len(batch["input_ids"][0]) > 8
    content = [{"type": "image", "image": page}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert "longer than" not in caplog.text
