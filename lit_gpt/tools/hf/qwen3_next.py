"""Qwen3-Next without experts: Gated DeltaNet in some layers, gated attention with QK-norm in others, SwiGLU.

Its Gated DeltaNet has a norm for each head, and no negative eigenvalues: the mixer's options head_norm and
negative_eigenvalues. Its gains are 1 + weight. Its attention has a gate for each channel of a head, which here has one:
equal rows. Ours without gates is one whose gates are always 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import gdn, mixer_options
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import block_of, ends, key_biases, kinds, swiglu
from lit_gpt.tools._hf_recurrent import rows_of
from lit_gpt.tools._hf_values import check_kinds

FULL, LINEAR = "full_attention", "linear_attention"
# Keys of the Gated DeltaNet layers, and the class's defaults.
SIZES = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
OF_EXPERTS = {
    "decoder_sparse_step",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "num_experts_per_tok",
    "norm_topk_prob",
    "output_router_logits",
    "router_aux_loss_coef",
}
LAYOUT = hf.Layout(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    options={
        **hf.OPTIONS,
        "num_key_value_heads": ("n_kv_head", 2),
        "head_dim": ("head_dim", 256),
        "max_position_embeddings": ("block_size", 32768),
        "attention_bias": ("attn_bias", False),
    },
    expressed=frozenset({"mixer_options", "qk_norm", "attn_gate", "rotary_fraction", "position"}),
    layer=LayerSpec("gdn"),
    layer_fields=frozenset({"mixer"}),
    harmless=hf.HARMLESS | OF_EXPERTS,
    read=frozenset({
        *SIZES,
        "layer_types",
        "full_attention_interval",
        "mlp_only_layers",
        "num_experts",
        "partial_rotary_factor",
    }),
    kinds={
        **hf.KINDS,
        **dict.fromkeys(SIZES, "a whole number"),
        "attention_bias": "true or false",
        "layer_types": "a list",
        "mlp_only_layers": "a list",
        "full_attention_interval": "a whole number",
    },
)  # fmt: skip


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    *rows, last = ends(config, multipliers)
    rows.append(_gain(last.names()[0], last.theirs[0], last.factor))
    for layer, spec in enumerate(config.layers):
        mine, theirs = block_of(config, layer), f"model.layers.{layer}"
        rows.append(_gain(f"{mine}.norm1.weight", f"{theirs}.input_layernorm.weight"))
        rows.append(_gain(f"{mine}.norm2.weight", f"{theirs}.post_attention_layernorm.weight"))
        rows += swiglu(f"{mine}.ffn", f"{theirs}.mlp", multipliers.residual)
        if spec.mixer == "attention":
            rows += _attention(config, multipliers, f"{mine}.mixer", f"{theirs}.self_attn")
        else:
            sizes = gdn.sizes(config, layer)
            rows += _delta_net(sizes, f"{mine}.mixer", f"{theirs}.linear_attn", multipliers.residual)
    return rows


def _gain(ours: str, theirs: str, factor: float = 1.0) -> hf.Place:
    """The gain of a norm: theirs is what it is above 1."""

    def split(gain: Tensor) -> list[Tensor]:
        return [gain.float() - 1]  # of a rounded gain, which can be read again

    def join(parts: Sequence[Tensor]) -> Tensor:
        return (parts[0].float() + 1).to(parts[0].dtype)

    return hf.Place(ours, (theirs,), factor, split, join)


def _delta_net(sizes: tuple[int, int, int], mine: str, theirs: str, residual: float) -> list[hf.Place]:
    heads, key, value = sizes
    keys, values = heads * key, heads * value
    maps = [f"{mine}.{name}.weight" for name in ("qkv.q", "qkv.k", "qkv.v", "gate")]
    scalars = [f"{mine}.{name}.weight" for name in ("b", "a")]
    names = {"qkv.conv": "conv1d.weight", "A_log": "A_log", "dt_bias": "dt_bias", "norm.weight": "norm.weight"}
    return [
        rows_of(maps, f"{theirs}.in_proj_qkvz.weight", (keys, keys, values, values), heads),
        rows_of(scalars, f"{theirs}.in_proj_ba.weight", (heads, heads), heads),
        *(hf.Place(f"{mine}.{ours}", (f"{theirs}.{name}",)) for ours, name in names.items()),
        hf.Place(f"{mine}.out.weight", (f"{theirs}.out_proj.weight",), residual),
    ]


def _attention(config: ModelConfig, multipliers: Multipliers, mine: str, theirs: str) -> list[hf.Place]:
    scale = 1.0 if multipliers.attention is None else multipliers.attention * math.sqrt(config.head_dim)
    rows = [
        hf.Place(f"{mine}.k.weight", (f"{theirs}.k_proj.weight",)),
        _gain(f"{mine}.q_norm.weight", f"{theirs}.q_norm.weight", scale),
        _gain(f"{mine}.k_norm.weight", f"{theirs}.k_norm.weight"),
        # A gate that is always 1/2 halves what the projection reads.
        hf.Place(
            f"{mine}.out.weight",
            (f"{theirs}.o_proj.weight",),
            multipliers.residual * (1 if config.attn_gate else 2),
        ),
    ]
    for kind in kinds(config.attn_bias):
        rows.append(_gated(config, mine, f"{theirs}.q_proj.{kind}", kind))
        rows.append(hf.Place(f"{mine}.v.{kind}", (f"{theirs}.v_proj.{kind}",)))
    if config.attn_bias:
        rows.append(hf.Place(f"{mine}.out.bias", (f"{theirs}.o_proj.bias",), multipliers.residual))
    return rows


def _gated(config: ModelConfig, mine: str, theirs: str, kind: str) -> hf.Place:
    """Queries, and behind those of each head its gates."""

    def split(q: Tensor, gate: Tensor | None = None) -> list[Tensor]:
        queries = q.unflatten(0, (config.n_head, -1))
        gates = torch.zeros_like(queries) if gate is None else gate[:, None].expand_as(queries)
        return [torch.cat([queries, gates], dim=1).flatten(0, 1)]

    def join(parts: Sequence[Tensor]) -> list[Tensor]:
        queries, gates = parts[0].unflatten(0, (config.n_head, -1)).chunk(2, dim=1)
        if (gates != gates[:, :1]).any():
            raise UserError(f"{theirs} has another gate for each channel of a head, which cannot be expressed.")
        return [queries.flatten(0, 1), gates[:, 0]]

    names = [f"{mine}.{name}.{kind}" for name in ("q", "gate")]
    return hf.Place(tuple(names if config.attn_gate else names[:1]), (theirs,), split=split, join=join)


def constants(config: ModelConfig) -> list[hf.Constant]:
    """See lit_gpt.tools.hf."""
    return [c for c, spec in zip(key_biases(config), config.layers) if spec.mixer == "attention"]


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    others = {spec.mixer: i for i, spec in enumerate(config.layers) if spec.mixer not in ("gdn", "attention")}
    found = [f"mixer {mixer} (layer {i})" for mixer, i in others.items()]
    if all(spec.mixer != "attention" for spec in config.layers):
        found.append("a model without attention, whose layers count the positions there")
    else:
        found += [] if config.qk_norm else ["attention without qk_norm"]
        found += [] if config.position == "rope" else [f"position {config.position}"]
        odd = int(config.head_dim * config.rotary_fraction) % 2
        found += [f"rotary_fraction {config.rotary_fraction}, an odd number of dimensions"] if odd else []
    first = _first(config)
    return found if first is None else found + _against(mixer_options(config, first, gdn.Options))


def _first(config: ModelConfig) -> int | None:
    """The first layer that is a Gated DeltaNet."""
    return next((i for i, spec in enumerate(config.layers) if spec.mixer == "gdn"), None)


def _against(options: gdn.Options) -> list[str]:
    found = {
        "gdn with one norm for all heads (its option head_norm false)": not options.head_norm,
        "gdn with its option negative_eigenvalues": options.negative_eigenvalues,
        "gdn without a convolution": options.conv == 0,
    }
    return [reason for reason, wrong in found.items() if wrong]


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    keys: dict[str, Any] = {
        "layer_types": [FULL if spec.mixer == "attention" else LINEAR for spec in config.layers],
        "mlp_only_layers": list(range(config.depth)),
        "num_experts": 0,
    }
    if (first := _first(config)) is not None:
        heads, key, value = gdn.sizes(config, first)
        conv = mixer_options(config, first, gdn.Options).conv
        keys |= dict(zip(SIZES, (heads, heads, key, value, conv)))
    return {**keys, "partial_rotary_factor": config.rotary_fraction}


def understand(fields: dict[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    depth = fields["depth"]
    attends = [kind == FULL for kind in _layer_types(depth, values)]
    dense = values.get("mlp_only_layers") or []
    if values.get("num_experts") != 0 and not set(range(depth)) <= set(dense):
        raise UserError(
            "config.json asks for layers with experts (num_experts, mlp_only_layers), which cannot be expressed: their "
            "shared expert has a gate."
        )
    changes: dict[str, Any] = {"rotary_fraction": _fraction(values)}
    changes |= {"qk_norm": True, "attn_gate": True} if any(attends) else {}
    changes |= {} if all(attends) else {"mixer_options": {"gdn": _gdn_options(values)}}
    layers = tuple(LayerSpec("attention" if attending else "gdn") for attending in attends)
    return understood(LAYOUT, fields, values, layers=layers, **changes)


def _layer_types(depth: int, values: Mapping[str, Any]) -> list[str]:
    every = values.get("full_attention_interval") or 4
    types = values.get("layer_types") or [LINEAR if (i + 1) % every else FULL for i in range(depth)]
    if len(types) != depth or not set(types) <= {FULL, LINEAR}:
        raise UserError(f"config.json asks for layer_types {types}, which cannot be expressed with {depth} layers.")
    return types


def _fraction(values: Mapping[str, Any]) -> float:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    fraction = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    fraction = 0.25 if fraction is None else fraction
    check_kinds({"partial_rotary_factor": fraction}, {"partial_rotary_factor": "a number"})
    return fraction


def _gdn_options(values: Mapping[str, Any]) -> dict[str, Any]:
    key_heads, heads, key, value, conv = (values.get(name) or default for name, default in SIZES.items())
    if key_heads != heads:
        raise UserError(
            f"config.json asks for {heads} heads of values (linear_num_value_heads) over {key_heads} of keys, which "
            "cannot be expressed: here they are as many."
        )
    expand = value / key
    expand = expand if int(expand * key) == value else math.nextafter(expand, math.inf)  # which the mixer rounds down
    sizes = {"heads": heads, "key_dim": key, "expand_v": expand, "conv": conv}
    return {**sizes, "negative_eigenvalues": False, "head_norm": True}
