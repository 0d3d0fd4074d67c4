"""Mamba as transformers has it: a mixer in every layer, and no feed-forward networks."""

from __future__ import annotations

import pytest
from hf_models import EVERY, SIZES, cannot_read, change, reads, refuses, small, theirs, writes
from transformers import MambaConfig, MambaForCausalLM

from lit_gpt.config.model import LayerSpec
from lit_gpt.scaling.base import Multipliers

ENDS = {k: v for k, v in SIZES.items() if k.endswith("_id") or k in ("vocab_size", "hidden_size", "num_hidden_layers")}
READ = {
    "plain": ({}, {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": 2}),
    "untied": ({"tie_word_embeddings": False}, {"d_state": 16}),
    "sizes": (
        {"state_size": 5, "conv_kernel": 3, "expand": 3, "time_step_rank": 7},
        {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 7},
    ),
    "norm_eps": ({"layer_norm_epsilon": 0.1}, {"d_state": 16}),
}
WRITTEN = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "one matrix": {"mixer_options": {"mamba": {"joint": True, "d_state": 5}}},
    "sizes": {"mixer_options": {"mamba": {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 7}}},
    "shared blocks": {"depth": 4, "share_per_layer": 2},
    "what only other layers have": {"attn_bias": True, "mlp_bias": True, "rope_base": 500.0, "n_head": 2},
}


def pure(**fields):
    """Two layers of Mamba alone."""
    return small(**{"layers": (LayerSpec("mamba", ffn=None),) * fields.get("depth", 2)} | fields)


@pytest.mark.parametrize("name", READ)
def test_a_mamba_is_read(name, tmp_path):
    options, expected = READ[name]
    config = reads(theirs(MambaForCausalLM, MambaConfig(**ENDS | options), tmp_path / "hf"), tmp_path / "hf", "mamba")
    assert config.mixer_options["mamba"].items() >= expected.items()
    assert config.layers == (LayerSpec("mamba", ffn=None),) * 2


@pytest.mark.parametrize("name", WRITTEN)
def test_a_stack_of_mamba_is_written(name, tmp_path):
    assert isinstance(writes(pure(**WRITTEN[name]), tmp_path / "hf", None), MambaForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(pure(tie_embeddings=True), tmp_path / "hf", "MambaForCausalLM", multipliers)


def test_the_files_of_the_first_release_are_read(tmp_path):
    """They repeat what follows from other keys, as state-spaces/mamba-130m-hf does."""
    model = theirs(MambaForCausalLM, MambaConfig(**ENDS), tmp_path / "hf")
    old = {"d_inner": 64, "intermediate_size": 64, "d_model": 32, "n_layer": 2, "rms_norm": True, "ssm_cfg": {}}
    old |= {"fused_add_norm": True, "pad_vocab_size_multiple": 8, "time_step_rank": "auto"}
    change(tmp_path / "hf", old)
    reads(model, tmp_path / "hf", "mamba")


def test_what_mamba_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"layers": (LayerSpec("mamba"), LayerSpec("mamba", ffn=None))}, r"ffn swiglu \(layer 0\)"),
        ({"layers": (LayerSpec("mamba", ffn=None), LayerSpec(ffn=None))}, r"mixer attention \(layer 1\)"),
        ({"mixer_options": {"mamba": {"inner_norms": True}}}, "inner_norms of the mixer"),
        ({"norm": "layernorm"}, "norm layernorm"),
        ({"post_norm": True}, "post_norm"),
        ({"reordered_norm": True}, "reordered_norm"),
        ({"position": "learned"}, "position learned"),
    ):
        refuses(pure(**fields), tmp_path / "hf", "mamba", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_bias": True}, "use_bias True"),
        ({"use_conv_bias": False}, "use_conv_bias False"),
        ({"intermediate_size": 80}, "intermediate_size 80, which is not expand 2 times hidden_size 32"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"time_step_rank": 0.5}, "time_step_rank is 0.5"),
        ({"state_size": 8}, r"x_proj.weight is|do not fit|not \("),
    ],
)
def test_what_we_cannot_express_is_one_sentence(changes, words, tmp_path):
    theirs(MambaForCausalLM, MambaConfig(**ENDS), tmp_path / "hf")
    cannot_read(tmp_path / "hf", changes, words)
