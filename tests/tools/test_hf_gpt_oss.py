"""GPT-OSS: sinks, windows in some layers, experts with its own SwiGLU."""

from __future__ import annotations

import json

import pytest
from hf_models import SIZES, cannot_read, reads, refuses, small, theirs, writes
from transformers import GptOssConfig, GptOssForCausalLM

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf import read_hf

PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "sliding_window": 5}
MIXED = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24, "attention_bias": False}
ONE = {"num_local_experts": 1, "num_experts_per_tok": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
FULL = {"layer_types": ["full_attention"] * 2}
LONG = {"head_dim": 64, "max_position_embeddings": 16384, "rope_parameters": YARN | {"truncate": False}}
ROUTER = ("k_proj.bias", "router")
ZERO = ("k_proj.bias", "router.bias", "proj_bias")
TWO = (LayerSpec(ffn="oss_swiglu", window=5), LayerSpec(ffn="oss_swiglu"))
MOE = tuple(LayerSpec(ffn="oss_swiglu", experts=True, window=w) for w in (5, None))
READ = {
    "experts": (PLAIN | MIXED, ZERO, {"experts": Experts(2, 2), "intermediate_size": 48, "layers": MOE}),
    "biases": (PLAIN | MIXED | {"attention_bias": True}, ZERO, {"attn_bias": True}),
    "biases of keys": (PLAIN | MIXED | {"attention_bias": True}, ZERO[1:], {"attn_bias": True, "qkv_bias": True}),
    "one expert": (PLAIN | ONE, ROUTER, {"experts": None, "mlp_bias": True, "layers": TWO}),
    "no windows": (PLAIN | ONE | FULL, ROUTER, {"attn_sink": True, "layers": (TWO[1],) * 2}),
    "yarn": (PLAIN | MIXED | LONG, ZERO, {"yarn_scale": 4.0}),
}
EXPERTS = {"layers": MOE, "experts": Experts(2, 2)}
WRITTEN = {
    "experts": EXPERTS,
    "one of each": EXPERTS | {"experts": Experts(1, 2), "attn_bias": True, "tie_embeddings": True},
    "biases of keys": {"mlp_bias": True, "attn_bias": True, "qkv_bias": True},
    "dense": {"mlp_bias": True, "attn_bias": True},
    "dense without biases": {"rope_base": 500.0},
    "no windows": {"layers": (TWO[1],) * 2},
    "yarn": {"head_dim": 64, "yarn_scale": 4.0, "block_size": 16384},
    "shared blocks": {"depth": 4, "layers": TWO * 2, "share_per_layer": 2},
}


def oss(**fields):
    return small(**{"layers": TWO, "attn_sink": True} | fields)


@pytest.mark.parametrize("name", READ)
def test_a_gpt_oss_is_read(name, tmp_path):
    options, zero, expected = READ[name]
    model = theirs(GptOssForCausalLM, GptOssConfig(**SIZES | options), tmp_path / "hf", zero)
    config = reads(model, tmp_path / "hf", "gpt_oss")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("rope", ["absent", "rope_parameters", "rope_scaling"])
def test_a_config_without_a_rope_has_that_of_the_class(rope, tmp_path):
    """Which is YaRN in transformers: it was read as none, and the logits were others."""
    long = {"head_dim": 64, "max_position_embeddings": 131072}
    model = theirs(
        GptOssForCausalLM, GptOssConfig(**SIZES | MIXED | long | {"sliding_window": 5}), tmp_path / "hf", ZERO
    )
    path = tmp_path / "hf" / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "rope_parameters"}
    path.write_text(json.dumps(config | ({} if rope == "absent" else {rope: None})))
    if rope == "rope_scaling":  # which transformers 4 and 5 read in two ways
        with pytest.raises(UserError, match="rope_scaling null"):
            read_hf(tmp_path / "hf")
    else:
        assert reads(model, tmp_path / "hf", "gpt_oss").yarn_scale == 32


@pytest.mark.parametrize("name", WRITTEN)
def test_sinks_and_windows_are_written(name, tmp_path):
    assert isinstance(writes(oss(**WRITTEN[name]), tmp_path / "hf", None), GptOssForCausalLM)


@pytest.mark.parametrize("fields", [EXPERTS, {"mlp_bias": True, "attn_bias": True}], ids=["experts", "dense"])
def test_without_multipliers(fields, tmp_path):
    writes(oss(**fields), tmp_path / "hf", "GptOssForCausalLM", Multipliers())


def test_what_gpt_oss_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"attn_sink": False}, "attn_sink False"),
        ({"layers": (LayerSpec(), TWO[1])}, r"ffn swiglu \(layer 0\)"),
        ({"layers": (TWO[0], LayerSpec(ffn="oss_swiglu", window=6))}, "windows 5 and 6 in different layers"),
        ({"layers": (MOE[0], TWO[1]), "experts": Experts(2, 2)}, r"layers without experts \(1\) beside others"),
        (EXPERTS | {"experts": Experts(2, 2, shared=True, gate="all")}, "gate all, shared True"),
        (EXPERTS | {"experts": Experts(2, 2, sqrt_gate=True)}, "sqrt_gate"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"position": "none"}, "position none"),
        ({"qkv_bias": True}, "qkv_bias without attn_bias"),
    ):
        refuses(oss(**fields), tmp_path / "hf", "gpt_oss", words)


@pytest.mark.parametrize(
    ("changes", "zero", "words"),
    [
        ({"swiglu_limit": 5.0}, ZERO, "swiglu_limit 5.0"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, ZERO, "quantization_config"),
        ({"num_local_experts": 5}, ZERO, "5 experts of which 2 are used"),
        ({}, ("k_proj.bias", "proj_bias"), "router.bias is not zero, and routers have no bias here"),
        ({}, ("router.bias", "k_proj.bias"), "proj_bias is not zero, and experts have no biases here"),
    ],
)
def test_what_we_cannot_express_is_one_sentence(changes, zero, words, tmp_path):
    theirs(GptOssForCausalLM, GptOssConfig(**SIZES | PLAIN | MIXED), tmp_path / "hf", zero)
    cannot_read(tmp_path / "hf", changes, words)
