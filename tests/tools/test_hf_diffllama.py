"""DiffLlama: differential attention in every layer."""

from __future__ import annotations

import pytest
from hf_models import EVERY, SIZES, reads, refuses, small, theirs, writes
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.scaling.base import Multipliers

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}
READ = {
    "plain": ({}, {"n_head": 8, "n_kv_head": 4, "norm_eps": 1e-5}),
    "tied": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "biases": ({"attention_bias": True}, {"attn_bias": True}),
    "all heads": ({"num_key_value_heads": 8}, {"n_kv_head": 8}),
    "one pair of keys": ({"num_key_value_heads": 2, "rms_norm_eps": 0.1}, {"n_kv_head": 2, "norm_eps": 0.1}),
}
WRITTEN = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biases": {"attn_bias": True},
    "head_dim": {"head_dim": 16},
    "rope_base": {"rope_base": 500.0},
    "yarn": {"head_dim": 64, "yarn_scale": 4.0, "block_size": 16384},
}


def differential(**fields):
    """Two layers, whose eight heads are four pairs."""
    layers = (LayerSpec("differential_attention"),) * fields.get("depth", 2)
    return small(**{"n_head": 8, "n_kv_head": 4, "layers": layers} | fields)


@pytest.mark.parametrize("name", READ)
def test_a_diffllama_is_read(name, tmp_path):
    options, expected = READ[name]
    model = theirs(DiffLlamaForCausalLM, DiffLlamaConfig(**SIZES | HEADS | options), tmp_path / "hf", ("k_proj.bias",))
    config = reads(model, tmp_path / "hf", "diffllama")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_differential_attention_is_written(name, tmp_path):
    assert isinstance(writes(differential(**WRITTEN[name]), tmp_path / "hf", None), DiffLlamaForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(differential(), tmp_path / "hf", "DiffLlamaForCausalLM", multipliers)


def test_what_diffllama_lacks_is_refused(tmp_path):
    kind = LayerSpec("differential_attention")
    for fields, words in (
        ({"mixer_options": {"differential_attention": {"lambda_init": 0.5}}}, "lambda_init 0.5, which there follows"),
        ({"layers": (kind, LayerSpec())}, r"mixer attention \(layer 1\)"),
        ({"layers": (kind, LayerSpec("differential_attention", window=5))}, r"window 5 \(layer 1\)"),
        ({"layers": (LayerSpec("differential_attention", experts=True),) * 2, "experts": Experts(2, 2)}, "experts"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"attn_sink": True}, "attn_sink True"),
        ({"position": "none"}, "position none"),
        # Blocks that layers share have the lambda_init of one layer, which DiffLlama cannot say.
        ({"share_per_layer": 1}, "blocks that layers share"),
    ):
        refuses(differential(**fields), tmp_path / "hf", "diffllama", words)
