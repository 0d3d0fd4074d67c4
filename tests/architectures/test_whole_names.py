"""A model from a whole name, as Config.from_name makes one in ArchScale and litgpt."""

from __future__ import annotations

import pytest

from lit_gpt.architectures import build, from_name
from lit_gpt.config import BaseHyperparameters, Config, RunConfig
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.errors import UserError


def test_a_whole_name_is_a_family_at_a_depth() -> None:
    assert from_name("sambay_d16") == build("sambay", 16)
    changed = from_name("transformer_gqa4_moe_s8_k4_d8", qk_norm=True)
    assert changed.experts == Experts(sparsity=8, top_k=4) and changed.qk_norm
    assert isinstance(changed, Config) and Config is ModelConfig
    assert RunConfig().base_hps == BaseHyperparameters()


@pytest.mark.parametrize(("name", "said"), [("sambay", "has no depth"), ("sambaya_d8", "Unknown model family")])
def test_a_name_that_is_none_says_what_to_write(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_name(name)
