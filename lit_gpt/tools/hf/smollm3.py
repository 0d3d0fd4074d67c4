"""SmolLM3: Llama in which some layers have a window, and some no rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools import _hf_windows as windows
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import key_biases, only_qkv, pre_norm

LAYOUT = hf.Layout(
    "smollm3",
    "SmolLM3ForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 4),
        "max_position_embeddings": ("block_size", 32768),
        "tie_word_embeddings": ("tie_embeddings", True),
        "attention_bias": ("attn_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
    expressed=frozenset({"position", "qkv_bias"}),
    layer_fields=frozenset({"window"}),
    theta=2e6,
    unrotated=True,
    read=windows.LAYERED | {"no_rope_layers", "no_rope_layer_interval"},
    kinds={
        **hf.KINDS,
        **windows.KINDS,
        **dict.fromkeys(("attention_bias", "mlp_bias"), "true or false"),
        "no_rope_layers": "a list",
        "no_rope_layer_interval": "a whole number",
    },
)
places = pre_norm
constants = key_biases


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return windows.one_width(config) + only_qkv(config)


def describe(config: ModelConfig) -> dict[str, Any]:
    """no_rope_layers has a 1 for a layer that does have rotary positions."""
    rotated = [int(config.position == "rope" and config.base_of(spec) != 0) for spec in config.layers]
    return windows.layered_keys(config) | {"no_rope_layers": rotated}


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    depth, interval = fields["depth"], values.get("no_rope_layer_interval") or 4
    rotated = values.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(depth)]
    if len(rotated) != depth or not all(flag in (0, 1) for flag in rotated):
        raise UserError(f"config.json: no_rope_layers is {rotated}; it must be 0 or 1 for each of {depth} layers.")
    kinds = [windows.FULL if flag or not values.get("use_sliding_window") else windows.SLIDING for flag in rotated]
    given = values if values.get("layer_types") else {**values, "layer_types": kinds}
    found = windows.layered(LAYOUT.layer, depth, given, width=None)
    layers = tuple(spec if flag else replace(spec, rope_base=0) for spec, flag in zip(found, rotated, strict=True))
    return understood(LAYOUT, fields, values, layers=layers)
