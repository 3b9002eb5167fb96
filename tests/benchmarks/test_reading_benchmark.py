"""The reading benchmark: its counts, its drawn pages, a run with made-up readers, its report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.reading import cost, metrics, pages, quality, report
from benchmarks.reading.__main__ import main, options, save
from benchmarks.reading.readers import Contestant, PageText, RapidOcr, ReadWord
from PIL import Image

from alignvlm.errors import DataError

# ----------------------------------------------------------------------------------------- counts


def test_lines_with_and_without_spaces():
    true = ["TOTAL :  9.00", "", "Thank You", "CASH"]
    read = ["Total: 9.00", "THANK", "you", "cas h"]
    assert metrics.lines_found(true, read, metrics.squeezed) == (3, 3)
    assert metrics.lines_found(true, read, metrics.spaced) == (1, 3)  # "thank you" over two lines
    assert metrics.lines_found(true, [], metrics.squeezed) == (0, 3)


def test_words_are_a_multiset():
    assert metrics.words_of(["ﬁve  ①", "Ａ b"]) == ["five", "1", "A", "b"]
    assert metrics.words_f1(["a a b", "C"], ["a b b c"]) == (4, 8)
    assert metrics.words_f1(["a"], []) == (0, 1)


def test_tokens_in_order_are_those_left_by_the_edit_distance():
    assert metrics.tokens_in_order([1, 2, 3, 4], [1, 9, 3]) == (2, 4)
    assert metrics.tokens_in_order([1, 2], [7, 7, 7, 7, 7]) == (0, 2)
    assert metrics.tokens_in_any_order([1, 2, 2, 3], [3, 2, 1, 1]) == (3, 4)


def test_scores_are_ratios_of_sums_with_intervals():
    same = metrics.share([(1, 2), (2, 4), (3, 6)])
    assert same == (0.5, 0.5, 0.5)
    mixed = metrics.share([(0, 10), (10, 10)] * 10)
    assert mixed.value == 0.5
    assert (mixed.low, mixed.high) == pytest.approx((0.3, 0.7), abs=0.06)
    assert mixed == metrics.share([(0, 10), (10, 10)] * 10)


def test_differences_keep_pages_paired():
    rival = [(n % 7, 10.0) for n in range(20)]
    ours = [(right + 1, of) for right, of in rival]
    assert metrics.difference(ours, rival) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="not pairs"):
        metrics.difference(ours, rival[1:])


def test_medians_and_ratios_of_rounds():
    slow = [[2.0, 4.0, 100.0], [6.0, 6.0, 6.0], [8.0, 9.0, 7.0]]
    fast = [[1.0, 2.0, 50.0], [3.0, 3.0, 3.0], [4.0, 4.5, 3.5]]
    assert metrics.median(slow).value == 6
    assert metrics.median(slow)[1:] == (4, 8)
    assert metrics.ratio(fast, slow) == (0.5, 0.5, 0.5)


# ------------------------------------------------------------------------------------------ pages


@pytest.mark.parametrize("kind", pages.KINDS)
def test_drawn_pages_are_the_same_every_time(kind):
    (one,), (other,) = (list(pages.drawn(kind, 24, 1)) for _ in range(2))
    assert one.lines == other.lines
    assert len(one.lines) > 2
    assert all(line == " ".join(line.split()) and line for line in one.lines)
    assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_seeds_do_not_meet():
    seeds = [
        pages.seed_of(kind, px, number)
        for kind in pages.KINDS
        for px in pages.SIZES
        for number in (0, pages.MOST - 1)
    ]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) == pages.SEED
    with pytest.raises(ValueError, match="page 100"):
        pages.seed_of("text", 24, pages.MOST)


@pytest.mark.parametrize("seed", range(pages.SEED, pages.SEED + 6))
def test_columns_are_read_one_after_the_other(seed):
    page = pages.two_columns(24, seed)
    lines = [[w for w in page.words if w.line == n] for n in range(page.words[-1].line + 1)]
    tops = [line[0].box[1] for line in lines]
    (turn,) = (n for n in range(1, len(lines)) if tops[n] < tops[n - 1])  # once back to the top
    headline = len(lines) % 2
    left, right = lines[headline:turn], lines[turn:]
    assert len(left) == len(right)
    gutter = min(line[0].box[0] for line in right) - max(line[-1].box[2] for line in left)
    assert gutter > 24


def test_pages_are_chosen_at_equal_steps():
    assert pages.spread("abcdefghij", 3) == ["a", "d", "g"]
    assert pages.spread("abc", None) == pages.spread("abc", 9) == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------- runs


def made_up(found):
    """Contestants that know the pages by heart, the rival without the last line."""
    known = {id(page.image): page.lines for page in found}
    return {
        "alignvlm": Contestant(lambda image: PageText(known[id(image)])),
        "rapidocr": Contestant(lambda image: PageText(known[id(image)][:-1])),
    }


def words_as_numbers(text):
    return [sum(word.encode()) for word in text.split()]


def test_a_perfect_reader_has_full_marks_and_the_difference(capsys):
    found = list(pages.drawn("forms", 24, 3))
    score = quality.token_score(words_as_numbers)
    groups = quality.measure(found, made_up(found), score, show=1)
    assert [group["measure"] for group in groups] == ["tokens in order", "tokens in any order"]
    for group in groups:
        assert group["ids"] == [page.name for page in found]
        assert group["scores"]["alignvlm"] == (1, 1, 1)
        lost = 1 - group["scores"]["rapidocr"].value
        assert lost > 0
        assert group["differences"]["rapidocr"].value == pytest.approx(lost)
    out = capsys.readouterr().out
    assert f"{found[0].name}: the truth" in out
    assert found[1].name not in out


def test_the_rival_alone_has_no_differences():
    found = list(pages.drawn("forms", 24, 2))
    rival = {"rapidocr": made_up(found)["rapidocr"]}
    (group,) = quality.measure(found, rival, quality.contract_words)
    assert group["differences"] == {}
    assert 0 < group["scores"]["rapidocr"].value < 1


def test_runs_take_turns_after_a_warm_up():
    page = pages.TruePage("a", Image.new("RGB", (8, 8)), [])
    said = []
    runs = {name: (lambda _, name=name: said.append(name)) for name in ("alignvlm", "rapidocr")}
    found = cost.take_turns([page, page._replace(name="b")], runs, 2)
    first, second = "alignvlm", "rapidocr"
    one_page = [first, second, second, first]
    assert said == [first, second, *one_page, *one_page]
    assert found["ids"] == ["a", "b"]
    assert [len(rounds) for rounds in found["seconds"]["cpu"][first]] == [2, 2]
    assert set(found["ratios"]["wall"]) == {second}


def test_rapidocr_is_scored_twice_and_read_once():
    rival = RapidOcr.__new__(RapidOcr)
    rival._last = None
    reads = []

    def pieces(page):
        reads.append(page)
        return [
            ReadWord("9.00", (50, 1, 80, 11)),
            ReadWord("Total ", (0, 0, 30, 10)),
            ReadWord("Thanks", (0, 20, 30, 30)),
        ]

    rival.pieces = pieces
    page, other = Image.new("RGB", (90, 40)), Image.new("RGB", (90, 40))
    assert rival.read(page).lines == ["9.00", "Total", "Thanks"]
    assert rival.rows(page).lines == ["Total 9.00", "Thanks"]
    assert len(reads) == 1
    rival.rows(other)
    assert len(reads) == 2


# ----------------------------------------------------------------------------------------- report


@pytest.fixture
def stored(tmp_path):
    """Results of a made-up run of every table."""
    asked = options(["--threads", "1", "--rounds", "2"])
    found = list(pages.drawn("text", 24, 2))
    readers = made_up(found)
    lines = quality.measure(found, readers, quality.receipt_lines)
    words = quality.measure(found, readers, quality.contract_words)
    tokens = quality.measure(found, readers, quality.token_score(words_as_numbers))
    seconds = {
        clock: {"alignvlm": [[1.0, 1.0], [3.0, 3.0]], "rapidocr": [[2.0, 2.0], [6.0, 6.0]]}
        for clock in cost.CLOCKS
    }
    timed = {"ids": ["a", "b"], "seconds": seconds, **cost.summary(seconds)}
    run = {"peak_mib": 300.0, "loaded_mib": 500.0, "cpu": 2.0, "wall": 1.5}
    runs = {
        "alignvlm": [run, {**run, "peak_mib": 320.0}],
        "rapidocr": [run, {"skipped": "too big"}],
    }
    groups = {
        "receipts": lines,
        "contracts": words,
        "rendered": [{"kind": "text", "px": px, **group} for px in (18, 24) for group in tokens],
        "time": [{"pages": "receipts", **timed}],
        "memory": [{"pages": "A4, 300 dpi", "runs": runs}],
        "first-token": [{"pages": "receipts", "question": "What?", **timed}],
    }
    for table, own in groups.items():
        save(table, own, asked, tmp_path, "python -m benchmarks.reading")
    return tmp_path


def test_the_report_has_every_table_from_what_is_stored(stored, capsys):
    assert {file.name for file in stored.iterdir()} == {
        *("receipts.json", "contracts.json", "rendered.json"),
        *("time-1.json", "memory-1.json", "first-token-1.json"),
    }
    assert main(["report", "--results", str(stored)]) == 0
    text = capsys.readouterr().out
    assert [title for title in report.TITLES.values() if f"## {title}\n" not in text] == []
    assert "| lines, spaces and case ignored | alignvlm | 1.000 [1.000, 1.000] | – |" in text
    assert "| receipts (2) | rapidocr | 4.00 [2.00, 6.00] | 0.50 [0.50, 0.50] |" in text
    cells = "310 (300 to 320) | 500 (500 to 500) | 2.0 (2.0 to 2.0)"
    assert f"| A4, 300 dpi | alignvlm | {cells}" in text
    assert "| A4, 300 dpi | rapidocr | too big |" in text
    assert "| tokens in order | reader | 18 px | 24 px |" in text
    assert "| text | alignvlm less rapidocr | +" in text
    lines = json.loads((stored / "receipts.json").read_text("utf-8"))
    score = metrics.share([tuple(c) for c in lines["groups"][0]["counts"]["rapidocr"]])
    assert report.number(score) in text


def test_nothing_stored_is_one_line_and_options_are_checked(tmp_path, capsys):
    with pytest.raises(DataError, match="no results"):
        report.write(tmp_path)
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        options(["--tables", "7"])
    with pytest.raises(SystemExit):
        options(["--pages", "0"])
