"""Qwen3: Llama with QK-norm, no biases in its feed-forward networks, and perhaps windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools import _hf_windows as windows
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import key_biases, only_qkv, pre_norm

LAYOUT = hf.Layout(
    "qwen3",
    "Qwen3ForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 32),
        "head_dim": ("head_dim", 128),
        "max_position_embeddings": ("block_size", 32768),
        "attention_bias": ("attn_bias", False),
    },
    fixed={"qk_norm": True},
    expressed=frozenset({"qkv_bias"}),
    layer_fields=frozenset({"window"}),
    read=windows.LAYERED,
    kinds={**hf.KINDS, **windows.KINDS, "attention_bias": "true or false"},
)
places = pre_norm
constants = key_biases
describe = windows.layered_keys


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return windows.one_width(config) + only_qkv(config)


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    return understood(LAYOUT, fields, values, layers=windows.layered(LAYOUT.layer, fields["depth"], values))
