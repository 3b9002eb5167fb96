"""The pages to try come with questions."""

from __future__ import annotations

from alignvlm.demo.gallery import gallery, gallery_folder


def test_three_pages_with_questions_and_fields():
    folder = gallery_folder()
    assert folder is not None
    assert len(gallery()) == 3
    for example in gallery():
        assert (folder / example["page"]).is_file()
        assert example["title"] and len(example["questions"]) >= 2 and example["fields"]
        assert "answers" not in example


def test_where_each_page_is_from_is_told_and_one_is_a_real_document():
    folder = gallery_folder()
    assert folder is not None
    rows = [row for row in (folder / "README.md").read_text("utf-8").splitlines() if "|" in row]
    told = [next(row for row in rows if f"`{one['page']}`" in row) for one in gallery()]
    assert all("Apache-2.0" in row or "public domain" in row for row in told)
    assert any("a real document" in row for row in told)
