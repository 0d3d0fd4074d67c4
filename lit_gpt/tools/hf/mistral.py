"""Mistral: Llama without biases and with one window in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import pre_norm
from lit_gpt.tools._hf_windows import one_window

LAYOUT = hf.Layout(
    "mistral",
    "MistralForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 8),
        "max_position_embeddings": ("block_size", 131072),
    },
    layer_fields=frozenset({"window"}),
    read=frozenset({"sliding_window"}),
    kinds={**hf.KINDS, "sliding_window": "a whole number"},
)
places = pre_norm


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return one_window(config)


def describe(config: ModelConfig) -> dict[str, Any]:
    """transformers says that the tokenizer of a Mistral from before version 5 is wrong: Mistral AI's own was."""
    return {"sliding_window": config.layers[0].window, "transformers_version": "5.0.0"}


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """The default of sliding_window is 4096; null is none."""
    layer = replace(LAYOUT.layer, window=values.get("sliding_window", 4096))
    return understood(LAYOUT, fields, values, layers=(layer,) * fields["depth"])
