"""Llama: pre-norm attention with rotary positions in every layer, and SwiGLU."""

from __future__ import annotations

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_parts import attention, block_norms, block_of, ends, key_biases, only_qkv, swiglu, uneven

LAYOUT = hf.Layout(
    "llama",
    "LlamaForCausalLM",
    expressed=frozenset({"qkv_bias"}),
    options={**hf.OPTIONS, "attention_bias": ("attn_bias", False), "mlp_bias": ("mlp_bias", False)},
    kinds={**hf.KINDS, "attention_bias": "true or false", "mlp_bias": "true or false"},
)


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    rows = ends(config, multipliers)
    for layer in range(config.depth):
        mine, theirs = block_of(config, layer), f"model.layers.{layer}"
        rows += block_norms(mine, theirs)
        rows += attention(config, multipliers, f"{mine}.mixer", f"{theirs}.self_attn")
        rows += swiglu(f"{mine}.ffn", f"{theirs}.mlp", multipliers.residual, config.mlp_bias)
    return rows


def constants(config: ModelConfig) -> list[hf.Constant]:
    """See lit_gpt.tools.hf."""
    return key_biases(config)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """LlamaConfig.validate_architecture wants a width which the heads divide."""
    return uneven(config) + only_qkv(config)
