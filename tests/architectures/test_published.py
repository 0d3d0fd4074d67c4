"""The shapes of both optimizer benchmarks against the parameter counts that belong to them."""

from __future__ import annotations

from typing import Any

import pytest

from lit_gpt import architectures
from lit_gpt.architectures.builders.table import PUBLISHED
from lit_gpt.config.cli import parse
from lit_gpt.config.resolve import resolve
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import model_config

# Family -> width, heads, depth, feed-forward width, millions of parameters. Tied tables have 50304 rows, the others
# 32000. Nobody published a count of GPT-2: here, 12 L n^2 of linear maps, the token table, and LayerNorms with biases.
SHAPES = {
    "llama_60m": (512, 8, 8, 1376, 58.1),
    "llama_130m": (768, 12, 12, 2048, 134.1),
    "llama_350m": (1024, 16, 24, 2736, 368.0),
    "llama_1b": (2048, 32, 24, 5461, 1339.1),
    "llama_124m": (768, 12, 12, 2048, 123.6),
    "llama_210m": (768, 12, 24, 2048, 208.5),
    "llama_720m": (2048, 16, 12, 5632, 719.6),
    "llama_520m_moe": (768, 12, 12, 4096, 520.0),
    "gpt_124m": (768, 12, 12, 3072, 123.6),
    "gpt_210m": (768, 12, 24, 3072, 208.6),
    "gpt_720m": (2048, 16, 12, 8192, 707.1),
    "transformer_340m": (1024, 16, 24, 2816, 374),
    "gla_340m": (1024, 16, 24, 2816, 374),
    "deltanet_340m": (1024, 16, 24, 2816, 374),
    "gdn_340m": (1024, 16, 21, 2816, 512),
    "transformer_1b": (2048, 32, 24, 5632, 1364),
    "gla_1b": (2048, 32, 24, 5632, 1366),
    "deltanet_1b": (2048, 32, 24, 5632, 1366),
    "gdn_1b": (2048, 32, 21, 5632, 1387),
}


@pytest.mark.parametrize("family", SHAPES)
def test_published_sizes(family: str) -> None:
    width, heads, depth, hidden, millions = SHAPES[family]
    config = architectures.build(family, depth)
    assert (config.n_embd, config.n_head, config.n_kv_head, config.intermediate_size) == (width, heads, heads, hidden)
    assert config.head_dim * config.n_head == config.n_embd and PUBLISHED[family].options["layers"] == depth
    total = count(meta_model(config)).parameters["total"] - (config.position == "learned") * 512 * width
    assert total / 1e6 == pytest.approx(millions, abs=0.05 if isinstance(millions, float) else 0.5)


def test_every_published_family_is_checked() -> None:
    assert list(SHAPES) == list(PUBLISHED)


@pytest.mark.parametrize("width", [1024, 2048])
def test_mixers_of_stage_two(width: int) -> None:
    """Heads, the keys and values of one, and the context: sizes of the modules themselves."""
    size = {1024: "340m", 2048: "1b"}[width]
    found = {}
    for name in ("gla", "deltanet", "gdn"):
        config = architectures.build(f"{name}_{size}", PUBLISHED[f"{name}_{size}"].options["layers"])
        mixer: Any = meta_model(config).blocks[0].mixer
        assert (config.block_size, config.position) == (32768, "none")
        conv = mixer.qkv.conv
        found[name] = (*mixer.sizes, 0 if conv is None else conv.shape[-1])
    wide = width // 1024
    assert found == {
        "gla": (4, 128 * wide, 256 * wide, 0),
        "deltanet": (8 * wide, 128, 128, 4),
        "gdn": (6, 256, 512, 4),
    }
    assert architectures.build(f"transformer_{size}", 24).block_size == 32768


def test_gpt2_is_another_model_than_llama() -> None:
    config = architectures.build("gpt_124m", 12)
    assert (config.position, config.norm, config.tie_embeddings) == ("learned", "layernorm", True)
    assert {spec.ffn for spec in config.layers} == {"gelu"} and not (config.attn_bias or config.mlp_bias)


def experts(line: str) -> tuple[int, int, float]:
    run, _ = resolve(parse(["--train_name", "x", *line.split()]))
    found = model_config(run, 12, None).experts
    assert found is not None
    return found.sparsity, found.top_k, found.router_z_loss


def test_experts_of_a_family_are_its_own_where_no_flag_says_otherwise() -> None:
    """They were one for each that a token uses in every family, whatever its name."""
    config = architectures.build("llama_520m_moe", 12)
    assert config.experts is not None and (config.experts.routed, config.experts.active) == (8, 2)
    assert count(meta_model(config)).parameters["active"] / 1e6 == pytest.approx(180.3, abs=0.05)
    assert architectures.from_name("llama_520m_moe_d12") == config
    assert experts("--train_model llama_520m_moe") == (4, 2, 0.01 / 12)
    assert experts("--train_model llama_520m_moe --sparsity 1 --router_z_loss 0") == (1, 2, 0)
    assert experts("--train_model llama_520m_moe_s8_k4") == (8, 4, 0.01 / 12)
    assert experts("--train_model transformer_gqa4_moe") == (1, 2, 0)


def test_other_depths_keep_the_shape() -> None:
    config = architectures.build("llama_350m", 12)
    assert (config.n_embd, config.n_head, config.intermediate_size) == (512, 8, 1376)
    assert architectures.build("llama_60m", 4, aspect_ratio=32).n_embd == 128
