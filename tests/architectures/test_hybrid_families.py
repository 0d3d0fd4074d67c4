"""Hybrid, recurrent and mixture families against ArchScale's tables."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from archscale_registry import AT_EVERY_DEPTH, DEPTHS, MIXTURES, PURE, names

from lit_gpt import architectures
from lit_gpt.architectures import FAMILIES, build
from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.preflight.model_options import model_config
from lit_gpt.preflight.resolved_run import resolve_run

# Family -> aspect ratio, and its layers at depths 8 and 12: R recurrent, W window, F full
# attention, X cross-attention, G memory unit, H half of the context, x the same as cross-attention.
# A star marks the layer that shares its memory.
YOCO: dict[str, tuple[int, str, str]] = {
    "sambay": (124, "R W R W R* F G X", "R W R W R W R* F G X G X"),
    "sambayda": (124, "R W R W R* F G X", "R W R W R W R* F G X G X"),
    "sambayoco": (126, "R W R W R F X X", "R W R W R W R F X X X X"),
    "swayoco": (130, "W W W W W F X X", "W W W W W W W F X X X X"),
    "sambayw": (124, "R W R W R* H G x", "R W R W R W R* H G x G x"),
    "sambaywr": (124, "R W R W R* H G x", "R W R W R W R* H G x G x"),
    "sambaywdr": (124, "R W R W R* H G x", "R W R W R W R* H G x G x"),
    "sambaywsa": (124, "R W R W R* H G x", "R W R W R W R* H G x G x"),
    "mambay": (120, "R R R R R* F G X", "R R R R R R R* F G X G X"),
    "mambay2": (120, "R R R R R* F G X", "R R R R R R R* F G X G X"),
    "gdny": (120, "R R R R R* F G X", "R R R R R R R* F G X G X"),
    "sgdny": (126, "R W R W R* F G X", "R W R W R W R* F G X G X"),
    "sambay2": (124, "R W R W R* F G X", "R W R W R W R* F G X G X"),
    "sambayattn": (126, "R W R W R F* G X", "R W R W R W R F* G X G X"),
    "sambayattnall": (126, "R W R W R F* G G", "R W R W R W R F* G G G G"),
    "sambaymlp": (120, "R W R W R F* G X", "R W R W R W R F* G X G X"),
    "phi4miniflash": (80, "R W R W R* F G X", "R W R W R W R* F G X G X"),
    "sambay_gqa4_moe": (124, "R W R W R* F G X", "R W R W R W R* F G X G X"),
}
RECURRENT = {"mambay2": "mamba2", "sambay2": "mamba2", "gdny": "gdn", "sgdny": "gdn"}
DIFFERENTIAL = {"sambayda", "phi4miniflash"}
ROPE = {"swayoco", "sambaywr", "sambaywdr"}


def drawn(family: str, depth: int, window: int = 128, context: int = 4096) -> str:
    """The pattern of a model in the letters above; anything unexpected is a question mark."""
    stem = "differential_" if family in DIFFERENTIAL else ""
    attention, cross, m = stem + "attention", stem + "cross_attention", depth // 2
    layers = build(family, depth).layers
    lenders = [i for i, s in enumerate(layers) if s.memory]
    letters = {
        (RECURRENT.get(family, "mamba"), None, None): "R",
        (attention, context // 2, None): "H",
        (attention, window, None): "W",
        (attention, None, None): "F",
        (cross, None, m + 1): "X",
        (cross, context // 2, m + 1): "x",
        ("gmu", None, lenders[0] if lenders else None): "G",
    }
    return " ".join(letters.get((s.mixer, s.window, s.shares), "?") + ("*" if s.memory else "") for s in layers)


@pytest.mark.parametrize("family", YOCO)
def test_patterns(family: str) -> None:
    ratio, at_8, at_12 = YOCO[family]
    sizes = (512, 8192) if family == "phi4miniflash" else ()
    assert (drawn(family, 8, *sizes), drawn(family, 12, *sizes)) == (at_8, at_12)
    c = build(family, 16)
    assert c.n_embd == ratio * 16 and c.intermediate_size == 4 * c.n_embd
    assert c.position == ("rope" if family in ROPE else "none")
    assert {s.ffn for s in c.layers} == {"swiglu"}
    parts = {s.memory for s in c.layers} - {None}
    assert parts == ({"ffn"} if family == "sambaymlp" else {"mixer"} if "G" in at_8 else set())
    assert c.attn_sink == (family == "sambaywsa")
    if family != "phi4miniflash":
        assert (c.n_head, c.head_dim, c.n_kv_head, c.block_size, c.vocab_size) == (16, 128, 4, 4096, 32000)
        assert (c.norm, c.tie_embeddings, c.attn_bias) == ("rmsnorm", False, False)


def test_the_table_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/architectures.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"
    ]
    for family, ratio, layers, recurrent, _ in rows:
        c = build(family, 8)
        sizes = {"phi4miniflash": (512, 8192), "samba": (2048,)}.get(family, ())
        assert (c.n_embd, drawn(family, 8, *sizes)) == (8 * int(ratio), layers)
        mixers = {"Mamba": "mamba", "Mamba-2": "mamba2", "Gated DeltaNet": "gdn", "none": "attention"}
        assert c.layers[0].mixer == mixers[recurrent]
    assert {row[0] for row in rows} == {"samba", *YOCO} - {*MIXTURES}
    ratios = re.search(r"without embeddings: ([\d, ]+)", page)
    assert ratios is not None
    assert [build(family, 1).n_embd for family in PURE] == [int(r) for r in ratios[1].split(", ")]


def test_samba() -> None:
    c = build("samba", 8)
    assert c.layers == (LayerSpec("mamba"), LayerSpec(window=2048)) * 4
    assert (c.n_embd, c.n_head, c.head_dim, c.n_kv_head, c.position) == (976, 8, 128, 2, "rope")
    assert len(build("samba", 10).layers) == 10, "any depth whose heads divide"


def test_phi4miniflash() -> None:
    c = build("phi4miniflash", 32)
    assert (c.n_embd, c.n_head, c.head_dim, c.n_kv_head, c.intermediate_size) == (2560, 40, 64, 20, 10240)
    assert (c.vocab_size, c.block_size, c.norm, c.tie_embeddings) == (200_064, 8192, "layernorm", True)
    assert (c.attn_bias, c.mlp_bias, c.layers[1].window) == (True, False, 512)


@pytest.mark.parametrize("family", PURE)
def test_pure_recurrent_families(family: str) -> None:
    for depth in (1, 7, 8, 24):
        assert build(family, depth).layers == (LayerSpec(family),) * depth


@pytest.mark.parametrize("family", [*YOCO, "sambayda", "phi4miniflash"])
def test_depths_of_yoco(family: str) -> None:
    for depth in range(4, 49, 4):
        c = build(family, depth)
        assert len(c.layers) == depth
        assert family not in DIFFERENTIAL or c.n_head % c.n_kv_head == c.n_kv_head % 2 == 0
    for depth in (1, 2, 6, 9, 15):
        near = " or ".join(str(d) for d in (depth // 4 * 4, depth // 4 * 4 + 4) if d)
        with pytest.raises(UserError, match=rf"{family} at depth {depth} .* multiple of 4\.\nGive --depth {near} \("):
            build(family, depth)
    assert not any(s.memory or s.shares for s in build(family, 4).layers), "nobody is left to share with"


def test_differential_heads_come_in_pairs() -> None:
    """depth / 4 where that is even."""
    assert {d: build("sambayda", d).n_kv_head for d in DEPTHS} == {8: 2, 12: 4, 16: 4, 20: 4, 24: 6}


def test_rotary_bases_by_window() -> None:
    """0.09 w^1.628: e.g. ln 128 = 4.85203, times 1.628 = 7.89911, e^ = 2694.9, times 0.09 = 242.54."""
    layers = build("sambaywdr", 8).layers
    bases = [None if s.rope_base is None else round(s.rope_base, 2) for s in layers]
    assert bases == [None, 242.54, None, 242.54, None, 68417.08, None, 68417.08]
    assert {s.rope_base for f in YOCO if f != "sambaywdr" for s in build(f, 8).layers} == {None}


def windows(**flags: Any) -> list[int]:
    run, _ = resolve(RunConfig(train_name="x", depth=8, **flags))
    return sorted({s.window for s in model_config(run, 8, None).layers if s.window})


def test_windows_follow_the_command_line() -> None:
    assert windows(train_model="sambayw") == [128, 2048]
    assert windows(train_model="sambayw", ctx_len=32768) == [128, 16384]
    assert windows(train_model="sambayw", ctx_len=32768, swa_len=512) == [512, 16384]
    assert windows(train_model="phi4miniflash", swa_len=64) == [64]
    assert windows(train_model="samba", ctx_len=16384) == [2048]
    base = build("sambaywdr", 8, window=256).layers[1].rope_base
    assert base == pytest.approx(0.09 * 256**1.628) and base != build("sambaywdr", 8).layers[1].rope_base


def notes(**flags: Any) -> tuple[str, ...]:
    return resolve_run(RunConfig(**{"train_name": "x", "depth": 8, **flags}), 1).notes


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ({"train_model": "mamba", "attn_conv": True}, "nothing in mamba reads --attn_conv (no attention)"),
        (
            {"train_model": "transformer", "doc_positions": "continue"},
            "nothing in transformer reads --doc_positions (no --varlen)",
        ),
        ({"train_model": "transformer", "decay": "cosine"}, "nothing in transformer reads --decay (no wsd schedule)"),
        (
            {"train_model": "transformer", "decay_fraction": 0.5},
            "nothing in transformer reads --decay_fraction (no wsd schedule)",
        ),
        (
            {"train_model": "mamba", "yarn_scale": 4.0, "midtrain": True},
            "nothing in mamba reads --yarn_scale (no attention)",
        ),
        ({"train_model": "gdn", "position": "rope"}, "nothing in gdn reads --position (no attention)"),
        (
            {"train_model": "kda", "attn_conv": True, "rope_base": 5e3, "swa_len": 64},
            "nothing in kda reads --swa_len (no windows), --rope_base, --attn_conv (no attention)",
        ),
        (
            {"train_model": "sambay", "rope_base": 5e3},
            "nothing in sambay reads --rope_base (no rotary positions with the model's base)",
        ),
        (
            {"train_model": "sambaywdr", "rope_base": 5e3},
            "nothing in sambaywdr reads --rope_base (no rotary positions with the model's base)",
        ),
        (
            {"sparsity": 32, "top_k": 4, "aux_style": "switch", "aux_gamma": 0.1, "swa_len": 64},
            "nothing in transformer reads --sparsity, --top_k, --aux_style, --aux_gamma (no experts), --swa_len "
            "(no windows)",
        ),
    ],
)
def test_options_that_act_on_no_layer_are_one_note(flags: dict[str, Any], note: str) -> None:
    """ArchScale's launch commands are written for many families at once (D8); each of these was an error."""
    assert notes(**flags) == (note,)


def test_decays_of_wsd_s_have_a_shape() -> None:
    assert not notes(decay="1-sqrt", decay_fraction=0.1, decay_at=["1x", "2x"])


def test_name_tokens_of_attention_are_for_every_family() -> None:
    """Commands of ArchScale have them; so are options that some layer uses, or that change nothing."""
    name = "mup_rbase_nope_ga_qknorm_anorm"
    for family in ("mamba", "sambay", "sambaywdr"):
        assert not notes(train_name=name, train_model=family)
        assert not notes(train_name="rbase", rope_base=640_000.0, train_model=family)
    for flags in (
        {"train_model": "mamba", "position": "none", "attn_conv": False},
        {"train_model": "fox", "attn_conv": True, "position": "rope", "rope_base": 5e3},
        {"train_model": "sambay", "position": "rope", "rope_base": 5e3},
        {"train_model": "samba", "rope_base": 5e3, "attn_conv": True},
    ):
        assert not notes(**flags)


def test_the_context_is_the_familys_unless_given() -> None:
    for family, given, expected in (("sambay", None, 4096), ("phi4miniflash", None, 8192), ("phi4miniflash", 64, 64)):
        run, _ = resolve(RunConfig(train_name="x", train_model=family, ctx_len=given))
        assert model_config(run, 8, None).block_size == expected


def test_options_of_mixers_that_no_layer_has() -> None:
    run, _ = resolve(RunConfig(train_name="x", train_model="gdny", mixer_options={"mamba": {"d_state": 4}}))
    with pytest.raises(UserError, match=r"No layer of gdny uses mamba .* attention, cross_attention, gdn, gmu"):
        model_config(run, 8, None)


def test_every_name_of_archscale_resolves() -> None:
    assert len(set(names())) == 869
    for name in names():
        run, _ = resolve(RunConfig(train_name="x", train_model=name))
        config = model_config(run, run.depth, None)
        expert = [f"s{run.sparsity}", f"k{run.top_k}"] if run.train_model in MIXTURES else []
        assert "_".join([config.family, *expert, f"d{config.depth}"]) == name
    assert {run.removesuffix("_moe") for run in FAMILIES.names()} >= {*AT_EVERY_DEPTH, *YOCO, *PURE} - {*MIXTURES}


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_are_their_dense_family_with_experts(family: str) -> None:
    run, _ = resolve(RunConfig(train_name="x", train_model=f"{family}_s8_k4_d8"))
    config = model_config(run, 16, None)
    assert config.experts == Experts(sparsity=8, top_k=4)
    dense = build(family.removesuffix("_moe").replace("sambay_gqa4", "sambay"), 16)
    assert config.replace(
        family=dense.family, experts=None, layers=tuple(dataclasses.replace(s, experts=False) for s in config.layers)
    ) == dense.replace(n_kv_head=config.n_kv_head)
    assert all(spec.experts for spec in config.layers)


def test_the_list_of_families_with_experts() -> None:
    assert [f for f in FAMILIES.names() if architectures.experts_of(f)] == sorted([*MIXTURES, "llama_520m_moe"])
    assert {(e.sparsity, e.top_k) for f in MIXTURES if (e := architectures.experts_of(f))} == {(1, 2)}
    assert [build("sambay_gqa4_moe", d).n_kv_head for d in DEPTHS] == [4] * 5
