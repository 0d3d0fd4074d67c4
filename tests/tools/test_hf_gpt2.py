"""GPT-2: learned positions, GELU, biases everywhere; one transposed matrix for queries, keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import EVERY, MODELS, VOCAB, cannot_read, model_of, reads, refuses, small, theirs, tokens, writes
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.trained_model import load_model
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert, generate

SIZES = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SIZES |= {"bos_token_id": None, "eos_token_id": None}
GPT2 = MODELS["gpt2"]
READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"intermediate_size": 128, "tie_embeddings": True, "position": "learned", "norm": "layernorm"}),
    "untied": ({"tie_word_embeddings": False}, {"tie_embeddings": False}),
    "n_inner": ({"n_inner": 47, "layer_norm_epsilon": 0.1}, {"intermediate_size": 47, "norm_eps": 0.1}),
    "other name": ({"activation_function": "gelu_pytorch_tanh", "n_positions": 40}, {"block_size": 40}),
}
WRITTEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_embeddings": False, "intermediate_size": 47},
    "shared blocks": {"share_per_layer": 1},
}


@pytest.mark.parametrize("name", READ)
def test_a_gpt2_is_read(name, tmp_path):
    options, expected = READ[name]
    config = reads(theirs(GPT2LMHeadModel, GPT2Config(**SIZES | options), tmp_path / "hf"), tmp_path / "hf", "gpt2")
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_like_gpt2_is_written(name, tmp_path):
    assert isinstance(writes(small(**GPT2 | WRITTEN[name]), tmp_path / "hf", None), GPT2LMHeadModel)


def test_a_model_without_multipliers_is_written(tmp_path):
    writes(small(**GPT2), tmp_path / "hf", "gpt2", Multipliers())


@torch.no_grad()
def test_the_file_as_it_was_published_is_read(tmp_path):
    """Without transformer. in front of the names, and with the causal masks of all layers."""
    model = theirs(GPT2LMHeadModel, GPT2Config(**SIZES), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    weights = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    masks = {f"h.{i}.attn.bias": torch.ones(64, 64).tril()[None, None] for i in range(2)}
    save_file(weights | masks, path)
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    ours, _ = load_model(tmp_path / "ours.pth")
    torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)


def test_a_longer_input_is_refused():
    """There is no position for it: on a GPU reading beyond the table would end the process."""
    model = model_of(small(**GPT2))
    with pytest.raises(UserError, match=r"The input has 65 tokens, and the model has learned positions for 64\."):
        model(tokens(65))
    decoder = Decoder(model, 2, 70)
    decoder(tokens(60))
    with pytest.raises(UserError, match="The input has 65 tokens"):
        decoder(tokens(5))


def test_a_text_beyond_the_table_is_refused_before_it_begins(tmp_path, capsys):
    theirs(GPT2LMHeadModel, GPT2Config(**SIZES | {"vocab_size": 257}), tmp_path / "hf")
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    line = [str(tmp_path / "ours.pth"), "--tokenizer", "bytes", "--prompt", "x" * 60, "--max_new_tokens"]
    capsys.readouterr()
    with pytest.raises(UserError, match="The input has 65 tokens"):
        generate.main([*line, "6"])
    assert not capsys.readouterr().out
    assert generate.main([*line, "5"]) == 0


def test_what_gpt2_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"n_kv_head": 2}, "n_kv_head 2 for n_head 4"),
        ({"head_dim": 16}, r"n_head \* head_dim 64 at n_embd 32"),
        ({"mlp_bias": False}, "mlp_bias False"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"position": "rope"}, "position rope"),
        ({"norm": "rmsnorm"}, "norm rmsnorm"),
        ({"qk_norm": True}, "qk_norm True"),
    ):
        refuses(small(**GPT2 | fields), tmp_path / "hf", "gpt2", words)


def test_a_gpt2_that_cannot_be_read_is_refused(tmp_path):
    theirs(GPT2LMHeadModel, GPT2Config(**SIZES), tmp_path / "hf")
    for changes, words in (
        ({"activation_function": "relu"}, "activation_function relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"n_head": 5}, "n_head is 5, which does not divide n_embd 32"),
        ({"n_inner": 48}, r"ffn.down.weight is \(32, 128\), not \(32, 48\)"),
    ):
        cannot_read(tmp_path / "hf", changes, words)


def test_multipliers_are_in_weights_and_biases(tmp_path):
    writes(small(**GPT2 | {"tie_embeddings": False}), tmp_path / "hf", "gpt2", EVERY)
