"""Options of mixers from JSON: a wrong type, range or size is an error that says what to type."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest
import torch

from lit_gpt.config.arguments import arguments_of
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import MIXERS, build_mixer, mixer_options
from lit_gpt.scaling.base import Multipliers

SIZES = {"n_embd": 864, "n_head": 8, "head_dim": 108, "n_kv_head": 2, "intermediate_size": 8}
WHOLE, NUMBER = "a whole number of at least 1", "a number above 0"
WRONG: dict[str, list[tuple[str, str, str]]] = {  # mixer -> (options as JSON, what was given, what is allowed)
    "mamba": [
        ('{"d_state": "a"}', 'd_state of the mixer mamba is "a"', WHOLE),
        ('{"d_state": 1.5}', "is 1.5", WHOLE),
        ('{"d_state": true}', "is true", WHOLE),
        ('{"d_state": null}', "is null", WHOLE),
        ('{"d_conv": 1}', "is 1", "a whole number of at least 2"),
        ('{"dt_rank": 0}', "is 0", WHOLE + " or null"),
        ('{"inner_norms": 1}', "is 1", "true or false"),
    ],
    "mamba2": [
        ('{"head_multiple": 0}', "is 0", WHOLE),
        ('{"d_state": [1]}', r"is \[1\]", WHOLE),
        ('{"groups": 7}', "is 7", "does not divide its 32 heads"),
    ],
    "gdn": [
        ('{"heads": "x"}', 'heads of the mixer gdn is "x"', WHOLE + " or null"),
        ('{"heads": -1}', "is -1", WHOLE),
        ('{"key_dim": 0}', "is 0", WHOLE),
        ('{"conv": 1}', "is 1", "of at least 2, or 0 for no convolution"),
        ('{"expand_v": 0.001}', "with key_dim 256 that leaves a head no values", "at least 1/256"),
    ],
    "kda": [('{"rank": -1}', "is -1", WHOLE + " or null"), ('{"expand_v": 0}', "is 0", NUMBER)],
    "deltanet": [('{"conv": -1}', "is -1", "of at least 2"), ('{"heads": 2.0}', "is 2.0", WHOLE)],
    "gla": [
        ('{"gate_divisor": 0}', "is 0", NUMBER),
        ('{"gate_divisor": NaN}', "is NaN", NUMBER),
        ('{"gate_rank": 0}', "is 0", WHOLE),
        ('{"expand_k": -1}', "is -1", NUMBER),
    ],
    "retnet": [
        ('{"rotary_base": -3}', "is -3", "a number of at least 1"),
        ('{"rotary_base": Infinity}', "is Infinity", "a number of at least 1"),
        ('{"heads": 0}', "is 0", WHOLE + " or null"),
        ('{"expand_k": 0.01}', "at width 864 that is 2.16 for each of 4 heads", "at least 0.0186"),
        ('{"heads": 400}', "that is 2.16 for each of 400 heads", "or the option heads smaller"),
    ],
    "differential_attention": [('{"lambda_init": 1}', "is 1", "a number of at least 0 and below 1 or null")],
    "sigmoid_attention": [('{"head_norm": null}', "is null", "true or false")],
}


def build(mixer: str, options: dict[str, Any]) -> torch.nn.Module:
    config = ModelConfig("test", 1, layers=(LayerSpec(mixer),), mixer_options={mixer: options}, **SIZES)
    with torch.device("meta"):
        return build_mixer(config, 0, Multipliers())


@pytest.mark.parametrize(("mixer", "case"), [(mixer, case) for mixer, cases in WRONG.items() for case in cases])
def test_wrong_values(mixer: str, case: tuple[str, str, str]) -> None:
    options, given, allowed = case
    with pytest.raises(UserError, match=rf"option \w+ of the mixer {mixer} is ") as error:
        build(mixer, json.loads(options))
    assert error.match(given) and error.match(allowed) and error.match(r"\(--mixer_options\)\.$")


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("mamba", {"d_state": 1, "d_conv": 2, "dt_rank": None, "inner_norms": True}),
        ("gdn", {"heads": 1, "key_dim": 4, "expand_v": 0.25, "conv": 0}),
        ("kda", {"rank": 1, "expand_v": 2}),
        ("gla", {"gate_divisor": 0.5, "expand_k": 1}),
        ("retnet", {"rotary_base": 1, "expand_k": 0.0186}),
        ("differential_attention", {"lambda_init": 0}),
    ],
)
def test_values_at_the_edge_of_what_is_allowed(mixer: str, options: dict[str, Any]) -> None:
    build(mixer, options)


@pytest.mark.parametrize("mixer", [m for m in MIXERS.names() if hasattr(MIXERS.load(m), "Options")])
def test_every_number_says_what_it_may_be(mixer: str) -> None:
    """And defaults are among it."""
    kind = MIXERS.load(mixer).Options
    hints = get_type_hints(kind, include_extras=True)
    assert [name for name, hint in hints.items() if hint is not bool and "Annotated" not in str(hint)] == []
    defaults = {name: default for name, (_, default) in arguments_of(kind).items()}
    config = ModelConfig("test", 1, layers=(LayerSpec(mixer),), mixer_options={mixer: defaults}, **SIZES)
    assert mixer_options(config, 0, kind) == kind()
