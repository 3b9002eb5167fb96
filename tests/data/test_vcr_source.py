"""Covered text as training data: what is asked, what is answered, and the paper's mix."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from alignvlm.data.columns import row_to_object
from alignvlm.data.sources import VCRSource
from alignvlm.data.sources.specs import build_source
from alignvlm.data.synthetic.covered import VCR_PROMPT, VCRStyle
from alignvlm.errors import DataError
from alignvlm.eval.metrics.vcr_overlap import vcr_verdict
from alignvlm.eval.tasks import load_task
from alignvlm.train.recipe import load_recipe, parse_recipe
from alignvlm.train.stages import build_mix

PROSE = (
    "The river rises in the low hills of the north and runs slowly through a wide green valley. "
    "People there still make cloth by hand and sell it at the large market near the old bridge."
)
SHORT = "No Words Here At All. In 1901 Two Schools Were Built There, And Then A Third One."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(f"{PROSE}\n\n{SHORT}\n", encoding="utf-8")
    return path


def test_answers_are_the_covered_texts_of_the_page(corpus: Path) -> None:
    source = VCRSource(corpus, size=6)
    assert len(source) == 6
    for record in islice(source, 6):  # type: ignore[call-overload]
        assert record.question == VCR_PROMPT
        assert record.words is None
        assert record.answer
        texts = record.answer.split("\n")
        assert all(text in PROSE and len(text.split()) == 5 for text in texts)
        assert vcr_verdict(record.answer, texts)["exact"] == len(texts)
    assert len({source[i].answer for i in range(6)}) > 1  # the same paragraph, other words


def test_pages_look_as_those_that_are_scored(corpus: Path) -> None:
    """Same text, same style: training and evaluation differ in the covered words alone."""
    task = load_task("vcr", corpus, "easy")
    source = VCRSource(corpus, size=1)
    assert source[0].images[0].size == task.pages(0)[0].size
    assert source.style == VCRStyle().checked()


def test_hard_shows_less_of_the_same_pages(corpus: Path) -> None:
    easy, hard = VCRSource(corpus, "easy", 3), VCRSource(corpus, "hard", 3)
    for index in range(3):
        assert easy[index].answer == hard[index].answer
        assert easy[index].images[0].tobytes() != hard[index].images[0].tobytes()


def test_a_record_depends_on_its_number_and_the_seed(corpus: Path) -> None:
    first, again = VCRSource(corpus, size=8), VCRSource(corpus, size=8)
    for index in (5, 0, 7):
        assert first[index].answer == again[index].answer
        assert first[index].images[0].tobytes() == again[index].images[0].tobytes()
    other = VCRSource(corpus, size=8, seed=3)
    assert [other[i].answer for i in range(8)] != [first[i].answer for i in range(8)]


def test_text_of_installed_packages_is_there_without_a_file() -> None:
    assert VCRSource(size=2)[1].answer


def test_refusals(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vcr: no setting 'hrad' \(did you mean 'hard'\?\)"):
        VCRSource(corpus, "hrad")
    with pytest.raises(DataError, match="no such file"):
        VCRSource(tmp_path / "gone.txt")
    corpus.write_text(SHORT, encoding="utf-8")
    with pytest.raises(DataError, match=r"prose\.txt: no paragraph with 5 plain words in a row"):
        VCRSource(corpus)


def test_a_published_row_asks_for_all_its_covered_texts() -> None:
    row = {"stacked_image": "page.png", "crossed_text": ["one two", "three four"]}
    columns = {"image": "stacked_image", "answer_lines": "crossed_text"}
    assert row_to_object(row, columns, where="x") == {
        "image": "page.png",
        "answer": "one two\nthree four",
    }


def test_the_mix_of_the_paper_is_five_to_one(corpus: Path) -> None:
    specs = load_recipe("paper/llama-3.2-3b-vcr").stages[2].sources
    weights = [spec.weight for spec in specs]
    assert weights[0] / sum(weights[1:]) == 5
    stage = {
        "name": "mix", "steps": 12, "batch_size": 2, "train": {"text": 1e-5},
        "sources": [
            {"type": "render", "weight": 5, "page": {"layout": "form"}},
            {"type": "vcr", "weight": 1, "path": str(corpus), "size": 3},
        ],
    }  # fmt: skip
    model = {"text": "x", "vision": "y", "connector": {"type": "align"}}
    recipe = parse_recipe({"name": "r", "model": model, "stages": [stage]})
    mix = build_mix(recipe.stages[0], 0)
    names = [mix[i].source for i in range(len(mix))]
    assert names.count("vcr-easy") == 4 and len(names) == 24
    assert len(build_source(recipe.stages[0].sources[1], 0)) == 3
