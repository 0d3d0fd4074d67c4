"""Rotary positions in a config.json: rope_theta and rope_scaling (transformers 4), rope_parameters (transformers 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn import rotary
from lit_gpt.tools._hf_values import check_kinds

ROPE_FIELDS = {"rope_base", "yarn_scale", "yarn_context", "yarn_truncate"}  # of ModelConfig
ROPE_KEYS = {"rope_theta", "rope_scaling", "rope_parameters"}  # of config.json
UNUSED_BASE = 10_000.0  # where no layer has rotary positions; it must be a number
KINDS = {
    "rope_theta": "a number",
    "factor": "a number",
    "original_max_position_embeddings": "a whole number",
    "truncate": "true or false",
}


def rope_reasons(config: ModelConfig, unrotated: bool) -> list[str]:
    """What of the layers' rotary bases one rope_theta cannot express; ours may be another in every layer.

    unrotated: layers may be without rotary positions.
    """
    bases = {config.base_of(spec) for spec in config.layers} - ({0} if unrotated else set())
    found = [f"rope_base {' and '.join(f'{b:g}' for b in sorted(bases))} in different layers"] if len(bases) > 1 else []
    return found + ([] if 0 not in bases else ["layers without rotary positions (rope_base 0)"])


def rope_keys(config: ModelConfig) -> dict[str, Any]:
    """As transformers 4 spells it; 5 reads that too."""
    yarn = _yarn(config) if config.yarn_scale != 1 else None
    bases = [config.base_of(spec) for spec in config.layers]
    return {"rope_theta": next(filter(None, bases), UNUSED_BASE), "rope_scaling": yarn}


def _yarn(config: ModelConfig) -> dict[str, Any]:
    """rope_scaling with our YaRN."""
    return {
        "rope_type": "yarn",
        "factor": config.yarn_scale,
        "original_max_position_embeddings": config.yarn_context,
        "attention_factor": rotary.attention_factor(config),
        "beta_fast": rotary.FAST_ROTATIONS,
        "beta_slow": rotary.SLOW_ROTATIONS,
        "truncate": config.yarn_truncate,
    }


def with_rope(config: ModelConfig, values: Mapping[str, Any], theta: float) -> ModelConfig:
    """The rotary base and YaRN of a config.json. theta: the class's default base.

    Raises UserError for what ModelConfig cannot express.
    """
    given = _asked_for(values, theta)
    check_kinds(given, KINDS)
    kind = given.pop("rope_type")
    config = config.replace(rope_base=float(given.pop("rope_theta")))
    expected: dict[str, Any] = {}
    if kind == "yarn":
        config = config.replace(
            yarn_scale=float(given.get("factor", 1)),
            yarn_truncate=bool(given.get("truncate", True)),  # transformers rounds unless told not to, by null too
            yarn_context=int(given.get("original_max_position_embeddings") or config.block_size),
        )
        rotary.inverse_frequencies(config)  # raises where the ramp does not fit
        expected = _yarn(config)
        given = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True} | given
    elif kind != "default":
        raise UserError(f"config.json asks for rope_type {kind}, which cannot be expressed: only default and yarn are.")
    expected["partial_rotary_factor"] = config.rotary_fraction
    strange = [f"{k} {v}" for k, v in given.items() if v is not None and v != expected.get(k)]
    if strange:
        raise UserError(f"config.json asks for RoPE ({kind}) with {', '.join(strange)}, which cannot be expressed.")
    return config


def _asked_for(values: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The one RoPE of a config.json, with its rope_type and rope_theta.

    Raises UserError where rope_scaling and rope_parameters are both there and differ: transformers 4 reads the first
    alone, and 5 the second where the first is not there.
    """
    base, found = values.get("rope_theta") or theta, []
    for key in ("rope_scaling", "rope_parameters"):
        rope = dict(values.get(key) or {})
        if rope:
            kind = rope.pop("type", None)
            found.append({**rope, "rope_type": rope.get("rope_type") or kind or "default"})
    both = [{"rope_theta": base} | {k: v for k, v in rope.items() if v is not None} for rope in found]
    if len(both) > 1 and both[0] != both[1]:
        raise UserError(
            f"config.json has rope_scaling {values['rope_scaling']} and rope_parameters {values['rope_parameters']}, "
            "which differ. Remove the one that the model was not trained with."
        )
    return {"rope_theta": base, "rope_type": "default"} | (found[0] if found else {})
