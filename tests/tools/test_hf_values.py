"""A config.json with any value under any key is read or refused in words, whatever its class."""

from __future__ import annotations

import pytest
from hf_models import MODELS, small
from transformers import AutoConfig

from lit_gpt.errors import UserError
from lit_gpt.tools._hf_choice import class_of
from lit_gpt.tools._hf_config import config_json, read_config
from lit_gpt.tools.hf import MODEL_TYPES

INFINITE = float("inf"), float("nan"), 10**30
ODD = [None, "x", -1, 0, 1, 2, 3, True, False, [], [1], ["x", 2], {}, {"a": 1}, 1.5, *INFINITE]
MORE = ["rope_parameters", "architectures", "num_local_experts", "qkv_bias", "no_rope_layer_interval"]

MIXER_KEYS = {"state_size", "conv_kernel", "expand", "time_step_rank", "num_heads", "head_dim", "n_groups"}


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


@pytest.mark.parametrize("name", [*MODELS, "qwen2"])
def test_what_a_config_json_leaves_out_is_the_default_of_its_class(name):
    """transformers leaves out nothing, but people do."""
    layout, config = MODEL_TYPES.load(name).LAYOUT, AutoConfig.for_model(name)
    for key, (_, default) in layout.options.items():
        if default is not None:
            assert getattr(config, key, default) == default, key  # the two Mambas have no context length
    if layout.rotary:
        rope = config.rope_parameters
        assert rope.get("full_attention", rope)["rope_theta"] == layout.theta  # OLMo 3 has one for each kind of layer
    sizes = {key: getattr(config, key) for key in layout.sizes}
    if name in ("qwen2_moe", "qwen3_next"):  # 60 experts of which 4 are used, and a shared one; a gate on that
        return
    read = read_config(MODEL_TYPES.load(name), sizes | {"model_type": name})
    assert read.layers[0].window == getattr(config, "sliding_window", None)
    if layout.rotary:
        assert (read.n_head, read.n_kv_head) == (config.num_attention_heads, config.num_key_value_heads)
    written = config_json(MODEL_TYPES.load(name), read)
    for key in MIXER_KEYS & written.keys() - layout.options.keys():
        assert written[key] == getattr(config, key), key
