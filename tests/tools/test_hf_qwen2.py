"""Qwen2: biases on queries, keys and values, none on the output projection; windows in some of the layers."""

from __future__ import annotations

import pytest
from hf_models import SIZES, reads, refuses, small, theirs, writes
from transformers import Qwen2Config, Qwen2ForCausalLM

from lit_gpt.config.model import LayerSpec

UPPER = (LayerSpec(), LayerSpec(window=5))
READ = {
    "plain": ({}, {"qkv_bias": True, "attn_bias": False, "tie_embeddings": False}),
    "tied": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "window": ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, {"layers": UPPER}),
}
WRITTEN = {
    "upper window": {"layers": UPPER},
    "biases": {"qkv_bias": True},
    "head_dim": {"layers": UPPER, "head_dim": 16},
    "lower window": {"layers": UPPER[::-1], "tie_embeddings": True, "qkv_bias": True},
    "shared blocks": {"depth": 4, "layers": UPPER * 2, "share_per_layer": 2},
}


@pytest.mark.parametrize("name", READ)
def test_a_qwen2_is_read(name, tmp_path):
    options, expected = READ[name]
    model = theirs(Qwen2ForCausalLM, Qwen2Config(**SIZES | options), tmp_path / "hf")
    config = reads(model, tmp_path / "hf", "qwen2")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_windows_in_some_layers_is_written(name, tmp_path):
    assert isinstance(writes(small(**WRITTEN[name]), tmp_path / "hf", "qwen2"), Qwen2ForCausalLM)


def test_biases_of_three_projections_are_written_as_qwen2_unasked(tmp_path):
    """No other class has them; what is said against Qwen2's tokenizer is then a note."""
    assert isinstance(writes(small(qkv_bias=True), tmp_path / "hf", None), Qwen2ForCausalLM)


def test_what_qwen2_lacks_is_refused(tmp_path):
    mixed = (LayerSpec(window=5), LayerSpec(window=6))
    for fields, words in (
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"attn_bias": True}, "attn_bias True"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"layers": mixed}, "windows 5 and 6 in different layers"),
    ):
        refuses(small(**fields), tmp_path / "hf", "qwen2", words)
