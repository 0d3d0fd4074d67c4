"""Whether weights start in the model that they were trained in: shapes that fit say little of what is computed.

A norm's epsilon, the rotary base, windows, gates and muP's multipliers change every logit, and no shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.nn.mixers import MIXERS, mixer_options
from lit_gpt.scaling.base import Multipliers
from lit_gpt.scaling.plan import difference

# Of ModelConfig and its experts: names, what weights started with, what acts in training only, how documents are
# packed, and what the shapes say already.
OTHER = frozenset({
    *("family", "padding_multiple", "padded_vocab_size", "block_size", "intermediate_size", "ffn_multiple"),
    *("share_per_layer", "share_group", "starts", "zero_output", "dropout", "varlen", "doc_positions", "doc_len"),
    *("aux_style", "aux_gamma", "global_aux", "exact_aux", "router_z_loss", "bias_rate"),
})  # fmt: skip
YARN = frozenset({"yarn_context", "yarn_truncate", "yarn_windows"})  # which say nothing without yarn_scale
# What only layers with heads of their own read, and models that were imported say otherwise.
OF_HEADS = frozenset({"n_head", "n_kv_head", "head_dim", "position"})
WITHOUT_HEADS = frozenset({"mamba", "mamba2"})


def unlike(meta: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Lines "what: there -> here" of the forward pass that a checkpoint's meta describes and that of a model.

    [] where the meta does not say, or says what this version does not know.
    """
    if not isinstance(model, GPT) or "model" not in meta:
        return []
    try:
        there = ModelConfig.from_dict(meta["model"])
        forward = _forward(there, Multipliers(**(meta.get("plan") or meta)["multipliers"]))
    except (TypeError, KeyError, ValueError, AttributeError, UserError):
        return []
    found = difference(forward, _forward(model.config, model.multipliers))
    return [line for line in found if not (line.startswith("mixer_options.") and "None" in line.split())]


def _forward(config: ModelConfig, multipliers: Multipliers) -> dict[str, Any]:
    values = {name: value for name, value in config.to_dict().items() if name not in OTHER}
    headless = {spec.mixer for spec in config.layers} <= WITHOUT_HEADS
    unread = OF_HEADS if headless else frozenset()
    unread |= YARN if config.yarn_scale == 1 else frozenset()
    rotary = config.position == "rope" and not headless
    layers = [{**asdict(spec), "rope_base": config.base_of(spec) if rotary else 0} for spec in config.layers]
    if isinstance(experts := values.get("experts"), dict):
        values["experts"] = {name: value for name, value in experts.items() if name not in OTHER}
    constants = {**asdict(multipliers), "attention": multipliers.attention or config.head_dim**-0.5}
    idle = {"attention"} if headless else set()
    idle |= {"router"} if config.experts is None else set()
    rounded = {name: float(f"{value:.6g}") for name, value in constants.items() if name not in idle}
    kept = {name: value for name, value in values.items() if name not in unread | {"rope_base", "layers"}}
    return {**kept, "mixer_options": _options(config), "layers": dict(enumerate(layers)), "multipliers": rounded}


def _options(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Mixer -> its options with their defaults, but for head_multiple, which shapes tell, and None, which follows."""
    found = {}
    for layer, spec in enumerate(config.layers):
        if kind := getattr(MIXERS.load(spec.mixer), "Options", None):
            options = asdict(mixer_options(config, layer, kind)).items()
            found[spec.mixer] = {k: v for k, v in options if v is not None and k != "head_multiple"}
    return found
