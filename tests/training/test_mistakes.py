import random

import torch
from training.smol.mistakes import Mistakes, compare, pair_lines
from training.smol.store import Readings, pack, unpack

ROW = {"text": "TOTA1 5.OO", "options": {"4": ["L", [-0.5]]}, "boxes": [[0, 0, 100, 20]]}


def test_characters_are_compared_one_by_one():
    seen = compare("TOTAL 5.00", ROW)
    assert [char for char, _ in seen] == list("TOTAL 5.00")
    assert seen[0] == ("T", ("T", [("", [])]))
    assert seen[4] == ("L", ("1", [("L", [-0.5])]))
    assert compare("NOTHING LIKE IT", ROW) == []


def test_lost_and_invented_characters():
    lost = compare("A BCDEF", {"text": "ABCDEF", "options": {}})
    assert lost[1] == (" ", ("", []))
    invented = compare("ABCDEF", {"text": "AB CDEF", "options": {}})
    assert invented[1] == ("B", ("B ", [("", []), ("", [])]))
    assert "".join(said for _, (said, _) in invented) == "AB CDEF"


def test_lines_are_paired_by_place():
    boxes = [("5.00", [60, 2, 90, 18], 0), ("TOTAL", [5, 3, 40, 17], 1), ("X", [0, 90, 9, 99], 2)]
    pairs, missing = pair_lines(boxes, [ROW])
    assert pairs == [("TOTAL 5.00", ROW)]
    assert missing == 1


def fitted():
    right = {"text": "5.00 0 AND OO", "options": {}}
    return Mistakes.fit([([("TOTAL 5.00", ROW)] * 40 + [("5.00 0 AND OO", right)], 0)])


def test_mistakes_come_back_as_often(tmp_path):
    fitted().save(tmp_path / "mistakes.json")
    mistakes = Mistakes.load(tmp_path / "mistakes.json")
    rng = random.Random(0)
    lines = [mistakes.line("TOTAL", rng, mistakes.mean) for _ in range(50)]
    assert all(line.text == "TOTA1" for line in lines)  # an L was never read right
    assert lines[0].options[4] == "L"
    assert lines[0].log_ratio.shape == (5, 1)
    zeros = "".join(mistakes.line("0" * 20, rng, mistakes.mean).text for _ in range(50))
    assert abs(zeros.count("O") / 1000 - 80 / 83) < 0.05
    clean = mistakes.page(["TOTAL 5.00"], rng, 0.0)
    assert [line.text for line in clean] == ["TOTAL 5.00"]


def test_readings_come_back_from_disk(tmp_path):
    characters = unpack(ROW)
    assert pack(characters) == {"text": ROW["text"], "options": ROW["options"]}
    path = tmp_path / "sroie-train.jsonl"
    path.write_text('{"id": "1", "rows": [{"text": "a", "options": {}}]}\n{"id": "2", "ro')
    readings = Readings(path)
    assert readings.ids() == ["1"]
    with path.open("a") as file:
        file.write('ws": [{"text": "b", "options": {}}]}\n')
    readings.refresh()
    found = readings.get("2")
    assert found is not None
    assert found[0][0].text == "b"
    assert torch.equal(found[0][0].log_ratio, torch.zeros(1, 0))


def test_pages_of_a_document_are_joined(tmp_path):
    path = tmp_path / "deepform-train.jsonl"
    rows = '"rows": [{"text": "a", "options": {}}]'
    path.write_text(f'{{"id": "1", "page": 0, {rows}}}\n{{"id": "1", "page": 1, {rows}}}\n')
    found = Readings(path).get("1")
    assert found is not None
    assert len(found) == 2
