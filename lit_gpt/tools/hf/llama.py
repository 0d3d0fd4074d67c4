"""Llama: pre-norm attention with rotary positions in every layer, and SwiGLU."""

from __future__ import annotations

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_parts import key_biases, only_qkv, pre_norm, uneven

LAYOUT = hf.Layout(
    "llama",
    "LlamaForCausalLM",
    expressed=frozenset({"qkv_bias"}),
    options={**hf.OPTIONS, "attention_bias": ("attn_bias", False), "mlp_bias": ("mlp_bias", False)},
    kinds={**hf.KINDS, "attention_bias": "true or false", "mlp_bias": "true or false"},
)
places = pre_norm
constants = key_biases


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """LlamaConfig.validate_architecture wants a width which the heads divide."""
    return uneven(config) + only_qkv(config)
