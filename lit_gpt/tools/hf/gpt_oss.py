"""GPT-OSS (arXiv:2508.10925): attention sinks, windows in some layers, and experts with its own SwiGLU in all.

A feed-forward network without experts is one expert, which every token uses. Its experts and router have biases;
those that ours lack are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.ops.expert_activation import OSS_ALPHA, OSS_LIMIT
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_experts as moe
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools import _hf_windows as windows
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import block_of, key_biases, only_qkv, pre_norm
from lit_gpt.tools._hf_rope import rope_keys

WINDOW = 128  # the class's default; transformers wants some window where no layer has one too
YARN = {  # the class's default, of a config.json that says nothing of rotary positions
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
LAYOUT = hf.Layout(
    "gpt_oss",
    "GptOssForCausalLM",
    sizes={theirs: ours for theirs, ours in hf.SIZES.items() if theirs != "intermediate_size"},
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 8),
        "head_dim": ("head_dim", 64),
        "max_position_embeddings": ("block_size", 131072),
        "rms_norm_eps": ("norm_eps", 1e-5),
        "attention_bias": ("attn_bias", True),
    },
    fixed={"attn_sink": True},
    expressed=frozenset({"experts", "intermediate_size", "mlp_bias", "qkv_bias"}),
    layer=LayerSpec(ffn="oss_swiglu"),
    layer_fields=frozenset({"window", "experts"}),
    theta=150_000.0,
    neutral={**hf.NEUTRAL, "swiglu_alpha": (OSS_ALPHA,), "swiglu_limit": (OSS_LIMIT,)},
    harmless=hf.HARMLESS | moe.TRAINING | {"initial_context_length", "experts_per_token"},
    read=frozenset({"intermediate_size", "num_local_experts", "num_experts_per_tok", "sliding_window", "layer_types"}),
    kinds={
        **hf.KINDS,
        **moe.KINDS,
        **windows.KINDS,
        "intermediate_size": "a whole number",
        "attention_bias": "true or false",
    },
    folded=frozenset({"logit", "residual", "attention", "router"}),
    idle=frozenset(),
)


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    rows = pre_norm(config, multipliers, lambda _, mine, theirs: _experts(config, multipliers, mine, f"{theirs}.mlp"))
    names = [(block_of(config, layer), f"model.layers.{layer}") for layer in range(config.depth)]
    return rows + [hf.Place(f"{mine}.mixer.sink", (f"{theirs}.self_attn.sinks",)) for mine, theirs in names]


def _experts(config: ModelConfig, multipliers: Multipliers, mine: str, theirs: str) -> list[hf.Place]:
    """Their matrices are (E, in, out), and gate and up projection alternate in them."""
    up, down = f"{theirs}.experts.gate_up_proj", f"{theirs}.experts.down_proj"
    residual = multipliers.residual
    if config.experts is not None:
        return [
            hf.Place(f"{mine}.router.weight", (f"{theirs}.router.weight",), multipliers.router),
            hf.Place(f"{mine}.up", (up,), split=_alternating, join=_halves),
            hf.Place(f"{mine}.down", (down,), residual, lambda w: [w.mT], lambda parts: parts[0].mT),
        ]
    rows = [
        hf.Place(f"{mine}.up.weight", (up,), 1.0, lambda w: _alternating(w[None]), lambda parts: _halves(parts)[0]),
        hf.Place(f"{mine}.down.weight", (down,), residual, lambda w: [w.T[None]], lambda parts: parts[0][0].T),
    ]
    if config.mlp_bias:
        rows += [
            hf.Place(f"{mine}.up.bias", (f"{up}_bias",), 1.0, _alternating_bias, _halves_of_bias),
            hf.Place(f"{mine}.down.bias", (f"{down}_bias",), residual, lambda b: [b[None]], lambda parts: parts[0][0]),
        ]
    return rows


def _alternating(up_EHD: Tensor) -> list[Tensor]:
    return [up_EHD.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).mT]


def _halves(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].mT.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _alternating_bias(bias_H: Tensor) -> list[Tensor]:
    return [bias_H.unflatten(0, (2, -1)).T.flatten()[None]]


def _halves_of_bias(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][0].unflatten(0, (-1, 2)).T.flatten()


def constants(config: ModelConfig) -> list[hf.Constant]:
    """See lit_gpt.tools.hf."""
    count, width = _count_and_width(config)
    found = key_biases(config)
    for layer in range(config.depth):
        mlp = f"model.layers.{layer}.mlp"
        found.append(hf.Constant(f"{mlp}.router.bias", (count,), "routers have no bias here"))
        if config.experts is None:
            why = "a router of one expert chooses nothing"
            found.append(hf.Constant(f"{mlp}.router.weight", (count, config.n_embd), why))
        if not config.mlp_bias:
            shapes = {"gate_up": (count, 2 * width), "down": (count, config.n_embd)}
            why = "experts have no biases here"
            found += [hf.Constant(f"{mlp}.experts.{k}_proj_bias", shape, why) for k, shape in shapes.items()]
    return found


def _count_and_width(config: ModelConfig) -> tuple[int, int]:
    """Of the experts."""
    if config.experts is None:
        return 1, config.intermediate_size
    return config.experts.routed, moe.expert_width(config)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    found = windows.one_width(config) + only_qkv(config)
    if config.experts is None:
        return found
    dense = moe.dense_layers(config)
    found += [f"layers without experts ({', '.join(map(str, dense))}) beside others"] if dense else []
    return found + moe.expert_reasons(config, ("selected",))


def describe(config: ModelConfig) -> dict[str, Any]:
    """rope_parameters is written too: without it the class has YaRN."""
    count, width = _count_and_width(config)
    rope = rope_keys(config)
    scaling = rope["rope_scaling"] or {"rope_type": "default"}
    layers = windows.layered_keys(config)
    return {
        "layer_types": layers["layer_types"],
        "sliding_window": layers["sliding_window"] or WINDOW,
        "intermediate_size": width,
        "num_local_experts": count,
        "num_experts_per_tok": 1 if config.experts is None else config.experts.active,
        "rope_parameters": {**scaling, "rope_theta": rope["rope_theta"]},
        "swiglu_alpha": OSS_ALPHA,
        "swiglu_limit": OSS_LIMIT,
    }


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    width, count = values.get("intermediate_size") or 2880, values.get("num_local_experts") or 128
    used = values.get("num_experts_per_tok") or 4
    found = {"intermediate_size": width, "mlp_bias": True}
    if count > 1:
        found = moe.read_experts(count, used, width, "selected")
    kinds = values.get("layer_types") or [windows.FULL if i % 2 else windows.SLIDING for i in range(fields["depth"])]
    given = {"use_sliding_window": True, "sliding_window": values.get("sliding_window") or WINDOW, "layer_types": kinds}
    layer = LayerSpec(ffn="oss_swiglu", experts=count > 1)
    layers = windows.layered(layer, fields["depth"], given)
    return understood(LAYOUT, fields, _with_default_rope(values), layers=layers, **found)


def _with_default_rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    if values.get("rope_scaling") or values.get("rope_parameters"):
        return values
    if "rope_scaling" in values:
        raise UserError(
            "config.json has the rope_scaling null, which is no YaRN in transformers 4 and YaRN in 5. Write "
            'rope_parameters in its place: {"rope_type": "default"} is none.'
        )
    return {**values, "rope_parameters": YARN}
