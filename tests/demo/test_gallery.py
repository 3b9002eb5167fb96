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
