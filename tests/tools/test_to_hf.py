"""convert --to hf: transformers computes our logits, or one sentence says what Llama cannot express."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace

import pytest
import torch
from llama_models import MULTIPLIERS, model_of, small, tokens, transformers_model
from small_models import VARIED

from lit_gpt.architectures import build
from lit_gpt.architectures.builders.table import PUBLISHED as SHAPED
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig, Starts
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf import write_hf
from lit_gpt.tools._hf_config import reasons_against
from lit_gpt.tools.hf import llama

TWO = (LayerSpec(),) * 2
# Every option of a model: fields of ModelConfig, and what is refused, None where Llama has it.
CASES: dict[str, tuple[dict, str | None]] = {
    "plain": ({}, None),
    "family": ({"family": "other"}, None),
    "depth": ({"depth": 3}, None),
    "n_embd": ({"n_embd": 48}, None),
    "uneven": ({"n_embd": 34}, "n_embd 34 over n_head 4"),
    "n_head": ({"n_head": 2}, None),
    "head_dim": ({"head_dim": 16}, None),
    "n_kv_head": ({"n_kv_head": 1}, None),
    "intermediate_size": ({"intermediate_size": 80}, None),
    "vocab_size": ({"vocab_size": 61}, None),
    "padding_multiple": ({"padding_multiple": 128}, None),
    "block_size": ({"block_size": 16}, None),
    "norm": ({"norm": "layernorm"}, "norm layernorm"),
    "norm_eps": ({"norm_eps": 0.1}, None),
    "tie_embeddings": ({"tie_embeddings": True}, None),
    "post_norm": ({"post_norm": True}, "post_norm"),
    "decoupled_norm": ({"post_norm": True, "decoupled_norm": True}, "decoupled_norm"),
    "skip_gain": ({"post_norm": True, "decoupled_norm": True, "skip_gain": True}, "skip_gain"),
    "skip": ({"skip": "none"}, "skip none"),
    "skip_sum": ({"skip": "sum"}, "skip sum"),
    "qk_norm": ({"qk_norm": True}, "qk_norm"),
    "attn_gate": ({"attn_gate": True}, "attn_gate"),
    "attn_sink": ({"attn_sink": True}, "attn_sink"),
    "attn_norm": ({"attn_norm": True}, "attn_norm"),
    "attn_conv": ({"attn_conv": True}, "attn_conv"),
    "ffn_norm": ({"ffn_norm": True}, "ffn_norm"),
    "attn_bias": ({"attn_bias": True}, None),
    "joint_qk_norm": ({"qk_norm": True, "joint_qk_norm": True}, "joint_qk_norm True"),
    "reordered_norm": ({"reordered_norm": True}, "reordered_norm True"),
    "parallel_block": ({"parallel_block": True}, "parallel_block True"),
    "dropout": ({"dropout": 0.1}, None),
    "gelu": ({"layers": (LayerSpec(ffn="gelu"),) * 2}, r"ffn gelu \(layer 0, 1\)"),
    "learned": ({"position": "learned"}, "position learned"),
    "qkv_bias": ({"qkv_bias": True}, "qkv_bias without attn_bias"),
    "key_biases": ({"attn_bias": True, "qkv_bias": True}, None),
    "mlp_bias": ({"mlp_bias": True}, None),
    "both_biases": ({"attn_bias": True, "mlp_bias": True, "tie_embeddings": True}, None),
    "position": ({"position": "none"}, "position none"),
    "rope_base": ({"rope_base": 500.0}, None),
    "rotary_fraction": ({"rotary_fraction": 0.5}, "rotary_fraction 0.5"),
    "yarn_scale": ({"yarn_scale": 4.0, "head_dim": 64, "block_size": 16384}, None),
    "yarn_context": ({"yarn_scale": 2.0, "yarn_context": 1024, "head_dim": 64, "block_size": 2048}, None),
    "yarn_truncate": ({"yarn_scale": 4.0, "yarn_truncate": True, "head_dim": 64, "block_size": 16384}, None),
    "yarn_windows": ({"yarn_windows": False}, "yarn_windows False"),
    "varlen": ({"varlen": True}, None),
    "doc_positions": ({"varlen": True, "doc_positions": "continue"}, None),
    "doc_len": ({"varlen": True, "doc_len": 4}, None),
    "share_per_layer": ({"depth": 4, "share_per_layer": 2}, None),
    "share_group": ({"depth": 4, "share_per_layer": 1, "share_group": 2}, None),
    "mixer_options": ({"layers": (LayerSpec("gla"),) * 2, "mixer_options": {"gla": {"heads": 2}}}, "mixer_options"),
    "experts": ({"layers": (LayerSpec(experts=True),) * 2, "experts": Experts(2, 2)}, "experts"),
    "mixer": ({"layers": (LayerSpec("sigmoid_attention"), LayerSpec())}, r"mixer sigmoid_attention \(layer 0\)"),
    "ffn": ({"layers": (LayerSpec(), LayerSpec(ffn="relu2"))}, r"ffn relu2 \(layer 1\)"),
    "no_ffn": ({"layers": (LayerSpec(), LayerSpec(ffn=None))}, r"ffn None \(layer 1\)"),
    "oss_swiglu": ({"layers": (LayerSpec(ffn="oss_swiglu"),) * 2}, r"ffn oss_swiglu \(layer 0, 1\)"),
    "window": ({"layers": (LayerSpec(window=5), LayerSpec())}, r"window 5 \(layer 0\)"),
    "shares": ({"layers": (LayerSpec(), LayerSpec("cross_attention", shares=0))}, "shares 0"),
    "memory": ({"layers": (LayerSpec(memory="ffn"), LayerSpec())}, "memory ffn"),
    "one_rope_base": ({"layers": (LayerSpec(rope_base=500.0),) * 2}, None),
    "two_rope_bases": ({"layers": (LayerSpec(rope_base=500.0), LayerSpec())}, "rope_base 500 and 10000 in different"),
    "no_rope_in_layers": ({"layers": (LayerSpec(rope_base=0),) * 2}, r"rope_base 0"),
    "qk_norm_scale": ({"qk_norm": True, "qk_norm_scale": 1.2}, "qk_norm_scale 1.2"),
    "norm_gain": ({"norm_gain": False}, "norm_gain False"),
    "embedding_norm": ({"embedding_norm": True}, "embedding_norm True"),
    "residual_scalars": ({"residual_scalars": True}, "residual_scalars True"),
    "token_smear": ({"token_smear": True}, "token_smear True"),
    "backout": ({"backout": True}, "backout True"),
    "backout_layer": ({"backout": True, "backout_layer": 0}, "backout_layer 0"),
    "starts": ({"starts": Starts(up=0.4)}, None),
    "zero_output": ({"zero_output": True}, None),
    "logit_softcap": ({"logit_softcap": 15.0}, "logit_softcap 15.0"),
    "ffn_multiple": ({"ffn_multiple": 2.0}, "ffn_multiple 2.0"),
    "value_embedding": (
        {"layers": (LayerSpec(), LayerSpec(value_embedding=True))},
        r"value_embedding True \(layer 1\)",
    ),
    "skip_projection": (
        {"post_norm": True, "layers": (LayerSpec(), LayerSpec(skip_projection=True))},
        r"skip_projection True \(layer 1\)",
    ),
}
DENSE = {
    "transformer": None,
    "transformer_mha": None,
    "transformer_gqa4": None,
    "transformer_gqa4_h2": None,
    "transformer_gqa4_w8": None,
    "transformerga_gqa4": "attn_gate",
    "baseline": "qk_norm True, qk_norm_scale 1.2, norm_gain False",
    "transformersa": "attn_sink",
    "transformerls": "window",
    "swayoco": "window",
    "sigmoid": "mixer sigmoid_attention",
    "sambaywdr": "in different layers",
    "phi4miniflash": "norm layernorm",
    "sambay": "mixer mamba",
    "llama_124m": None,
    "llama_130m": None,
    "gpt_124m": "norm layernorm",
}


def one_sentence(error: UserError, model: str) -> bool:
    text = str(error)
    return text.startswith(f"{model} cannot be written as LlamaForCausalLM") and "\n" not in text and len(text) < 400


@torch.no_grad()
def compare(config: ModelConfig, refused: str | None, folder, multipliers: Multipliers = MULTIPLIERS) -> None:
    """Equal logits in fp32, or the refusal and nothing written."""
    model = model_of(config, multipliers)
    if refused is None:
        theirs = transformers_model(write_hf(model.state_dict(), config, multipliers, folder, hf_class="llama"))
        torch.testing.assert_close(theirs(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
        return
    with pytest.raises(UserError, match=refused) as caught:
        write_hf(model.state_dict(), config, multipliers, folder, hf_class="llama")
    assert one_sentence(caught.value, config.family)
    assert not list(folder.parent.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_every_option_converts_rightly_or_is_refused(name, tmp_path):
    """attn_conv was left out of the written model in silence (logits off by 2.5 of 2.5), and shared layers crashed."""
    fields, refused = CASES[name]
    compare(small(**fields), refused, tmp_path / "hf")


@pytest.mark.parametrize("name", VARIED)
def test_every_family_converts_rightly_or_is_refused(name, tmp_path):
    """No family can be written wrongly: families of experts and mixers that Llama lacks are refused by name."""
    config = build(name, 4, aspect_ratio=None if name in SHAPED else 16)
    heads = {"n_head": 4, "n_kv_head": 2} if name in SHAPED else {}
    config = config.replace(vocab_size=61, block_size=64, head_dim=16, n_embd=64, intermediate_size=96, **heads)
    refused = DENSE.get(name, "mixer |experts|skip_projection")
    compare(config, refused, tmp_path / "hf")


def test_the_table_has_every_field():
    """A field added later must be put into this table: either it converts, or it is refused."""
    fields = {f.name for kind in (ModelConfig, LayerSpec) for f in dataclasses.fields(kind)}
    assert fields - {"layers", "padded_vocab_size"} <= CASES.keys()


def test_a_field_added_later_is_refused_until_someone_handles_it():
    """Options once had to be listed to be refused; a new one was left out of the written model."""

    @dataclass(frozen=True)
    class Later(ModelConfig):
        soft_cap: float = 0.0

    @dataclass(frozen=True)
    class LaterMultipliers(Multipliers):
        embedding: float = 1.0

    values = {f.name: getattr(small(), f.name) for f in dataclasses.fields(ModelConfig) if f.init}
    assert reasons_against(llama, Later(**values), LaterMultipliers()) == []
    assert reasons_against(llama, Later(**values, soft_cap=30.0), Multipliers()) == ["soft_cap 30.0"]
    found = reasons_against(llama, small(), LaterMultipliers(embedding=2.0))
    assert found == ["the multiplier embedding 2.0"]


@pytest.mark.parametrize("changes", [{}, {"logit": 3.0}, {"residual": 0.3}, {"attention": 1.0}, {"router": 5.0}])
@pytest.mark.parametrize("tied", [False, True])
def test_each_multiplier_is_folded_into_weights(changes, tied, tmp_path):
    """muP's multipliers have no place in LlamaConfig; with biases too, the written weights hold them."""
    config = small(tie_embeddings=tied, attn_bias=True, mlp_bias=True, share_per_layer=1)
    compare(config, None, tmp_path / "hf", replace(Multipliers(), **changes))


@pytest.mark.parametrize("change", ["left over", "missing", "shape"])
def test_every_tensor_is_used_once(change, tmp_path):
    """The weights of the short convolution were in the checkpoint and nobody noticed that they were not written."""
    weights = model_of(small()).state_dict()
    weights |= {"blocks.0.mixer.conv": torch.ones(64, 1, 4)} if change == "left over" else {}
    weights |= {"norm.weight": torch.ones(31)} if change == "shape" else {}
    if change == "missing":
        del weights["blocks.1.mixer.k.weight"]
    name = {"left over": "blocks.0.mixer.conv", "missing": "blocks.1.mixer.k.weight", "shape": "norm.weight"}[change]
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        write_hf(weights, small(), Multipliers(), tmp_path / "hf")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
