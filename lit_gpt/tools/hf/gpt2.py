"""GPT-2: learned positions, LayerNorm, GELU, and biases everywhere.

Its matrices are transposed (Conv1D), and those of queries, keys and values are one. Files of transformers have
transformer. in front of the names; the published ones have not, and hold each layer's causal mask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_parts import block_of
from lit_gpt.tools._hf_rope import ROPE_FIELDS

MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
LAYOUT = hf.Layout(
    "gpt2",
    "GPT2LMHeadModel",
    sizes={"n_embd": "n_embd", "n_layer": "depth", "n_head": "n_head", "vocab_size": "vocab_size"},
    options={
        "n_positions": ("block_size", 1024),
        "layer_norm_epsilon": ("norm_eps", 1e-5),
        "tie_word_embeddings": ("tie_embeddings", True),
    },
    fixed={
        "position": "learned",
        "norm": "layernorm",
        **dict.fromkeys(("attn_bias", "qkv_bias", "mlp_bias"), True),
    },
    # no layer reads what is said of rotary positions
    expressed=frozenset({"n_kv_head", "head_dim", "intermediate_size", "yarn_windows", *ROPE_FIELDS}),
    layer=LayerSpec(ffn="gelu"),
    layer_fields=frozenset({"rope_base"}),
    rotary=False,
    neutral={
        **{key: fine for key, fine in hf.NEUTRAL.items() if key != "hidden_act"},
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    harmless=hf.HARMLESS
    | {"resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "task_specific_params", "reorder_and_upcast_attn"}
    | {f"summary_{key}" for key in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")},
    read=frozenset({"n_inner"}),
    kinds={
        "n_positions": "a whole number",
        "n_inner": "a whole number",
        "layer_norm_epsilon": "a number",
        "tie_word_embeddings": "true or false",
    },
)


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf. The three parts of c_attn are apart, and matrices as ours; see unpacked."""
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    rows = [hf.Place(f"{t}.weight", (f"transformer.{t}.weight",)) for t in ("wte", "wpe")]
    rows += [] if config.tie_embeddings else [hf.Place("head.weight", ("lm_head.weight",))]
    for kind in ("weight", "bias"):
        rows.append(hf.Place(f"norm.{kind}", (f"transformer.ln_f.{kind}",), multipliers.logit))
        for layer in range(config.depth):
            mine, theirs = block_of(config, layer), f"transformer.h.{layer}"
            rows += [
                hf.Place(f"{mine}.norm1.{kind}", (f"{theirs}.ln_1.{kind}",)),
                hf.Place(f"{mine}.mixer.q.{kind}", (f"{theirs}.attn.c_attn.q.{kind}",), scale),
                hf.Place(f"{mine}.mixer.k.{kind}", (f"{theirs}.attn.c_attn.k.{kind}",)),
                hf.Place(f"{mine}.mixer.v.{kind}", (f"{theirs}.attn.c_attn.v.{kind}",)),
                hf.Place(f"{mine}.mixer.out.{kind}", (f"{theirs}.attn.c_proj.{kind}",), multipliers.residual),
                hf.Place(f"{mine}.norm2.{kind}", (f"{theirs}.ln_2.{kind}",)),
                hf.Place(f"{mine}.ffn.up.{kind}", (f"{theirs}.mlp.c_fc.{kind}",)),
                hf.Place(f"{mine}.ffn.down.{kind}", (f"{theirs}.mlp.c_proj.{kind}",), multipliers.residual),
            ]
    return rows


def packed(weights: hf.Weights) -> hf.Weights:
    """The file's tensors from those of the places."""
    out: hf.Weights = {}
    for name, t in weights.items():
        whole, part, kind = name.rpartition(".q.")
        if part:
            t, name = torch.cat([weights[f"{whole}.{x}.{kind}"] for x in "qkv"]), f"{whole}.{kind}"
        if re.search(r"c_attn\.[kv]\.", name) is None:
            out[name] = _turned(name, t)
    return out


def unpacked(weights: hf.Weights) -> hf.Weights:
    """The tensors of the places from those of a file."""
    out: hf.Weights = {}
    for given, t in weights.items():
        name = given.removeprefix("transformer.")
        if MASK.fullmatch(name):
            continue
        name, t = name if name == "lm_head.weight" else f"transformer.{name}", _turned(name, t)
        whole, part, kind = name.rpartition(".c_attn.")
        if part and len(t) % 3 == 0:
            out |= {f"{whole}.c_attn.{x}.{kind}": third for x, third in zip("qkv", t.chunk(3), strict=True)}
        else:
            out[name] = t
    return out


def _turned(name: str, t: torch.Tensor) -> torch.Tensor:
    """A matrix of Conv1D as one of ours, or back; any other tensor as it is."""
    return t.t().contiguous() if ".c_" in name and t.ndim == 2 else t


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """Its heads divide the width, and each has keys and values of its own."""
    inner, grouped = config.n_head * config.head_dim, config.n_kv_head != config.n_head
    found = [f"n_kv_head {config.n_kv_head} for n_head {config.n_head}"] if grouped else []
    return found + ([] if inner == config.n_embd else [f"n_head * head_dim {inner} at n_embd {config.n_embd}"])


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    return {"n_inner": config.intermediate_size}


def understand(fields: Mapping[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    n, heads = fields["n_embd"], fields["n_head"]
    if n % max(heads, 1):
        raise UserError(f"config.json: n_head is {heads}, which does not divide n_embd {n}. Save the model again.")
    return understood(LAYOUT, fields, values, intermediate_size=values.get("n_inner") or 4 * n)
