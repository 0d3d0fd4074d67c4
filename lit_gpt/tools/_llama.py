"""A dense model as a Hugging Face LlamaForCausalLM.

The Plan's multipliers have no place in Llama; they are linear, so they go into weights:
logit into the last norm's gain, residual into the output projections of both branches, and
the softmax scale into the queries. The result computes the same logits.
"""

from __future__ import annotations

import json
import os
import shutil
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers

Weights = dict[str, torch.Tensor]

# Options of ModelConfig that Llama does not have, and the value at which it needs none.
NEUTRAL: dict[str, Any] = {
    "norm": "rmsnorm",
    "post_norm": False,
    "skip": "add",
    "qk_norm": False,
    "attn_gate": False,
    "attn_sink": False,
    "attn_norm": False,
    "ffn_norm": False,
    "attn_bias": False,
    "mlp_bias": False,
    "position": "rope",
    "rotary_fraction": 1.0,
    "yarn_scale": 1.0,
}


def write_llama(weights: Weights, config: ModelConfig, multipliers: Multipliers, output: Path) -> Path:
    """Write config.json and model.safetensors into a new folder.

    Raises UserError when the model has what Llama has not, or when the folder exists.
    """
    _check(config)
    if output.exists():
        raise UserError(f"{output} exists already. Give the name of a new folder.")
    temporary = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(llama_weights(weights, config, multipliers), temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(llama_config(config), indent=2) + "\n")
    os.replace(temporary, output)
    return output


def _check(config: ModelConfig) -> None:
    problems = [f"{key} is {getattr(config, key)}" for key, value in NEUTRAL.items() if getattr(config, key) != value]
    problems += [f"layer {i} is {spec}" for i, spec in enumerate(config.layers) if spec != LayerSpec()]
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems[:8])
        raise UserError(
            f"{config.family} is no Llama model, so --to hf cannot write it; --to file can. Llama has not:\n{listed}"
        )


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }


def llama_weights(weights: Weights, config: ModelConfig, multipliers: Multipliers) -> Weights:
    """The weights under Llama's names, multipliers folded in, padded vocabulary rows cut off."""
    out = {
        "model.embed_tokens.weight": weights["wte.weight"][: config.vocab_size].clone(),
        "model.norm.weight": weights["norm.weight"] * multipliers.logit,
    }
    if not config.tie_embeddings:
        out["lm_head.weight"] = weights["head.weight"][: config.vocab_size].clone()
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    for i in range(config.depth):
        mine, theirs = f"blocks.{i}", f"model.layers.{i}"
        gate, up = weights[f"{mine}.ffn.up.weight"].chunk(2)
        out |= {
            f"{theirs}.input_layernorm.weight": weights[f"{mine}.norm1.weight"],
            f"{theirs}.self_attn.q_proj.weight": weights[f"{mine}.mixer.q.weight"] * scale,
            f"{theirs}.self_attn.k_proj.weight": weights[f"{mine}.mixer.k.weight"],
            f"{theirs}.self_attn.v_proj.weight": weights[f"{mine}.mixer.v.weight"],
            f"{theirs}.self_attn.o_proj.weight": weights[f"{mine}.mixer.out.weight"] * multipliers.residual,
            f"{theirs}.post_attention_layernorm.weight": weights[f"{mine}.norm2.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate.clone(),
            f"{theirs}.mlp.up_proj.weight": up.clone(),
            f"{theirs}.mlp.down_proj.weight": weights[f"{mine}.ffn.down.weight"] * multipliers.residual,
        }
    return out
