"""OLMo 2: norms behind the branches, x + norm(f(x)), and QK-norm over all heads together; rotary positions, SwiGLU."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_parts import attention, block_of, ends, key_biases, only_qkv, swiglu

LAYOUT = hf.Layout(
    "olmo2",
    "Olmo2ForCausalLM",
    options={**hf.OPTIONS, "rms_norm_eps": ("norm_eps", 1e-5), "attention_bias": ("attn_bias", False)},
    fixed={"qk_norm": True, "joint_qk_norm": True, "reordered_norm": True},
    expressed=frozenset({"qkv_bias"}),
    kinds={**hf.KINDS, "attention_bias": "true or false"},
)
constants = key_biases


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf. A norm undoes what its branch is multiplied by, so that goes into the norm's gain."""
    rows, inner = ends(config, multipliers), replace(multipliers, residual=1.0)
    for layer in range(config.depth):
        mine, theirs = block_of(config, layer), f"model.layers.{layer}"
        rows += attention(config, inner, f"{mine}.mixer", f"{theirs}.self_attn")
        rows += swiglu(f"{mine}.ffn", f"{theirs}.mlp", inner.residual)
        for norm, branch in (("norm1", "attention"), ("norm2", "feedforward")):
            gain = f"{theirs}.post_{branch}_layernorm.weight"
            rows.append(hf.Place(f"{mine}.{norm}.weight", (gain,), multipliers.residual))
    return rows


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    return only_qkv(config)
