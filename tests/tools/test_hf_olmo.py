"""OLMo 2 and 3: norms behind the branches, QK-norm over all heads together, and in OLMo 3 windows in some layers."""

from __future__ import annotations

from typing import Any

import pytest
from hf_models import EVERY, SIZES, cannot_read, reads, refuses, small, theirs, writes
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM

from lit_gpt.config.model import LayerSpec
from lit_gpt.scaling.base import Multipliers

OLMO = {"qk_norm": True, "joint_qk_norm": True, "reordered_norm": True}
WINDOWS = (LayerSpec(window=5), LayerSpec())
FOUR = SIZES | {"num_hidden_layers": 4}
LAYERS = ["sliding_attention", "full_attention"]
THETA = {"rope_type": "default", "rope_theta": 700.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "truncate": False}
LONG = {"head_dim": 64, "max_position_embeddings": 16384}
FAR = {"rope_theta": 700.0e3}
NESTED = {LAYERS[0]: FAR | {"rope_type": "default"}, LAYERS[1]: FAR | YARN | {"truncate": True}}
READ_2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {**OLMO, "norm_eps": 1e-5, "attn_bias": False}),
    "biases": ({"attention_bias": True}, {"attn_bias": True, "qkv_bias": True}),
    "tied": ({"tie_word_embeddings": True, "num_key_value_heads": None}, {"tie_embeddings": True, "n_kv_head": 4}),
    "rope_theta": ({"rope_parameters": THETA}, {"rope_base": 700.0}),
    "head_dim": ({"head_dim": 16}, {"head_dim": 16}),
    "yarn": (LONG | {"rope_parameters": YARN | {"rope_theta": 10000.0}}, {"yarn_scale": 4.0}),
}
READ_3: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (FOUR, {"layers": (LayerSpec(window=4096),) * 3 + (LayerSpec(),), "rope_base": 500_000.0}),
    "windows": (SIZES | {"sliding_window": 5, "layer_types": LAYERS}, {**OLMO, "layers": WINDOWS}),
    "rope_theta": (
        SIZES | {"layer_types": LAYERS, "rope_parameters": dict.fromkeys(LAYERS, THETA)},
        {"rope_base": 700.0},
    ),
    "yarn": (
        SIZES | LONG | {"sliding_window": 5, "layer_types": LAYERS, "rope_parameters": NESTED},
        {"layers": WINDOWS, "yarn_scale": 4.0, "yarn_windows": False, "yarn_truncate": True, "rope_base": 700.0e3},
    ),
    "all full": (
        SIZES | {"layer_types": LAYERS[1:] * 2, "rope_parameters": {LAYERS[1]: THETA}},
        {"layers": (LayerSpec(),) * 2, "rope_base": 700.0},
    ),
}
WRITTEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attn_bias": True},
    "key biases": {"attn_bias": True, "qkv_bias": True, "tie_embeddings": True},
    "head_dim": {"head_dim": 16, "rope_base": 700.0},
    "shared blocks": {"share_per_layer": 1},
}


@pytest.mark.parametrize("name", READ_2)
def test_an_olmo2_is_read(name, tmp_path):
    options, expected = READ_2[name]
    config = reads(theirs(Olmo2ForCausalLM, Olmo2Config(**SIZES | options), tmp_path / "hf"), tmp_path / "hf", "olmo2")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", READ_3)
def test_an_olmo3_is_read(name, tmp_path):
    options, expected = READ_3[name]
    config = reads(theirs(Olmo3ForCausalLM, Olmo3Config(**options), tmp_path / "hf"), tmp_path / "hf", "olmo3")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_with_norms_behind_its_branches_is_written(name, tmp_path):
    config = small(**OLMO | WRITTEN[name])
    assert isinstance(writes(config, tmp_path / "two" / "hf", None), Olmo2ForCausalLM)
    layers = WINDOWS if config.share_per_layer == 0 else (LayerSpec(window=5),) * 2
    assert isinstance(writes(config.replace(layers=layers), tmp_path / "three" / "hf", None), Olmo3ForCausalLM)


def test_yarn_in_some_layers_is_written(tmp_path):
    yarn = {"yarn_scale": 4.0, "yarn_truncate": True, "yarn_windows": False, "head_dim": 64, "block_size": 16384}
    assert isinstance(writes(small(**OLMO | yarn, layers=WINDOWS), tmp_path / "hf", None), Olmo3ForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_gains(multipliers, tmp_path):
    """A norm behind a branch undoes a multiplier in the output projection."""
    writes(small(**OLMO), tmp_path / "hf", "olmo2", multipliers)


def test_what_they_lack_is_refused(tmp_path):
    mixed = (LayerSpec(window=5), LayerSpec(window=6))
    for fields, name, words in (
        ({"reordered_norm": False}, "olmo2", "reordered_norm False"),
        ({"joint_qk_norm": False}, "olmo2", "joint_qk_norm False"),
        ({"mlp_bias": True}, "olmo2", "mlp_bias True"),
        ({"qkv_bias": True}, "olmo2", "qkv_bias without attn_bias"),
        ({"layers": WINDOWS}, "olmo2", r"window 5 \(layer 0\)"),
        ({"layers": mixed}, "olmo3", "windows 5 and 6 in different layers"),
        ({"layers": WINDOWS, "yarn_scale": 4.0, "head_dim": 64}, "olmo3", "YaRN in layers with a window"),
        ({"yarn_scale": 4.0, "head_dim": 64}, "olmo3", "yarn_truncate False"),
    ):
        refuses(small(**OLMO | fields), tmp_path / "hf", name, words)


def test_an_olmo3_that_cannot_be_read_is_refused(tmp_path):
    theirs(Olmo3ForCausalLM, Olmo3Config(**FOUR), tmp_path / "hf")
    for changes, words in (
        (
            {"rope_parameters": {LAYERS[0]: THETA, LAYERS[1]: THETA | {"rope_theta": 1e4}}},
            "RoPE in layers with a window that is not",
        ),
        ({"rope_parameters": {LAYERS[0]: YARN}}, "RoPE in layers with a window that is not"),
        ({"rope_parameters": {LAYERS[0]: 3}}, "it must be an object for each kind of layer"),
        ({"layer_types": ["chunked_attention"] * 4}, "asks for layer_types"),
    ):
        cannot_read(tmp_path / "hf", changes, words)
