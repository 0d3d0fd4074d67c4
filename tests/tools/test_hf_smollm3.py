"""SmolLM3: windows in some layers, no rotary positions in some."""

from __future__ import annotations

from typing import Any

import pytest
from hf_models import EVERY, SIZES, reads, refuses, small, theirs, writes
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from lit_gpt.config.model import LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_config
from lit_gpt.tools.hf import smollm3

WINDOW = {"use_sliding_window": True, "sliding_window": 5}
FOUR = {**SIZES, "num_hidden_layers": 4}
PLAIN, NEAR, BARE = LayerSpec(), LayerSpec(window=5), LayerSpec(rope_base=0)
READ: dict[str, tuple[dict[str, Any], tuple[LayerSpec, ...]]] = {
    "every fourth": ({}, (PLAIN, PLAIN, PLAIN, BARE)),
    "untied": ({"tie_word_embeddings": False, "no_rope_layers": [1, 0, 1, 1]}, (PLAIN, BARE, PLAIN, PLAIN)),
    "none": ({"no_rope_layers": [0] * 4}, (BARE,) * 4),
    "interval": ({"no_rope_layer_interval": 2}, (PLAIN, BARE, PLAIN, BARE)),
    "window": ({**WINDOW, "no_rope_layer_interval": 2}, (PLAIN, LayerSpec(window=5, rope_base=0)) * 2),
    "window types": (
        {**WINDOW, "no_rope_layers": [1, 1, 0, 1], "layer_types": ["sliding_attention", "full_attention"] * 2},
        (NEAR, PLAIN, LayerSpec(window=5, rope_base=0), PLAIN),
    ),
    "biases": ({"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1] * 4}, (PLAIN,) * 4),
    "head_dim": ({"head_dim": 16}, (PLAIN, PLAIN, PLAIN, BARE)),
}
WRITTEN: dict[str, dict[str, Any]] = {
    "yarn": {"yarn_scale": 4.0, "head_dim": 64, "block_size": 16384, "layers": (NEAR, BARE)},
    "window": {"layers": (NEAR, PLAIN)},
    "without rope": {"layers": (BARE, PLAIN)},
    "both": {"layers": (LayerSpec(window=5, rope_base=0), PLAIN), "attn_bias": True, "mlp_bias": True},
    "no positions": {"position": "none", "tie_embeddings": True},
    "no bases": {"layers": (BARE, BARE)},
    "own base": {"layers": (LayerSpec(rope_base=500.0), BARE)},
    "head_dim": {"layers": (NEAR, PLAIN), "head_dim": 16},
    "odd width": {"layers": (NEAR, PLAIN), "n_embd": 34},
    "shared blocks": {"depth": 4, "layers": (NEAR, BARE) * 2, "share_per_layer": 2},
}


@pytest.mark.parametrize("name", READ)
def test_a_smollm3_is_read(name, tmp_path):
    options, layers = READ[name]
    model = theirs(SmolLM3ForCausalLM, SmolLM3Config(**FOUR | options), tmp_path / "hf")
    assert reads(model, tmp_path / "hf", "smollm3").layers == layers


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_layers_of_two_kinds_is_written(name, tmp_path):
    assert isinstance(writes(small(**WRITTEN[name]), tmp_path / "hf", None), SmolLM3ForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(small(layers=(NEAR, BARE), attn_bias=True, mlp_bias=True), tmp_path / "hf", "smollm3", multipliers)


def test_what_smollm3_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"layers": (NEAR, LayerSpec(window=6))}, "windows 5 and 6 in different layers"),
        ({"layers": (LayerSpec(rope_base=500.0), PLAIN)}, "rope_base 500 and 10000 in different layers"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"attn_sink": True}, "attn_sink True"),
        ({"position": "learned"}, "position learned"),
    ):
        refuses(small(**fields), tmp_path / "hf", "smollm3", words)


@pytest.mark.parametrize("flags", [[1], [1, 2], ["a", 1], [[], {}]], ids=str)
def test_flags_that_are_none_are_refused(flags):
    values = {**SIZES, "no_rope_layers": flags, "pad_token_id": None}
    with pytest.raises(UserError, match="no_rope_layers is"):
        _hf_config.read_config(smollm3, values)
