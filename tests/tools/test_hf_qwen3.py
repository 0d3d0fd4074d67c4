"""Qwen3: QK-norm, and windows in some of the layers."""

from __future__ import annotations

import pytest
from hf_models import EVERY, SIZES, reads, refuses, small, theirs, writes
from transformers import Qwen3Config, Qwen3ForCausalLM

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.scaling.base import Multipliers

WINDOWS = {"use_sliding_window": True, "sliding_window": 5}
READ = {
    "plain": ({}, {"qk_norm": True, "attn_bias": False}),
    "tied": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "biases": ({"attention_bias": True}, {"attn_bias": True, "qkv_bias": True}),
    "head_dim": ({"head_dim": 16}, {"head_dim": 16}),
    "upper window": ({**WINDOWS, "max_window_layers": 1}, {"layers": (LayerSpec(), LayerSpec(window=5))}),
    "lower window": (
        {**WINDOWS, "layer_types": ["sliding_attention", "full_attention"]},
        {"layers": (LayerSpec(window=5), LayerSpec())},
    ),
    "window that is off": ({"sliding_window": 5}, {"layers": (LayerSpec(), LayerSpec())}),
}
WRITTEN = {
    "yarn": {"yarn_scale": 4.0, "head_dim": 64, "block_size": 16384},
    "plain": {},
    "tied": {"tie_embeddings": True},
    "biases": {"attn_bias": True},
    "key biases": {"attn_bias": True, "qkv_bias": True},
    "odd width": {"n_embd": 34},
    "shared blocks": {"depth": 4, "share_per_layer": 2},
    "windows": {"layers": (LayerSpec(window=5), LayerSpec())},
    "rope_base": {"rope_base": 500.0},
}


@pytest.mark.parametrize("name", READ)
def test_a_qwen3_is_read(name, tmp_path):
    options, expected = READ[name]
    model = theirs(Qwen3ForCausalLM, Qwen3Config(**SIZES | options), tmp_path / "hf")
    config = reads(model, tmp_path / "hf", "qwen3")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_qk_norm_is_written(name, tmp_path):
    """The softmax scale is in q_norm: a scale of the queries would be undone by it."""
    written = writes(small(qk_norm=True, **WRITTEN[name]), tmp_path / "hf", None)
    assert isinstance(written, Qwen3ForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(small(qk_norm=True), tmp_path / "hf", "Qwen3ForCausalLM", multipliers)


def test_what_qwen3_lacks_is_refused(tmp_path):
    mixed = (LayerSpec(window=5), LayerSpec(window=6))
    for fields, words in (
        ({"qk_norm": False}, "Qwen3ForCausalLM, which cannot express qk_norm False"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"layers": mixed}, "windows 5 and 6 in different layers"),
        ({"layers": (LayerSpec(experts=True),) * 2, "experts": Experts(2, 2)}, r"experts True \(layer 0, 1\)"),
        ({"attn_sink": True}, "attn_sink"),
    ):
        refuses(small(**{"qk_norm": True} | fields), tmp_path / "hf", "qwen3", words)
