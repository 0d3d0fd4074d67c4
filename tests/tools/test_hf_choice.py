"""Which class a model is written as where none is named, and which model types are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import EVERY, loaded, model_of, same_logits
from small_models import VARIED
from transformers import OlmoHybridConfig

from lit_gpt.architectures import build
from lit_gpt.architectures.builders.table import PUBLISHED as SHAPED
from lit_gpt.config.cli import parse
from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.preflight.model_options import model_config
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert
from lit_gpt.tools._hf import write_hf
from lit_gpt.tools._hf_choice import _closest, choose_class, class_of
from lit_gpt.tools._hf_config import read_config
from lit_gpt.tools.hf import MODEL_TYPES

ROOT = Path(__file__).parents[2]
# Families of attention and feed-forward networks alone; those of other mixers are in their classes' tests.
CLASSES = {
    "transformer": "LlamaForCausalLM",
    "transformer_mha": "LlamaForCausalLM",
    "transformer_gqa4_h2": "LlamaForCausalLM",
    "transformerls": "SmolLM3ForCausalLM",
    "transformer_gqa4_moe": "MixtralForCausalLM",
    "transformer_gqa4_h2_moe": "MixtralForCausalLM",
}
# config.json of published models, but for ids and dtypes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "allenai/OLMo-2-1124-7B": {
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "olmo2",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": 100352,
    },
    "allenai/Olmo-3-1025-7B": {
        "architectures": ["Olmo3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
        "max_position_embeddings": 65536,
        "model_type": "olmo3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": 100278,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistralai/Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 32000,
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 32000,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "Qwen/Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize("name", VARIED)
@torch.no_grad()
def test_every_family_is_written_rightly_or_refused(name, tmp_path):
    """As whatever class was chosen, it gives our logits; or the refusal is one sentence that names the closest."""
    config = build(name, 4, aspect_ratio=None if name in SHAPED else 16)
    heads = {"n_head": 4, "n_kv_head": 2} if name in SHAPED else {}
    config = config.replace(vocab_size=61, block_size=64, head_dim=16, n_embd=64, intermediate_size=96, **heads)
    model = model_of(config, EVERY)
    try:
        folder = write_hf(model.state_dict(), config, EVERY, tmp_path / "hf")
    except UserError as error:
        assert name not in CLASSES, error
        assert "cannot be written for transformers: the closest is" in str(error) and "\n" not in str(error)
        assert not list(tmp_path.iterdir())
        return
    written = loaded(folder)
    assert type(written).__name__ == CLASSES.get(name, type(written).__name__)
    same_logits(model, written, 33)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("mamba", r"MambaForCausalLM, which cannot express ffn swiglu \(layer 0, 1, 2, 3\)"),
        (
            "mamba2",
            "Mamba2ForCausalLM, which cannot express ffn .*, 512 channels where expand times n_embd is 128",
        ),
        ("gdn", "Qwen3NextForCausalLM, which cannot express .*one norm for all heads"),
        ("sambayda", "mixer mamba"),
    ],
)
def test_the_closest_class_has_the_mixers_of_the_model(family, words):
    """It was the one with the fewest reasons, such as DiffLlama for a Gated DeltaNet."""
    with pytest.raises(UserError, match=f"the closest is .*{words}"):
        choose_class(build(family, 4, aspect_ratio=16), EVERY)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--train_model mamba --mlp none", "MambaForCausalLM"),
        ("--train_model mamba2 --mlp none --ar 128", "Mamba2ForCausalLM"),
        ("--train_model transformersa --mlp oss_swiglu --bias true", "GptOssForCausalLM"),
    ],
)
def test_families_fit_with_these_options(line, expected):
    run = parse(line.split())
    assert choose_class(model_config(run, 8, run.ar), EVERY).LAYOUT.name == expected


def test_experts_of_a_family_are_written():
    """A shared expert and gates over all experts are Qwen2-MoE's, with QK-norm and without the former Qwen3-MoE's."""
    for experts, fields, expected in (
        (Experts(2, 4, shared=True), {}, "Qwen2MoeForCausalLM"),
        (Experts(2, 2, gate="all"), {}, "Qwen2MoeForCausalLM"),
        (Experts(2, 2, gate="all"), {"qk_norm": True}, "Qwen3MoeForCausalLM"),
    ):
        config = build("transformer_gqa4_moe", 4, aspect_ratio=16, experts=experts).replace(**fields)
        assert choose_class(config, EVERY).LAYOUT.name == expected


@pytest.mark.parametrize("name", MODEL_TYPES.names())
def test_an_entry_is_named_as_its_file_or_its_class(name):
    entry = MODEL_TYPES.load(name)
    assert entry.LAYOUT.model_type == name and MODEL_TYPES.takes(entry)
    assert f"`{entry.LAYOUT.name}`" in (ROOT / "docs" / "checkpoints.md").read_text(), "give the class a row there"
    words = f"cannot be written as {entry.LAYOUT.name}, which cannot express"
    config = build("transformer", 4, aspect_ratio=16).replace(attn_sink=True, qk_norm=True, ffn_norm=True)
    for spelling in (name, entry.LAYOUT.name):
        with pytest.raises(UserError, match=words):
            choose_class(config, EVERY, spelling)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_understood(name):
    values = PUBLISHED[name]
    config = read_config(class_of(values), values)
    assert (config.depth, config.n_embd) == (values["num_hidden_layers"], values["hidden_size"])
    assert config.rope_base == values["rope_theta"] and config.tie_embeddings == values.get("tie_word_embeddings", True)
    assert config.layers[0].window == (values.get("sliding_window") if values.get("use_sliding_window", True) else None)


def test_the_published_gpt2_is_understood():
    """Its config.json has names of its own."""
    values = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    config = read_config(class_of(values), values)
    assert (config.depth, config.n_embd, config.head_dim, config.intermediate_size) == (12, 768, 64, 3072)
    assert config.tie_embeddings and config.block_size == 1024


def test_types_that_ours_cannot_express_are_refused_with_the_reason(tmp_path):
    OlmoHybridConfig().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="type olmo_hybrid cannot be read: its norms are behind the branches") as caught:
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="No model can be written as olmo_hybrid: its norms are behind the branches"):
        choose_class(build("transformer", 4), EVERY, "olmo_hybrid")


@pytest.mark.parametrize("model_type", ["gemma", "", None, 3, ["llama"]], ids=str)
def test_a_model_type_of_any_shape_is_one_sentence(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError) as caught:
        convert.main([str(tmp_path), str(tmp_path / "ours.pth")])
    assert "\n" not in str(caught.value)


def test_the_closest_class_has_most_of_the_mixers() -> None:
    """A model with attention in one layer and another mixer in the other was said to be closest to a class without
    attention."""
    layers = (LayerSpec("retnet"), LayerSpec())
    config = build("transformer", 2).replace(layers=layers, mixer_options={"retnet": {"heads": 1}})
    assert "mixer attention" not in " ".join(_closest(config, Multipliers())[1])
