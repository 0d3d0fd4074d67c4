"""OLMo 3: OLMo 2 with a window in some layers, and YaRN in the others only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
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
    expressed=olmo2.LAYOUT.expressed | {"yarn_windows"},
    theta=500_000.0,
    read=frozenset({"sliding_window", "layer_types"}),
    kinds={**olmo2.LAYOUT.kinds, "sliding_window": "a whole number", "layer_types": "a list"},
)
places = olmo2.places
constants = key_biases
PLAIN = (None, "default")


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """Its layers with a window have no YaRN, and transformers does not read truncate where each kind has a RoPE."""
    found, yarn = windows.one_width(config) + only_qkv(config), config.yarn_scale != 1
    stretched = {config.stretched(spec) for spec in config.layers if spec.window is not None}
    found += ["YaRN in layers with a window"] if yarn and True in stretched else []
    found += ["YaRN without layers that see everything"] if yarn and all(s.window for s in config.layers) else []
    return found + (["yarn_truncate False"] if yarn and not config.yarn_truncate else [])


def describe(config: ModelConfig) -> dict[str, Any]:
    """transformers 5 takes rope_theta for the layers without a window alone, so rope_parameters has it for both."""
    keys, rope = windows.layered_keys(config), rope_keys(config)
    theta = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {
        "sliding_window": keys["sliding_window"] or config.block_size,  # a number, also where no layer reads it
        "layer_types": keys["layer_types"],
        "rope_parameters": {windows.FULL: theta | (rope["rope_scaling"] or {}), windows.SLIDING: theta},
    }


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """Without layer_types every fourth layer sees everything."""
    depth = fields["depth"]
    kinds = values.get("layer_types") or [windows.FULL if i % 4 == 3 else windows.SLIDING for i in range(depth)]
    given = {**values, "use_sliding_window": True, "layer_types": kinds}
    layers = windows.layered(LAYOUT.layer, depth, given)
    config = understood(LAYOUT, fields, _of_all_layers(values, set(kinds)), layers=layers)
    return config.replace(yarn_windows=config.yarn_scale == 1 or not windows.windows_of(config))


def _of_all_layers(values: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """The keys with one rope_parameters, that of the layers without a window, where they have one for each kind."""
    nested = values.get("rope_parameters") or {}
    ropes = {kind: nested.get(kind) or {} for kind in (windows.FULL, windows.SLIDING)}
    if nested.keys() - ropes.keys() or not all(isinstance(rope, dict) for rope in ropes.values()):
        raise UserError(f"config.json: rope_parameters is {nested}; it must be an object for each kind of layer.")
    full, sliding = ropes.values()
    thetas = {rope.get("rope_theta") or LAYOUT.theta for kind, rope in ropes.items() if kind in kinds}
    more = {k: v for k, v in sliding.items() if k not in ("rope_type", "rope_theta") and v is not None}
    if nested and windows.SLIDING in kinds and (len(thetas) > 1 or more or sliding.get("rope_type") not in PLAIN):
        raise UserError(
            "config.json asks for RoPE in layers with a window that is not that of the others but for YaRN."
        )
    return {**values, "rope_parameters": full if windows.FULL in kinds else sliding}
