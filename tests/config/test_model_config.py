"""ModelConfig: validation in one message, padding, round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "family": "test",
        "depth": 2,
        "n_embd": 32,
        "n_head": 4,
        "head_dim": 8,
        "n_kv_head": 2,
        "intermediate_size": 64,
        "layers": (LayerSpec(),) * 2,
    }
    return ModelConfig(**{**fields, **changes})


def problems_of(**changes: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        config(**changes)
    title, *problems = str(error.value).splitlines()
    assert title.startswith("The model test at depth ")
    return problems


@pytest.mark.parametrize(
    ("vocab", "multiple", "padded"),
    [(32000, 64, 32000), (50257, 64, 50304), (200064, 64, 200064), (65, 64, 128), (65, 1, 65), (2, 64, 64)],
)
def test_the_vocabulary_is_padded_upwards(vocab: int, multiple: int, padded: int) -> None:
    assert config(vocab_size=vocab, padding_multiple=multiple).padded_vocab_size == padded
    assert config().replace(vocab_size=vocab, padding_multiple=multiple).padded_vocab_size == padded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_embd": 0}, "n_embd is 0"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_kv_head": 3}, "n_kv_head is 3; it must be at least 1 and divide n_head = 4"),
        ({"n_kv_head": 0}, "n_kv_head is 0"),
        ({"n_kv_head": 8}, "n_kv_head is 8"),
        ({"head_dim": 7}, "head_dim is 7; it must be positive and, with RoPE, even"),
        ({"head_dim": 0, "position": "none"}, "head_dim is 0"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"padding_multiple": 0}, "padding_multiple is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"rotary_fraction": 0.0}, "rotary_fraction is 0.0"),
        ({"rotary_fraction": 0.5, "head_dim": 2}, "rotary_fraction 0.5 of head_dim 2 leaves RoPE no pair to turn"),
        ({"rotary_fraction": 1.5}, "rotary_fraction is 1.5"),
        ({"yarn_scale": 0.5}, "yarn_scale is 0.5"),
        ({"skip_gain": True}, "skip_gain needs post_norm and decoupled_norm"),
        ({"skip_gain": True, "post_norm": True}, "skip_gain needs post_norm and decoupled_norm"),
        ({"decoupled_norm": True}, "decoupled_norm needs post_norm"),
        ({"post_norm": True, "skip": "none"}, "no skip path to normalise"),
        ({"post_norm": True, "skip": "sum"}, "no skip path to normalise"),
        ({"layers": (LayerSpec(),)}, "1 layers are described but depth is 2"),
        ({"layers": (LayerSpec(), LayerSpec(window=0))}, "windows of layers [1] are below 1"),
        ({"layers": (LayerSpec(shares=0), LayerSpec(shares=1))}, "layers [0, 1] share with a layer"),
        ({"layers": (LayerSpec(), LayerSpec(shares=-1))}, "layers [1] share with a layer"),
    ],
)
def test_each_problem_alone(changes: dict[str, Any], words: str) -> None:
    problems = problems_of(**changes)
    assert len(problems) == 1 and words in problems[0]


def test_all_problems_at_once() -> None:
    found = problems_of(depth=3, n_kv_head=3, head_dim=7, vocab_size=1, decoupled_norm=True)
    assert [p.split(";")[0].split(":")[0] for p in found] == [
        "  - 2 layers are described but depth is 3",
        "  - n_kv_head is 3",
        "  - head_dim is 7",
        "  - vocab_size is 1",
        "  - decoupled_norm needs post_norm",
    ]


def test_what_is_allowed() -> None:
    config(head_dim=7, position="none")
    config(post_norm=True, decoupled_norm=True, skip_gain=True)
    config(skip="none")
    config(layers=(LayerSpec(window=1), LayerSpec(shares=0)))
    config(n_head=4, head_dim=64)  # attention may be wider than the model


def test_replace_validates_again() -> None:
    assert config().replace(n_kv_head=4).n_kv_head == 4
    with pytest.raises(UserError, match="n_kv_head is 3"):
        config().replace(n_kv_head=3)


def test_round_trip_through_json() -> None:
    layers = (LayerSpec("mamba", None), LayerSpec(window=128, shares=0, skip_projection=True))
    made = config(layers=layers, post_norm=True, rope_base=640_000.0, vocab_size=50257, yarn_scale=4.0)
    assert ModelConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
