import pytest
import torch
from tests.training.tiny_llama import VOCABULARY, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from training.smol.sequences import branch, embed, loss_of


@pytest.fixture
def model():
    return tiny_llama().double()


def soft_prefix(length=9, width=3):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (length, width), generator=generator)
    q = torch.rand(length, width, generator=generator).double()
    q[::2, 1:] = 0
    return ids, q / q.sum(1, keepdim=True)


BRANCHES = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12]), ([13, 14], [2])]


def separate(model, ids, q, asked, answer):
    """Losses of a branch, computed as a plain causal sequence."""
    weight = model.get_input_embeddings().weight
    after = torch.tensor(asked + answer)
    inputs = torch.cat([embed(ids, q, weight), weight[after]])
    logits = model(inputs_embeds=inputs[None]).logits[0]
    size = len(ids) + len(asked)
    return torch.nn.functional.cross_entropy(
        logits[size - 1 : size - 1 + len(answer)], torch.tensor(answer), reduction="none"
    )


def test_branches_are_separate_sequences(model):
    ids, q = soft_prefix()
    losses, owner = loss_of(model, branch(ids, q, BRANCHES))
    for number, (asked, answer) in enumerate(BRANCHES, start=1):
        alone = separate(model, ids, q, asked, answer)
        torch.testing.assert_close(losses[owner == number], alone, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_separate_sequences(model):
    ids, q = soft_prefix()
    loss_of(model, branch(ids, q, BRANCHES))[0].sum().backward()
    together = [p.grad.clone() for name, p in model.named_parameters() if "embed" not in name]
    model.zero_grad()
    sum(separate(model, ids, q.detach(), *b).sum() for b in BRANCHES).backward()
    alone = [p.grad for name, p in model.named_parameters() if "embed" not in name]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_branch_sees_the_page_and_itself():
    sequence = branch(*soft_prefix(length=2, width=1), [([1], [2]), ([3], [4])])
    assert sequence.positions.tolist() == [0, 1, 2, 3, 2, 3]
    seen = sequence.seen()
    assert seen[5].tolist() == [True, True, False, False, True, True]
    assert seen[1].tolist() == [True, True, False, False, False, False]
    assert sequence.labels.tolist() == [-100, -100, -100, 2, -100, 4]


def test_the_prefix_is_what_the_processor_writes():
    pytest.importorskip("tokenizers")
    from training.smol.pages import Prompts, plain

    from alignvlm.reader.spelling import Speller

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "Ġa", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])

    class Wrapped:
        backend_tokenizer = tokenizer

        def __call__(self, text, add_special_tokens):
            return {"input_ids": tokenizer.encode(text, add_special_tokens=False).ids}

    prompts = Prompts(Wrapped())
    assert isinstance(prompts.speller, Speller)
    ids, q = prompts.prefix([[plain("a b"), plain("c")], [plain("d")]])
    said = [tokenizer.id_to_token(i) for i in ids[:, 0].tolist()]
    assert said == ["<|im_start|>", *"user", "Ċ", "Ġa", "Ġ", "b", "Ċ", "c", "Ċ", "Ċ", "d", "Ċ", "Ċ"]
    assert torch.equal(q.sum(1), torch.ones(len(q)))
