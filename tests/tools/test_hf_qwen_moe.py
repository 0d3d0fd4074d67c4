"""Qwen3-MoE and Qwen2-MoE: mixtures in all or some layers; the latter with a shared expert behind a gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import EVERY, SIZES, reads, refuses, small, theirs, writes
from safetensors.torch import load_file, save_file
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert
from lit_gpt.tools._hf import read_hf

MIXED = (LayerSpec(experts=True),) * 2
COUNT = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {
    "num_experts": 5,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
READ_3: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": ({"norm_topk_prob": False}, {"experts": Experts(3, 2, gate="all")}),
    "selected": ({"norm_topk_prob": True}, {"experts": Experts(3, 2)}),
    "dense layer": ({"mlp_only_layers": [0]}, {"layers": (LayerSpec(), LayerSpec(experts=True))}),
    "step": ({"decoder_sparse_step": 2}, {"layers": (LayerSpec(), LayerSpec(experts=True))}),
    "window": (
        {"use_sliding_window": True, "sliding_window": 5},
        {"layers": (LayerSpec(window=5, experts=True),) * 2},
    ),
    "biases": ({"attention_bias": True, "tie_word_embeddings": True}, {"attn_bias": True, "qkv_bias": True}),
    "head_dim": ({"head_dim": 16}, {"head_dim": 16}),
}
READ_2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": ({}, {"experts": Experts(3, 2, shared=True, gate="all")}),
    "selected": (
        {"norm_topk_prob": True, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
        {"experts": Experts(2, 3, shared=True)},
    ),
    "dense layer": ({"mlp_only_layers": [0]}, {"layers": (LayerSpec(), LayerSpec(experts=True))}),
}
WRITTEN_3: dict[str, dict[str, Any]] = {
    "selected": {},
    "all": {"experts": Experts(3, 2, gate="all")},
    "one of them": {"experts": Experts(4, 1, gate="all")},
    "window": {"layers": (LayerSpec(experts=True, window=5),) * 2},
    "dense layer": {"layers": (LayerSpec(experts=True), LayerSpec())},
    "biases": {"attn_bias": True, "head_dim": 16, "tie_embeddings": True},
    "shared blocks": {"share_per_layer": 1},
}
WRITTEN_2: dict[str, dict[str, Any]] = {
    "shared": {"experts": Experts(2, 3, shared=True)},
    "shared, all": {"experts": Experts(3, 2, shared=True, gate="all")},
    "biases": {"qkv_bias": True},
    "not shared": {"experts": Experts(3, 2, gate="all"), "head_dim": 16},
    "dense layer": {"layers": (LayerSpec(experts=True), LayerSpec()), "tie_embeddings": True},
}


@pytest.mark.parametrize("name", READ_3)
def test_a_qwen3_moe_is_read(name, tmp_path):
    options, expected = READ_3[name]
    model = theirs(Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES | COUNT | options), tmp_path / "hf")
    config = reads(model, tmp_path / "hf", "qwen3_moe")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", READ_2)
def test_a_qwen2_moe_with_an_even_gate_is_read(name, tmp_path):
    """Zero weights of the shared expert's gate are 1/2 for every token."""
    options, expected = READ_2[name]
    zero = ("shared_expert_gate",)
    model = theirs(Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES | SHARED | options), tmp_path / "hf", zero)
    config = reads(model, tmp_path / "hf", "qwen2_moe")
    assert {field: getattr(config, field) for field in expected} == expected


def test_experts_that_are_joined_in_the_file_are_read(tmp_path):
    """As transformers 5 saves them with save_original_format=False; experts of a damaged shape have no place."""
    mixtral = MixtralConfig(**SIZES | {"num_local_experts": 6, "num_experts_per_tok": 2})
    cases = (
        (MixtralForCausalLM, mixtral, ()),
        (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES | COUNT), ()),
        (Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES | SHARED), ("k_proj.bias", "shared_expert_gate")),
    )
    for i, (kind, config, zero) in enumerate(cases):
        model = theirs(kind, config, tmp_path / f"apart{i}", zero)
        model.save_pretrained(tmp_path / f"joined{i}", save_original_format=False)
        path = tmp_path / f"joined{i}" / "model.safetensors"
        weights = load_file(path)
        assert weights["model.layers.0.mlp.experts.gate_up_proj"].ndim == 3
        first, second = (read_hf(tmp_path / f"{form}{i}")[0] for form in ("apart", "joined"))
        assert first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())
        for wrong in (torch.ones(6), torch.ones(6, 3, 32)):
            save_file(weights | {"model.layers.0.mlp.experts.gate_up_proj": wrong}, path)
            with pytest.raises(UserError, match=r"no place for model\.layers\.0\.mlp\.experts"):
                read_hf(tmp_path / f"joined{i}")


def test_what_cannot_be_read_is_refused(tmp_path):
    width = {"mlp_only_layers": [0], "intermediate_size": 40}
    cases = (
        (Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES | SHARED), "shared_expert_gate.weight is not zero"),
        (Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES | SHARED | COUNT), "6 experts of which 2 are used and a shared"),
        (
            Qwen2MoeForCausalLM,
            Qwen2MoeConfig(**SIZES | SHARED | {"shared_expert_intermediate_size": 48}),
            "a shared expert of width 48",
        ),
        (
            Qwen2MoeForCausalLM,
            Qwen2MoeConfig(**SIZES | SHARED | {"use_sliding_window": True}),
            "use_sliding_window True",
        ),
        (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES | COUNT | width), "layers without experts of width 40"),
    )
    for i, (kind, config, words) in enumerate(cases):
        theirs(kind, config, tmp_path / f"hf{i}")
        with pytest.raises(UserError, match=words):
            convert.main([str(tmp_path / f"hf{i}"), str(tmp_path / "ours.pth")])


@pytest.mark.parametrize("name", WRITTEN_3)
def test_a_mixture_with_qk_norm_is_written(name, tmp_path):
    config = small(**{"qk_norm": True, "layers": MIXED, "experts": Experts(3, 2)} | WRITTEN_3[name])
    assert isinstance(writes(config, tmp_path / "hf", None), Qwen3MoeForCausalLM)


@pytest.mark.parametrize("name", WRITTEN_2)
def test_a_mixture_with_a_shared_expert_is_written(name, tmp_path):
    """And one without, whose gates are over all experts: its shared expert is of zeros."""
    config = small(**{"layers": MIXED, "experts": Experts(2, 3, shared=True)} | WRITTEN_2[name])
    assert isinstance(writes(config, tmp_path / "hf", None), Qwen2MoeForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), Multipliers(router=3.0), EVERY], ids=["1", "router", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(small(layers=MIXED, experts=Experts(2, 3, shared=True)), tmp_path / "two" / "hf", "qwen2_moe", multipliers)
    config = small(layers=MIXED, experts=Experts(2, 3), qk_norm=True)
    writes(config, tmp_path / "three" / "hf", "qwen3_moe", multipliers)


def test_what_they_lack_is_refused(tmp_path):
    shared = {"top_k": 3, "shared": True}
    for hf_class, fields, experts, words in (
        ("qwen3_moe", {"qk_norm": True}, shared, "shared True"),
        ("qwen3_moe", {}, {}, "qk_norm False"),
        ("qwen3_moe", {"qk_norm": True}, {"bias_rate": 0.01}, "bias_rate 0.01"),
        ("qwen2_moe", {"qk_norm": True}, shared, "qk_norm True"),
        ("qwen2_moe", {}, shared | {"sqrt_gate": True}, "sqrt_gate"),
        ("qwen2_moe", {"layers": (LayerSpec(experts=True, window=5),) * 2}, shared, "window 5"),
    ):
        config = small(**{"layers": MIXED, "experts": Experts(**{"sparsity": 2, "top_k": 2} | experts)} | fields)
        refuses(config, tmp_path / "hf", hf_class, words)
