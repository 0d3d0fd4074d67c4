"""Logits equal to Hugging Face transformers, with its weights copied over."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.ops.attention import attention

NAMES = {
    "model.embed_tokens": "wte",
    "model.layers": "blocks",
    "model.norm": "norm",
    "lm_head": "head",
    "self_attn.q_proj": "mixer.q",
    "self_attn.k_proj": "mixer.k",
    "self_attn.v_proj": "mixer.v",
    "self_attn.o_proj": "mixer.out",
    "self_attn.q_norm": "mixer.q_norm",
    "self_attn.k_norm": "mixer.k_norm",
    "post_attention_layernorm": "norm2",
    "input_layernorm": "norm1",
    "mlp.down_proj": "ffn.down",
}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}


def ours(**fields) -> ModelConfig:
    sizes = {"n_embd": 64, "n_head": 4, "head_dim": 16, "n_kv_head": 2, "intermediate_size": 96}
    return ModelConfig("test", 3, **sizes, layers=(LayerSpec(),) * 3, vocab_size=128, block_size=64, **fields)


def translated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their state dict under our names; gate and up become one matrix."""
    out = {}
    for name, tensor in state.items():
        for theirs, mine in NAMES.items():
            name = name.replace(theirs, mine)
        out[name] = tensor
    for name in [n for n in out if "gate_proj" in n]:
        up = out.pop(name.replace("gate_proj", "up_proj"))
        out[name.replace("mlp.gate_proj", "ffn.up")] = torch.cat([out.pop(name), up])
    return out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_logits(kind, tied):
    torch.manual_seed(0)
    model, settings = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}[kind]
    theirs = model(settings(**SIZES, tie_word_embeddings=tied)).double().eval()
    for p in theirs.parameters():
        p.normal_(0.5 if p.ndim == 1 else 0.0, 0.2)
    config = ours(tie_embeddings=tied, qk_norm=kind == "qwen3")
    model = GPT(config, compute_dtype=torch.float64, residual_dtype=torch.float64).double()
    state = translated(theirs.state_dict())
    if tied:
        state.pop("head.weight")
    model.load_state_dict(state)
    tokens = torch.randint(0, 128, (2, 33))
    torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_are_those_of_gpt_oss(window):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups = torch.nn.Parameter(torch.randn(4)), 2
    distance = torch.arange(9)[:, None] - torch.arange(9)
    hidden = (distance < 0) | (distance >= (window or 9))
    mask = torch.zeros(1, 1, 9, 9).masked_fill(hidden, torch.finfo(torch.float32).min)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected, _ = modeling_gpt_oss.eager_attention_forward(module, *heads_first, mask, scaling=0.3)
    torch.testing.assert_close(attention(q, k, v, scale=0.3, window=window, sink=module.sinks), expected)
