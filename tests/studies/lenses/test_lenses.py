"""The lenses on vectors whose nearest words are known, and the truth they are judged by."""

import numpy as np
import pytest
import torch
from studies.connectors.language_model import LanguageModel
from studies.lenses.lens import Corpus, all_lenses, head_tokens, nearest_in_text, nearest_rows
from studies.lenses.look import Layers, LeanLayers
from studies.lenses.report import section, shown
from studies.lenses.score import Judge, Truth, best_layer, examples, scored
from studies.lenses.truth import aligned, spans, truth_of_reading
from transformers import LlamaConfig, LlamaForCausalLM

TEXTS = [" total", "Total", " ", "1", "2", " date"]


def test_nearest_rows_are_by_direction():
    table = torch.eye(6)
    vectors = 0.01 * table[[3, 5]] + 0.001 * table[[1, 0]]
    assert nearest_rows(vectors, table, 2).tolist() == [[3, 1], [5, 0]]


def test_a_token_of_the_text_counts_once():
    states = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    corpus = Corpus(torch.tensor([4, 4, 2]), {3: states})
    assert nearest_in_text(torch.tensor([[2.0, 0.0]]), 3, corpus, 6, 2).tolist() == [[4, 2]]


def test_the_head_sees_which_layer_it_is():
    def head(states, layer):
        return states.roll(layer, -1)

    assert head_tokens(torch.eye(6)[:1], 2, head, 1).tolist() == [[2]]


def test_without_p_vocab_the_embedding_lens_is_first():
    states = {0: torch.eye(6)[:2]}
    corpus = Corpus(torch.arange(6), {0: torch.eye(6)})
    found = all_lenses(None, states[0], states, torch.eye(6), lambda h, _: h, corpus)
    assert list(found) == ["embedding lens", "logit lens", "contextual lens"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama and its folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1000.0, "rope_type": "default"}, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_hidden_states_of_both_language_models_agree(llama):
    model, folder = llama
    host, lean = Layers(model, model.model), LeanLayers(LanguageModel(folder))
    x = torch.randn(1, 7, 16)
    one, other = host.states(x), lean.states(x)
    assert list(one) == list(other) == [0, 3, 4]
    for n in one:
        torch.testing.assert_close(one[n], other[n], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            host.logits(one[n], n), lean.logits(other[n], n), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(host.logits(one[4], 4), model(inputs_embeds=x).logits[0])


class Words:
    """Tokens are words with the space before them; one id a length."""

    def __call__(self, text, **_):
        ends = [i for i in range(1, len(text)) if text[i] == " "] + [len(text)]
        starts = [0, *ends[:-1]]
        places = list(zip(starts, ends, strict=True))
        return {"input_ids": [end - start for start, end in places], "offset_mapping": places}


def test_a_misread_token_is_judged_by_what_stands_there():
    page = spans(["Total: 3", "Date"], Words())
    assert page.text == " Total: 3 Date" and page.ids == [7, 2, 5]
    assert aligned([" Tota1", ":", " 3", " Date", " x"], page) == [1, 6, 8, 10, None]
    truth, kept = truth_of_reading([" Tota1", ":", " 3", " Date", " x"], page, 4)
    assert kept.tolist() == [True, True, True, True, False]
    assert truth.token.tolist() == [7, 7, 2, 5] and truth.after.tolist() == [2, 2, 5, -1]
    assert truth.word == ["Total:", "Total:", "3", "Date"] and set(truth.page) == {4}


def test_a_space_alone_stands_on_nothing():
    page = spans(["a 3"], Words())
    assert aligned([" a", " ", "3"], page) == [1, None, 3]


def test_case_and_the_space_before_a_word_do_not_count():
    judge = Judge(TEXTS)
    said = np.array([[1, 3], [2, 3], [4, 4]])
    assert judge.tokens(said, np.array([0, 2, -1])).tolist() == [
        [True, False], [False, False], [False, False],
    ]  # fmt: skip


def test_the_layer_is_chosen_on_other_pages_than_it_is_scored_on():
    page = np.repeat(np.arange(4), 5)
    token = np.tile([0, 3, 4, 5, 3], 4)
    truth = Truth(token, np.roll(token, -1), ["x"] * 20, page)
    right, wrong = np.repeat(token[:, None], 5, 1), np.full((20, 5), 2)
    even = (page % 2 == 0)[:, None]
    layers = {0: np.where(even, wrong, right), 3: np.where(even, right, wrong)}
    found = {"P_vocab": {0: right}, "logit lens": layers}
    judge = Judge(TEXTS)
    assert best_layer({0: wrong, 3: right}, truth, judge) == 3
    result = scored(found, truth, judge)
    assert result["pages"] == 2 and result["visual tokens"] == 10
    lens = result["lenses"]["logit lens"]
    assert lens["layer"] == 3 and lens["top 1"]["share"] == 0
    assert lens["by layer"] == {"0": 1.0, "3": 0.0}
    assert lens["less than the first"]["share"] == 1
    rows = examples(found, truth, result["lenses"], lambda ids: TEXTS[ids[0]], 1)
    assert rows[0]["truth"] == " total" and rows[0]["P_vocab"] == [" total"] * 3
    own = {"model": "smol", "data": "pages", **result, "examples": rows}
    assert "| P_vocab | – | 1.000 [1.000, 1.000] |" in section(own)
    assert "| `␣total` |" in shown(own)
