"""Mistral: one window in all layers."""

from __future__ import annotations

import pytest
import torch
from hf_models import SIZES, loaded, reads, refuses, small, theirs, writes
from transformers import MistralConfig, MistralForCausalLM

from lit_gpt.config.model import LayerSpec

READ = {
    "window": ({"sliding_window": 5}, 5),
    "one token": ({"sliding_window": 1}, 1),
    "no window": ({"sliding_window": None}, None),
    "default": ({}, 4096),
    "tied": ({"tie_word_embeddings": True, "sliding_window": 7}, 7),
    "head_dim": ({"head_dim": 16, "sliding_window": 7}, 7),
}
WRITTEN = {
    "window": {},
    "tied": {"tie_embeddings": True},
    "odd width": {"n_embd": 34},
    "shared": {"share_per_layer": 1},
}


@pytest.mark.parametrize("name", READ)
def test_a_mistral_is_read(name, tmp_path):
    """The texts are longer than the windows: one token more or less would be seen."""
    options, window = READ[name]
    model = theirs(MistralForCausalLM, MistralConfig(**SIZES | options), tmp_path / "hf")
    assert reads(model, tmp_path / "hf", "mistral").layers == (LayerSpec(window=window),) * 2


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_one_window_is_written(name, tmp_path):
    config = small(layers=(LayerSpec(window=5),) * 2, **WRITTEN[name])
    assert isinstance(writes(config, tmp_path / "hf", None), MistralForCausalLM)


@torch.no_grad()
def test_the_window_counts_the_token_itself(tmp_path):
    """Theirs, written with window 5, changes at a position with the token 4 before it in a layer, and not 5 before."""
    written = writes(small(depth=1, layers=(LayerSpec(window=5),)), tmp_path / "hf", "mistral")
    text = torch.arange(12)[None]
    other = text.clone()
    other[0, 3] = 50
    changed = (loaded(tmp_path / "hf")(other).logits != written(text).logits).any(-1)[0]
    assert changed.tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_what_mistral_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"layers": (LayerSpec(window=5), LayerSpec())}, r"window 5 in some layers only \(0\)"),
        ({"attn_bias": True}, "attn_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"qk_norm": True}, "qk_norm True"),
    ):
        refuses(small(**fields), tmp_path / "hf", "MistralForCausalLM", words)
