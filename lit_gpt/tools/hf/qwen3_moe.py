"""Qwen3-MoE: Qwen3 with mixtures of experts in all or some layers, and one window in all layers or none.

norm_topk_prob divides the gates by their sum over the selected experts, which makes them a softmax over these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_experts as moe
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import key_biases, only_qkv, pre_norm, swiglu
from lit_gpt.tools._hf_windows import one_window

COUNTS = frozenset({"num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob"})
WINDOW = frozenset({"use_sliding_window", "sliding_window"})
LAYOUT = hf.Layout(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 4),
        "max_position_embeddings": ("block_size", 32768),
        "attention_bias": ("attn_bias", False),
    },
    fixed={"qk_norm": True},
    expressed=frozenset({"experts", "qkv_bias"}),
    layer_fields=frozenset({"window", "experts"}),
    harmless=hf.HARMLESS | moe.TRAINING | {"max_window_layers"},
    read=COUNTS | WINDOW | moe.SPARSE_KEYS | {"moe_intermediate_size"},
    kinds={
        **hf.KINDS,
        **moe.KINDS,
        "sliding_window": "a whole number",
        **dict.fromkeys(("attention_bias", "use_sliding_window", "norm_topk_prob"), "true or false"),
    },
    idle=frozenset(),
    folded=frozenset({"logit", "residual", "attention", "router"}),
)
constants = key_biases
unpacked = moe.apart


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""

    def ffn(layer: int, mine: str, theirs: str) -> list[hf.Place]:
        if config.layers[layer].experts:
            return moe.expert_places(config, multipliers, mine, f"{theirs}.mlp")
        return swiglu(mine, f"{theirs}.mlp", multipliers.residual)

    return pre_norm(config, multipliers, ffn)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return one_window(config) + only_qkv(config) + moe.expert_reasons(config, ("selected", "all"))


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    window = config.layers[0].window
    windows = {"use_sliding_window": window is not None, "sliding_window": window}
    return windows | moe.qwen_keys(config)


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    found = moe.read_qwen(values, count=128, used=8, width=768)
    layers = moe.sparse_layers(replace(LAYOUT.layer, window=window), fields["depth"], values)
    return understood(LAYOUT, fields, values, layers=layers, **found)
