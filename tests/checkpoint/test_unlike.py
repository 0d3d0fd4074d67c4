"""Weights that start in a model that computes something else with them: it is said what differs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.checkpoint import write_exported
from lit_gpt.checkpoint.load import load_weights
from lit_gpt.checkpoint.unlike import unlike
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers

MUP = Multipliers(logit=4.0, residual=0.5, attention=0.125)
FOUR = {"depth": 4, "layers": (LayerSpec(),) * 4}
GDN = (LayerSpec("gdn"), LayerSpec())
MAMBA = (LayerSpec("mamba", ffn=None),) * 2


class Alone:
    """One process without a launcher."""

    is_main, rank, world_size = True, 0, 1

    def barrier(self) -> None:
        """Nobody to wait for."""


def small(**fields: Any) -> ModelConfig:
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48, "block_size": 64}
    layers = (LayerSpec(),) * 2
    return ModelConfig(**{"family": "dense", "depth": 2, **sizes, "layers": layers, "vocab_size": 61} | fields)


def meta_of(config: ModelConfig, multipliers: Multipliers = MUP) -> dict[str, Any]:
    return {"version": 1, "model": config.to_dict(), "multipliers": asdict(multipliers)}


DIFFERENT = {
    "norm_eps": ({}, {"norm_eps": 0.1}, ["norm_eps: 1e-05 -> 0.1"]),
    "heads": ({}, {"n_head": 2, "n_kv_head": 1, "head_dim": 16}, ["head_dim: 8 -> 16", "n_head: 4 -> 2"]),
    "rope_base": ({}, {"rope_base": 500.0}, ["rope_base: 10000.0 -> 500.0"]),
    "position": ({}, {"position": "none"}, ["position: rope -> none"]),
    "window": ({}, {"layers": (LayerSpec(window=8), LayerSpec())}, ["layers.0.window: None -> 8"]),
    "ffn": ({"intermediate_size": 64}, {"logit_softcap": 15.0}, ["logit_softcap: 0.0 -> 15.0"]),
    "yarn": ({}, {"yarn_scale": 4.0}, ["yarn_context: None -> 4096", "yarn_scale: 1.0 -> 4.0"]),
    "gate": (
        {"experts": Experts(2, 2), "layers": (LayerSpec(experts=True),) * 2},
        {"experts": Experts(2, 2, gate="all", aux_gamma=0.5)},
        ["experts.gate: selected -> all"],
    ),
    "two blocks in turn": (
        FOUR | {"share_per_layer": 2},
        {"share_per_layer": 1, "share_group": 2},
        ["share_group: 1 -> 2", "share_per_layer: 2 -> 1"],
    ),
    "lambda": (
        {"layers": (LayerSpec("differential_attention"),) * 2},
        {"mixer_options": {"differential_attention": {"lambda_init": 0.5}}},
        ["mixer_options.differential_attention.lambda_init: None -> 0.5"],
    ),
    "mixer option": (
        {"layers": GDN},
        {"mixer_options": {"gdn": {"negative_eigenvalues": False}}},
        ["mixer_options.gdn.negative_eigenvalues: True -> False"],
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_changes_the_logits_and_no_shape_is_named(name: str) -> None:
    fields, changes, lines = DIFFERENT[name]
    found = unlike(meta_of(small(**fields)), GPT(small(**fields | changes), MUP))
    assert set(lines) <= set(found)
    assert {line.partition(":")[0].split(".")[-1] for line in found} <= {
        *{line.partition(":")[0].split(".")[-1] for line in lines},
        *("n_kv_head", "yarn_truncate", "yarn_windows", "rope_base"),
    }


SAME = {
    "itself": ({}, {}),
    "names and lengths": ({}, {"family": "other", "block_size": 128, "varlen": True, "dropout": 0.1}),
    "a base that is the model's": (
        {"rope_base": 500.0},
        {"rope_base": 500.0, "layers": (LayerSpec(rope_base=500),) * 2},
    ),
    "yarn that is off": ({"yarn_context": 64}, {"yarn_context": 128}),
    "heads that nobody has": ({"layers": MAMBA, "n_head": 1, "n_kv_head": 1, "head_dim": 32}, {"layers": MAMBA}),
    "heads of mixers that have their own": (
        {"layers": (LayerSpec("gla"),) * 2, "n_head": 8},
        {"layers": (LayerSpec("gla"),) * 2, "mixer_options": {"gla": {"heads": 1}}},
    ),
    "a default that is typed": ({"layers": MAMBA}, {"layers": MAMBA, "mixer_options": {"mamba": {"dt_rank": 2}}}),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_logits_is_not_named(name: str) -> None:
    there, here = SAME[name]
    assert unlike(meta_of(small(**there)), GPT(small(**here), MUP)) == []


def test_multipliers_are_compared_as_they_act() -> None:
    plain, root = Multipliers(), Multipliers(attention=8**-0.5, router=3.0)
    assert unlike(meta_of(small(), root), GPT(small(), plain)) == []
    found = unlike(meta_of(small(), MUP), GPT(small(), plain))
    assert found == [
        "multipliers.attention: 0.125 -> 0.353553",
        "multipliers.logit: 4.0 -> 1.0",
        "multipliers.residual: 0.5 -> 1.0",
    ]


def test_a_loss_of_another_model_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--validation true printed a loss of muP's weights without muP's multipliers, and no word about it."""
    trained = GPT(small(), MUP)
    path = write_exported(trained.state_dict(), meta_of(small()), tmp_path / "a.safetensors")
    load_weights(path, GPT(small(), MUP), Alone())
    assert capsys.readouterr().err == ""
    load_weights(path, GPT(small(norm_eps=0.1), MUP), Alone())
    assert capsys.readouterr().err == (
        f"note: the weights of {path} were trained in another model (there -> here): norm_eps: 1e-05 -> 0.1. Where "
        "that is not meant, give the options of that run.\n"
    )


@pytest.mark.parametrize("model", [None, {}, {"family": "x"}, {"later": 1}], ids=str)
def test_a_meta_that_does_not_say_is_no_error(model: Any) -> None:
    assert unlike({"version": 1, "model": model, "multipliers": {}}, GPT(small())) == []
