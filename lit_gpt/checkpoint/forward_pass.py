"""The forward pass that weights are for, as values that can be compared.

A norm's epsilon, the rotary base, windows, gates and muP's multipliers change every logit, and no shape. Which fields
do is said beside each of them (config/readers.py), and by the mixers (READS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import read_fields
from lit_gpt.nn.mixers import MIXERS, mixer_options, reads
from lit_gpt.scaling.base import Multipliers


def model_of(meta: Mapping[str, Any]) -> tuple[ModelConfig, Multipliers]:
    """The model of a checkpoint's meta, and the multipliers of its Plan; an imported model has no Plan, only these.

    Raises KeyError, TypeError, ValueError, AttributeError or UserError for what this version does not know.
    """
    return ModelConfig.from_dict(meta["model"]), Multipliers(**(meta.get("plan") or meta)["multipliers"])


def forward_pass(config: ModelConfig, multipliers: Multipliers) -> dict[str, dict[str, Any]]:
    """{"model": name -> value, "multipliers": name -> value}, as they act: equal ones give weights equal logits.

    Layers are "layers.0.window" and so on. What no layer reads is left out, and defaults are written out.
    Raises UserError for a mixer that is not here, or that has not such options.
    """
    by_mixer = {spec.mixer: reads(spec.mixer) for spec in config.layers}
    readers = frozenset[str]().union(*by_mixer.values())
    readers |= {"yarn"} if "attention" in readers and config.yarn_scale != 1 else set()
    readers |= {"experts"} if config.experts else set()
    model = read_fields(config, readers)
    model |= {"experts": config.experts and read_fields(config.experts), "mixer_options": _options(config)}
    # One base for all layers that have it, whether it was the model's or their own.
    turned = [config.position == "rope" and "attention" in by_mixer[spec.mixer] for spec in model.pop("layers")]
    bases = [config.base_of(spec) if turns else None for spec, turns in zip(config.layers, turned)]
    model["rope_base"] = next(filter(None, bases), None)
    for i, (spec, base) in enumerate(zip(config.layers, bases)):
        own = read_fields(spec) | {"rope_base": None if base == model["rope_base"] else base}
        model |= {f"layers.{i}.{name}": value for name, value in own.items()}
    acting = replace(multipliers, attention=multipliers.attention or config.head_dim**-0.5)
    constants = {name: float(f"{value:.6g}") for name, value in read_fields(acting, readers).items()}
    return {"model": model, "multipliers": constants}


def _options(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Mixer -> its options with their defaults."""
    layers = {spec.mixer: i for i, spec in enumerate(config.layers)}
    kinds = {mixer: getattr(MIXERS.load(mixer), "Options", None) for mixer in layers}
    return {mixer: read_fields(mixer_options(config, layers[mixer], kind)) for mixer, kind in kinds.items() if kind}
