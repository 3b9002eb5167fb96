"""``ask`` and ``embed`` from the shell, with a tiny model that has learnt its pages by heart."""

from __future__ import annotations

import base64
import gc
import io
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import typer
from PIL import Image
from safetensors import safe_open
from tests.documents.test_pages import pdf as encrypted_pdf
from transformers import AutoConfig
from typer.testing import CliRunner, Result

from alignvlm import AlignVLMForConditionalGeneration
from alignvlm.cli.answers import ask, embed
from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.records import make_record
from alignvlm.data.sources import RenderSource
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.documents.opening import PdfDocument
from alignvlm.documents.page_images import PageImage
from alignvlm.documents.words import Word
from alignvlm.errors import AlignVLMError, DataError
from alignvlm.inference import ask as ask_module
from alignvlm.processing import image_processor

PAGES = 4
QUESTION = "Which word?"
VISION = {
    "image_size": [28, 56], "patch_size": 7, "num_stages": 2, "hidden_sizes": [24, 48],
    "depths": [1, 1], "layer_scale_init_value": 0.1,
}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 96, "initializer_range": 0.2}


class Learnt(NamedTuple):
    """A saved model, its pages, and of each page the word that is its answer."""

    model: Path
    images: list[Image.Image]
    words: list[Word]


@pytest.fixture(scope="module")
def learnt(
    make_config: Callable[..., Any],
    make_processor: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Learnt:
    """Trained on what stands under each cell and on answers, until both are right."""
    torch.manual_seed(0)
    vision = AutoConfig.for_model("convnext", **VISION)
    model = AlignVLMForConditionalGeneration(make_config(vision=vision, text=TEXT))
    processor = make_processor(model.config, max_tiles=2)
    spec = RenderSpec(
        layout="text", width=112, height=28, font_px=(14, 14), fonts=("DejaVuSans",), margin=2
    )
    source = RenderSource(spec, PAGES)
    samples, images, answers = [], [], []
    for index in range(PAGES):
        page = source[index]
        word = max(page.words[0], key=lambda word: len(word["text"]))
        record = make_record(str(index), page.images, [(QUESTION, word["text"])], source="t")
        record = record.model_copy(update={"words": page.words})
        sample = encode.encode(record, processor)
        sample["vocab_targets"] = encode.vocab_targets(
            record, sample["image_grids"], model.config, processor.tokenizer, model.model.connector
        )
        samples.append(sample)
        images.append(page.images[0])
        answers.append(word)
    batch = Collator(processor.tokenizer.pad_token_id)(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    model.train()
    for _ in range(400):
        loss = model(**batch, use_cache=False, skip_logits=True).loss
        if loss.item() < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    else:
        pytest.fail(f"the model did not learn its pages: loss {loss.item():.2f}")
    folder = tmp_path_factory.mktemp("learnt")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Learnt(folder, images, answers)


@pytest.fixture
def run() -> Iterator[Callable[..., Result]]:
    """The two verbs as cli.py registers them."""
    transformers.logging.disable_progress_bar()  # as cli.py does
    app = typer.Typer()
    app.command()(ask)
    app.command()(embed)

    def call(*arguments: Any, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)

    yield call
    transformers.logging.enable_progress_bar()


def answered(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, (result.exception, result.output)
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def refused(result: Result, *words: str) -> None:
    """One line for a person, which cli.py prints; nothing before it."""
    assert isinstance(result.exception, AlignVLMError), (result.exception, result.output)
    assert result.stdout == ""
    for word in words:
        assert word in str(result.exception)


@pytest.fixture
def page(learnt: Learnt, tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    learnt.images[0].copy().save(path)  # Pillow notes PNG settings on what it saves
    return path


@pytest.fixture
def tiff(learnt: Learnt, tmp_path: Path) -> Path:
    path = tmp_path / "pages.tif"
    first, *more = learnt.images
    first.save(path, save_all=True, append_images=more)
    return path


@pytest.fixture
def pdf(learnt: Learnt, tmp_path: Path) -> Path:
    """Each px of a page is half a point, so 144 dpi gives the pixels back."""
    path = tmp_path / "pages.pdf"
    first, *more = (image.convert("L") for image in learnt.images)
    first.save(path, save_all=True, append_images=more, resolution=144, quality=100)
    return path


def overlaps(box: list[float], word: Any) -> bool:
    x0, y0, x1, y1 = word["box"]
    return box[0] < x1 and x0 < box[2] and box[1] < y1 and y0 < box[3]


def test_the_answer_and_its_source(run, learnt, page):
    word = learnt.words[0]
    result = run("ask", learnt.model, page, QUESTION)
    assert result.stdout == f"{word['text']}\nsource: {page} page 1 ({word['text']})\n"
    assert result.stderr == ""
    data = answered(run("ask", learnt.model, page, QUESTION, "--json"))
    assert data["answer"] == word["text"]
    assert data["question"] == QUESTION
    assert data["files"] == [str(page)]
    assert data["pages"] == data["source"] == [{"file": str(page), "page": 1}]
    assert -0.5 < data["log_probability"] <= 0
    assert data["left_out"] is None
    assert "boxes" not in data
    assert 0 < data["prefill_ms"] <= data["total_ms"]
    quick = run("ask", learnt.model, page, QUESTION, "--no-cite")
    assert quick.stdout == f"{word['text']}\n"
    assert "source" not in answered(run("ask", learnt.model, page, QUESTION, "--no-cite", "--json"))


def test_boxes_lie_on_the_word(run, learnt, page, pdf):
    for number, word in enumerate(learnt.words, start=1):
        data = answered(
            run("ask", learnt.model, pdf, QUESTION, "--pages", number, "--boxes", "--json")
        )
        assert data["answer"] == word["text"]
        (found,) = data["boxes"]
        assert (found["word"], found["page"], found["file"]) == (word["text"], number, str(pdf))
        assert overlaps(found["box"], word)
        assert found["points"] == [value / 2 for value in found["box"]]
        assert 0.75 <= found["score"] <= 1
    (found,) = answered(run("ask", learnt.model, page, QUESTION, "--boxes", "--json"))["boxes"]
    assert found["points"] is None
    printed = run("ask", learnt.model, pdf, QUESTION, "--pages", 1, "--boxes").stdout.splitlines()
    assert printed[2].startswith(f"  {learnt.words[0]['text']}: page 1, ")
    assert " px, " in printed[2]
    assert " pt; score " in printed[2]


@pytest.mark.parametrize("kind", ["tiff", "pdf"])
def test_each_page_by_itself_the_surest_first(run, learnt, request, kind):
    path = request.getfixturevalue(kind)
    data = answered(run("ask", learnt.model, path, QUESTION, "--each", "--json"))
    said = {entry["pages"][0]["page"]: entry for entry in data["answers"]}
    assert sorted(said) == [1, 2, 3, 4]
    for number, word in enumerate(learnt.words, start=1):
        assert said[number]["answer"] == word["text"]
        assert said[number]["source"] == [{"file": str(path), "page": number}]
    sure = [entry["log_probability"] for entry in data["answers"]]
    assert sure == sorted(sure, reverse=True)
    lines = run("ask", learnt.model, path, QUESTION, "--each").stdout.splitlines()
    best = data["answers"][0]
    number = best["pages"][0]["page"]
    assert lines[0].startswith(f"* {path} page {number} (mean log-probability -")
    assert lines[0].endswith(f": {best['answer']}")
    assert lines[1] == f"    source: {path} page {number} ({best['answer']})"
    assert [line[0] for line in lines[::2]] == ["*", " ", " ", " "]


def test_each_page_is_forgotten_when_it_has_been_asked_about(run, learnt, tiff, monkeypatch):
    asked: list[weakref.ref[PageImage]] = []
    living: list[int] = []
    own = ask_module.ask

    def counted(model: Any, processor: Any, pages: list[PageImage], *args: Any, **keys: Any) -> Any:
        gc.collect()
        living.append(sum(page() is not None for page in asked))
        asked.extend(map(weakref.ref, pages))
        return own(model, processor, pages, *args, **keys)

    monkeypatch.setattr(ask_module, "ask", counted)
    assert run("ask", learnt.model, tiff, QUESTION, "--each").exit_code == 0
    assert living == [0, 0, 0, 0]


def test_an_empty_answer_is_never_the_best(learnt):
    from types import SimpleNamespace

    from alignvlm.cli.answers import _rank

    given = [SimpleNamespace(text="", log_probability=0.0),
             SimpleNamespace(text="no", log_probability=-2.0),
             SimpleNamespace(text="yes", log_probability=-1.0)]  # fmt: skip
    assert [a.text for a, *_ in sorted(((a, 0, 0) for a in given), key=_rank)] == ["yes", "no", ""]


def test_all_pages_in_one_prompt(run, learnt, tiff):
    one, four = (
        answered(run("ask", learnt.model, tiff, QUESTION, "--pages", pages, "--json"))
        for pages in ("1", "1-4")
    )
    assert four["visual_tokens"] == 4 * one["visual_tokens"]
    assert [entry["page"] for entry in four["pages"]] == [1, 2, 3, 4]


def test_folders_and_standard_input(run, learnt, page, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, image in enumerate(learnt.images):
        image.copy().save(folder / f"{number}.png")
    data = answered(run("ask", learnt.model, folder, QUESTION, "--each", "--json"))
    said = {Path(e["pages"][0]["file"]).stem: e["answer"] for e in data["answers"]}
    assert said == {str(n): word["text"] for n, word in enumerate(learnt.words)}
    result = run("ask", learnt.model, "-", QUESTION, stdin=page.read_bytes())
    word = learnt.words[0]["text"]
    assert result.stdout == f"{word}\nsource: stdin page 1 ({word})\n"
    refused(run("ask", learnt.model, "-", QUESTION, stdin=b"text"), "stdin: not an image")


def test_pages_left_out_are_named(run, learnt, tiff):
    result = run("ask", learnt.model, tiff, tiff, QUESTION, "--max-pages", 3)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: 5 of 8 pages left out: ")
    assert result.stderr.count("\n") == 1
    data = answered(run("ask", learnt.model, tiff, QUESTION, "--max-pages", 1, "--json"))
    assert "pages 2-4" in data["left_out"]
    assert len(data["pages"]) == 1
    nine = run("ask", learnt.model, tiff, tiff, tiff, QUESTION, "--max-new-tokens", 1)
    assert "4 of 12 pages left out" in nine.stderr


def test_damaged_files_of_a_folder_are_named(run, learnt, page, tmp_path):
    (folder := tmp_path / "mixed").mkdir()
    (folder / "a.png").write_bytes(page.read_bytes()[:-300])  # opens, and does not decode
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 and nothing else")
    refused(run("ask", learnt.model, folder, QUESTION), "no file can be read; the first", "b.pdf")
    for good in ("0.png", "c.png"):  # what was answered before must not be lost
        (folder / good).write_bytes(page.read_bytes())
    for each in ((), ("--each",)):
        result = run("ask", learnt.model, folder, QUESTION, "--json", *each)
        data = answered(result)
        assert [Path(file).name for file in data["unreadable"]] == ["b.pdf", "a.png"]
        shown = [a["pages"][0] for a in data["answers"]] if each else data["pages"]
        assert sorted(Path(place["file"]).name for place in shown) == ["0.png", "c.png"]
        notes = result.stderr.splitlines()
        assert len(notes) == 2 and all(note.startswith("note: ") for note in notes), notes
        assert "b.pdf: not a PDF" in notes[0] and "a.png: the image is truncated" in notes[1]


@pytest.mark.parametrize("how", ["opens", "does not open", "is not there"])
def test_a_bad_file_named_outright_does_not_lose_the_answers_of_others(
    run, learnt, page, tmp_path, how
):
    bad, other = tmp_path / "bad.png", tmp_path / "other.png"
    other.write_bytes(page.read_bytes())
    if how != "is not there":
        bad.write_bytes(page.read_bytes()[:-300] if how == "opens" else b"text")
    given = ("ask", learnt.model, page, bad, other, QUESTION, "--each")
    result = run(*given)
    assert f"{bad}: " in str(result.exception) and isinstance(result.exception, DataError)
    lines = result.stdout.splitlines()
    assert [line[: line.index(" page")] for line in lines[::2]] == [f"* {page}", f"  {other}"]
    assert all(line.endswith(learnt.words[0]["text"]) for line in lines[::2])
    result = run(*given, "--json")
    data = json.loads(result.stdout)
    assert list(data["unreadable"]) == [str(bad)] and len(data["answers"]) == 2
    assert str(result.exception) == data["unreadable"][str(bad)]
    assert result.stderr == ""  # app.py prints the exception, once
    refused(run("ask", learnt.model, bad, QUESTION, "--each"), f"{bad}: ")
    refused(run("ask", learnt.model, page, bad, QUESTION), f"{bad}: ")  # one prompt needs all


def test_a_page_that_cannot_be_asked_about_does_not_lose_the_answers_before(
    run, learnt, tiff, monkeypatch
):
    own, asked = ask_module.ask, []

    def fails(*given: Any, **keys: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise DataError("page 3 is odd")
        return own(*given, **keys)

    monkeypatch.setattr(ask_module, "ask", fails)
    result = run("ask", learnt.model, tiff, QUESTION, "--each", "--json")
    assert str(result.exception) == "page 3 is odd"
    assert len(json.loads(result.stdout)["answers"]) == 2


def test_pages_that_do_not_fit_the_context(run, learnt, tiff, tmp_path):
    import shutil

    shutil.copytree(learnt.model, tmp_path / "narrow")
    config = json.loads((tmp_path / "narrow" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 60
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(config))
    short = ("--max-new-tokens", 8)
    refused(run("ask", tmp_path / "narrow", tiff, QUESTION, *short), "reads 60", "--each")
    data = answered(run("ask", tmp_path / "narrow", tiff, QUESTION, "--each", "--json", *short))
    assert len(data["answers"]) == 4


def test_words_that_are_not_on_the_page(run, learnt, page, tmp_path):
    """The learnt answer to a page, given a page that does not say it."""
    Image.new("RGB", (112, 28), "white").save(tmp_path / "white.png")
    result = run("ask", learnt.model, tmp_path / "white.png", QUESTION)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        "source: none of the answer's words was found on the pages as they are read"
    )


def test_connectors_without_a_vocabulary(run, make_model, make_processor, page, tmp_path):
    model = make_model("mlp")
    model.save_pretrained(tmp_path / "mlp")
    make_processor(model.config).save_pretrained(tmp_path / "mlp")
    short = ("--max-new-tokens", 2)
    result = run("ask", tmp_path / "mlp", page, QUESTION, *short)
    assert result.stdout.splitlines()[-1] == (
        "source: unknown, this model's is 'mlp', which has no P_vocab"
    )
    assert "source" not in answered(run("ask", tmp_path / "mlp", page, QUESTION, *short, "--json"))
    refused(run("ask", tmp_path / "mlp", page, QUESTION, "--boxes"), "--boxes needs the 'align'")


def test_what_cannot_be_asked(run, learnt, page, tmp_path):
    refused(run("ask", learnt.model, page), "at least one FILE")
    refused(run("ask", learnt.model, page, "  "), "the question is empty")
    refused(run("ask", learnt.model, "gone.png", QUESTION), "gone.png: no such file")
    refused(run("ask", learnt.model, page, QUESTION, "--pages", "2"), "outside 1-1")
    refused(run("ask", learnt.model, page, QUESTION, "--boxes", "--no-cite"), "--no-cite")
    (tmp_path / "none").mkdir()
    refused(run("ask", learnt.model, tmp_path / "none", QUESTION), "no PDF and no picture")
    for files in (["-", "-"], [page, "-", "-"]):
        refused(run("ask", learnt.model, *files, QUESTION), "only once")


def test_an_encrypted_pdf_asks_for_its_password(run, learnt, tmp_path):
    locked = tmp_path / "locked.pdf"
    locked.write_bytes(encrypted_pdf(password="secret"))
    for verb, last in (("ask", (QUESTION,)), ("embed", ("--base64",))):
        refused(run(verb, learnt.model, locked, *last), "locked.pdf: ", "it with --password")
        wrong = run(verb, learnt.model, locked, *last, "--password", "none")
        refused(wrong, "this is not its password")
    right = run("ask", learnt.model, locked, QUESTION, "--dpi", 40, "--password", "secret")
    assert right.exit_code == 0


@pytest.mark.parametrize("verb", ["ask", "embed"])
def test_a_photo_as_a_pdf_is_rendered_as_large_as_is_useful(
    run, learnt, tmp_path, monkeypatch, verb
):
    """12 megapixels at 72 dpi make a page of 1.4 m, which is 48 megapixels at 144 dpi."""
    path, rendered, own = tmp_path / "photo.pdf", [], PdfDocument.render

    def noted(*given: Any) -> Image.Image:
        rendered.append(own(*given))
        return rendered[-1]

    monkeypatch.setattr(PdfDocument, "render", noted)
    monkeypatch.setattr(image_processor, "ORDINARY_PIXELS", 200_000)
    Image.new("L", (4000, 3000), 200).save(path, resolution=72)
    last = (QUESTION, "--max-new-tokens", 1) if verb == "ask" else ("--out", tmp_path / "a.pt")
    said = answered(run(verb, learnt.model, path, *last, "--json"))
    assert said["pages"] == [{"file": str(path), "page": 1}]
    (page,) = rendered
    assert 190_000 < page.width * page.height <= 200_000
    assert page.width / page.height == pytest.approx(4 / 3, abs=0.01)


def test_embed_writes_what_the_language_model_gets(run, learnt, page, tmp_path):
    out = tmp_path / "deep" / "page.safetensors"
    said = answered(run("embed", learnt.model, page, "--out", out, "--json"))
    assert said["tokens"] == said["visual_tokens"] + 2  # a newline ends each of two rows
    assert said["out"] == str(out)
    with safe_open(out, "pt") as file:
        alone = file.get_tensor("prompt_embeds")
        assert file.metadata() == {
            "model": str(learnt.model), "dtype": "float32", "pages": f"{page} page 1",
        }  # fmt: skip
    assert alone.dtype == torch.float32
    assert alone.shape == (said["tokens"], 48)
    asked = answered(run("ask", learnt.model, page, QUESTION, "--json"))
    whole = run("embed", learnt.model, page, "--question", QUESTION, "--out", tmp_path / "a.pt")
    assert whole.exit_code == 0
    assert f"{asked['prompt_tokens']} tokens of 48" in whole.stdout
    assert whole.stdout.endswith(f"wrote {tmp_path / 'a.pt'}\n")
    written = torch.load(tmp_path / "a.pt", weights_only=True)
    assert written.shape == (asked["prompt_tokens"], 48)
    printed = run("embed", learnt.model, page, "--question", QUESTION, "--base64").stdout.strip()
    sent = torch.load(io.BytesIO(base64.b64decode(printed, validate=True)), weights_only=True)
    assert torch.equal(sent, written)


def test_embed_writes_a_content_part_of_vllms_chat(run, learnt, page, tmp_path):
    printed = json.loads(run("embed", learnt.model, page, "--format", "vllm-chat").stdout)
    assert set(printed) == {"type", "data"}
    assert printed["type"] == "prompt_embeds"
    sent = torch.load(
        io.BytesIO(base64.b64decode(printed["data"], validate=True)), weights_only=True
    )
    run("embed", learnt.model, page, "--out", tmp_path / "alone.pt")
    assert torch.equal(sent, torch.load(tmp_path / "alone.pt", weights_only=True))
    out = tmp_path / "deep" / "chat.json"
    said = answered(
        run("embed", learnt.model, page, "--question", QUESTION, "--out", out, "--json")
    )
    assert (said["out"], said["tokens"]) == (str(out), len(sent))
    content = [printed, {"type": "text", "text": QUESTION}]
    assert json.loads(out.read_text()) == {"messages": [{"role": "user", "content": content}]}
    whole = answered(run("embed", learnt.model, page, "--format", "vllm-chat", "--json"))
    assert whole["chat"] == printed
    refused(run("embed", learnt.model, page, "--format", "vllm-chat", "--base64"), "leave one out")


def test_what_cannot_be_embedded(run, learnt, page, tmp_path):
    refused(run("embed", learnt.model, page), "--out FILE, or --base64")
    refused(
        run("embed", learnt.model, page, "--out", "a.npy"),
        "'npy'",
        "safetensors or pt or vllm-chat",
    )
    refused(run("embed", learnt.model, page, "--out", "a.pt", "--question", " "), "empty")
    refused(run("embed", learnt.model, "gone.png", "--out", "a.pt"), "gone.png: no such file")
    assert not list(tmp_path.glob("a.*"))
