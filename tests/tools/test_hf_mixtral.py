"""Mixtral: a mixture of experts in every layer, gates over the selected ones."""

from __future__ import annotations

from typing import Any

import pytest
from hf_models import EVERY, SIZES, reads, refuses, small, theirs, writes
from transformers import MixtralConfig, MixtralForCausalLM

from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert

MIXED = (LayerSpec(experts=True),) * 2
COUNT = {"num_local_experts": 6, "num_experts_per_tok": 2}
WRITTEN: dict[str, dict[str, Any]] = {
    "yarn": {"yarn_scale": 4.0, "head_dim": 64, "block_size": 16384},
    "plain": {},
    "tied": {"tie_embeddings": True},
    "window": {"layers": (LayerSpec(experts=True, window=5),) * 2},
    "three": {"experts": Experts(2, 3)},
    "losses": {"experts": Experts(3, 2, aux_style="entropy", router_z_loss=0.1, global_aux=True)},
    "shared blocks": {"share_per_layer": 1},
    "head_dim": {"head_dim": 16},
}
REFUSED = {
    "sigmoid": ({"gate": "sigmoid"}, "gate sigmoid"),
    "all": ({"gate": "all"}, "gate all"),
    "sqrt_gate": ({"sqrt_gate": True}, r"the square root of the gates \(sqrt_gate\)"),
    "expert choice": ({"routing": "expert_choice", "aux_gamma": 0.0}, "routing expert_choice"),
    "capacity": ({"capacity": 1.5}, r"capacity 1\.5"),
    "bias": ({"bias_rate": 0.01}, r"a bias that experts are selected by \(bias_rate 0\.01\)"),
    "shared": ({"top_k": 3, "shared": True}, "shared True"),
}


@pytest.mark.parametrize("options", [{}, {"sliding_window": 5}, {"tie_word_embeddings": True}], ids=str)
def test_a_mixtral_is_read(options, tmp_path):
    model = theirs(MixtralForCausalLM, MixtralConfig(**SIZES | COUNT | options), tmp_path / "hf")
    config = reads(model, tmp_path / "hf", "mixtral")
    assert config.experts == Experts(sparsity=3, top_k=2)
    assert config.intermediate_size == 2 * SIZES["intermediate_size"]
    assert config.layers[0].window == options.get("sliding_window")


def test_a_number_of_experts_that_we_do_not_have_is_refused(tmp_path):
    config = MixtralConfig(**SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2})
    theirs(MixtralForCausalLM, config, tmp_path / "hf")
    with pytest.raises(UserError, match="5 experts of which 2 are used, which cannot be expressed"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_mixture_is_written(name, tmp_path):
    config = small(**{"layers": MIXED, "experts": Experts(3, 2)} | WRITTEN[name])
    assert isinstance(writes(config, tmp_path / "hf", None), MixtralForCausalLM)


@pytest.mark.parametrize("multipliers", [Multipliers(), Multipliers(router=3.0), EVERY], ids=["1", "router", "every"])
def test_multipliers_are_in_the_weights(multipliers, tmp_path):
    writes(small(layers=MIXED, experts=Experts(3, 2)), tmp_path / "hf", "mixtral", multipliers)


@pytest.mark.parametrize("name", REFUSED)
def test_other_routers_are_refused(name, tmp_path):
    fields, words = REFUSED[name]
    config = small(layers=MIXED, experts=Experts(**{"sparsity": 3, "top_k": 2} | fields))
    refuses(config, tmp_path / "hf", "mixtral", words)


def test_what_mixtral_lacks_is_refused(tmp_path):
    for fields, words in (
        ({"layers": (LayerSpec(experts=True), LayerSpec())}, r"experts False \(layer 1\)"),
        ({"layers": (LayerSpec(), LayerSpec()), "experts": None}, "a model without experts"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"layers": (LayerSpec(ffn="relu2", experts=True),) * 2}, r"ffn relu2 \(layer 0, 1\)"),
    ):
        refuses(small(**{"layers": MIXED, "experts": Experts(3, 2)} | fields), tmp_path / "hf", "mixtral", words)
