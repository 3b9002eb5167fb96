"""Cells trained side by side are the cells trained alone."""

import numpy as np
import pytest
import torch
from studies.connectors.batches import several, training_order
from studies.connectors.cell import Bench
from studies.connectors.settings import Cell
from studies.connectors.store import CHANNELS, Pages
from studies.connectors.train import train
from studies.connectors.workers import next_group
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ["<unk>", "<|im_start|>", "<|im_end|>", " ", "\n", "user", "assistant", "Page", "a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny language model over some words."""
    path = tmp_path_factory.mktemp("language-model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1000.0, "rope_type": "default"}, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.add_special_tokens(WORDS[1:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Sixteen pages to train on and nine that are held out."""
    rng = np.random.default_rng(0)
    counts = rng.integers(8, 20, 25)
    meta = [
        {"part": "train" if i < 16 else "test", "text": "a b", "facts": [["a", "b"], ["b", "a"]]}
        for i in range(25)
    ]
    cells = int(counts.sum())
    pages = Pages(
        rng.integers(-16, 16, (cells, CHANNELS)).astype(np.int8),
        rng.integers(0, 255, (cells, 2)).astype(np.uint8),
        rng.integers(3, len(WORDS), cells).astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        meta,
    )
    file = tmp_path_factory.mktemp("pages") / "pages.npz"
    pages.save(file)
    return file


def cell(variant, seed):
    return Cell(variant, 16, seed, steps=4, batch=3, rate=1e-2)


GROUPS = [
    [cell("align-low-rank", 0), cell("perceiver-low-rank", 0), cell("mlp-low-rank", 1)],
    [cell("align-grounded", 0), cell("ovis", 1), cell("text", 0)],
]


@pytest.mark.parametrize("group", GROUPS, ids=["low-rank", "frozen"])
def test_side_by_side_is_as_alone(group, folder, stored, tmp_path):
    bench = Bench(stored, folder, "cpu")
    assert len({cell.kind for cell in group}) == 1

    def trained(cells):
        rank = cells[0].kind[0]
        bench.language.adapt(2 if rank else 0, [one.seed for one in cells])
        trainees = [bench.trainee(one, tmp_path) for one in cells]
        losses = train(trainees, bench.language, "cpu")
        weights = [[p.detach().clone() for p in t.reader.connector.parameters()] for t in trainees]
        changes = bench.language.changes.detach().clone() if rank else [None] * len(cells)
        return list(zip(losses, weights, changes, strict=True))

    for one, (losses, weights, changes) in zip(group, trained(group), strict=True):
        ((alone, own_weights, own_changes),) = trained([one])
        torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-5)
        # alone, rows go by length: sums are rounded otherwise, and Adam divides by small ones
        torch.testing.assert_close(weights, own_weights, rtol=1e-3, atol=2e-4)
        if changes is not None:
            torch.testing.assert_close(changes, own_changes, rtol=1e-3, atol=2e-4)
        assert losses[-1] != losses[0]


def test_one_of_several_answers_with_its_own_changes(folder, stored, tmp_path):
    bench = Bench(stored, folder, "cpu")
    bench.language.adapt(2, [0, 1])
    trainees = [bench.trainee(cell("mlp-low-rank", seed), tmp_path) for seed in (0, 1)]
    train(trainees, bench.language, "cpu")
    batch = trainees[0].batcher.batch(several(bench.pages, 2))
    both = []
    with torch.no_grad():
        x, _, _ = trainees[0].reader.inputs(batch)
        for number in (0, 1):
            bench.language.only = number
            both.append(bench.language(x))
        bench.language.adapt(0)
        plain = bench.language(x)
    assert not torch.allclose(both[0], both[1]) and not torch.allclose(both[0], plain)


def test_where_prompts_with_their_answers_end(folder, stored, tmp_path):
    bench = Bench(stored, folder, "cpu")
    batcher = bench.trainee(cell("mlp", 0), tmp_path).batcher
    (asked,) = training_order(bench.pages, 16, 1, 5, seed=0)
    batch, without = batcher.batch(asked), batcher.batch(asked, answers=False)
    answers = [len(batcher.encode(one.answer)) for one in asked]
    assert (batch.ends - batch.lengths).tolist() == answers  # the end token is not fed back
    assert torch.equal(without.ends, without.lengths)


def test_several_pages_in_one_prompt(folder, stored, tmp_path):
    bench = Bench(stored, folder, "cpu")
    reader = bench.trainee(cell("mlp", 0), tmp_path).reader
    questions = several(bench.pages, 4)
    assert all(q.page in q.among and len(set(q.among)) == 4 for q in questions)
    batch = reader.batcher(bench.pages, folder).batch(questions)
    pages = [page for q in questions for page in q.pages]
    assert len(batch.cells) == len(pages)
    assert len(batch.visual) == sum(
        bench.pages.starts[p + 1] - bench.pages.starts[p] for p in pages
    )
    x, _, _ = reader.inputs(batch)
    direct = reader.connector(reader.batcher(bench.pages, folder).cells(pages[0])[None, None],
                              bench.language.table)[0]  # fmt: skip
    torch.testing.assert_close(x.flatten(0, 1)[batch.visual[: len(direct)]], direct)


def test_groups_are_of_one_kind_in_order_and_fit_the_time(tmp_path):
    cells = [cell("mlp-low-rank", 0), cell("mlp", 0), cell("ovis-low-rank", 0), cell("ovis", 0)]
    waiting = Cell("align", 16, 0, steps=4, batch=3, needs=("sweep-align-0.1",))
    assert next_group([waiting, *cells], tmp_path, 8) == [cells[0], cells[2]]
    assert next_group(cells, tmp_path, 1) == [cells[0]]
    assert next_group(cells, tmp_path, 8, most_steps=7) == [cells[0]]
    assert next_group(cells, tmp_path, 8, most_steps=3) == []
