import pytest
import torch
from tests.training.tiny_llama import END, VOCABULARY, tiny_llama
from training.smol.answer import answers, one_by_one, prompts_of
from training.smol.batches import Examples
from training.smol.sequences import branch, embed
from training.smol.shards import pack, write


@pytest.fixture
def model():
    return tiny_llama(initializer_range=0.4)


def greedy(model, inputs, longest):
    """One prompt, no cache, no padding."""
    said, weight = [], model.get_input_embeddings().weight
    for _ in range(longest):
        token = int(model(inputs_embeds=inputs[None]).logits[0, -1].argmax())
        if token == END:
            break
        said.append(token)
        inputs = torch.cat([inputs, weight[[token]]])
    return said


@torch.no_grad()
def test_many_at_once_are_answered_as_one_by_one(model, tmp_path):
    generator = torch.Generator().manual_seed(3)
    weight = model.get_input_embeddings().weight
    questions = [[3, 4, 5], [8, 9, 10, 11, 12], [13]]
    made, alone = [], []
    for size in (9, 4, 17):
        ids = torch.randint(3, VOCABULARY, (size, 1), generator=generator)
        one = torch.ones(size, 1)
        made.append(("sroie", branch(ids, one, [(question, []) for question in questions])))
        page = embed(ids, one, weight)
        alone += [torch.cat([page, weight[question]]) for question in questions]
    write(tmp_path / "sroie-true.npz", pack(made))
    examples = Examples([tmp_path / "sroie-true.npz"], torch.device("cpu"))
    prompts = [p for n in range(len(examples)) for p in prompts_of(examples, n, weight)]
    for found, expected in zip(prompts, alone, strict=True):
        torch.testing.assert_close(found, expected)
    said = answers(model, prompts, 8, tokens=60)  # several batches, padded
    assert said == [greedy(model, prompt, 8) for prompt in alone]
    assert len({tuple(one) for one in said}) > 3
    assert [ids for n in range(3) for ids in one_by_one(model, examples, n, 8)] == said
