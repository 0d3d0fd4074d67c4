"""Mixtral: Mistral with a mixture of experts in every layer, whose gates are a softmax over the selected ones.

It computes softmax over all experts and divides by the sum over the selected: the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_experts as moe
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import pre_norm
from lit_gpt.tools._hf_windows import one_window

LAYOUT = hf.Layout(
    "mixtral",
    "MixtralForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 8),
        "max_position_embeddings": ("block_size", 131072),
        "rms_norm_eps": ("norm_eps", 1e-5),
    },
    expressed=frozenset({"experts"}),
    layer=LayerSpec(experts=True),
    layer_fields=frozenset({"window"}),
    theta=1e6,
    harmless=hf.HARMLESS | moe.TRAINING,
    read=frozenset({"sliding_window", "num_local_experts", "num_experts_per_tok"}),
    kinds={**hf.KINDS, **moe.KINDS, "sliding_window": "a whole number"},
    idle=frozenset(),
    folded=frozenset({"logit", "residual", "attention", "router"}),
)
NAMES = ("w1", "w3", "w2")  # an expert's gate, up and down projection


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""

    def ffn(layer: int, mine: str, theirs: str) -> list[hf.Place]:
        return moe.expert_places(config, multipliers, mine, f"{theirs}.block_sparse_moe", NAMES)

    return pre_norm(config, multipliers, ffn)


def unpacked(weights: hf.Weights) -> hf.Weights:
    """See lit_gpt.tools.hf."""
    return moe.apart(weights, "block_sparse_moe", NAMES)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return one_window(config) + moe.expert_reasons(config, ("selected",))


def describe(config: ModelConfig) -> dict[str, Any]:
    """Their intermediate_size is that of one expert."""
    e = moe.experts_of(config)
    count = {"num_local_experts": e.routed, "num_experts_per_tok": e.active}
    return {**count, "intermediate_size": moe.expert_width(config), "sliding_window": config.layers[0].window}


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    count, used = values.get("num_local_experts") or 8, values.get("num_experts_per_tok") or 2
    layer = replace(LAYOUT.layer, window=values.get("sliding_window"))
    found = moe.read_experts(count, used, fields["intermediate_size"], "selected")
    return understood(LAYOUT, fields, values, layers=(layer,) * fields["depth"], **found)
