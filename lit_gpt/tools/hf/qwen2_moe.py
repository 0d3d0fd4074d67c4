"""Qwen2-MoE: Qwen2 with mixtures of experts in all or some layers, and a shared expert behind a sigmoid gate.

Our shared expert has no gate. A gate whose weights are zero is 1/2 for every token, so its down projection is doubled.
A model without a shared expert gets one of width 1 whose weights are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_experts as moe
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import pre_norm, qkv_biases, swiglu

COUNTS = frozenset({"num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob"})
WIDTHS = frozenset({"moe_intermediate_size", "shared_expert_intermediate_size"})
NO_SHARED = 1  # the width that stands for no shared expert
LAYOUT = hf.Layout(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 16),
        "max_position_embeddings": ("block_size", 32768),
    },
    expressed=frozenset({"qkv_bias", "experts"}),
    layer_fields=frozenset({"experts"}),
    # Versions of transformers differ in which layers have windows.
    neutral={**hf.NEUTRAL, "use_sliding_window": (False,), "qkv_bias": (True,)},
    harmless=hf.HARMLESS | moe.TRAINING | {"sliding_window", "max_window_layers"},
    read=COUNTS | WIDTHS | moe.SPARSE_KEYS | {"layer_types"},
    kinds={
        **hf.KINDS,
        **moe.KINDS,
        "norm_topk_prob": "true or false",
        "shared_expert_intermediate_size": "a whole number",
        "layer_types": "a list",
    },
    idle=frozenset(),
    folded=frozenset({"logit", "residual", "attention", "router"}),
)
unpacked = moe.apart


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""

    def ffn(layer: int, mine: str, theirs: str) -> list[hf.Place]:
        if not config.layers[layer].experts:
            return swiglu(mine, f"{theirs}.mlp", multipliers.residual)
        rows = moe.expert_places(config, multipliers, mine, f"{theirs}.mlp")
        if moe.experts_of(config).shared:
            rows += swiglu(f"{mine}.shared", f"{theirs}.mlp.shared_expert", 2 * multipliers.residual)
        return rows

    return pre_norm(config, multipliers, ffn)


def constants(config: ModelConfig) -> list[hf.Constant]:
    """See lit_gpt.tools.hf."""
    found, n = qkv_biases(config), config.n_embd
    for layer, spec in enumerate(config.layers):
        if not spec.experts:
            continue
        mlp = f"model.layers.{layer}.mlp"
        found.append(hf.Constant(f"{mlp}.shared_expert_gate.weight", (1, n), "a shared expert has no gate here"))
        if not moe.experts_of(config).shared:
            shapes = {"gate_proj": (NO_SHARED, n), "up_proj": (NO_SHARED, n), "down_proj": (n, NO_SHARED)}
            why = "one of width 1 stands for none"
            found += [hf.Constant(f"{mlp}.shared_expert.{k}.weight", shape, why) for k, shape in shapes.items()]
    return found


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return moe.expert_reasons(config, ("selected", "all"), (True, False))


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    shared = moe.expert_width(config) if moe.experts_of(config).shared else NO_SHARED
    return moe.qwen_keys(config) | {"shared_expert_intermediate_size": shared}


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """Queries, keys and values have biases there unless qkv_bias is false, which transformers 4 does not know."""
    if any(kind != "full_attention" for kind in values.get("layer_types") or []):
        raise UserError("config.json asks for layer_types with windows, which are not read of a Qwen2MoeForCausalLM.")
    width = values.get("moe_intermediate_size") or 1408
    shared = values.get("shared_expert_intermediate_size") or 5632
    if shared not in (width, NO_SHARED):
        raise UserError(
            f"config.json asks for a shared expert of width {shared}, which cannot be expressed: here it has that of "
            f"the other experts, {width}."
        )
    found = moe.read_qwen(values, count=60, used=4, width=width, shared=shared == width)
    layers = moe.sparse_layers(LAYOUT.layer, fields["depth"], values)
    return understood(LAYOUT, fields, values, layers=layers, qkv_bias=True, **found)
