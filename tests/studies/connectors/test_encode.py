"""Where tokens start among cells."""

import numpy as np
import pytest
from studies.connectors.encode import peaks, token_cells


class Words:
    """A tokenizer of whole words, each with the space before it."""

    def __call__(self, text, **kwargs):
        starts = [i for i, c in enumerate(text) if c == " "]
        ends = [*starts[1:], len(text)]
        return {"input_ids": [10 + i for i in range(len(starts))],
                "offset_mapping": list(zip(starts, ends))}  # fmt: skip


def test_peaks_are_the_surest_of_each_run():
    best, kind = np.array([1.0, 3, 2, 9, 1]), np.array([4, 4, 0, 4, 5])
    assert peaks(best, kind).tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("text", "read", "wanted"),
    [
        ("ab cd", "ab cd", [10, 0, 0, 11, 0]),
        ("ab cd", "abcd", [10, 0, 11, 0]),
        ("ab cd", "xb cd", [10, 0, 0, 11, 0]),
        ("ab cd", "ab", [10, 0]),
    ],
)
def test_a_token_stands_where_its_first_character_was_read(text, read, wanted):
    assert token_cells(text, read, Words(), 0).tolist() == wanted
