import pytest
import torch
from peft import get_peft_model_state_dict
from training.smol.export import shipped_changes
from training.smol.train import adapted
from transformers import LlamaConfig, LlamaForCausalLM

from alignvlm.compose.shipped import add_low_rank

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_what_is_shipped_is_what_was_trained():
    model = adapted(tiny(), 4, 8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                # fp16 stores these exactly, also once they are scaled by the root of two
                parameter.copy_(torch.randn_like(parameter).mul(0.1))
    changes = shipped_changes(get_peft_model_state_dict(model), 8 / 4)
    assert len(changes) == 2 * 7 * 2
    assert all(value.dtype == torch.float16 for value in changes.values())
    assert changes["text.layers.0.self_attn.q_proj.a"].shape == (4, 32)
    assert changes["text.layers.0.self_attn.q_proj.b"].shape == (32, 4)
    shipped = tiny()
    add_low_rank(shipped.model, {k: v.float() for k, v in changes.items()})
    merged = model.merge_and_unload()
    for (name, one), other in zip(merged.named_parameters(), shipped.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-3, msg=name)
    ids = torch.arange(20)[None]
    assert torch.allclose(merged(ids).logits, shipped(ids).logits, atol=1e-2)
