"""OLMo 3: OLMo 2 with a window in some layers."""

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
from lit_gpt.tools._hf_parts import key_biases, only_qkv
from lit_gpt.tools._hf_rope import rope_keys
from lit_gpt.tools.hf import olmo2

LAYOUT = replace(
    olmo2.LAYOUT,
    model_type="olmo3",
    name="Olmo3ForCausalLM",
    layer_fields=frozenset({"window"}),
    theta=500_000.0,
    read=frozenset({"sliding_window", "layer_types"}),
    kinds={**olmo2.LAYOUT.kinds, "sliding_window": "a whole number", "layer_types": "a list"},
)
places = olmo2.places


def constants(config: ModelConfig) -> list[hf.Constant]:
    """See lit_gpt.tools.hf."""
    return key_biases(config)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """Its layers with a window have no YaRN, and the ends of the others' ramp are rounded, unlike ours."""
    yarn = [] if config.yarn_scale == 1 else [f"yarn_scale {config.yarn_scale}"]
    return windows.one_width(config) + only_qkv(config) + yarn


def describe(config: ModelConfig) -> dict[str, Any]:
    """transformers 5 takes rope_theta for the layers without a window alone, so rope_parameters has it for both."""
    keys = windows.layered_keys(config)
    theta = {"rope_type": "default", "rope_theta": rope_keys(config)["rope_theta"]}
    return {
        "sliding_window": keys["sliding_window"] or config.block_size,  # a number, also where no layer reads it
        "layer_types": keys["layer_types"],
        "rope_parameters": {windows.FULL: theta, windows.SLIDING: theta},
    }


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """Without layer_types every fourth layer sees everything."""
    depth = fields["depth"]
    kinds = values.get("layer_types") or [windows.FULL if i % 4 == 3 else windows.SLIDING for i in range(depth)]
    given = {**values, "use_sliding_window": True, "layer_types": kinds}
    layers = windows.layered(LAYOUT.layer, depth, given)
    config = understood(LAYOUT, fields, _of_all_layers(values, set(kinds)), layers=layers)
    if config.yarn_scale != 1:
        raise UserError("config.json asks for YaRN as OLMo 3 has it, with a rounded ramp, which cannot be expressed.")
    return config


def _of_all_layers(values: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """The keys with one rope_parameters for all layers, where they have one for each kind of layer."""
    nested = values.get("rope_parameters") or {}
    given = [nested[kind] for kind in sorted(kinds) if nested.get(kind) is not None]
    if not given:
        return dict(values)
    if not all(isinstance(rope, dict) for rope in given) or nested.keys() - {windows.FULL, windows.SLIDING}:
        raise UserError(f"config.json: rope_parameters is {nested}; it must be an object for each kind of layer.")
    if any(rope != given[0] for rope in given):
        raise UserError("config.json asks for RoPE that differs between layers with and without a window.")
    return {**values, "rope_parameters": given[0]}
