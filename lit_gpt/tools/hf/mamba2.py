"""Mamba-2 (arXiv:2405.21060): a Mamba-2 mixer in every layer and no feed-forward network (--mlp none)."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import mamba2, mixer_options
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_recurrent import check_inner, mamba_layout, mamba_places, rows_of, without_layers

# config.json's name -> the mixer's option, the class's default; and the heads, which follow from them here.
OPTIONS = {
    "state_size": ("d_state", 128),
    "conv_kernel": ("d_conv", 4),
    "expand": ("expand", 2),
    "head_dim": ("head_dim", 64),
    "n_groups": ("groups", 8),
}
HEADS = ("num_heads", 128)
NEUTRAL = {
    "time_step_limit": ([0.0, inf], [0.0, {"__float__": "Infinity"}]),  # as transformers 5 writes it
}
LAYOUT = mamba_layout("mamba2", "Mamba2ForCausalLM", False, (*OPTIONS, HEADS[0]), NEUTRAL)


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    return mamba_places(config, multipliers, _mixer)


def _mixer(config: ModelConfig, mine: str, theirs: str, residual: float) -> list[hf.Place]:
    options, heads = _options(config), mamba2.heads_of(config, 0)
    inner, states = heads * options.head_dim, options.groups * options.d_state
    names = {
        "conv": "conv1d.weight",
        "conv_bias": "conv1d.bias",
        "dt_bias": "dt_bias",
        "A_log": "A_log",
        "D": "D",
        "norm.weight": "norm.weight",
    }
    rows = [hf.Place(f"{mine}.{ours}", (f"{theirs}.{name}",)) for ours, name in names.items()]
    rows.append(hf.Place(f"{mine}.out.weight", (f"{theirs}.out_proj.weight",), residual))
    if options.joint:
        return [*rows, hf.Place(f"{mine}.in_proj.weight", (f"{theirs}.in_proj.weight",))]
    parts = {"z": inner, "x": inner, "B": states, "C": states, "dt": heads}
    ours = [f"{mine}.{part}.weight" for part in parts]
    return [*rows, rows_of(ours, f"{theirs}.in_proj.weight", list(parts.values()))]


def _options(config: ModelConfig) -> mamba2.Options:
    return mixer_options(config, 0, mamba2.Options)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    if config.layers[0].mixer != "mamba2":
        return []
    options, heads = _options(config), mamba2.heads_of(config, 0)
    wide, wanted = heads * options.head_dim, options.expand * config.n_embd
    if wide == wanted:
        return []
    return [f"{wide} channels where expand times n_embd is {wanted} (its head_multiple or head_dim must be smaller)"]


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    options = _options(config)
    own = {theirs: getattr(options, ours) for theirs, (ours, _) in OPTIONS.items()}
    return {**own, HEADS[0]: mamba2.heads_of(config, 0)}


def understand(fields: dict[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    options = {ours: values.get(theirs) or default for theirs, (ours, default) in OPTIONS.items()}
    heads, n = values.get(HEADS[0]) or HEADS[1], fields["n_embd"]
    check_inner(values, options["expand"], n)
    if heads * options["head_dim"] != options["expand"] * n:
        raise UserError(
            f"config.json asks for {heads} heads of {options['head_dim']}, which are not expand {options['expand']} "
            f"times hidden_size {n}, so it cannot be expressed."
        )
    mixer = {"mamba2": {**options, "head_multiple": 1}}
    return understood(LAYOUT, fields, values, mixer_options=mixer, **without_layers(n))
