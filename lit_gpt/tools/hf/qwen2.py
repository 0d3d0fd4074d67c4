"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values only, and perhaps windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools import _hf_windows as windows
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import pre_norm, qkv_biases

LAYOUT = hf.Layout(
    "qwen2",
    "Qwen2ForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 32),
        "max_position_embeddings": ("block_size", 32768),
    },
    expressed=frozenset({"qkv_bias"}),
    layer_fields=frozenset({"window"}),
    neutral={**hf.NEUTRAL, "use_mrope": (False,)},
    read=windows.LAYERED,
    kinds={**hf.KINDS, **windows.KINDS},
    last=(
        "AutoTokenizer of transformers 5 gives a qwen2 folder Qwen2's own splitting of texts, which may not be this "
        "tokenizer's: load it with PreTrainedTokenizerFast, or write another class"
    ),
)
places = pre_norm
constants = qkv_biases
describe = windows.layered_keys


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return windows.one_width(config)


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """Queries, keys and values always have biases there."""
    layers = windows.layered(LAYOUT.layer, fields["depth"], values)
    return understood(LAYOUT, fields, values, layers=layers, qkv_bias=True)
