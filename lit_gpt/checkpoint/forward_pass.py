"""The forward pass that weights are for, as values that can be compared.

A norm's epsilon, the rotary base, windows, gates and muP's multipliers change every logit, and no shape. Which fields
do is said beside each of them (config/readers.py), and by the mixers (READS_HEADS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import EXPERTS, HEADS, YARN, read_fields
from lit_gpt.nn.mixers import MIXERS, mixer_options, reads_heads
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
    heads = {spec.mixer for spec in config.layers if reads_heads(spec.mixer)}
    there = [(HEADS, heads), (YARN, heads and config.yarn_scale != 1), (EXPERTS, config.experts)]
    readers = [reader for reader, found in there if found]
    turned = heads if config.position == "rope" else ()
    bases = [config.base_of(spec) if spec.mixer in turned else None for spec in config.layers]
    base = next(filter(None, bases), None)  # of all layers that have it, whether it was the model's or their own
    model = read_fields(config, *readers) | {"rope_base": base, "mixer_options": _options(config)}
    model["experts"] = config.experts and read_fields(config.experts)
    for i, (spec, own) in enumerate(zip(model.pop("layers"), bases)):
        layer = read_fields(spec) | {"rope_base": None if own == base else own}
        model |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    acting = replace(multipliers, attention=multipliers.attention or config.head_dim**-0.5)
    constants = {name: float(f"{value:.6g}") for name, value in read_fields(acting, *readers).items()}
    return {"model": model, "multipliers": constants}


def _options(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Mixer -> its options with their defaults."""
    layers = {spec.mixer: i for i, spec in enumerate(config.layers)}
    kinds = {mixer: getattr(MIXERS.load(mixer), "Options", None) for mixer in layers}
    return {mixer: read_fields(mixer_options(config, layers[mixer], kind)) for mixer, kind in kinds.items() if kind}
