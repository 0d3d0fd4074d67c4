"""The dense families against ArchScale's registry table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_gpt import architectures
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError

DEPTHS = (8, 12, 16, 20, 24)
#                          (aspect ratio, heads per layer, head dim, kv heads or None for d/4, mlp_expand)
DENSE: dict[str, tuple[int, int, int, int | None, int]] = {
    "transformer": (128, 1, 128, None, 4),
    "transformersa": (128, 1, 128, None, 4),
    "transformerls": (128, 1, 128, None, 4),
    "transformer_gqa4": (128, 1, 128, 4, 4),
    "transformer_gqa4_h2": (128, 2, 128, 4, 4),
    "transformer_gqa4_h2_skipw": (128, 2, 128, 4, 4),
    "transformer_gqa4_w8": (128, 1, 128, 4, 32),
    "transformerga_gqa4": (124, 1, 124, 4, 4),
}
COMMON: dict[str, Any] = {
    "block_size": 4096,
    "padded_vocab_size": 32000,
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
    "tie_embeddings": False,
    "attn_bias": False,
    "mlp_bias": False,
    "position": "rope",
    "rope_base": 10_000.0,
    "post_norm": False,
    "skip": "add",
    "qk_norm": False,
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("family", DENSE)
def test_dimensions(family: str, depth: int) -> None:
    ratio, heads, head_dim, kv, expand = DENSE[family]
    c = architectures.build(family, depth)
    assert (c.family, c.depth, len(c.layers)) == (family, depth, depth)
    assert (c.n_embd, c.n_head, c.head_dim) == (ratio * depth, heads * depth, head_dim)
    assert c.n_kv_head == (depth // 4 if kv is None else kv)
    assert c.intermediate_size == expand * ratio * depth
    assert {key: getattr(c, key) for key in COMMON} == COMMON
    assert {(s.mixer, s.ffn, s.shares) for s in c.layers} == {("attention", "swiglu", None)}


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_sets_a_family_apart(depth: int) -> None:
    build = architectures.build
    mha = build("transformer_mha", depth)
    assert (mha.n_head, mha.n_kv_head, mha.head_dim) == (depth, depth, 128)
    windows = [s.window for s in build("transformerls", depth).layers]
    assert windows == [128, 128, 128, None] * (depth // 4)
    skips = [s.skip_projection for s in build("transformer_gqa4_h2_skipw", depth).layers]
    assert skips == [False, False, False, True] * (depth // 4)
    with_sink = [f for f in (*DENSE, "transformer_mha") if build(f, depth).attn_sink]
    with_gate = [f for f in (*DENSE, "transformer_mha") if build(f, depth).attn_gate]
    assert (with_sink, with_gate) == (["transformersa"], ["transformerga_gqa4"])


@pytest.mark.parametrize("depth", [1, 4, 7, 8])
def test_the_baseline(depth: int) -> None:
    """Its windows are nanochat's pattern, and value embeddings end with the last layer."""
    config = architectures.build("baseline", depth, window=16)
    windows = [spec.window for spec in config.layers]
    assert windows == [*([16, 16, 16, None] * 2)[: depth - 1], None]
    assert {spec.window for spec in architectures.build("baseline", depth).layers} == {None}
    assert [spec.value_embedding for spec in config.layers] == ([True, False] * depth)[:depth][::-1]
    assert (config.n_embd, config.n_head, config.n_kv_head, config.head_dim) == (64 * depth, *[-(-depth // 2)] * 2, 128)


@pytest.mark.parametrize("family", architectures.FAMILIES.names())
def test_a_depth_builds_or_says_why_not(family: str) -> None:
    """Small depths too (a smoke test is depth 4); nothing but a UserError may come out."""
    for depth in range(1, 33):
        try:
            config = architectures.build(family, depth)
        except UserError as error:
            assert str(depth) in str(error)
            assert depth not in (*DEPTHS, 4) or family not in (*DENSE, "transformer_mha")
            continue
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert (config.family, config.depth) == (family, depth)


def test_an_aspect_ratio_changes_the_width() -> None:
    c = architectures.build("transformer", 16, aspect_ratio=64)
    assert (c.n_embd, c.n_head, c.head_dim, c.intermediate_size) == (1024, 16, 64, 4096)
    h2 = architectures.build("transformer_gqa4_h2", 16, aspect_ratio=64)
    assert (h2.n_embd, h2.n_head, h2.head_dim) == (1024, 32, 128), "its head dim is fixed"
    with pytest.raises(UserError, match="head_dim is 63; it must be positive and, with RoPE, even"):
        architectures.build("transformer", 16, aspect_ratio=63)


@pytest.mark.parametrize(
    ("family", "depth", "ratio", "advice"),
    [
        ("transformer", 9, None, r"n_kv_head is 2; .* divide n_head = 9\nGive --depth 8 or 10 "),
        ("transformer_gqa4", 2, None, r"n_kv_head is 4; .* divide n_head = 2\nGive --depth 4 "),
        ("transformer_gqa4_h2", 9, None, r"\nGive --depth 8 or 10 "),
        ("samba", 13, None, r"\nGive --depth 12 or 15 "),
        ("transformer", 16, 63, r"\nGive --ar 62 or 64 \(--base_hps.ar0 if this is the base model\)\.$"),
    ],
)
def test_the_nearest_that_can_be_built(family: str, depth: int, ratio: int | None, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        architectures.build(family, depth, aspect_ratio=ratio)


def test_llama_heads_follow_its_width_at_any_depth() -> None:
    """Of depth 9, a quarter, 2, does not divide 9: these have as many key-value heads as query heads."""
    c = architectures.build("llama_60m", 9)
    assert (c.n_embd, c.n_head, c.n_kv_head) == (576, 9, 9)


@pytest.mark.parametrize("depth", (1, 6, *DEPTHS))
def test_other_attention_in_every_layer(depth: int) -> None:
    """The transformer but for the mixer; the paper's FoX forgets in place of rotary positions."""
    for family, mixer, position in (("fox", "fox", "none"), ("sigmoid", "sigmoid_attention", "rope")):
        layers = (LayerSpec(mixer),) * depth
        base = architectures.build("transformer", depth)
        assert architectures.build(family, depth) == base.replace(family=family, layers=layers, position=position)


def test_an_unknown_family_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"Unknown model family 'transfomer'. Did you mean 'transformer'"):
        architectures.build("transfomer", 8)
    with pytest.raises(UserError, match="Unknown model family 'builders'"):
        architectures.build("builders", 8)
