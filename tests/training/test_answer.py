import pytest
import torch
from training.smol.answer import add_changes, answers, one_by_one, prompts_of
from training.smol.batches import Examples
from training.smol.sequences import branch, embed
from training.smol.shards import pack, write
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from alignvlm.compose.shipped import add_low_rank

VOCABULARY, END = 40, 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.4,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    made.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=END)
    return made


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


def test_changes_are_those_of_the_shipped_model(model, tmp_path):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    changes = {
        "text.layers.0.self_attn.q_proj.a": torch.randn(2, 32, generator=generator),
        "text.layers.0.self_attn.q_proj.b": torch.randn(32, 2, generator=generator),
    }
    save_file(changes, tmp_path / "weights.safetensors")
    other = LlamaForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    add_changes(model.model, [tmp_path / "weights.safetensors"])
    add_low_rank(other.model, changes)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
