"""The study's language model is transformers' Llama."""

import pytest
import torch
from studies.connectors.language_model import LanguageModel
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1000.0, "rope_type": "default"}, initializer_range=0.2,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    return folder, theirs


def test_same_logits(pair):
    folder, theirs = pair
    ours = LanguageModel(folder)
    ids = torch.randint(0, 97, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(ours.embed(ids))), theirs(ids).logits, atol=1e-4, rtol=1e-4
        )


def test_generates_from_prompts_of_unequal_length(pair):
    folder, theirs = pair
    ours = LanguageModel(folder)
    prompts = [torch.randint(3, 97, (n,)) for n in (9, 4)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    said = ours.generate(ours.embed(padded), torch.tensor([9, 4]), 6, stop=96)
    for row, prompt in zip(said, prompts):
        wanted = theirs.generate(prompt[None], max_new_tokens=6, do_sample=False, eos_token_id=96,
                                 pad_token_id=96)[0, len(prompt) :]  # fmt: skip
        assert row.tolist()[: len(wanted)] == wanted.tolist()


def test_low_rank_changes_start_at_nothing_and_learn(pair):
    folder, _ = pair
    plain, changed = LanguageModel(folder), LanguageModel(folder)
    changed.adapt(2)
    x = torch.randn(1, 5, 48)
    torch.testing.assert_close(plain(x), changed(x))
    changed(x).square().mean().backward()
    assert all(p.grad is not None for p in changed.parameters())
    assert not list(plain.parameters())


def test_rows_of_like_length_are_as_all_together(pair):
    folder, _ = pair
    ours = LanguageModel(folder)
    lengths = torch.tensor([9, 3, 11, 5, 7])
    x = torch.randn(5, 12, 48, requires_grad=True)
    real = torch.arange(12) < lengths[:, None]
    hidden = ours.by_length(x, lengths)
    assert hidden.shape == x.shape
    torch.testing.assert_close(hidden[real], ours(x)[real])
    (grad,) = torch.autograd.grad(hidden[real].square().sum(), x)
    (wanted,) = torch.autograd.grad(ours(x)[real].square().sum(), x)
    torch.testing.assert_close(grad, wanted)
