"""``alignvlm prune``: which ids stay, what is measured, what is written, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command import Run
from transformers import AutoModelForImageTextToText, AutoProcessor

from alignvlm.errors import ConfigError
from alignvlm.inference.ask import ask
from alignvlm.vocabulary.pruning import Question, prune_model, save_pruned
from alignvlm.vocabulary.usage import spelling_ids, top_vocabulary

KEEP = 300


@pytest.fixture
def model(make_model: Any) -> Any:
    return make_model("align", connector_keys={"gamma": 8.0})


@pytest.fixture
def processor(model: Any, make_processor: Any) -> Any:
    return make_processor(model.config)


def distribution(model: Any, processor: Any, images: list[Any]) -> torch.Tensor:
    """P_vocab of all visual tokens of all pages."""
    pixels = [processor.image_processor([i], return_tensors="pt")["pixel_values"] for i in images]
    features = model.model.encode_tiles(torch.cat(pixels))
    return model.model.connector.vocab_distribution(features).flatten(0, -2)


# --- which ids -----------------------------------------------------------------------------------


def test_everything_can_still_be_spelled(model, processor):
    ids = spelling_ids(model.config, processor.tokenizer)
    assert len(ids) >= 256 and model.config.blank_token_id in ids
    vocabulary = {i: t for t, i in processor.tokenizer.get_vocab().items() if i in set(ids)}
    assert all(len(token) == 1 for token in vocabulary.values())
    text = "Größe: 5 µm\n漢字"
    single = [vocabulary_id for b in text.encode() for vocabulary_id in [byte_ids(processor)[b]]]
    assert set(single) <= set(ids)
    assert processor.tokenizer.decode(single) == text


def byte_ids(processor: Any) -> dict[int, int]:
    """Id of each byte's token, from what the tokenizer says decoding it gives."""
    tokenizer = processor.tokenizer
    backend, found = tokenizer.backend_tokenizer.pre_tokenizer, {}
    for byte in range(128):
        token = "".join(piece for piece, _ in backend.pre_tokenize_str(chr(byte)))
        found[byte] = tokenizer.convert_tokens_to_ids(token)
    for point in range(128, 0x800):  # two bytes each; the second cycles, the first climbs
        token = "".join(piece for piece, _ in backend.pre_tokenize_str(chr(point)))
        for byte, piece in zip(chr(point).encode(), token, strict=True):
            found[byte] = tokenizer.convert_tokens_to_ids(piece)
    for point in range(0x800, 0x10000, 0x400):
        if not 0xD800 <= point < 0xE000:
            token = "".join(piece for piece, _ in backend.pre_tokenize_str(chr(point)))
            for byte, piece in zip(chr(point).encode(), token, strict=True):
                found[byte] = tokenizer.convert_tokens_to_ids(piece)
    return found


def test_sentencepiece_bytes_count_as_single_bytes(model):
    class Tokenizer:
        all_special_ids = [0]

        def get_vocab(self) -> dict[str, int]:
            return {"<s>": 0, "<0x41>": 1, "the": 2, "<0x4>": 3, "b": 4, "<0xff>": 5, "é": 6}

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [7]

    model.config.blank_token_id = None
    assert spelling_ids(model.config, Tokenizer()) == [1, 4, 5, 6, 7]


def test_the_most_used_ids_stay(model, processor, images):
    p = distribution(model, processor, images)
    always = spelling_ids(model.config, processor.tokenizer)
    mass = p.sum(0)
    mass[always] = torch.inf
    wanted = sorted(mass.topk(KEEP).indices.tolist())
    report = prune_model(model, processor, images, KEEP)
    assert model.model.connector.token_ids.tolist() == wanted
    assert report.always_kept == len(always) and report.kept == KEEP
    assert report.before == report.vocabulary == p.shape[1]
    assert report.pages == 3 and report.visual_tokens == len(p)
    assert report.mass_kept == pytest.approx(p[:, wanted].sum(-1).mean().item(), abs=1e-6)


# --- what changes --------------------------------------------------------------------------------


def test_measured_against_the_definition(model, processor, images):
    p = distribution(model, processor, images).double()
    blank = int(p.argmax(-1)[0])  # so that some visual tokens are blank and others are not
    model.config.blank_token_id = blank
    report = prune_model(model, processor, images, KEEP)
    ids = model.model.connector.token_ids
    q = distribution(model, processor, images).double()
    config = model.model.connector.config
    assert config.full_statistics and model.config.connector == config
    model.model.connector.config = config.model_copy(update={"full_statistics": False})
    naive = distribution(model, processor, images).double()
    text = p.argmax(-1) != blank
    assert 0 < text.sum() < len(text)
    for change, new in ((report.pruned, q), (report.naive, naive)):
        kl = torch.special.xlogy(new[:, ids], new[:, ids] / p[:, ids]).sum(-1).mean().item()
        changed = new.argmax(-1) != p.argmax(-1)
        assert change.kl == pytest.approx(kl, rel=1e-4, abs=1e-7)
        assert change.top_changed == pytest.approx(changed.double().mean().item())
        assert change.text_top_changed == pytest.approx(changed[text].double().mean().item())
    # renormalising alone: KL is what the kept mass says
    assert report.pruned.kl == pytest.approx(-p[:, ids].sum(-1).log().mean().item(), rel=1e-4)
    assert report.naive.kl > report.pruned.kl  # which no other distribution on these ids beats


def test_answers_before_after_and_naively(model, processor, images):
    asked = [Question(f"page {n}", [image], "what?") for n, image in enumerate(images)]
    seen = []

    def answer(pages: list[Any], text: str) -> str:
        connector = model.model.connector
        seen.append((pages, text))
        naive = connector.token_ids is not None and not connector.config.full_statistics
        return "other" if naive and pages[0] is images[1] else "same"

    report = prune_model(model, processor, images, KEEP, asked, answer)
    assert seen == [([image], "what?") for _ in range(3) for image in images]
    assert (report.questions, report.pruned.same_answers, report.naive.same_answers) == (3, 3, 2)
    assert report.answers == [
        {"where": "page 1", "question": "what?", "before": "same", "pruned": "same",
         "naive": "other"},
    ]  # fmt: skip


def test_parameters_bytes_and_times(model, processor, images):
    before = sum(p.numel() for p in model.parameters())
    rows = model.model.connector.w2.out_features
    report = prune_model(model, processor, images, KEEP)
    width = model.config.text_config.hidden_size
    assert report.parameters == (before, before - (rows - KEEP) * (width + 2))
    saved = sum(t.numel() * t.itemsize for t in model.state_dict().values())
    tied = model.lm_head.weight.numel() * 4  # counted once
    assert report.bytes[1] == pytest.approx(saved - tied, rel=0.01)
    assert report.bytes[0] > report.bytes[1]
    assert min(report.connector_ms) > 0
    assert report.connector_tokens == 8


def test_a_connector_without_the_outer_norm_has_no_naive_variant(make_model, processor, images):
    model = make_model("align", connector_keys={"outer_norm": False})
    report = prune_model(model, processor, images, KEEP)
    assert report.naive is None and "naive" not in report.to_text()


def test_pruning_again(model, processor, images):
    prune_model(model, processor, images, 350)
    report = prune_model(model, processor, images, KEEP)
    assert (report.vocabulary, report.before, report.kept) == (
        model.config.connector_vocab_size, 350, KEEP,
    )  # fmt: skip
    assert report.naive.kl > report.pruned.kl  # the whole vocabulary's statistics are still there


def test_what_cannot_be_pruned(model, processor, images, make_model, make_processor):
    with pytest.raises(ConfigError, match="cannot keep 100 vocabulary ids: blank, newline"):
        prune_model(model, processor, images, 100)
    with pytest.raises(ConfigError, match="no page"):
        prune_model(model, processor, [], KEEP)
    with pytest.raises(ConfigError, match="not an iterator"):
        prune_model(model, processor, iter(images), KEEP)
    assert model.model.connector.token_ids is None


def test_an_interrupted_save_leaves_nothing(model, processor, images, tmp_path, monkeypatch):
    report = prune_model(model, processor, images, KEEP)

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pruned(model, processor, report, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def run(command: Run) -> Run:
    """``run("model", ...)``: ``alignvlm prune`` in this process."""
    return partial(command, "prune")


@pytest.fixture
def pages(images: list[Any], tmp_path: Path) -> Path:
    """A folder of two pictures (one deeper), a PDF of two pages, and what is no document."""
    folder = tmp_path / "pages"
    (folder / "deeper").mkdir(parents=True)
    images[0].save(folder / "a.png")
    images[1].save(folder / "deeper" / "b.PNG")
    images[2].save(folder / "c.pdf", save_all=True, append_images=[images[0]])
    (folder / "notes.txt").write_text("not a page")
    return folder


def test_prune_writes_a_model_that_loads(run, pages, tiny_model_dir, tmp_path, make_image):
    out = tmp_path / "new" / "pruned"
    keys = ("--keep", KEEP, "--data", pages, "--out", out, "--max-new-tokens", 4, "--dpi", 72)
    result = run(tiny_model_dir, *keys, "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed["out"] == str(out) and len(printed["files"]) == 3
    assert (printed["pages"], printed["questions"]) == (4, 4)
    written = json.loads((out / "pruning.json").read_text("utf-8"))
    assert written == {key: value for key, value in printed.items() if key != "out"}
    assert written["model"] == str(tiny_model_dir) and written["kept"] == KEEP
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.connector.kept_tokens == KEEP and model.config.connector.full_statistics
    processor = AutoProcessor.from_pretrained(out)
    assert ask(model, processor, [make_image(56, 28)], "what?", max_new_tokens=2).new_tokens == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["pruned"]


def test_prune_for_people(run, pages, tiny_model_dir, tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"image": "pages/a.png", "question": "how much?"}\n')
    result = run(
        tiny_model_dir, "--keep", KEEP, "--out", "o", "--questions", "qa.jsonl",
        "--max-new-tokens", 2, "--data", pages / "a.png", pages / "c.pdf", "--pages", "1",
    )  # fmt: skip
    assert result.code == 0, result.err
    for words in ("300 of 4", "of 2 page(s)", "blank, newline, single bytes", "of 1", "naive"):
        assert words in result.out
    assert result.out.endswith("model written to o\n")


def test_prune_refuses(run, pages, tiny_model_dir, tmp_path, make_model, make_processor):
    def refused(*words: str, model: Any = tiny_model_dir, **keys: Any) -> None:
        given = {"keep": KEEP, "data": pages, "out": "out", "max-questions": 0, **keys}
        result = run(model, *(x for key, value in given.items() for x in (f"--{key}", value)))
        assert result.code == 2 and result.out == "", result
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        assert all(word in result.err for word in words), result.err
        assert not Path("out").exists()

    refused("cannot keep 9999 of", keep=9999)
    refused("always kept", keep=5)
    refused("exists already", out=tmp_path)
    refused("no-such.png", data="no-such.png")
    refused("no-such.jsonl", questions="no-such.jsonl", **{"max-questions": 1})
    (tmp_path / "empty").mkdir()
    refused("empty", "no PDF and no picture", data="empty")
    mlp = make_model("mlp")
    mlp.save_pretrained("mlp")
    make_processor(mlp.config).save_pretrained("mlp")
    refused("'align' connector", "'mlp'", model="mlp")
    small = make_model("align")
    small.model.prune_vocabulary(torch.arange(290))
    small.save_pretrained("small")
    make_processor(small.config).save_pretrained("small")
    refused("cannot keep 300 of 290", "400 were pruned to 290", model="small")


def test_top_vocabulary_keeps_its_promise(model, processor, images):
    """Without the spelling rule: ``eval --prune`` asks for the very smallest vocabularies."""
    assert len(top_vocabulary(model, processor, images, 3)) == 3
