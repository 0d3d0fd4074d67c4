"""DiffLlama: differential attention (arXiv:2410.05258) in every layer of a Llama.

Its two maps are the first and the second half of the heads, ours are even and odd heads. Its norm of a pair has no
gain: ours goes into the output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.nn.mixers import differential_attention, mixer_options
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_parts import block_norms, block_of, ends, key_biases, kinds, swiglu

LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
LAYOUT = hf.Layout(
    "diffllama",
    "DiffLlamaForCausalLM",
    options={
        **hf.OPTIONS,
        "rms_norm_eps": ("norm_eps", 1e-5),
        "attention_bias": ("attn_bias", False),
    },
    expressed=frozenset({"mixer_options"}),
    layer=LayerSpec("differential_attention"),
    harmless=hf.HARMLESS | {"lambda_std_dev"},
    kinds={**hf.KINDS, "attention_bias": "true or false"},
)
constants = key_biases


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    rows = ends(config, multipliers)
    for layer in range(config.depth):
        mine, theirs = block_of(config, layer), f"model.layers.{layer}"
        rows += block_norms(mine, theirs)
        rows += _attention(config, multipliers, f"{mine}.mixer", f"{theirs}.self_attn")
        rows += swiglu(f"{mine}.ffn", f"{theirs}.mlp", multipliers.residual)
    return rows


def _attention(config: ModelConfig, multipliers: Multipliers, mine: str, theirs: str) -> list[hf.Place]:
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    rows = [hf.Place(f"{mine}.{name}", (f"{theirs}.{name}",)) for name in LAMBDAS]
    rows.append(_heads(config, f"{mine}.k.weight", f"{theirs}.k_proj.weight"))
    rows.append(_out(config, mine, f"{theirs}.o_proj.weight", multipliers.residual))
    for kind in kinds(config.attn_bias):
        rows.append(_heads(config, f"{mine}.q.{kind}", f"{theirs}.q_proj.{kind}", scale))
        rows.append(_heads(config, f"{mine}.v.{kind}", f"{theirs}.v_proj.{kind}"))
    if config.attn_bias:
        rows.append(hf.Place(f"{mine}.out.bias", (f"{theirs}.o_proj.bias",), multipliers.residual))
    return rows


def _heads(config: ModelConfig, ours: str, theirs: str, factor: float = 1.0) -> hf.Place:
    """Even heads, then odd ones, as one map."""
    size = config.head_dim

    def split(rows: Tensor) -> list[Tensor]:
        return [rows.unflatten(0, (-1, 2, size)).transpose(0, 1).flatten(0, 2)]

    def join(parts: Sequence[Tensor]) -> Tensor:
        return parts[0].unflatten(0, (2, -1, size)).transpose(0, 1).flatten(0, 2)

    return hf.Place(ours, (theirs,), factor, split, join)


def _out(config: ModelConfig, mine: str, theirs: str, residual: float) -> hf.Place:
    """The output projection of what has the gain of a pair's norm, the same in every pair."""

    def split(out: Tensor, gain: Tensor) -> list[Tensor]:
        return [out.double() * (gain.double() * residual).repeat(config.n_head // 2)]

    def join(parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0], torch.ones(2 * config.head_dim, dtype=parts[0].dtype)]

    return hf.Place((f"{mine}.out.weight", f"{mine}.pair_norm.weight"), (theirs,), split=split, join=join)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    if config.layers[0].mixer != "differential_attention":
        return []
    given = mixer_options(config, 0, differential_attention.Options).lambda_init
    found = [] if given is None else [f"lambda_init {given}, which there follows from the layer"]
    return found + (["blocks that layers share, and so one lambda_init"] if config.share_per_layer else [])


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    return {"lambda_std_dev": differential_attention.LAMBDA_STD}
