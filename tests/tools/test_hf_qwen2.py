"""Qwen2: biases on queries, keys and values, where ours has none on keys; windows in some of the layers."""

from __future__ import annotations

import pytest
from hf_models import EVERY, SIZES, model_of, reads, refuses, small, theirs, writes
from transformers import Qwen2Config, Qwen2ForCausalLM

from lit_gpt.config.model import LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.tools import convert
from lit_gpt.tools._hf import write_hf

UPPER = (LayerSpec(), LayerSpec(window=5))
READ = {
    "plain": ({}, {"attn_bias": True, "tie_embeddings": False}),
    "tied": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "window": ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, {"layers": UPPER}),
}
WRITTEN = {
    "upper window": {"layers": UPPER},
    "head_dim": {"layers": UPPER, "head_dim": 16},
    "lower window": {"layers": UPPER[::-1], "tie_embeddings": True},
    "shared blocks": {"depth": 4, "layers": UPPER * 2, "share_per_layer": 2},
}


@pytest.mark.parametrize("name", READ)
def test_a_qwen2_without_biases_of_keys_is_read(name, tmp_path):
    options, expected = READ[name]
    model = theirs(Qwen2ForCausalLM, Qwen2Config(**SIZES | options), tmp_path / "hf", ("k_proj.bias",))
    config = reads(model, tmp_path / "hf", "qwen2")
    assert {field: getattr(config, field) for field in expected} == expected


def test_a_qwen2_with_biases_of_keys_is_refused(tmp_path):
    """As the published ones have them."""
    theirs(Qwen2ForCausalLM, Qwen2Config(**SIZES), tmp_path / "hf")
    with pytest.raises(UserError, match=r"0.self_attn.k_proj.bias is not zero, and keys have no bias here"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_windows_in_some_layers_is_written(name, tmp_path):
    assert isinstance(writes(small(**WRITTEN[name]), tmp_path / "hf", "qwen2"), Qwen2ForCausalLM)


def test_biases_are_written_where_qwen2_has_them(tmp_path):
    """Its output projection has none, so one that is not zero is refused."""
    config = small(attn_bias=True)
    weights = model_of(config, EVERY).state_dict()
    with pytest.raises(UserError, match=r"blocks.0.mixer.out.bias is not zero, and Qwen2 has no bias there"):
        write_hf(weights, config, EVERY, tmp_path / "hf", hf_class="qwen2")
    assert not (tmp_path / "hf").exists()


def test_what_qwen2_lacks_is_refused(tmp_path):
    mixed = (LayerSpec(window=5), LayerSpec(window=6))
    for fields, words in (
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"layers": mixed}, "windows 5 and 6 in different layers"),
    ):
        refuses(small(**fields), tmp_path / "hf", "qwen2", words)
