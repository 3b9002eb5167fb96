"""Pages in the messages of another server, which has the language model alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.inference.embeds_server import StockModel, serving_embeds
from typer.testing import CliRunner

from alignvlm.cli.app import app
from alignvlm.inference.ask import ask, load_model
from alignvlm.inference.embed import bare_language_model, embed_pages, embed_prompt, to_chat

PAGES = Path(__file__).parents[2] / "examples" / "pages"


def language_model(model: Any, processor: Any, folder: Path) -> Path:
    """As docs/embed.md saves it."""
    bare_language_model(model).save_pretrained(folder)
    processor.tokenizer.chat_template = processor.chat_template
    processor.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def parts(make_model, make_processor) -> tuple[Any, Any]:
    model = make_model("align")
    return model, make_processor(model.config)


@pytest.mark.parametrize("count", [1, 2])
def test_the_prompt_is_that_of_ask(parts, images, tmp_path, count):
    model, processor = parts
    folder = language_model(model, processor, tmp_path / "lm")
    chat = to_chat(embed_pages(model, processor, images[:count]).embeds, "Who signed?")
    wanted = embed_prompt(model, processor, images[:count], "Who signed?").embeds
    torch.testing.assert_close(StockModel(folder).embeds(chat["messages"]), wanted)


def test_a_server_of_the_language_model_answers_as_ask_does(parts, images, tmp_path):
    model, processor = parts
    folder = language_model(model, processor, tmp_path / "lm")
    answers = set()
    with serving_embeds(folder) as client:
        for question in ("Who signed?", "What is the total?", "When?"):
            chat = to_chat(embed_pages(model, processor, images[:1]).embeds, question)
            keys: dict[str, Any] = {**chat, "model": "lm", "max_tokens": 12, "temperature": 0}
            said = client.chat.completions.create(**keys).choices[0].message.content or ""
            wanted = ask(model, processor, images[:1], question, max_new_tokens=12).text
            assert said.strip() == wanted
            answers.add(wanted)
    assert len(answers) > 1, "an answer that never changes would prove nothing"


@pytest.mark.slow
def test_smols_language_model_answers_from_exactly_the_file_written(tmp_path):
    model, processor = load_model("smol", dtype=torch.float32)
    folder = language_model(model, processor, tmp_path / "lm")
    page, file = PAGES / "receipt.png", tmp_path / "chat.json"
    image = Image.open(page).convert("RGB")
    with serving_embeds(folder) as client:
        for question in ("Give the total.", "Give the phone number.", "What is the date?"):
            arguments = ["embed", "smol", str(page), "--question", question, "--out", str(file)]
            assert CliRunner().invoke(app, arguments).exit_code == 0
            keys: dict[str, Any] = {**json.loads(file.read_text()), "max_tokens": 32}
            done = client.chat.completions.create(model="lm", temperature=0, **keys)
            said = (done.choices[0].message.content or "").strip()
            print(f"{question} {said}")
            assert said == ask(model, processor, [image], question).text != ""
