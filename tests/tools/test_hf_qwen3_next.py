"""Qwen3-Next without experts: Gated DeltaNet, and attention with gates and QK-norm."""

from __future__ import annotations

import pytest
import torch
from hf_models import EVERY, SIZES, cannot_read, reads, refuses, small, theirs, writes
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert

FITS = {"heads": 3, "key_dim": 8, "expand_v": 1.5, "head_norm": True, "negative_eigenvalues": False}
HYBRID = {
    "layers": (LayerSpec("gdn"), LayerSpec()),
    "qk_norm": True,
    "attn_gate": True,
    "mixer_options": {"gdn": FITS},
}
WRITTEN = {
    "hybrid": HYBRID,
    "attention without gates": HYBRID | {"attn_gate": False},
    "tied": HYBRID | {"tie_embeddings": True},
    "biases": HYBRID | {"attn_bias": True},
    "biases without gates": HYBRID | {"attn_bias": True, "attn_gate": False},
    "part of each head turns": HYBRID | {"rotary_fraction": 0.5, "rope_base": 500.0},
    "yarn": HYBRID | {"head_dim": 64, "yarn_scale": 4.0, "block_size": 16384},
    "attention alone": {"qk_norm": True, "attn_gate": True},
    "value dim": HYBRID | {"mixer_options": {"gdn": FITS | {"key_dim": 11, "expand_v": 1.2, "conv": 3}}},
    "shared blocks": HYBRID | {"layers": HYBRID["layers"] * 2, "depth": 4, "share_per_layer": 2},
}
DELTA = {
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 3,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 10,
    "mlp_only_layers": [0, 1],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_that_fits_is_written(name, tmp_path):
    written = writes(small(**WRITTEN[name]), tmp_path / "hf", None)
    assert isinstance(written, Qwen3NextForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(small(**HYBRID), tmp_path / "hf", "Qwen3NextForCausalLM", multipliers)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_theirs_with_equal_gates_is_read(tied, tmp_path):
    """Gains are 1 + weight there, so a weight that has more bits than the sum is rounded, and then stays."""
    options = {"layer_types": ["linear_attention", "full_attention"], "tie_word_embeddings": tied}
    model = theirs(Qwen3NextForCausalLM, Qwen3NextConfig(**SIZES | DELTA | options), tmp_path / "first")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.view(4, 2, 8, 32)[:, 1] = torch.randn(4, 1, 32)
    model.save_pretrained(tmp_path / "first")
    convert.main([str(tmp_path / "first"), str(tmp_path / "file.safetensors")])
    convert.main([str(tmp_path / "file.safetensors"), str(tmp_path / "hf"), "--to", "hf"])
    config = reads(model, tmp_path / "hf", "qwen3_next")
    assert config.rotary_fraction == 0.25 and config.attn_gate and config.qk_norm
    assert config.mixer_options["gdn"].items() >= {"heads": 3, "key_dim": 7, "head_norm": True}.items()


def test_what_it_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"mixer_options": {"gdn": FITS | {"head_norm": False}}}, "one norm for all heads"),
        ({"mixer_options": {"gdn": FITS | {"negative_eigenvalues": True}}}, "negative_eigenvalues"),
        ({"mixer_options": {"gdn": FITS | {"conv": 0}}}, "without a convolution"),
        ({"layers": (LayerSpec("gdn"),) * 2}, "a model without attention"),
        ({"qk_norm": False}, "attention without qk_norm"),
        ({"position": "none"}, "position none"),
        ({"layers": (LayerSpec("gdn"), LayerSpec("kda"))}, r"mixer kda \(layer 1\)"),
        ({"layers": (LayerSpec("gdn"), LayerSpec(window=5))}, r"window 5 \(layer 1\)"),
        ({"layers": (LayerSpec("gdn", experts=True),) * 2, "experts": Experts(2, 2)}, r"experts True \(layer 0, 1\)"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"attn_sink": True}, "attn_sink True"),
    ):
        refuses(small(**HYBRID | fields), tmp_path / "hf", "qwen3_next", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"linear_num_value_heads": 6}, "6 heads of values"),
        ({"mlp_only_layers": [0]}, "layers with experts"),
        ({"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types"),
        ({"partial_rotary_factor": "a", "rope_parameters": None}, "partial_rotary_factor is 'a'"),
        ({}, "self_attn.q_proj.weight has another gate for each channel of a head"),
    ],
)
def test_what_we_cannot_express_is_one_sentence(changes, words, tmp_path):
    options = {"layer_types": ["linear_attention", "full_attention"]}
    theirs(Qwen3NextForCausalLM, Qwen3NextConfig(**SIZES | DELTA | options), tmp_path / "hf")
    cannot_read(tmp_path / "hf", changes, words)
