"""A config.json with any value under any key is read or refused in words, whatever its class."""

from __future__ import annotations

import pytest
from hf_models import MODELS, small

from lit_gpt.errors import UserError
from lit_gpt.tools._hf_choice import class_of
from lit_gpt.tools._hf_config import config_json, read_config
from lit_gpt.tools.hf import MODEL_TYPES

INFINITE = float("inf"), float("nan"), 10**30
ODD = [None, "x", -1, 0, 1, 2, 3, True, False, [], [1], ["x", 2], {}, {"a": 1}, 1.5, *INFINITE]
MORE = ["rope_parameters", "architectures", "num_local_experts", "qkv_bias", "no_rope_layer_interval"]


@pytest.mark.parametrize("name", [*MODELS, "qwen2"])
def test_any_value_is_read_or_refused(name):
    written = config_json(MODEL_TYPES.load(name), small(**MODELS.get(name, {})))
    assert read_config(class_of(written), written).depth == 2
    for key in [*written, *MORE]:
        without = {k: v for k, v in written.items() if k != key}
        for values in [without, *({**written, key: value} for value in ODD)]:
            try:
                read_config(class_of(values), values)
            except UserError as error:
                assert str(error)
