"""docs/performance.md: the same tables and figures come again from the stored csv files."""

from __future__ import annotations

import shutil

import pytest
from tests.pictures import differences, texts

from benchmarks import connectors, end_to_end, plots, vocab_mixture
from benchmarks import measure as m

PROGRAMS = {
    "vocab_mixture": (vocab_mixture, "impl", ("matmul", "chunked", "naive"), ("forward", "both")),
    "connectors": (connectors, "connector", ("align", "mlp"), ("inference", "both")),
    "end_to_end": (end_to_end, "connector", ("align", "mlp"), ("first token", "training step")),
}


@pytest.fixture
def stored(tmp_path):
    """A folder of made-up results."""
    out = tmp_path / "results"
    for kind, (program, who, names, phases) in PROGRAMS.items():
        rows = [
            {
                **{"date": "2026-01-02", "hardware": "a CPU", "cores": 2, "threads": 2},
                **{"device": "cpu", "dtype": "float32", "n": 24, "v": 96, "d": 16, "affine": "yes"},
                **{"setting": "trained", "language_model": "tiny", "weights": "random", "tiles": 1},
                **{"table": "frozen", "visual_tokens": 24, who: name, "phase": phase},
                **{"median_ms": 10.0 * place + turn, "q20_ms": 9.0 * place, "q80_ms": 13.0 * place},
                **{"ratio": 1.5, "roofline": 0.5, "peak_mib": "" if name == "matmul" else 2.5},
            }
            for place, name in enumerate(names, 1)
            for turn, phase in enumerate(phases)
        ]
        rows.append({**rows[0], who: "rival", "phase": "", "median_ms": "", "skipped": "too big"})
        m.write_rows(out / f"{kind}-cpu-2026-01-02.csv", program.FIELDS, rows)
    return out


def made(results, folder):
    """Page and figures from stored results, as bytes."""
    folder.mkdir()
    page = folder / "performance.md"
    shutil.copy(plots.PAGE, page)
    assert plots.main(["--results", str(results), "--page", str(page)]) == 0
    return {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


def assert_same(one, other):
    """The same bytes of a page, the same look of its pictures."""
    assert one.keys() == other.keys()
    for name, data in one.items():
        if name.endswith(".svg"):
            assert differences(data, other[name]) == [], name
        else:
            assert data.decode() == other[name].decode()


def test_tables_and_figures_come_again(stored, tmp_path):
    one = made(stored, tmp_path / "one")
    assert_same(one, made(stored, tmp_path / "other"))
    names = {"performance.md", *(f"{kind}-cpu.svg" for kind in plots.KINDS)}
    assert set(one) == names
    page = one["performance.md"].decode()
    assert "| chunked | both | 21.0 | 18.0 to 26.0 | 1.50 | 0.50 |" in page
    assert "- rival: too big" in page
    labels = texts(one["vocab_mixture-cpu.svg"])
    assert "chunked" in labels and "matmul" in page and "matmul" not in labels
    assert plots.NOTHING.strip() not in page
    assert "assets/performance/vocab_mixture-cpu.svg" in page


def test_a_page_made_twice_stays(stored, tmp_path):
    page = tmp_path / "one" / "performance.md"
    first = made(stored, page.parent)["performance.md"]
    plots.main(["--results", str(stored), "--page", str(page)])
    assert page.read_bytes() == first


def test_other_numbers_are_another_picture(stored, tmp_path):
    (file,) = stored.glob("connectors-*.csv")
    before = made(stored, tmp_path / "one")["connectors-cpu.svg"]
    file.write_text(file.read_text("utf-8").replace(",21,", ",21.5,"), "utf-8")
    assert differences(before, made(stored, tmp_path / "other")["connectors-cpu.svg"])


def test_the_page_is_what_the_stored_results_say(tmp_path):
    figures = (plots.PAGE.parent / plots.FIGURES).iterdir()
    own = (file for file in figures if not file.name.startswith("growth-"))  # docs/cost.md's
    stored = {file.name: file.read_bytes() for file in (plots.PAGE, *own)}
    assert_same(made(m.RESULTS, tmp_path / "docs"), stored)  # else: python -m benchmarks.plots


def test_newest_file_and_last_row_count(tmp_path):
    fields = vocab_mixture.FIELDS
    row = {**dict.fromkeys(fields, ""), "impl": "naive", "n": 1, "phase": "both"}
    for date, median in (("2026-01-02", 5.0), ("2026-01-10", 7.0)):
        file = tmp_path / f"vocab_mixture-cpu-{date}.csv"
        m.write_rows(file, fields, [{**row, "median_ms": 1.0}, {**row, "median_ms": median}])
    (tmp_path / "other-cpu-2027-01-01.csv").write_text("a\n", "utf-8")
    files = plots.newest(tmp_path)
    assert files == {("vocab_mixture", "cpu"): file}
    (last,) = plots.load("vocab_mixture", file)
    assert last["median_ms"] == "7"


def test_a_skip_is_shown_until_there_are_numbers(tmp_path):
    file = tmp_path / "vocab_mixture-cpu-2026-01-02.csv"
    row = {**dict.fromkeys(vocab_mixture.FIELDS, ""), "impl": "naive"}
    m.write_rows(file, vocab_mixture.FIELDS, [{**row, "skipped": "too big"}])
    assert "- naive: too big" in plots.table("vocab_mixture", plots.load("vocab_mixture", file))
    done = {**row, "phase": "both", "median_ms": 2.0, "q20_ms": 1.0, "q80_ms": 3.0}
    m.write_rows(file, vocab_mixture.FIELDS, [done])
    text = plots.table("vocab_mixture", plots.load("vocab_mixture", file))
    assert "too big" not in text and "| naive | both | 2.00 | 1.00 to 3.00 |" in text


def test_numbers_have_three_digits():
    texts = ["", "0.01234", "1.2345", "12.345", "1234.5", "0"]
    assert [plots.number(t) for t in texts] == ["–", "0.01", "1.23", "12.3", "1,234", "0.00"]


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="results: connectors"):
        plots.fill("nothing", {"connectors": "x"})
