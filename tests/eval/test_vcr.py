"""Covered text: what is covered, what stays visible, and that pages never change."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from alignvlm.data.synthetic.covered import (
    STRIPS,
    VCR_PROMPT,
    Covered,
    VCRStyle,
    choose_spans,
    draw_page,
    lay_out,
    seeded,
)
from alignvlm.data.synthetic.fonts import load_font
from alignvlm.errors import DataError
from alignvlm.eval.tasks import load_task
from alignvlm.eval.tasks.vcr import VCRTask

PROSE = [
    "The river rises in the low hills of the north and runs slowly through a wide green valley.",
    "In 1901 the town had only two schools, but many more were built after the long war ended.",
    "People there still make cloth by hand and sell it at the large market near the old bridge.",
    "Every spring the water comes over the banks and leaves behind a layer of rich dark soil.",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    texts = [" ".join(PROSE[i:] + PROSE[:i]) for i in range(len(PROSE))]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def opened(corpus: Path, split: str = "easy", **options: object) -> VCRTask:
    task = load_task("vcr", corpus, split, **options)
    assert isinstance(task, VCRTask)
    return task


def test_a_sample_is_a_page_with_all_its_covered_texts(corpus: Path) -> None:
    task = opened(corpus)
    assert 0 < len(task) <= 4
    ids = [task.sample(i).id for i in range(len(task))]
    assert len(set(ids)) == len(ids)
    for index in range(len(task)):
        sample, page = task.sample(index), task.page(index)
        text = " ".join(word for line in page.lines for word in line)
        assert sample.prompt == VCR_PROMPT
        assert sample.group == sample.id
        assert sample.answers
        assert 1 <= len(page.lines) <= 5
        places = [text.index(answer) for answer in sample.answers]
        assert places == sorted(places)
        for answer in sample.answers:
            assert len(answer.split()) == 5
            assert answer.replace(" ", "").isalpha()
            assert answer.islower()
        exact, jaccard = task.metrics
        reply = " / ".join(reversed(sample.answers))
        for metric in (exact, jaccard):
            assert metric.aggregate([metric.verdict(reply, sample.answers)]) == 1.0


def test_spans_leave_half_of_a_sentence_and_a_gap() -> None:
    style = VCRStyle().checked()
    words = " ".join(PROSE).split()
    ends = [i + 1 for i, word in enumerate(words) if word.endswith(".")]
    for seed in range(20):
        spans = choose_spans(words, style, seeded(0, str(seed)))
        assert spans
        for (_, end), (start, _) in pairwise(spans):
            assert start > end or end in ends
        for begin, end in zip([0, *ends], ends, strict=False):
            covered = sum(min(end, b) - max(begin, a) for a, b in spans if a < end and b > begin)
            assert covered <= (end - begin) / 2
    assert choose_spans(["no", "more", "than", "four."], style, seeded(0, "x")) == ()
    assert choose_spans(["A"] * 30, style, seeded(0, "x")) == ()


@pytest.mark.parametrize("split", STRIPS)
def test_only_strips_stay_visible(corpus: Path, split: str) -> None:
    task = opened(corpus, split)
    style, strip = task.style, STRIPS[split]
    font = load_font(str(style.font), style.font_px)
    ascent = font.getmetrics()[0]
    small = -font.getbbox("x", anchor="ls")[1]
    # the whole first line covered: letters without anything above or below the small ones
    page = Covered("x", (("nono", "xenon", "exam", "nose", "moan"),), ((0, 5),))
    image = np.asarray(draw_page(page, style, strip).convert("L"))
    base = style.margin + ascent
    dark = np.flatnonzero((image < 128).any(axis=1))
    assert set(dark) <= {
        *range(base - small - 1, base - small + strip),  # round letters rise a little higher
        *range(base - strip, base + 1),
    }
    assert dark.min() < base - small + strip
    assert dark.max() >= base - strip
    # nothing but the covered words changes
    bare = np.asarray(draw_page(Covered("x", page.lines, ()), style, strip).convert("L"))
    half = Covered("x", page.lines, ((0, 2),))
    drawn = np.asarray(draw_page(half, style, strip).convert("L"))
    edge = style.margin + round(font.getlength("nono xenon"))
    assert (drawn[:, edge:] == bare[:, edge:]).all()
    assert (drawn[:, :edge] != bare[:, :edge]).any()


def test_easy_shows_more_of_the_same_pages(corpus: Path) -> None:
    easy, hard = opened(corpus, "easy"), opened(corpus, "hard")
    for index in range(len(easy)):
        assert easy.sample(index) == hard.sample(index)
        a, b = (np.asarray(t.pages(index)[0]).astype(int) for t in (easy, hard))
        assert a.shape == b.shape
        assert (a <= b).all()
        assert (a < b).any()


def test_pages_never_change(corpus: Path) -> None:
    task, again = opened(corpus), opened(corpus)
    order = list(range(len(task)))
    forward = [task.pages(i)[0].tobytes() for i in order]
    assert forward == [again.pages(i)[0].tobytes() for i in reversed(order)][::-1]
    first = opened(corpus, pages=2)
    assert [first.sample(i) for i in range(2)] == [task.sample(i) for i in range(2)]
    other = opened(corpus, seed=1)
    answers = {other.sample(i).id: other.sample(i).answers for i in range(len(other))}
    assert any(answers.get(task.sample(i).id) != task.sample(i).answers for i in order)
    assert seeded(3, "a").integers(2**30) == seeded(3, "a").integers(2**30)


def test_settings(corpus: Path) -> None:
    settings = opened(corpus, "hard", seed=5, width=500).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["prompt"] == VCR_PROMPT
    assert settings["pages"]["seed"] == 5
    assert settings["pages"]["width"] == 500
    assert settings["pages"]["strip_px"] == 1
    assert settings["labels_sha256"]
    assert opened(corpus, width=500).pages(0)[0].width == 500


def test_lay_out_fits_the_width() -> None:
    style = VCRStyle(width=300, lines=3).checked()
    lines = lay_out(" ".join(PROSE), style)
    font = load_font(str(style.font), style.font_px)
    assert len(lines) == 3
    assert all(font.getlength(" ".join(line)) <= 300 - 2 * style.margin for line in lines)
    assert lay_out("w" * 400, style) == ()


def test_errors(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vcr: needs --data: a plain text file"):
        load_task("vcr")
    with pytest.raises(DataError, match="vcr: no such text file"):
        load_task("vcr", tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"no split 'eazy' \(did you mean 'easy'\?\)"):
        load_task("vcr", corpus, "eazy")
    with pytest.raises(DataError, match=r"no option 'sead' \(did you mean 'seed'\?\)"):
        load_task("vcr", corpus, sead=1)
    with pytest.raises(DataError, match="pages must be at least 1"):
        load_task("vcr", corpus, pages=0)
    with pytest.raises(DataError, match="font_px 4 is too small"):
        load_task("vcr", corpus, font_px=4)
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("Year 1901 had 12 and 1902 had 13 and 1903 had 14 and 1904 had 15 of it.\n")
    with pytest.raises(DataError, match=r"numbers\.txt: no paragraph with 5 plain words"):
        load_task("vcr", numbers)
