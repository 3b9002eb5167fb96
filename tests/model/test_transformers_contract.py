"""What transformers' own suites ask of a model and a processor, on tiny models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.blanks import between_marks
from tests.conftest import tiny_text_config
from transformers import LlamaForCausalLM, StaticCache

from alignvlm import AlignVLMForConditionalGeneration
from alignvlm.errors import AlignVLMError

IMG = "<empty_output>"
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}


@pytest.fixture
def make_batch(make_processor, make_image):
    """``make_batch(model, images of each prompt)``."""

    def make(model: Any, *counts: int, **keys: Any) -> Any:
        pages = [make_image(56, 28, seed) for seed in range(sum(counts))]
        texts = [IMG * count + " what what what?"[: 6 + 5 * count] for count in counts]
        images = pages or None
        processor = make_processor(model.config, **keys)
        return processor(images=images, text=texts, padding=True, return_tensors="pt")

    return make


def drop_half(model: Any, batch: Any) -> Any:
    """The model drops the blanker half of the batch's visual tokens."""
    features = model.model.encode_tiles(batch["pixel_values"])
    blank = model.model.connector.vocab_distribution(features)[..., model.config.blank_token_id]
    model.config.blank_threshold = between_marks(blank)
    return model


def new_tokens(model: Any, batch: Any, **keys: Any) -> list[list[int]]:
    output = model.generate(**batch, **{**GREEDY, **keys})
    assert torch.equal(output[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    return output[:, batch["input_ids"].shape[1] :].tolist()


# --- generation --------------------------------------------------------------------------------


@pytest.mark.parametrize("drops", [False, True])
def test_drafts_and_chunks_change_no_text(make_model, make_batch, tokenizer, drops):
    model = make_model()
    batch = make_batch(model, 2)
    if drops:
        drop_half(model, batch)
    greedy = new_tokens(model, batch)
    torch.manual_seed(1)
    assistants = [LlamaForCausalLM(tiny_text_config(tokenizer)).eval(), make_model(seed=1)]
    for assistant in assistants:
        assert new_tokens(model, batch, assistant_model=assistant) == greedy
    assert new_tokens(model, batch, prompt_lookup_num_tokens=3) == greedy
    assert new_tokens(model, batch, prefill_chunk_size=5) == greedy
    several = make_batch(model, 1, 0, 2)
    assert new_tokens(model, several, prefill_chunk_size=5) == new_tokens(model, several)


def test_drafts_for_embeddings_are_refused(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, 1)
    prompt = drop_half(model, batch).compact_prompt(**batch)
    for keys in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": model}):
        with pytest.raises(AlignVLMError, match="need input_ids and pixel_values"):
            model.generate(**prompt, **GREEDY, **keys)


def test_the_padding_of_a_short_prompt_is_no_placeholder(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, 1, 2)
    short = drop_half(model, batch).compact_prompt(**batch)
    assert (short["attention_mask"] == 0).any()
    assert (short["input_ids"][short["attention_mask"] == 0] != model.config.image_token_id).all()


@pytest.mark.parametrize("by_config", [False, True])
def test_lengths_count_the_prompt_that_was_given(make_model, make_batch, by_config):
    model = make_model()
    batch = make_batch(model, 1)
    drop_half(model, batch)
    length = batch["input_ids"].shape[1]
    greedy = new_tokens(model, batch)
    lengths = {"max_length": length + 4}
    keys = {"do_sample": False, "eos_token_id": -1}
    if by_config:
        model.generation_config.max_length = length + 4
        lengths = {}
    output = model.generate(**batch, **keys, **lengths)
    assert output.shape[1] == length + 4
    assert output[0, length:].tolist() == greedy[0][:4]
    # the first token would end it, were it not too early
    keys["eos_token_id"] = greedy[0][0]
    assert model.generate(**batch, **keys, **lengths).shape[1] == length + 1
    early = model.generate(**batch, **keys, **lengths, min_length=length + 3)
    assert early.shape[1] >= length + 3


def test_beams_with_dropping_equal_one_by_one(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, 1, 0, 2)
    drop_half(model, batch)
    together = new_tokens(model, batch, num_beams=2)
    for row, (images, first) in enumerate([(1, 0), (0, 0), (2, 1)]):
        own = make_batch(model, images)
        if images:
            tiles = 2 * first, 2 * (first + images)
            own["pixel_values"] = batch["pixel_values"][slice(*tiles)]
        assert new_tokens(model, own, num_beams=2) == [together[row]]


@pytest.mark.parametrize("drops", [False, True])
def test_a_static_cache_and_compiled_decoding(make_model, make_batch, drops):
    model = make_model()
    batch = make_batch(model, 1)
    if drops:
        drop_half(model, batch)
    greedy = new_tokens(model, batch)
    assert new_tokens(model, batch, cache_implementation="static") == greedy
    assert model._can_compile_fullgraph
    step = torch.compile(model.forward, fullgraph=True, backend="eager")
    ids = torch.tensor([[7]])
    logits = []
    for forward in (model, step):
        cache = StaticCache(config=model.config.text_config, max_cache_len=16)
        with torch.no_grad():
            forward(torch.tensor([[5]]), cache=cache, position_ids=torch.tensor([[0]]))
            logits.append(forward(ids, cache=cache, position_ids=torch.tensor([[1]])).logits)
    torch.testing.assert_close(logits[0], logits[1])


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("drops", [False, True])
def test_hidden_states_and_attentions_have_the_length_of_the_logits(make_model, make_batch, drops):
    model = make_model()
    model.set_attn_implementation("eager")
    batch = make_batch(model, 1, 2)
    if drops:
        drop_half(model, batch)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    size = batch["input_ids"].shape
    assert output.logits.shape[:2] == size
    assert {state.shape[:2] for state in output.hidden_states} == {size}
    assert {tuple(a.shape[i] for i in (0, 2, 3)) for a in output.attentions} == {(*size, size[1])}
    torch.testing.assert_close(output.logits, model.logits(output.hidden_states[-1]))
    if drops:
        with torch.no_grad():  # as above: the op rounds otherwise where gradients are wanted
            merged = model.model.merge(
                **{k: v for k, v in batch.items() if k != "mm_token_type_ids"}
            )
        for row, kept in enumerate(merged.kept):
            gone = torch.ones(size[1], dtype=torch.bool)
            gone[kept] = False
            assert gone.any() and not output.hidden_states[1][row, gone].any()
            attention = output.attentions[0][row]
            assert not attention[:, gone].any() and not attention[:, :, gone].any()
            torch.testing.assert_close(attention[:, kept].sum(-1), torch.ones(2, len(kept)))


def test_tuples_equal_outputs(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, 1)
    images = {key: batch[key] for key in ("pixel_values", "image_grids")}
    with torch.no_grad():
        for call, given in (
            (model, batch),
            (model.model, batch),
            (model.get_image_features, images),
            (model.model.get_image_features, images),
        ):
            output, values = call(**given), call(**given, return_dict=False)
            assert isinstance(values, tuple)
            assert len(values) == len([v for v in output.values() if v is not None])
            assert torch.equal(values[0], output[0])


def test_image_features_hand_on_the_encoders_states(make_model, make_batch):
    model = make_model()
    model.set_attn_implementation("eager")
    batch = make_batch(model, 1)
    images = batch["pixel_values"], batch["image_grids"]
    with torch.no_grad():
        plain = model.get_image_features(*images)
        full = model.get_image_features(*images, output_hidden_states=True, output_attentions=True)
        seen = model.model.vision_model(
            images[0], output_hidden_states=True, output_attentions=True
        )
    assert plain.hidden_states is None and plain.attentions is None
    assert len(full.hidden_states) == len(seen.hidden_states) == 3
    assert len(full.attentions) == 2
    for ours, theirs in zip(full.hidden_states, seen.hidden_states, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["align", "perceiver"])
def test_images_encoded_before(make_model, make_batch, name):
    model = make_model(name)
    batch = make_batch(model, 1, 2)
    pixels = {key: batch.pop(key) for key in ("pixel_values", "image_grids")}
    with torch.no_grad():
        encoded = model.get_image_features(**pixels)
        given = {"mm_encoder_outputs": {"image": encoded}}
        output, expected = model(**batch, **given), model(**batch, **pixels)
        assert torch.equal(output.logits, expected.logits)
        assert output.image_outputs is encoded
        for ours, theirs in zip(
            expected.image_outputs.pooler_output, encoded.pooler_output, strict=True
        ):
            assert torch.equal(ours, theirs)
        assert torch.equal(torch.cat(encoded.pooler_output), expected.image_hidden_states)
        said = model.generate(**batch, **given, **GREEDY)
        assert torch.equal(said, model.generate(**batch, **pixels, **GREEDY))
        with pytest.raises(AlignVLMError, match="one of pixel_values and mm_encoder_outputs"):
            model(**batch, **pixels, **given)
        encoded.pooler_output = encoded.pooler_output[:-1]
        with pytest.raises(AlignVLMError, match="image placeholders, their images give"):
            model(**batch, **given)


@pytest.mark.parametrize("skip", [False, True])
def test_shifted_labels_are_the_targets(make_model, make_batch, skip):
    model = make_model()
    batch = make_batch(model, 1)
    labels = batch["input_ids"].clone()
    labels[labels == model.config.image_token_id] = -100
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    expected = model(**batch, labels=labels).loss
    assert torch.isclose(model(**batch, shift_labels=shifted, skip_logits=skip).loss, expected)
    # the last position of a part of a sequence has its target in the next part
    shifted[:, -1] = 9
    both = model(**batch, labels=labels, shift_labels=shifted, skip_logits=skip).loss
    logits = model(**batch).logits[0].log_softmax(-1)
    at = shifted[0] != -100
    by_hand = -logits[at].gather(1, shifted[0, at, None]).mean()
    assert torch.isclose(both, by_hand)
    assert not torch.isclose(both, expected)


# --- vocabulary, tiles, devices ----------------------------------------------------------------


def test_only_align_holds_the_vocabulary(make_model, make_batch, tmp_path):
    mlp = make_model("mlp")
    mlp.resize_token_embeddings(380)
    assert mlp.config.connector_vocab_size == 380
    mlp.save_pretrained(tmp_path)
    again = AlignVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == 380
    with pytest.raises(AlignVLMError, match="image placeholder's id is 3"):
        again.resize_token_embeddings(3)
    align = make_model()
    for model in (align, align.model):
        with pytest.raises(AlignVLMError, match="P_vocab covers 400 rows"):
            model.resize_token_embeddings(380)


def test_tiles_that_the_grids_do_not_name(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, 1, 1)
    for tiles in (3, 8):
        batch["pixel_values"] = batch["pixel_values"].repeat(3, 1, 1, 1)[:tiles]
        images = {key: batch[key] for key in ("pixel_values", "image_grids")}
        generate = (model.generate, {**batch, **GREEDY})
        calls = ((model, batch), generate, (model.get_image_features, images))
        for call, given in calls:
            with pytest.raises(AlignVLMError, match=f"ask for 4 tiles, pixel_values has {tiles}"):
                call(**given)


@pytest.mark.parametrize(
    ("name", "tied", "parts"),
    [
        ("align", False, ["model.connector"]),
        ("align", False, ["model.connector", "model.language_model.embed_tokens"]),
        ("align", True, ["model.language_model.embed_tokens", "lm_head"]),
        ("ovis", False, ["model.connector"]),
        ("c_abstractor", False, ["model.connector"]),
    ],
)
def test_parts_kept_on_disk(make_model, make_batch, tmp_path, name, tied, parts):
    """ALIGN reads W2, gamma, beta and the table without a call of the layers that own them."""
    model = make_model(name, text={"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path / "model")
    text = ("embed_tokens", "layers", "norm", "rotary_emb")
    places = [f"model.language_model.{part}" for part in text]
    places += ["model.vision_model", "model.connector", "lm_head"]
    disk = AlignVLMForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        device_map={place: "disk" if place in parts else "cpu" for place in places},
        offload_folder=tmp_path / "disk",
    )
    away = {n for n, p in disk.named_parameters() if p.is_meta}
    assert away and all(name.startswith(tuple(parts)) for name in away)
    batch = make_batch(model, 1)
    with torch.no_grad():
        assert torch.equal(disk(**batch).logits, model(**batch).logits)
        assert new_tokens(disk, batch) == new_tokens(model, batch)
        if name == "align":
            features = model.model.encode_tiles(batch["pixel_values"])
            top, expected = (m.model.connector.top_tokens(features, 3) for m in (disk, model))
            assert torch.equal(top[1], expected[1])
    assert away <= {n for n, p in disk.named_parameters() if p.is_meta}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_two_processes_share_the_weights(make_model, make_batch, tmp_path, tied):
    """ALIGN needs the whole of the table that tensor parallelism shards."""
    model = make_model(text={"tie_word_embeddings": tied, "num_key_value_heads": 2})
    model.save_pretrained(tmp_path / "model")
    batch = make_batch(model, 1)
    torch.save(dict(batch), tmp_path / "batch.pt")
    script = Path(__file__).with_name("two_shards.py")
    files = [tmp_path / name for name in ("model", "batch.pt", "logits.pt")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*torchrun, "--nproc-per-node", "2", script, *files], check=True, timeout=300)
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(torch.load(files[2], weights_only=True), expected)
