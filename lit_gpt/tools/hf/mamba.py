"""Mamba (arXiv:2312.00752): a Mamba mixer in every layer and no feed-forward network (--mlp none)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.mixers import mamba, mixer_options
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_config import understood
from lit_gpt.tools._hf_recurrent import check_inner, mamba_layout, mamba_places, rows_of, without_layers
from lit_gpt.tools._hf_values import check_kinds

LAYOUT = mamba_layout("mamba", "MambaForCausalLM", True, ("state_size", "conv_kernel", "expand"), {"ssm_cfg": ({},)})


def places(config: ModelConfig, multipliers: Multipliers) -> list[hf.Place]:
    """See lit_gpt.tools.hf."""
    return mamba_places(config, multipliers, _mixer)


def _mixer(config: ModelConfig, mine: str, theirs: str, residual: float) -> list[hf.Place]:
    options, n = _options(config), config.n_embd
    inner, states = options.expand * n, options.d_state
    names = {
        "conv": "conv1d.weight",
        "conv_bias": "conv1d.bias",
        "dt.weight": "dt_proj.weight",
        "dt_bias": "dt_proj.bias",
        "A_log": "A_log",
        "D": "D",
    }
    rows = [hf.Place(f"{mine}.{ours}", (f"{theirs}.{name}",)) for ours, name in names.items()]
    rows.append(hf.Place(f"{mine}.out.weight", (f"{theirs}.out_proj.weight",), residual))
    if options.joint:
        return rows + [hf.Place(f"{mine}.{m}.weight", (f"{theirs}.{m}.weight",)) for m in ("in_proj", "x_proj")]
    maps = {"in_proj": {"x": inner, "z": inner}, "x_proj": {"dt_low": _rank(config), "B": states, "C": states}}
    for name, parts in maps.items():
        ours = [f"{mine}.{part}.weight" for part in parts]
        rows.append(rows_of(ours, f"{theirs}.{name}.weight", list(parts.values())))
    return rows


def _options(config: ModelConfig) -> mamba.Options:
    return mixer_options(config, 0, mamba.Options)


def _rank(config: ModelConfig) -> int:
    return _options(config).dt_rank or math.ceil(config.n_embd / 16)


def refusals(config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """See lit_gpt.tools.hf."""
    found = config.layers[0].mixer == "mamba" and _options(config).inner_norms
    return ["inner_norms of the mixer"] if found else []


def describe(config: ModelConfig) -> dict[str, Any]:
    """See lit_gpt.tools.hf."""
    options = _options(config)
    sizes = {"state_size": options.d_state, "conv_kernel": options.d_conv, "expand": options.expand}
    return {**sizes, "intermediate_size": options.expand * config.n_embd, "time_step_rank": _rank(config)}


def understand(fields: dict[str, Any], values: Mapping[str, Any]) -> ModelConfig:
    """See lit_gpt.tools.hf."""
    n, rank = fields["n_embd"], values.get("time_step_rank")
    rank = None if rank == "auto" else rank
    check_kinds({"time_step_rank": rank}, {"time_step_rank": "a whole number"})
    options = {
        "d_state": values.get("state_size") or 16,
        "d_conv": values.get("conv_kernel") or 4,
        "expand": values.get("expand") or 2,
        "dt_rank": rank or math.ceil(n / 16),
    }
    check_inner(values, options["expand"], n)
    return understood(LAYOUT, fields, values, mixer_options={"mamba": options}, **without_layers(n))
