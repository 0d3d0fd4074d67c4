"""Where --value_embeddings puts tables, and what is said where an option of the baseline cannot act."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import optioned

from lit_gpt.config.cli import parse
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import model_config
from lit_gpt.preflight.resolved_run import resolve_run


def config_of(**options: Any):
    return model_config(RunConfig(vocab_size=61, **options), options["depth"], 4)


@pytest.mark.parametrize(
    "family, depth, tables",
    [
        ("transformer", 8, [1, 3, 5, 7]),
        ("transformer", 3, [0, 2]),
        ("transformerls", 4, [1, 3]),
        ("fox", 4, [1, 3]),
        ("sigmoid", 4, [1, 3]),
        ("sambay", 8, [1, 5]),  # attention with values of its own: windows in 1 and 3, and layer 5
        ("sambayda", 8, [1, 5]),
        ("gdny", 8, [5]),
        ("gla", 4, []),
        ("baseline", 5, [0, 2, 4]),
    ],
)
def test_every_other_layer_with_values_of_its_own_has_a_table(family, depth, tables):
    config = config_of(train_model=family, depth=depth, value_embeddings=True)
    assert [i for i, spec in enumerate(config.layers) if spec.value_embedding] == tables
    off = config_of(train_model=family, depth=depth, value_embeddings=False)
    assert not any(spec.value_embedding for spec in off.layers)


def test_it_acts_beside_another_feed_forward_network():
    config = config_of(train_model="transformer", depth=2, value_embeddings=True, mlp="relu2")
    assert [(spec.ffn, spec.value_embedding) for spec in config.layers] == [("relu2", False), ("relu2", True)]


def test_a_family_without_attention_says_so():
    line = "--train_name x_mup --train_model gla --depth 4 --ar 4 --vocab_size 61 --value_embeddings true"
    assert "nothing in gla reads --value_embeddings (no attention)" in resolve_run(parse(line.split()), 1).notes


def test_a_mixer_that_does_not_know_zero_output_is_refused():
    model = meta_model(optioned("zero_output"))
    for p in model.blocks[1].mixer.parameters():  # type: ignore[union-attr]
        p.role = "matrix"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="The mixer attention has no last projection that could start at zero"):
        count(model)
