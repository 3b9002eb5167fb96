"""Comparisons are symmetric, refuse what is no pair, and tables say who answered."""

from __future__ import annotations

import pytest
from tests.eval.little_task import Echo, LittleTask

from alignvlm.errors import DataError
from alignvlm.eval.compare import compare, table
from alignvlm.eval.runner import evaluate
from alignvlm.eval.tasks import Sample
from alignvlm.inference.answerers import Reply


class Always(Echo):
    """Right on every sample whose number is below ``right``."""

    def __init__(self, right, **keys):
        super().__init__(right=right, **keys)

    def answer(self, queries):
        return [
            Reply("alike" if n % 4 == 0 else f"answer {n}") if n < self.keys["right"] else Reply("")
            for n in (int(query.id[1:]) for query in queries)
        ]


@pytest.fixture
def make(tmp_path):
    def result(right, task=None, name="echo", **keys):
        who = Always(right, **keys)
        who.name = name
        out = tmp_path / f"{name}-{right}-{len(list(tmp_path.iterdir()))}.json"
        evaluate(who, task or LittleTask(16), out)
        return out

    return result


def test_paired_difference(make):
    found = compare(make(4), make(12))
    assert (found.metric, found.samples, found.groups) == ("anls", 16, 8)
    assert (found.a, found.b, found.difference) == (0.25, 0.75, 0.5)
    # documents 2 to 5 of 8 go from wrong to right: only 2 of their 16 swaps are as extreme
    assert found.p == pytest.approx(2 / 16)
    assert found.interval[0] == pytest.approx(0.125)
    assert found.interval[1] == pytest.approx(0.875)
    assert found.mcnemar == {"only_a": 0, "only_b": 8, "p": pytest.approx(2 / 256)}
    assert found.settings == [("answerer.right", 4, 12)]
    text = found.to_text()
    assert "anls on 16 samples in 8 groups" in text
    assert "B - A: +50.00 points, 95% interval [+12.50, +87.50]; sign-flip p = 0.12" in text
    assert "only A right: 0, only B right: 8; McNemar p = 0.0078" in text
    assert "answerer.right: 4 | 12" in text


def test_compare_is_symmetric(make):
    a, b = make(5), make(11)
    for metric in ("anls", "field_f1"):
        there, back = compare(a, b, metric=metric), compare(b, a, metric=metric)
        assert back.difference == pytest.approx(-there.difference)
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
        assert back.p == there.p
        assert (back.a, back.b) == (there.b, there.a)
    assert compare(a, b).mcnemar["only_b"] == compare(b, a).mcnemar["only_a"] == 6
    assert compare(a, b, metric="field_f1").mcnemar is None  # counts, not right or wrong


def test_a_result_equals_itself(make):
    found = compare(make(5), make(5))
    assert (found.difference, found.interval, found.p, found.settings) == (0.0, (0.0, 0.0), 1.0, [])
    assert found.to_dict()["mcnemar"]["p"] == 1.0


class Other(LittleTask):
    def __init__(self, **keys):
        super().__init__(16)
        self.split = keys.pop("split", "val")
        self.keys = keys

    def sample(self, index):
        sample = super().sample(index)
        return Sample(**{**vars(sample), **self.keys}) if index == 3 else sample


def test_what_is_no_pair(make, tmp_path):
    a = make(8)
    for task, words in (
        (LittleTask(12), "different samples: 16 and 12"),
        (Other(id="s99"), "different samples: 's3' and 's99'"),
        (Other(prompt="Else?"), "sample 's3' has different prompts: 'What is number 3?"),
        (Other(answers=("b",)), "sample 's3' has different answers"),
        (Other(group="b"), "sample 's3' has different groups"),
        (Other(split="test"), "different splits: 'val' and 'test'"),
    ):
        with pytest.raises(DataError, match=words):
            compare(a, make(3, task))
    with pytest.raises(DataError, match=r"no metric 'anl' .*did you mean 'anls'.*there are anls"):
        compare(a, a, metric="anl")
    with pytest.raises(DataError, match="no such file"):
        compare(a, tmp_path / "gone.json")


def test_table_of_tasks_and_answerers(make):
    other = LittleTask(8)
    other.name = "other"
    lines = table([make(8), make(8, name="majority"), make(2, other)]).splitlines()
    assert lines == [
        "| task | split | metric | n | echo | majority |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| little | val | anls | 16 | 50.0 [12.5, 87.5] | 50.0 [12.5, 87.5] |",
        "| other | val | anls | 8 | 25.0 [0.0, 75.0] |  |",
    ]


def test_table_tells_answerers_apart(make):
    weights = [{"reference": name, "sha256": {}} for name in ("a/one", "b/two")]
    files = [
        make(8, model=weights[0]),
        make(8, model=weights[1]),
        make(8, model=weights[0], noise=3.0),
        make(8, model=weights[0], prune={"kept": 500}),
        make(8, name="majority"),
    ]
    head = table(files).splitlines()[0]
    assert head.endswith(
        "| echo, a/one | echo, b/two | echo, a/one, noise 3 | echo, a/one, 500 ids | majority |"
    )
    with pytest.raises(DataError, match="second result of majority on little val"):
        table([files[-1], make(9, name="majority")])
    shorter = table([make(8), make(8, LittleTask(8))]).splitlines()
    assert len(shorter) == 4  # a row for each sample count
