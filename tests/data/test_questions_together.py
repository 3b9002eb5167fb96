"""Questions about the same pages become one sample, and only those that can."""

from __future__ import annotations

import pytest
import torch

from alignvlm.data import encode
from alignvlm.data.questions_together import Together, apart, can_join, together
from alignvlm.data.records import make_record, validate_record
from alignvlm.errors import DataError


class Listed:
    name = "listed"

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@pytest.fixture
def records(images):
    asked = [(0, "Total?", "5"), (1, "Total?", "6"), (0, "Date?", "May"), (0, "Who?", "Maria")]
    return [
        make_record(f"r{n}", [images[page]], [(q, a)], source="t")
        for n, (page, q, a) in enumerate(asked)
    ]


def test_equal_keys_are_one_record_and_can_be_taken_apart(records):
    source = Together(Listed(records), ["a", None, "a", "a"])
    assert len(source) == 2
    both = source[0]
    assert both.independent_turns
    assert [one.question for one in apart(both)] == ["Total?", "Date?", "Who?"]
    assert [one.messages for one in apart(both)] == [records[i].messages for i in (0, 2, 3)]
    assert source[1] is records[1]
    with pytest.raises(DataError, match="4 records but 1 keys"):
        Together(Listed(records), ["a"])


def test_very_many_questions_are_several_samples(images):
    many = [make_record(f"r{n}", [images[0]], [(f"Q{n}?", "5")], source="t") for n in range(40)]
    source = Together(Listed(many), ["a"] * 40)
    assert [len(source.records(n)) for n in range(len(source))] == [16, 16, 8]


def test_a_sample_has_what_is_common_once(make_config, make_processor, records):
    processor = make_processor(make_config("align"))
    parts = [records[i] for i in (0, 2, 3)]
    alone = [encode.encode(record, processor) for record in parts]
    sample = encode.encode(together(parts), processor)
    turns = sample["turn_ids"]
    shared = sample["input_ids"][turns == 0]
    image = processor.image_token_id
    assert int((sample["input_ids"] == image).sum()) == int((shared == image).sum())
    assert torch.equal(sample["pixel_values"], alone[0]["pixel_values"])
    for number, one in enumerate(alone, start=1):
        for key in ("input_ids", "labels"):
            found = torch.cat([sample[key][turns == 0], sample[key][turns == number]])
            assert torch.equal(found, one[key])
    with pytest.raises(encode.TooLong, match="more than max_length=9"):
        encode.encode_fitting(together(parts), processor, make_config("align"), 9)


TEXT_FIRST = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content if c.type == 'text' %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ c.text }}.{% endgeneration %}"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}\n{% endfor %}"
)


def test_a_template_that_puts_the_page_last_is_refused(make_config, make_processor, records):
    processor = make_processor(make_config("align"))
    processor.chat_template = TEXT_FIRST.replace("<image>", processor.image_token)
    alone = encode.encode(records[0], processor)
    assert (alone["labels"] >= 0).any()
    with pytest.raises(encode.PageBehind, match="r0: the chat template puts the page behind"):
        encode.encode(together([records[0], records[2]]), processor)


def test_only_the_longest_turn_counts(make_config, make_processor, records):
    processor = make_processor(make_config("align"))
    parts = [records[i] for i in (0, 2, 3)]
    most = max(len(encode.encode(record, processor)["input_ids"]) for record in parts)
    config = make_config("align")
    sample = encode.encode_fitting(together(parts), processor, config, most)
    assert len(sample["input_ids"]) > most
    with pytest.raises(encode.TooLong, match=f"{most} tokens, more than max_length={most - 1}"):
        encode.encode_fitting(together(parts), processor, config, most - 1)


def test_the_same_question_twice_keeps_both_answers(make_config, make_processor, images):
    processor = make_processor(make_config("align"))
    twice = [
        make_record("r", [images[0]], [("Total?", answer)], source="t") for answer in ("5", "5")
    ]
    sample = encode.encode(together(twice), processor)
    alone = encode.encode(twice[0], processor)
    supervised = int((alone["labels"] >= 0).sum())
    assert int((sample["labels"] >= 0).sum()) == 2 * supervised


def test_which_records_can_be_joined(images):
    def record(*messages, pages=1):
        given = {"images": images[:pages], "messages": list(messages)}
        return validate_record(given, where="r")

    answer = {"role": "assistant", "content": "5"}
    before = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    after = {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image"}]}
    assert can_join(record(before, answer))
    assert not can_join(record(after, answer))
    assert not can_join(record({"role": "system", "content": "Be brief."}, before, answer))
    assert not can_join(record(before, answer, {"role": "user", "content": "!"}, answer))
    assert not can_join(record({"role": "user", "content": "?"}, answer, pages=0))
    with_words = record(before, answer).model_copy(update={"words": [[]]})
    assert not can_join(with_words)
