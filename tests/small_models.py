"""Small models of every dense family and option, initialised so that each part matters."""

from __future__ import annotations

import torch

from lit_gpt.architectures import FAMILIES, build, experts_of
from lit_gpt.architectures.builders.table import PUBLISHED
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers

VOCAB, LENGTH = 61, 24

OPTIONS = {
    "post_norm": {"post_norm": True},
    "decoupled": {"post_norm": True, "decoupled_norm": True},
    "skip_gain": {"post_norm": True, "decoupled_norm": True, "skip_gain": True},
    "layernorm_post": {"post_norm": True, "decoupled_norm": True, "norm": "layernorm"},
    "skip_projection": {"post_norm": True, "layers": (LayerSpec(), LayerSpec(skip_projection=True))},
    "skip_none": {"skip": "none"},
    "skip_sum": {"skip": "sum"},
    "qk_norm": {"qk_norm": True},
    "gate": {"attn_gate": True},
    "sink": {"attn_sink": True},
    "window": {"layers": (LayerSpec(window=5), LayerSpec())},
    "window_sink": {"layers": (LayerSpec(window=5), LayerSpec()), "attn_sink": True},
    "inner_norms": {"attn_norm": True, "ffn_norm": True},
    "biases": {"attn_bias": True, "mlp_bias": True, "attn_gate": True},
    "parallel": {"parallel_block": True},
    "parallel_layernorm": {"parallel_block": True, "norm": "layernorm", "norm_eps": 1e-3},
    "reordered": {"reordered_norm": True},
    "reordered_sum": {"reordered_norm": True, "skip": "sum"},
    "joint_qk_norm": {"qk_norm": True, "joint_qk_norm": True},
    "qkv_biases": {"qkv_bias": True},
    "nope": {"position": "none"},
    "rope_base": {"rope_base": 640_000.0},
    "partial_rope": {"rotary_fraction": 0.5},
    "yarn": {"yarn_scale": 4.0, "head_dim": 64},
    "yarn_rounded": {"yarn_scale": 4.0, "head_dim": 64, "yarn_truncate": True},
    "yarn_no_windows": {
        "yarn_scale": 4.0,
        "head_dim": 64,
        "yarn_windows": False,
        "layers": (LayerSpec(window=5), LayerSpec()),
    },
    "tied": {"tie_embeddings": True},
    "relu2": {"layers": (LayerSpec(ffn="relu2"),) * 2},
    "oss_swiglu": {"layers": (LayerSpec(ffn="oss_swiglu"),) * 2},
    "gelu": {"layers": (LayerSpec(ffn="gelu"),) * 2},
    "learned": {"position": "learned"},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "tie_embeddings": True,
        "layers": (LayerSpec(ffn="gelu"),) * 2,
        "attn_bias": True,
        "qkv_bias": True,
        "mlp_bias": True,
        "n_kv_head": 4,
    },
    "shared_block": {"share_per_layer": 1},
    "no_ffn": {"layers": (LayerSpec(ffn=None), LayerSpec())},
    "layernorm": {"norm": "layernorm"},
    "softcap": {"logit_softcap": 2.0},
    "value_embeddings": {"layers": (LayerSpec(), LayerSpec(value_embedding=True))},
    "residual_scalars": {"residual_scalars": True},
    "qk_norm_scale": {"qk_norm": True, "qk_norm_scale": 1.2},
    "embedding_norm": {"embedding_norm": True},
    "no_gains": {"norm_gain": False, "qk_norm": True},
    "zero_output": {"zero_output": True},
    "smear": {"token_smear": True},
    "backout": {"backout": True},
    "relu2_4n": {"layers": (LayerSpec(ffn="relu2"),) * 2, "ffn_multiple": 4.0},
    "baseline": {
        "layers": (LayerSpec(ffn="relu2", window=5), LayerSpec(ffn="relu2", value_embedding=True)),
        "ffn_multiple": 4.0,
        "qk_norm": True,
        "qk_norm_scale": 1.2,
        "norm_gain": False,
        "embedding_norm": True,
        "residual_scalars": True,
        "token_smear": True,
        "backout": True,
        "zero_output": True,
        "logit_softcap": 15.0,
        "varlen": True,
    },
}
FEWER = {  # heads and states of few dimensions
    "mamba": {"d_state": 4},
    "mamba2": {"d_state": 8, "head_dim": 8, "head_multiple": 2},
    "gdn": {"heads": 2, "key_dim": 8},
    "deltanet": {"heads": 2},
    "gla": {"heads": 2, "gate_rank": 4},
    "kda": {"heads": 2, "key_dim": 8},
}
HEADS = {"n_head": 4, "n_kv_head": 2, "head_dim": 8}


def options_of(config: ModelConfig) -> dict:
    mixers = {spec.mixer for spec in config.layers} & set(FEWER)
    return {name: config.mixer_options.get(name, {}) | FEWER[name] for name in mixers}


def small(family: str) -> ModelConfig:
    """8 layers (YOCO's second half is empty in 4) of width 32, windows of 5 or half of the context."""
    experts = Experts(sparsity=2, top_k=2)
    config = build(family, 8, aspect_ratio=4, block_size=LENGTH, window=5, experts=experts)
    return config.replace(vocab_size=VOCAB, mixer_options=options_of(config), **HEADS)


def optioned(name: str) -> ModelConfig:
    """A two-layer model of width 32 with one of OPTIONS."""
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48}
    fields = {"layers": (LayerSpec(),) * 2, **sizes, **OPTIONS[name]}
    return ModelConfig(family=name, depth=2, vocab_size=VOCAB, block_size=LENGTH, **fields)


def small_family(name: str) -> ModelConfig:
    """A dense family at depth 4 with narrow heads."""
    config = build(name, 4, aspect_ratio=16)
    return config.replace(vocab_size=VOCAB, block_size=LENGTH, head_dim=16)


def is_dense(family: str) -> bool:
    """Attention and a feed-forward network in every layer; test_every_family.py has the others."""
    return {spec.mixer for spec in build(family, 8).layers} == {"attention"} and experts_of(family) is None


def varied() -> list[str]:
    """The families, less those that are an earlier one at another published size: small, they are the same model."""
    found: dict[str, str] = {}
    for name in FAMILIES.names():
        found.setdefault(repr(small(name).replace(family="")) if name in PUBLISHED else name, name)
    return list(found.values())


VARIED = varied()
DENSE = [name for name in VARIED if is_dense(name)]
CONFIGS = {name: (optioned, name) for name in OPTIONS} | {name: (small_family, name) for name in DENSE}
MULTIPLIERS = Multipliers(logit=0.5, residual=0.7, attention=0.2)


def model_of(config: ModelConfig, multipliers: Multipliers = MULTIPLIERS, **options) -> GPT:
    """In float64 by default, every parameter away from its neutral value."""
    dtype = options.pop("dtype", torch.float64)
    model = GPT(config, multipliers, compute_dtype=dtype, residual_dtype=dtype, **options).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5)
    return model


def tokens(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
