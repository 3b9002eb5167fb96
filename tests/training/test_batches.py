import argparse
import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.tiny_llama import VOCABULARY, tiny_llama
from training.smol.batches import Examples, answer_loss
from training.smol.mix import SHARES, SOURCES_OF, shares_without
from training.smol.sequences import Sequence4D, branch, loss_of
from training.smol.shards import KINDS, pack, prompt_arrays, write
from training.smol.train_gpu import Run

from alignvlm.compose.shipped import add_low_rank


def sequence(seed, branches, length=9, width=3) -> Sequence4D:
    """A page with doubts that 1/255 tells apart."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (length, width), generator=generator)
    levels = torch.randint(0, 120, (length, width), generator=generator)
    levels[::2, 1:] = 0
    levels[:, 0] = 255 - levels[:, 1:].sum(1)
    return branch(ids, levels / 255, branches)


@pytest.fixture
def stored(tmp_path):
    made = [
        ("sroie", sequence(1, [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12])])),
        ("form", sequence(2, [([13, 14], [2])], length=21)),
        ("text", branch(torch.tensor([[5]]), torch.ones(1, 1), [([], [6, 7, 8, 2])])),
        ("wtq", sequence(3, [([3], [4, 5]), ([6], [7]), ([8, 9], [2, 2])], width=1)),
    ]
    write(tmp_path / "000.npz", pack(made[:2]))
    write(tmp_path / "001.npz", pack(made[2:]))
    write(tmp_path / "prompts.npz", prompt_arrays([[3, 4, 5], [6, 7]]))
    return tmp_path, made


def examples_of(folder):
    return Examples([folder / "000.npz", folder / "001.npz"], torch.device("cpu"))


def test_what_is_stored_comes_back(stored):
    folder, made = stored
    batch = examples_of(folder).batch([3, 0, 2, 1])
    weight = torch.eye(VOCABULARY)
    found = batch.embed(weight)
    for row, number in enumerate([3, 0, 2, 1]):
        own = made[number][1]
        size = len(own.ids)
        expected = (weight[own.ids] * own.q[..., None]).sum(1)
        torch.testing.assert_close(found[row, :size], expected, atol=1e-5, rtol=0)
        for name in ("positions", "owner", "labels"):
            assert torch.equal(getattr(batch, name)[row, :size], getattr(own, name)), name
        assert (batch.labels[row, size:] == -100).all()


def test_a_batch_has_the_losses_of_its_sequences(stored):
    folder, made = stored
    model = tiny_llama()
    with torch.no_grad():
        together = answer_loss(model, examples_of(folder).batch([0, 1, 3]))
        for found, number in zip(together, (0, 1, 3), strict=True):
            losses, owner = loss_of(model, made[number][1])
            weight = torch.bincount(owner)[owner].float().rsqrt()
            torch.testing.assert_close(
                found, (losses * weight).sum() / weight.sum(), atol=1e-5, rtol=1e-4
            )


def test_an_epoch_has_every_page_once(stored):
    folder, _ = stored
    examples = examples_of(folder)
    batches = list(examples.epoch(64, np.random.default_rng(0)))
    assert sorted(n for batch in batches for n in batch) == [0, 1, 3]
    assert examples.texts().tolist() == [2]
    assert examples.kind[2] == KINDS.index("text")


def asked_for(folder, **changes):
    values = {
        "rank": 4, "alpha": 8, "rate": 2e-2, "seed": 0, "shards": folder, "prompts": 2,
        "tokens": 128, "seconds": 2.0, "warmup": 1, "log_every": 2,
    }  # fmt: skip
    return argparse.Namespace(**values | changes)


def test_training_learns_and_what_is_written_is_what_was_trained(stored, tmp_path):
    folder, _ = stored
    examples = examples_of(folder)
    run = Run(tiny_llama(), examples, asked_for(folder))
    batch = examples.batch([0, 1, 3])
    before = answer_loss(run.model, batch).mean().item()
    run.parts = 2
    ticks = itertools.count()
    run.train(tmp_path, clock=lambda: 0.1 * next(ticks))
    assert run.step == 19  # of 2 s, a tenth a step
    with torch.no_grad():
        after = answer_loss(run.model, batch)
    assert after.mean() < 0.97 * before
    text = (tmp_path / "curve.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["sroie"] < lines[0]["sroie"]
    plain = tiny_llama()
    changes = load_file(tmp_path / "weights.safetensors")
    add_low_rank(plain.model, {name: value.float() for name, value in changes.items()})
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(plain, batch), after, atol=2e-3, rtol=2e-2)


def test_a_kind_is_left_out(stored):
    folder, made = stored
    files = [folder / "000.npz", folder / "001.npz"]
    kept = Examples(files, torch.device("cpu"), SOURCES_OF["receipts"])
    given = {n for batch in kept.epoch(64, np.random.default_rng(0)) for n in batch}
    assert [made[n][0] for n in sorted(given)] == ["form", "wtq"]
    assert shares_without("contracts").keys() == SHARES.keys() - {"deepform"}
    assert sum(shares_without("receipts").values()) == pytest.approx(1)
