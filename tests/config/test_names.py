"""train_name tokens, model names and run names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lit_gpt.config.names import (
    COMBINATIONS,
    TOKENS,
    ModelName,
    NameFields,
    merge,
    read_model_name,
    read_train_name,
    run_name,
)
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError

# ArchScale's token table, as fields of ours.
MEANING: dict[str, dict[str, Any]] = {
    "mup": {"parameterization": "mupp"},
    "ori_mup": {"parameterization": "mup"},
    "super_mup": {"parameterization": "super_mup"},
    "muon": {"optimizer": "muon"},
    "muonh": {"optimizer": "muonh", "parameterization": "hyperp"},
    "muonball": {"optimizer": "muonball"},
    "hadam": {"optimizer": "hadam"},
    "dsca": {"depth_scale": True},
    "v2scale": {"independent_weight_decay": True, "count_embeddings": True},
    "rbase": {"rope_base": 640_000.0},
    "varlen": {"varlen": True},
    "ls": {"label_smoothing": 0.1},
    "bias": {"bias": True},
    "tie": {"tie_embeddings": True},
    "lc": {"layer_configurator": True},
    "postnorm_decouple": {"decoupled_norm": True},
    "skipgain": {"skip_gain": True},
    "qknorm": {"qk_norm": True},
    "anorm": {"attn_norm": True},
    "fnorm": {"ffn_norm": True},
    "nope": {"position": "none"},
    "ga": {"attn_gate": True},
    "noskip": {"skip": "none"},
    "noskip_sum": {"skip": "sum"},
    "midtrain": {"midtrain": True},
    "validation": {"validation": True},
    "wsd": {"schedule": "wsd"},
    "cosine": {"schedule": "cosine"},
}
FIELDS = {f.name: f.default for f in dataclasses.fields(RunConfig)}


def test_the_table_is_complete() -> None:
    assert MEANING.keys() == TOKENS.keys()
    set_by_names = {key for sets in (*TOKENS.values(), *COMBINATIONS.values()) for key in sets}
    assert {key: FIELDS[key] for key in set_by_names} == dict.fromkeys(set_by_names), "None means: not given"


@pytest.mark.parametrize("token", MEANING)
def test_every_token_works_in_every_place(token: str) -> None:
    """ArchScale wants underscores around some: `..._ga` at the end does nothing there (departure D6)."""
    places = {token: (), f"run_{token}": ("run",), f"{token}_run": ("run",), f"a_{token}_b": ("a", "b")}
    for name, labels in places.items():
        assert read_train_name(name) == NameFields(MEANING[token], (token,), labels)


@pytest.mark.parametrize(
    ("name", "fields", "labels"),
    [
        (
            "scaling_mup_tie_rbase_prolong_varlen",
            {"parameterization": "mupp", "tie_embeddings": True, "rope_base": 640_000.0, "varlen": True},
            ("scaling", "prolong"),
        ),
        (
            "v2scale_mup_muonh_ga_qknorm_sgate_shexp",
            {
                "independent_weight_decay": True,
                "count_embeddings": True,
                "parameterization": "hyperp",
                "optimizer": "muonh",
                "attn_gate": True,
                "qk_norm": True,
            },
            ("sgate", "shexp"),
        ),
        ("mup_muon", {"parameterization": "mupp", "optimizer": "muon"}, ()),
        ("hp_sweep_lr6e-4_bs2097152", {}, ("hp", "sweep", "lr6e-4", "bs2097152")),
        ("test_mfu_base_norm_slr", {}, ("test", "mfu", "base", "norm", "slr")),
        ("bsz2M_lr0.01x_wd0.1_gblaux0.01_d8", {}, ("bsz2M", "lr0.01x", "wd0.1", "gblaux0.01", "d8")),
        ("wsd_cosine", {"schedule": "wsd", "decay": "cosine"}, ()),
        ("cosine_x_wsd", {"schedule": "wsd", "decay": "cosine"}, ("x",)),
        ("mamba_varlen", {"varlen": True}, ("mamba",)),
        ("scaling", {}, ("scaling",)),
        ("", {}, ()),
        ("mup_mup", {"parameterization": "mupp"}, ()),
    ],
)
def test_names(name: str, fields: dict[str, Any], labels: tuple[str, ...]) -> None:
    found = read_train_name(name)
    assert found.fields == fields
    assert found.labels == labels


@pytest.mark.parametrize("label", ["amuonx", "stolsen", "resuperb", "xcosinex", "lightning", "bases", "tagatha"])
def test_a_token_inside_a_word_is_a_label(label: str) -> None:
    """ArchScale tests substrings: any word with muon in it changes the optimizer (departure D6)."""
    assert read_train_name(f"run_{label}").labels == ("run", label)


def test_muon_is_not_muonh() -> None:
    assert read_train_name("mup_muon").fields["optimizer"] == "muon"
    assert read_train_name("mup_muonh").fields["optimizer"] == "muonh"
    assert read_train_name("mup_muonball").fields["optimizer"] == "muonball"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mupp", "mup"),
        ("MUP", "mup"),
        ("run_mounh", "muonh"),
        ("qknrom", "qknorm"),
        ("qk_norm", "qknorm"),
        ("run_no_skip", "noskip"),
        ("varlne", "varlen"),
        ("tied", "tie"),
        ("v1scale_mup", "v2scale"),
        ("midtrained", "midtrain"),
        ("supper_mup", "super_mup"),
        ("orimup", "ori_mup"),
        ("post_norm_decouple", "postnorm_decouple"),
        ("postnorm_decoupled", "postnorm_decouple"),
        ("run_noskip_sums_x", "noskip_sum"),
    ],
)
def test_near_misses(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"is not a token but is close to .*'{meant}'.*Type the token exactly"):
        read_train_name(name)


def test_labels_beside_tokens_are_no_near_misses() -> None:
    for name in ("v2scale_a", "x_mup", "noskip_1_sum", "mup_b_tie", "skipgain_v2", "super_run_mup"):
        read_train_name(name)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("mup_ori_mup", "mup", "ori_mup"),
        ("muon_hadam", "muon", "hadam"),
        ("noskip_noskip_sum", "noskip", "noskip_sum"),
    ],
)
def test_tokens_that_disagree(name: str, first: str, second: str) -> None:
    with pytest.raises(UserError, match=f"tokens '{first}' and '{second}' .* disagree on"):
        read_train_name(name)


def merged(train_name: str, **flags: Any) -> dict[str, Any]:
    return merge(flags, read_train_name(train_name), train_name)


def test_flags_and_tokens_join() -> None:
    assert merged("mup", qk_norm=None, depth=8) == {"parameterization": "mupp", "qk_norm": None, "depth": 8}
    assert merged("mup", parameterization="mupp")["parameterization"] == "mupp", "saying it twice is fine"
    assert merged("plain", parameterization="mup") == {"parameterization": "mup"}


@pytest.mark.parametrize(
    ("name", "flag", "value", "token"),
    [
        ("x_mup", "parameterization", "sp", "'mup'"),
        ("qknorm", "qk_norm", False, "'qknorm'"),
        ("mup_muonh", "parameterization", "mupp", "'muonh'"),
        ("rbase_tie", "rope_base", 1e4, "'rbase'"),
        ("mup_wsd_cosine", "decay", "linear", "'cosine' and 'wsd'"),
    ],
)
def test_a_flag_that_disagrees_with_a_token(name: str, flag: str, value: Any, token: str) -> None:
    with pytest.raises(UserError, match=f"--{flag} {value} disagrees with the token {token} of --train_name {name!r}"):
        merged(name, **{flag: value})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer", ModelName("transformer")),
        ("transformer_d16", ModelName("transformer", 16)),
        ("transformer_gqa4_h2", ModelName("transformer_gqa4_h2")),
        ("transformer_gqa4_moe_s8_k4_d16", ModelName("transformer_gqa4_moe", 16, 8, 4)),
        ("transformer_gqa4_h2_moe_s64_k1", ModelName("transformer_gqa4_h2_moe", None, 64, 1)),
        ("sambay2_d16", ModelName("sambay2", 16)),
        ("phi4miniflash_d32", ModelName("phi4miniflash", 32)),
        ("transformer_d", ModelName("transformer_d")),
        ("transformer_dx8", ModelName("transformer_dx8")),
    ],
)
def test_model_names(name: str, expected: ModelName) -> None:
    assert read_model_name(name) == expected


def test_run_names() -> None:
    assert run_name("scaling_mup", "transformer", 16, 4096) == "scaling_mup_transformer_d16_ctx4096"
    full = run_name("n", "transformer_gqa4_h2_moe", 8, 32768, moe=(8, 4), ar=64, swa=128, ramp=4)
    assert full == "n_transformer_gqa4_h2_moe_s8_k4_d8_ar64_ctx32768_swa128_bramp4"
    assert run_name("n", "samba", 8, 4096, swa=512) == "n_samba_d8_ctx4096_swa512"
