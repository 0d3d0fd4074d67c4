"""Bamba, Jamba and Falcon Mamba of transformers: their mixers, and the whole hybrids, with the weights of ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
)
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import build_mixer
from lit_gpt.scaling.base import Multipliers

WIDTH, VOCAB, HIDDEN = 24, 64, 20
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "vocab_size": VOCAB,
    "intermediate_size": HIDDEN,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "mamba_d_state": 5,
    "pad_token_id": None,
}
BAMBA = BambaConfig(
    **SIZES, num_hidden_layers=4, attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_head=6, mamba_chunk_size=8
)
JAMBA = JambaConfig(
    **SIZES,
    num_hidden_layers=3,
    attn_layer_period=2,
    attn_layer_offset=1,
    expert_layer_period=1,
    expert_layer_offset=0,
    num_experts=6,
    num_experts_per_tok=2,
    mamba_dt_rank=3,
)
FALCON = FalconMambaConfig(
    hidden_size=WIDTH,
    vocab_size=VOCAB,
    state_size=5,
    time_step_rank=3,
    num_hidden_layers=2,
    mixer_rms_eps=1e-5,
    residual_in_fp32=False,
    tie_word_embeddings=False,
)

# What a parameter of theirs is made of here, from top to bottom.
COMMON = {"conv1d.weight": ["conv"], "conv1d.bias": ["conv_bias"], "out_proj.weight": ["out.weight"]}
MAMBA = COMMON | {
    "in_proj.weight": ["x.weight", "z.weight"],
    "x_proj.weight": ["dt_low.weight", "B.weight", "C.weight"],
    "dt_proj.weight": ["dt.weight"],
    "dt_proj.bias": ["dt_bias"],
    "dt_layernorm.weight": ["inner_norms.0.weight"],
    "b_layernorm.weight": ["inner_norms.1.weight"],
    "c_layernorm.weight": ["inner_norms.2.weight"],
}
MAMBA2 = COMMON | {"in_proj.weight": [f"{part}.weight" for part in ("z", "x", "B", "C", "dt")]}
NAMES = {
    "model.embed_tokens": "wte",
    "backbone.embeddings": "wte",
    "model.layers": "blocks",
    "backbone.layers": "blocks",
    "model.final_layernorm": "norm",
    "backbone.norm_f": "norm",
    "lm_head": "head",
    "self_attn": "mixer",
    "mamba": "mixer",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "out",
    "pre_ff_layernorm": "norm2",
    "input_layernorm": "norm1",
    "feed_forward.router": "ffn.router",
    "feed_forward.experts.gate_up_proj": "ffn.up",
    "feed_forward.experts.down_proj": "ffn.down",
    "feed_forward.gate_proj.weight": "ffn.up.weight:gate",
    "feed_forward.up_proj.weight": "ffn.up.weight:up",
    "feed_forward.down_proj": "ffn.down",
}

JAMBA_OPTIONS = {"mamba": {"d_state": 5, "dt_rank": 3, "inner_norms": True}}
BAMBA_OPTIONS = {"mamba2": {"d_state": 5, "head_dim": 6, "head_multiple": 2}}
MIXERS = {
    "bamba": (BambaMixer, BAMBA, BAMBA_OPTIONS, MAMBA2),
    "jamba": (JambaMambaMixer, JAMBA, JAMBA_OPTIONS, MAMBA),
    "falcon_mamba": (
        partial(FalconMambaMixer, initialize_mixer_weights=False),  # it fails before its norms exist (5.23)
        FALCON,
        JAMBA_OPTIONS,
        MAMBA | {"norm.weight": ["norm1.weight"]},
    ),
}
MODELS = {
    "bamba": (BambaForCausalLM, ["mamba2", "attention"] * 2, {"rotary_fraction": 0.5}),
    # Each expert of theirs is as wide as a dense network, ours are 1/k of it.
    "jamba": (
        JambaForCausalLM,
        ["mamba", "attention", "mamba"],
        {"position": "none", "experts": Experts(3, 2, gate="all"), "intermediate_size": 2 * HIDDEN},
    ),
    "falcon_mamba": (FalconMambaForCausalLM, ["mamba"] * 2, {"ffn": False}),
}


def config(mixers: list[str], options: dict, ffn: bool = True, **fields) -> ModelConfig:
    sizes = {"n_embd": WIDTH, "n_head": 2, "head_dim": 12, "n_kv_head": 1, "intermediate_size": HIDDEN}
    layers = tuple(LayerSpec(mixer, ffn="swiglu" if ffn else None, experts="experts" in fields) for mixer in mixers)
    fields = {**sizes, "vocab_size": VOCAB, "mixer_options": options, **fields}
    return ModelConfig("test", len(layers), layers=layers, **fields)


def fill(module: nn.Module, plain_norms: bool) -> None:
    """Values of trained size, none neutral; plain_norms: but the gains of Mamba's inner norms."""
    generator = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5
        if name.endswith("dt_bias"):
            p.data -= 4
        if plain_norms and "inner_norms" in name:
            p.data.fill_(1.0)


def copy(ours: nn.Module, theirs: nn.Module, joined: dict[str, list[str]]) -> None:
    """Give theirs the weights of ours."""
    state = dict(ours.state_dict())
    for name in [n for n in state if n.endswith("ffn.up.weight")]:
        state[f"{name}:gate"], state[f"{name}:up"] = state[name].chunk(2)

    def of(key: str) -> Tensor:
        stem, parts = next(((key[: -len(k)], p) for k, p in joined.items() if f".{key}".endswith(f".{k}")), (key, [""]))
        for there, here in NAMES.items():
            stem = stem.replace(there, here)
        return torch.cat([state[stem + part] for part in parts])

    theirs.load_state_dict({key: of(key) for key in theirs.state_dict()})


@pytest.mark.parametrize("name", MIXERS)
def test_mixers(name):
    kind, settings, options, joined = MIXERS[name]
    ours = build_mixer(config(list(options), options), 0, Multipliers())
    fill(ours, name == "falcon_mamba")
    theirs = kind(settings, 0)
    copy(ours, theirs, joined)
    inputs = [torch.randn(2, 21, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0], Context())[0], theirs(inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for y in outputs:
        (y * torch.linspace(-1, 1, WIDTH)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for parameter in ("A_log", "D"):
        grads = [getattr(module, parameter).grad for module in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits(name):
    kind, mixers, fields = MODELS[name]
    _, settings, options, joined = MIXERS[name]
    ours = GPT(config(mixers, options, **fields))
    fill(ours, name == "falcon_mamba")
    theirs = kind(settings).eval()
    copy(ours, theirs, joined)
    tokens = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(2))
    expected = theirs(tokens, use_cache=False).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(tokens).logits, expected, rtol=1e-4, atol=1e-4)
