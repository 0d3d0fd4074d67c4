"""Mamba-2 as transformers has it: a mixer in every layer, and no feed-forward networks."""

from __future__ import annotations

from math import inf

import pytest
from hf_models import EVERY, SIZES, cannot_read, change, reads, refuses, small, theirs, writes
from transformers import Mamba2Config, Mamba2ForCausalLM

from lit_gpt.config.model import LayerSpec
from lit_gpt.scaling.base import Multipliers

ENDS = {k: v for k, v in SIZES.items() if k.endswith("_id") or k in ("vocab_size", "hidden_size", "num_hidden_layers")}
HEADS = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 5}
READ = {
    "plain": ({}, {"d_state": 5, "d_conv": 4, "expand": 2, "head_dim": 8, "groups": 1}),
    "tied": ({"tie_word_embeddings": True}, {"d_state": 5}),
    "groups": ({"n_groups": 4, "chunk_size": 8}, {"groups": 4}),
    "sizes": (
        {"state_size": 7, "conv_kernel": 3, "expand": 3, "num_heads": 6, "head_dim": 16},
        {"d_state": 7, "d_conv": 3, "expand": 3, "head_dim": 16},
    ),
}
SMALL = {"d_state": 5, "head_dim": 8}
WRITTEN = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "one matrix": {"mixer_options": {"mamba2": {**SMALL, "joint": True}}},
    "groups": {"mixer_options": {"mamba2": {**SMALL, "groups": 2}}},
    "sizes": {
        "mixer_options": {"mamba2": {"d_state": 7, "d_conv": 3, "expand": 3, "head_dim": 16, "head_multiple": 2}}
    },
    "shared blocks": {"depth": 4, "share_per_layer": 2},
}


def pure(**fields):
    """Two layers of Mamba-2 alone."""
    layers = (LayerSpec("mamba2", ffn=None),) * fields.get("depth", 2)
    return small(**{"layers": layers, "mixer_options": {"mamba2": SMALL}} | fields)


@pytest.mark.parametrize("name", READ)
def test_a_mamba2_is_read(name, tmp_path):
    options, expected = READ[name]
    model = theirs(Mamba2ForCausalLM, Mamba2Config(**ENDS | HEADS | options), tmp_path / "hf")
    config = reads(model, tmp_path / "hf", "mamba2")
    assert config.mixer_options["mamba2"].items() >= expected.items()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_stack_of_mamba2_is_written(name, tmp_path):
    assert isinstance(writes(pure(**WRITTEN[name]), tmp_path / "hf", None), Mamba2ForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), EVERY], ids=["neutral", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(pure(tie_embeddings=True), tmp_path / "hf", "Mamba2ForCausalLM", multipliers)


def test_the_keys_of_transformers_4_are_read(tmp_path):
    """As mistralai/Mamba-Codestral-7B-v0.1 has them."""
    model = theirs(Mamba2ForCausalLM, Mamba2Config(**ENDS | HEADS), tmp_path / "hf")
    old = {"intermediate_size": 64, "norm_before_gate": True, "rms_norm": True, "time_step_limit": [0.0, inf]}
    change(tmp_path / "hf", old)
    reads(model, tmp_path / "hf", "mamba2")


def test_what_mamba2_lacks_is_refused(tmp_path):
    rounded = {"mamba2": {"d_state": 5, "head_dim": 16}}
    for fields, words in (
        ({"layers": (LayerSpec("mamba2"), LayerSpec("mamba2", ffn=None))}, r"ffn swiglu \(layer 0\)"),
        ({"mixer_options": rounded}, r"128 channels where expand times n_embd is 64 \(its head_multiple"),
        ({"norm": "layernorm"}, "norm layernorm"),
    ):
        refuses(pure(**fields), tmp_path / "hf", "mamba2", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_bias": True}, "use_bias True"),
        ({"intermediate_size": 80}, "intermediate_size 80, which is not expand 2 times hidden_size 32"),
        ({"time_step_limit": [0.01, 0.1]}, r"time_step_limit \[0.01, 0.1\]"),
        ({"num_heads": 7}, "7 heads of 8, which are not expand 2 times hidden_size 32"),
        ({"n_groups": 2}, r"the shapes of backbone.layers.0.mixer.in_proj.weight \(146, 32\) do not fit"),
    ],
)
def test_what_we_cannot_express_is_one_sentence(changes, words, tmp_path):
    theirs(Mamba2ForCausalLM, Mamba2Config(**ENDS | HEADS), tmp_path / "hf")
    cannot_read(tmp_path / "hf", changes, words)
