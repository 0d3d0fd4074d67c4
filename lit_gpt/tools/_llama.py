"""The weights of a model under Llama's names, and back: each tensor has one place in one table.

The Plan's multipliers have no place in Llama; they are linear, so they go into weights: logit into the last norm's
gain, residual into the output projections of both branches, and the softmax scale into the queries. Blocks that
several layers share are written out once per layer.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch

from lit_gpt.checkpoint import cast
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers

Weights = dict[str, torch.Tensor]
VOCABULARY = {"wte.weight", "head.weight"}  # tensors with a row per token, padded


class Place(NamedTuple):
    """Our tensor, times `factor`, is theirs; several of theirs lie in ours one after another (dimension 0)."""

    ours: str
    theirs: tuple[str, ...]
    factor: float = 1.0


def places(config: ModelConfig, multipliers: Multipliers) -> list[Place]:
    """Every tensor of the model and where it is in LlamaForCausalLM."""
    rows = [Place("wte.weight", ("model.embed_tokens.weight",))]
    rows += [] if config.tie_embeddings else [Place("head.weight", ("lm_head.weight",))]
    rows += [Place("norm.weight", ("model.norm.weight",), multipliers.logit)]
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    blocks = sorted({config.first_layer(i) for i in range(config.depth)})
    for layer in range(config.depth):
        mine, theirs = f"blocks.{blocks.index(config.first_layer(layer))}", f"model.layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        rows += [
            Place(f"{mine}.norm1.weight", (f"{theirs}.input_layernorm.weight",)),
            Place(f"{mine}.norm2.weight", (f"{theirs}.post_attention_layernorm.weight",)),
            Place(f"{mine}.mixer.k.weight", (f"{attention}.k_proj.weight",)),
        ]
        for kind in ("weight", "bias") if config.attn_bias else ("weight",):
            rows += [
                Place(f"{mine}.mixer.q.{kind}", (f"{attention}.q_proj.{kind}",), scale),
                Place(f"{mine}.mixer.v.{kind}", (f"{attention}.v_proj.{kind}",)),
                Place(f"{mine}.mixer.out.{kind}", (f"{attention}.o_proj.{kind}",), multipliers.residual),
            ]
        for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
            rows += [
                Place(f"{mine}.ffn.up.{kind}", (f"{mlp}.gate_proj.{kind}", f"{mlp}.up_proj.{kind}")),
                Place(f"{mine}.ffn.down.{kind}", (f"{mlp}.down_proj.{kind}",), multipliers.residual),
            ]
    return rows


def key_biases(config: ModelConfig) -> list[str]:
    """Llama's biases that our models do not have: attention_bias gives one to the keys too."""
    return [f"model.layers.{i}.self_attn.k_proj.bias" for i in range(config.depth)] if config.attn_bias else []


def to_llama(weights: Weights, config: ModelConfig, multipliers: Multipliers, dtype: torch.dtype | None) -> Weights:
    """The weights under Llama's names, multipliers folded in, padded rows of the vocabulary cut off.

    dtype: of the result; None is each tensor's own. Raises UserError for tensors without a place, see places, and
    for numbers that the dtype cannot hold.
    """
    rows = places(config, multipliers)
    _all_used(weights, {row.ours for row in rows}, "Llama has no place for")
    out: Weights = {}
    for row in rows:
        ours = weights[row.ours]
        whole = ours[: config.vocab_size] if row.ours in VOCABULARY else ours
        whole = whole if row.factor == 1 else whole.double() * row.factor
        parts = whole.chunk(len(row.theirs))  # views, which cast may return: safetensors wants memory of their own
        out |= {name: t.clone() for name, t in cast(dict(zip(row.theirs, parts)), dtype or ours.dtype).items()}
    key_weight = out["model.layers.0.self_attn.k_proj.weight"]
    return out | {name: torch.zeros(key_weight.shape[0], dtype=key_weight.dtype) for name in key_biases(config)}


def from_llama(weights: Weights, config: ModelConfig) -> Weights:
    """The weights under our names, rows of zeros added to the vocabulary.

    Raises UserError for tensors without a place, and for a bias of the keys that is not zero.
    """
    rows, zero = places(config, Multipliers()), key_biases(config)
    if config.tie_embeddings and "lm_head.weight" in weights:  # some files hold the table twice
        weights = dict(weights)
        if not torch.equal(weights.pop("lm_head.weight"), weights["model.embed_tokens.weight"]):
            raise UserError("config.json ties the embeddings, but lm_head.weight differs from embed_tokens.weight.")
    _all_used(weights, {name for row in rows for name in row.theirs} | set(zero), "our models have no place for")
    if biased := [name for name in zero if weights[name].any()]:
        raise UserError(f"{biased[0]} is not zero, and keys have no bias here, so the model cannot be expressed.")
    out = {row.ours: torch.cat([torch.atleast_1d(weights[name]) for name in row.theirs]) for row in rows}
    padding = config.padded_vocab_size - config.vocab_size
    for name in out.keys() & VOCABULARY:
        out[name] = torch.nn.functional.pad(out[name], (0, 0, 0, padding))
    return out


def _all_used(weights: Weights, used: set[str], what: str) -> None:
    """Every tensor is read, and every one that is read is there."""
    for problem, names in ((what, weights.keys() - used), ("the file lacks", used - weights.keys())):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(f"The weights cannot be converted: {problem} {', '.join(sorted(names)[:4])}{more}.")
